//! A whole split on local clusters: the workload's monolith, one cluster that holds both services, a plan file, and
//! the real binary run against them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use strangler::cluster::{Binaries, Cluster, LocalCluster, Options, StopMode};
use tokio_postgres::{Client, Config};

use super::cluster::{connect, create_database, launch_with};
use super::tables::{Side as TableSide, assert_same};
use super::toll::Toll;
use super::wait::{LONG, Look, until_blocking, until_there};
use super::writers::{Ledger, PLAN, Side, Table};

/// Whether a service is past a position with everything done, and where it stands: applied, landed and built.
const CAUGHT_UP_SQL: &str = "
SELECT (SELECT bool_and(state = 'live') FROM strangler.mirror_table)
   AND (SELECT bool_and(applied_lsn >= $1::text::pg_lsn) FROM strangler.stream)
   AND NOT EXISTS (SELECT 1 FROM strangler.deferred WHERE done_at IS NULL),
       concat_ws(' ', (SELECT string_agg(least(applied_lsn, $1::text::pg_lsn)::text, ',') FROM strangler.stream),
         (SELECT count(*) FROM strangler.piece), (SELECT count(*) FROM strangler.part),
         (SELECT string_agg(state, ',' ORDER BY source_table) FROM strangler.mirror_table),
         (SELECT count(*) FROM strangler.deferred WHERE done_at IS NULL))";

/// The clusters, the plan and the binary's environment.
pub struct Bench {
    pub monolith: LocalCluster,
    pub services: LocalCluster,
    folder: tempfile::TempDir,
    runs: std::cell::Cell<u32>,
    /// What was done to the mirrors and servers of this bench.
    pub toll: Arc<Toll>,
}

/// A mirror process.
pub struct Mirror {
    child: Child,
    log: PathBuf,
    toll: Arc<Toll>,
}

impl Bench {
    const MONOLITH: &'static str = "monolith";

    /// Servers of the version that every test uses; the monolith's has these settings.
    pub async fn launch(settings: &[(&str, &str)]) -> Self {
        let binaries = Binaries::find().unwrap_or_else(|error| panic!("{error}"));
        Self::launch_on(&binaries, &binaries, settings).await
    }

    /// As [`Self::launch`], each side with an installation of its own.
    pub async fn launch_on(monolith: &Binaries, services: &Binaries, settings: &[(&str, &str)]) -> Self {
        let on =
            |binaries: &Binaries| Options { binaries: Some(binaries.clone()), ..super::cluster::options() };
        let options = settings.iter().fold(on(monolith), |options, (name, value)| options.set(name, value));
        let (monolith, services) = (launch_with(options), launch_with(on(services)));
        create_database(&monolith, Self::MONOLITH).await;
        for service in ["left", "right"] {
            create_database(&services, service).await;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plan.yaml"), PLAN).unwrap();
        let (runs, toll) = (std::cell::Cell::new(0), Arc::default());
        Self { monolith, services, folder, runs, toll }
    }

    /// Where the application writes.
    pub fn application(&self) -> Config {
        self.monolith.url(Self::MONOLITH).parse().unwrap()
    }

    /// The binary with the environment that the plan needs, and no other.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strangler"));
        command
            .args(arguments)
            .env_clear()
            .env("MONOLITH_URL", self.monolith.url(Self::MONOLITH))
            .stdin(Stdio::null())
            .current_dir(self.folder.path());
        for service in ["left", "right"] {
            let url = self.services.url(service);
            command.env(format!("{}_ADMIN_URL", service.to_uppercase()), &url);
            command.env(format!("{}_APPLY_URL", service.to_uppercase()), &url);
        }
        command
    }

    /// Runs the binary to its end and expects success.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "strangler {arguments:?}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    /// Starts a mirror in the background, with small pieces so that both kinds occur.
    pub fn mirror(&self, failpoint: Option<&str>, arguments: &[&str]) -> Mirror {
        self.mirror_sized(failpoint, &[&["--rows-per-piece", "400"], arguments].concat())
    }

    /// Starts a mirror in the background, with pieces of the size that it chooses itself.
    pub fn mirror_sized(&self, failpoint: Option<&str>, arguments: &[&str]) -> Mirror {
        self.runs.set(self.runs.get() + 1);
        let log = self.folder.path().join(format!("mirror-{}.log", self.runs.get()));
        let mut all = vec!["mirror", "plan.yaml", "--log-level", "debug"];
        all.extend(arguments);
        let mut command = self.command(&all);
        if let Some(failpoint) = failpoint {
            command.env("STRANGLER_FAILPOINT", failpoint);
        }
        let file = File::create(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Mirror { child, log, toll: Arc::clone(&self.toll) }
    }

    /// Crashes a server and starts it again.
    pub fn restart(&mut self, monolith: bool) {
        let server = if monolith { &mut self.monolith } else { &mut self.services };
        server.stop(StopMode::Immediate).unwrap();
        server.start().unwrap();
        self.toll.restarts.up();
    }

    pub async fn source(&self) -> Client {
        connect(&self.monolith.url(Self::MONOLITH)).await
    }

    pub async fn target(&self, service: &str) -> Client {
        connect(&self.services.url(service)).await
    }

    /// Waits until every table is live and everything written so far is applied.
    pub async fn caught_up(&self) {
        let source = self.source().await;
        let row = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        let position: String = row.get(0);
        for service in ["left", "right"] {
            let target = self.target(service).await;
            until_there(&format!("{service} is live and past {position}"), LONG, async || {
                let row = target.query_one(CAUGHT_UP_SQL, &[&position]).await.unwrap();
                let there = row.get::<_, Option<bool>>(0).unwrap_or(false);
                if there { Look::There(()) } else { Look::At(row.get(1)) }
            })
            .await;
        }
    }

    /// Proves both sides equal: by the ledger of acknowledged writes, and by an ordered dump of every table.
    pub async fn assert_equal(&self, ledger: &Ledger) {
        let source = self.source().await;
        ledger.assert_verified(&source, Side::Monolith, &Table::ALL).await;
        for (service, tables) in [("left", &Table::LEFT[..]), ("right", &Table::RIGHT[..])] {
            let target = self.target(service).await;
            ledger.assert_verified(&target, Side::Service, tables).await;
            for table in tables {
                let (left, right) = (table.query(Side::Monolith), table.query(Side::Service));
                assert_same(
                    TableSide { client: &source, query: &left },
                    TableSide { client: &target, query: &right },
                )
                .await;
            }
        }
    }
}

impl Mirror {
    /// The most memory that it has had resident, in kB.
    pub fn peak_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What it wrote so far, for messages.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        until_blocking("the mirror ends", limit, || child.try_wait().unwrap())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        if signal == rustix::process::Signal::STOP {
            self.toll.freezes.up();
        }
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.toll.kills.up();
    }

    /// Stops it in good order: interrupted, with nothing left half done.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait(LONG);
        assert_eq!(status.code(), Some(130), "a clean stop: {status}\n{}", self.log());
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // The clusters end with the test; a mirror must not outlive it either.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
