//! A receiver of a server's whole log, which the server takes for a standby.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use strangler::cluster::{Cluster, LocalCluster};
use tokio_postgres::Client;

use super::wait::{SOON, until};

/// Ends with the test.
pub struct Follower {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Follower {
    /// One that flushes what it gets at once, as a standby does.
    pub async fn standby(cluster: &LocalCluster, on: &Client) -> Self {
        let follower = Self::start(cluster, &["--synchronous"]);
        let flushed = "SELECT bool_and(flush_lsn IS NOT NULL) FROM pg_stat_replication \
                       WHERE application_name = 'pg_receivewal'";
        until("the standby follows", SOON, async || {
            on.query_one(flushed, &[]).await.unwrap().get::<_, Option<bool>>(0)?.then_some(())
        })
        .await;
        follower
    }

    /// One that flushes at the end of each segment, as an archiver does.
    pub fn archiver(cluster: &LocalCluster) -> Self {
        Self::start(cluster, &[])
    }

    fn start(cluster: &LocalCluster, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(cluster.binaries().bin.join("pg_receivewal"));
        command.arg("-D").arg(folder.path()).args(["--no-loop", "-d"]).arg(cluster.url("postgres"));
        let child = command.args(arguments).stderr(Stdio::null()).spawn().unwrap();
        Self { child, _folder: folder }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
