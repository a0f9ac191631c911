//! A PostgreSQL server of a test's own, on a unix socket, stopped when dropped.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio_postgres::{Client, NoTls};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// `nobody`: servers refuse to run as root.
const UID: u32 = 65534;

pub(crate) struct Server {
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts a server with these settings on top of `wal_level=logical` and `fsync=off`.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::os::unix::fs::chown(dir.path(), Some(UID), Some(UID)).unwrap();
        let data = dir.path().join("data");
        run(
            &["initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            &data,
        );
        let mut options =
            format!("-c listen_addresses= -k {} -c wal_level=logical -c fsync=off", dir.path().display());
        for setting in settings {
            options = format!("{options} -c {setting}");
        }
        let log = dir.path().join("log").display().to_string();
        run(&["pg_ctl", "-w", "-l", &log, "-o", &options, "start"], &data);
        Self { dir }
    }

    pub(crate) async fn connect(&self, user: &str, database: &str) -> Client {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.dir.path())
            .user(user)
            .dbname(database)
            .connect(NoTls)
            .await
            .unwrap();
        tokio::spawn(async move {
            // A connection that ends with the server is no news: the client's own calls tell.
            let _ = connection.await;
        });
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        run(&["pg_ctl", "-w", "-m", "immediate", "stop"], &self.dir.path().join("data"));
    }
}

fn run(command: &[&str], data: &Path) {
    let program: PathBuf = Path::new(BIN).join(command[0]);
    let mut process = Command::new(program);
    process.arg("-D").arg(data).args(&command[1..]).uid(UID).gid(UID).current_dir("/");
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(process.status().unwrap().success(), "{command:?}");
}
