//! A server in a container, for those who have a container engine and no PostgreSQL, or want to see the tool work with
//! the official image.
//!
//! Slower to start than a [`LocalCluster`](super::LocalCluster), and a process that is killed leaves its container to
//! the engine.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use testcontainers::core::{ContainerPort, ExecCommand};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use super::home::random_password;
use super::local::draw_port;
use super::{Cluster, ClusterError, Result, SETTINGS, SUPERUSER, StopMode, connection_url};

/// The port inside the container.
const PORT: u16 = 5432;

/// The image makes its data directory first, and may have to be fetched before that is counted.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// As long as a local server is given.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(50);

/// A server in a container of the image `postgres`, with a port of its own. Dropping it removes the container.
pub struct ContainerCluster {
    engine: Engine,
    container: Option<ContainerAsync<GenericImage>>,
    host: String,
    port: u16,
    password: String,
    version_num: u32,
}

/// Without the password.
impl fmt::Debug for ContainerCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerCluster")
            .field("id", &self.container.as_ref().map(|container| container.id()))
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl ContainerCluster {
    /// Starts a server from the image `postgres:TAG`.
    ///
    /// # Errors
    /// [`ClusterError::Container`] when there is no engine, no such image, or no server in time.
    pub fn launch(tag: &str) -> Result<Self> {
        let engine = Engine::new()?;
        let (password, port) = (random_password()?, draw_port());
        let settings = SETTINGS.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
        let request = GenericImage::new("postgres", tag)
            .with_env_var("POSTGRES_PASSWORD", &password)
            .with_cmd(settings)
            // A fixed port, because the engine would draw another one at each start.
            .with_mapped_port(port, ContainerPort::Tcp(PORT));
        let (container, host) = engine.run(async {
            let container = request.start().await.map_err(|error| failed("start", error))?;
            let host = container.get_host().await.map_err(|error| failed("tell the address of", error))?;
            Ok::<_, ClusterError>((container, host.to_string()))
        })?;
        let container = Some(container);
        let mut cluster = Self { engine, container, host, port, password, version_num: 0 };
        cluster.version_num = cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// Waits for the first session over TCP, which the image's own preparations do not offer, and returns
    /// `server_version_num`.
    fn wait_until_ready(&self) -> Result<u32> {
        let url = self.admin_url();
        let ask = async || {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            let connection = tokio::spawn(connection);
            let row = client.query_typed_one("SELECT current_setting('server_version_num')", &[]).await;
            connection.abort();
            Ok::<String, tokio_postgres::Error>(row?.get(0))
        };
        let tries = usize::try_from(READY_TIMEOUT.as_millis() / POLL.as_millis()).unwrap_or(usize::MAX);
        let text = self.engine.run(async {
            let every = ConstantBuilder::new().with_delay(POLL).with_max_times(tries);
            let answer = tokio::time::timeout(READY_TIMEOUT, ask.retry(every)).await;
            answer.map_err(|error| failed("bring up in time", error))?.map_err(|error| failed("reach", error))
        })?;
        text.parse().map_err(|error| failed("read the version of", error))
    }

    fn container(&self) -> Result<&ContainerAsync<GenericImage>> {
        self.container.as_ref().ok_or_else(|| failed("find", std::io::Error::other("it was removed")))
    }
}

impl Cluster for ContainerCluster {
    fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, &self.password, database)
    }

    fn url_as(&self, role: &str, password: &str, database: &str) -> String {
        connection_url(role, password, &self.host, self.port, database)
    }

    fn version_num(&self) -> u32 {
        self.version_num
    }

    fn stop(&mut self, mode: StopMode) -> Result<()> {
        let container = self.container()?;
        self.engine.run(async {
            let running =
                || async { container.is_running().await.map_err(|error| failed("ask about", error)) };
            if !running().await? {
                return Ok(());
            }
            // The server is process 1. That ends the command as well, so its result says nothing.
            let kill = match mode {
                StopMode::Smart => "kill -TERM 1",
                StopMode::Fast => "kill -INT 1",
                StopMode::Immediate => "kill -QUIT 1",
            };
            let _ = container.exec(ExecCommand::new(["sh", "-c", kill])).await;
            let stopped = tokio::time::timeout(STOP_TIMEOUT, async {
                while running().await? {
                    tokio::time::sleep(POLL).await;
                }
                Ok(())
            });
            stopped.await.map_err(|error| failed("stop in time", error))?
        })
    }

    fn start(&mut self) -> Result<()> {
        let container = self.container()?;
        self.engine.run(async { container.start().await.map_err(|error| failed("start", error)) })?;
        self.wait_until_ready().map(|_| ())
    }
}

impl Drop for ContainerCluster {
    fn drop(&mut self) {
        if let Some(container) = self.container.take() {
            let _ = self.engine.run(async { container.rm().await.map_err(|error| failed("remove", error)) });
        }
    }
}

/// Where the conversation with the engine runs: a runtime of its own, always entered from a thread of its own and never
/// waited for, so that callers may be inside another runtime.
struct Engine(Option<Runtime>);

impl Engine {
    fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self(Some(runtime.map_err(|error| failed("be used for", error))?)))
    }

    /// Runs work to its end.
    fn run<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let Some(runtime) = &self.0 else {
            return Err(failed("find", std::io::Error::other("it was removed")));
        };
        std::thread::scope(|scope| match scope.spawn(|| runtime.block_on(work)).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn failed(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClusterError {
    ClusterError::Container { what, source: source.into() }
}
