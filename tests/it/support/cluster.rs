//! Servers for tests.

use std::time::Instant;

use strangler::cluster::{Auth, Cluster, ClusterError, LocalCluster, Options};
use strangler::name::quote_ident;
use tokio_postgres::{Client, NoTls};

use super::prepared::prepared;
use super::wait::server_started_in;

/// A server with the usual settings, which lets everyone in without a password.
pub fn launch() -> LocalCluster {
    launch_with(Options::default())
}

/// The usual settings, to be added to.
pub fn options() -> Options {
    Options::default()
}

/// As [`launch`], with settings or an installation of the test's own.
pub fn launch_with(options: Options) -> LocalCluster {
    started(|| LocalCluster::launch(Options { auth: Auth::Trust, ..options }))
}

fn started(launch: impl FnOnce() -> Result<LocalCluster, ClusterError>) -> LocalCluster {
    let start = Instant::now();
    let launched = launch();
    server_started_in(start.elapsed());
    launched.unwrap_or_else(|error| panic!("{error}"))
}

/// A monolith and one service, each on a server of its own.
pub struct Pair {
    pub monolith: LocalCluster,
    pub service: LocalCluster,
}

impl Pair {
    /// The monolith's database.
    pub const MONOLITH: &str = "monolith";
    /// The service's database.
    pub const SERVICE: &str = "service";

    /// Two servers with an empty database on each.
    pub async fn launch() -> Self {
        prepared("empty databases", async || Self::of(launch(), launch(), "").await).await
    }

    /// Two more servers, with what these hold. They must be stopped.
    pub fn copied(&self) -> Self {
        let copy = |cluster: &LocalCluster| started(|| cluster.copied());
        Self { monolith: copy(&self.monolith), service: copy(&self.service) }
    }

    /// As [`Self::launch`], on servers that run already; `service_options` are those of its CREATE DATABASE.
    pub async fn of(monolith: LocalCluster, service: LocalCluster, service_options: &str) -> Self {
        create_database(&monolith, Self::MONOLITH).await;
        let sql = format!("CREATE DATABASE {} {service_options}", quote_ident(Self::SERVICE));
        connect(&service.admin_url()).await.batch_execute(&sql).await.unwrap();
        Self { monolith, service }
    }

    pub fn monolith_url(&self) -> String {
        self.monolith.url(Self::MONOLITH)
    }

    pub fn service_url(&self) -> String {
        self.service.url(Self::SERVICE)
    }

    /// A superuser's session in the monolith's database.
    pub async fn monolith(&self) -> Client {
        connect(&self.monolith_url()).await
    }

    /// A superuser's session in the service's database.
    pub async fn service(&self) -> Client {
        connect(&self.service_url()).await
    }
}

/// Creates an empty database.
pub async fn create_database(cluster: &dyn Cluster, name: &str) {
    let client = connect(&cluster.admin_url()).await;
    client.batch_execute(&format!("CREATE DATABASE {}", quote_ident(name))).await.unwrap();
}

/// A session. It ends when the client is dropped or the server goes.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap_or_else(|error| panic!("no connection: {error:?}"))
}

/// As [`connect`], for servers that may refuse.
pub async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // The end of the connection shows at the client, whose next statement fails.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}
