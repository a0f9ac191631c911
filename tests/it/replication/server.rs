//! One PostgreSQL server for one test: started in a directory of its own, stopped and removed on drop.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use strangler::cluster::Binaries;
use strangler::plan::{LinkTemplate, Variables};
use strangler::postgres::{Server, Session, SessionRole};

use crate::support::wait::{Patience, SOON};

/// The user `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// The password of every role that has one.
pub(crate) const PASSWORD: &str = "correct horse";

#[derive(Debug)]
pub(crate) struct OneServer {
    directory: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

/// The links of these tests hold no variables.
#[derive(Debug)]
struct NoVariables;

impl Variables for NoVariables {
    fn variable(&self, _name: &str) -> Option<String> {
        None
    }

    fn file(&self, _path: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn command(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn binaries() -> PathBuf {
    Binaries::find().unwrap_or_else(|error| panic!("{error}")).bin
}

impl OneServer {
    pub(crate) fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("strangler-test-").tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { directory, port, child: None };
        server.own(server.path(""));
        let made = command(binaries().join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(server.path("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
             wal_level = logical\nmax_wal_senders = 10\nmax_replication_slots = 10\nlog_min_messages = warning\n",
            server.path("").display()
        );
        server.append("data/postgresql.conf", &settings);
        server.launch();
        server
    }

    pub(crate) fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut postgres = command(binaries().join("postgres"));
        postgres.arg("-D").arg(self.path("data")).stdout(Stdio::null()).stderr(log).process_group(0);
        self.child = Some(postgres.spawn().unwrap());
    }

    /// A file in the server's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        let before = fs::read_to_string(self.path(name)).unwrap_or_default();
        self.write(name, &(before + text));
    }

    /// Writes a file that the server may read.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        self.own(self.path(name));
    }

    pub(crate) fn own(&self, path: impl AsRef<Path>) {
        if geteuid().is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mode = if path.as_ref().is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Stops it at once, as a crash would.
    pub(crate) fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, Signal::QUIT).unwrap();
            child.wait().unwrap();
        }
    }

    /// A link over the unix socket, with more parameters.
    pub(crate) fn link(&self, more: &str) -> String {
        format!("host={} port={} dbname=postgres {more}", self.path("").display(), self.port)
    }

    /// A link over TCP, with more parameters.
    pub(crate) fn tcp_link(&self, host: &str, more: &str) -> String {
        format!("host={host} port={} dbname=postgres connect_timeout=20 {more}", self.port)
    }

    /// Runs statements as the superuser, over the unix socket, once the server is there.
    pub(crate) async fn run(&self, sql: &str) {
        let session = self.superuser().await;
        session.batch_execute("SET search_path = public").await.unwrap();
        session.batch_execute(sql).await.expect(sql);
    }

    /// One value, as text.
    pub(crate) async fn value(&self, sql: &str) -> String {
        value(&self.superuser().await, sql).await
    }

    pub(crate) async fn superuser(&self) -> Session {
        let server = server(&self.link("user=postgres"), SessionRole::Admin);
        let mut patience = Patience::new(SOON);
        loop {
            match server.connect("test").await {
                Ok(session) => return session,
                Err(error) if error.is_retryable() && !patience.is_over() => pause().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Waits until a query says `t`.
    pub(crate) async fn wait_until(&self, sql: &str) {
        let session = self.superuser().await;
        let mut patience = Patience::new(SOON);
        while value(&session, sql).await != "t" {
            assert!(!patience.is_over(), "never true: {sql}");
            pause().await;
        }
    }
}

/// Between two looks at a condition.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

impl Drop for OneServer {
    fn drop(&mut self) {
        self.crash();
    }
}

pub(crate) fn server(link: &str, role: SessionRole) -> Server {
    Server::new("monolith", LinkTemplate::new(link), role, Arc::new(NoVariables))
}

/// The first value of the first row, as text; empty for NULL.
pub(crate) async fn value(session: &Session, sql: &str) -> String {
    let rows = session.simple_query(sql).await.expect(sql);
    let row = rows.iter().find_map(|message| {
        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
        Some(row)
    });
    row.expect(sql).get(0).unwrap_or_default().to_owned()
}
