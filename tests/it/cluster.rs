//! Servers of our own: fresh, restartable, and gone without a trace.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use strangler::cluster::{Binaries, Cluster, ClusterError, LocalCluster, Options, StopMode};

use crate::support::cluster::{Pair, connect, launch, launch_with, try_connect};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until, until_blocking};

#[tokio::test]
async fn clusters_are_fresh_and_apart() {
    let pair = Pair::launch().await;
    let (monolith, service) = (pair.monolith().await, pair.service().await);
    for client in [&monolith, &service] {
        client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, x text)").await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1, E'a\\nb'), (2, NULL)").await.unwrap();
    }
    let side = |client| Side { client, query: "TABLE t" };
    assert_eq!(assert_same(side(&monolith), side(&service)).await, 2);
    service.batch_execute("INSERT INTO t VALUES (3, 'c')").await.unwrap();
    let renamed = Side { client: &service, query: "SELECT id AS key, x FROM t WHERE id < 3" };
    assert_eq!(assert_same(side(&monolith), renamed).await, 2);
    assert_ne!(pair.monolith.port(), pair.service.port());
}

#[tokio::test]
async fn a_cluster_has_the_settings_that_the_mirror_needs_and_those_asked_for() {
    let options =
        Options::default().set("max_prepared_transactions", "7").set("cluster_name", "o'clock \\ x");
    let cluster = launch_with(options);
    let client = connect(&cluster.socket_url("postgres")).await;
    for (name, wanted) in [
        ("wal_level", "logical"),
        ("synchronous_commit", "on"),
        ("max_replication_slots", "40"),
        ("max_prepared_transactions", "7"),
        ("cluster_name", "o'clock \\ x"),
        ("server_encoding", "UTF8"),
        ("TimeZone", "UTC"),
    ] {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), wanted, "{name}");
    }
    let row = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap();
    assert_eq!(u32::try_from(row.get::<_, i32>(0)).unwrap(), cluster.version_num());
}

#[tokio::test]
async fn a_cluster_demands_its_password_unless_told_otherwise() {
    let cluster = LocalCluster::launch(Options::default()).unwrap();
    connect(&cluster.admin_url()).await;
    for wrong in ["", "guessed"] {
        assert!(try_connect(&cluster.url_as("postgres", wrong, "postgres")).await.is_err(), "{wrong:?}");
    }
    let password = cluster.admin_url().split(['@', ':']).nth(2).unwrap().to_owned();
    assert_eq!(password.len(), 32);
    assert!(!format!("{cluster:?}").contains(&password));
}

// On several threads, so that the dropped session can close while a stop is being waited for.
#[tokio::test(flavor = "multi_thread")]
async fn data_and_port_survive_every_way_to_stop() {
    let mut cluster = launch();
    let url = cluster.admin_url();
    connect(&url).await.batch_execute("CREATE TABLE kept (mode text)").await.unwrap();
    for mode in [StopMode::Smart, StopMode::Fast, StopMode::Immediate] {
        let client = connect(&url).await;
        client.execute("INSERT INTO kept VALUES ($1)", &[&format!("{mode:?}")]).await.unwrap();
        if mode == StopMode::Smart {
            drop(client);
        }
        cluster.stop(mode).unwrap();
        assert!(cluster.pid().is_none());
        assert!(try_connect(&url).await.is_err(), "{mode:?}");
        cluster.start().unwrap();
    }
    let client = connect(&url).await;
    let row = client.query_one("SELECT string_agg(mode, ' ') FROM kept", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "Smart Fast Immediate");
}

#[tokio::test]
async fn a_server_that_was_killed_starts_again() {
    let mut cluster = launch();
    let url = cluster.admin_url();
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE kept (x int)").await.unwrap();
    kill_process(cluster.pid().unwrap(), Signal::KILL).unwrap();
    until("the session to break", SOON, async || client.simple_query("SELECT 1").await.err()).await;
    cluster.start().unwrap();
    connect(&url).await.batch_execute("TABLE kept").await.unwrap();
}

#[tokio::test]
async fn a_frozen_server_is_stopped_and_removed() {
    let cluster = launch();
    let (pid, dir) = (cluster.pid().unwrap(), cluster.dir().to_owned());
    let client = connect(&cluster.admin_url()).await;
    client.batch_execute("SELECT 1").await.unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    drop(cluster);
    assert!(test_kill_process(pid).is_err());
    assert!(!dir.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_server_leaves_no_shared_memory() {
    let cluster = launch();
    let lock_file = fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    let segment = lock_file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let segments = || fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let is_there = || segments().lines().any(|line| line.split_whitespace().nth(1) == Some(segment.as_str()));
    assert!(is_there());
    kill_process(cluster.pid().unwrap(), Signal::KILL).unwrap();
    drop(cluster);
    until_blocking("the killed server's memory to go", SOON, || (!is_there()).then_some(()));
}

/// A server's traces: what must be gone once its owner is gone.
struct Traces {
    dir: PathBuf,
    port: u16,
    pid: Pid,
}

impl Traces {
    fn write(cluster: &LocalCluster, file: &Path) {
        let pid = cluster.pid().unwrap().as_raw_nonzero();
        let text = format!("{}\n{}\n{pid}\n", cluster.dir().display(), cluster.port());
        // In one step, so that the reader never sees half of it.
        let draft = file.with_extension("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, file).unwrap();
    }

    fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let mut lines = text.lines();
        let dir = PathBuf::from(lines.next()?);
        let port = lines.next()?.parse().ok()?;
        Some(Self { dir, port, pid: Pid::from_raw(lines.next()?.parse().ok()?)? })
    }

    fn left(&self) -> Vec<&'static str> {
        let gone = PathBuf::from(format!("{}.gone", self.dir.display()));
        let mut left = Vec::new();
        if self.dir.exists() || gone.exists() {
            left.push("folder");
        }
        if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            left.push("port");
        }
        // A dead process that nobody has collected yet has an empty command line.
        let command = fs::read(format!("/proc/{}/cmdline", self.pid.as_raw_nonzero())).unwrap_or_default();
        if !command.is_empty() {
            left.push("process");
        }
        left
    }
}

const TRACES_FILE: &str = "STRANGLER_TEST_TRACES";

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "started by nothing_is_left_after_the_owner_is_killed, in a process of its own"]
fn owner_of_a_cluster_that_waits_to_be_killed() {
    let file = PathBuf::from(std::env::var_os(TRACES_FILE).expect("run by another test"));
    let cluster = launch();
    Traces::write(&cluster, &file);
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_after_the_owner_is_killed() {
    for frozen in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("traces");
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cluster::owner_of_a_cluster_that_waits_to_be_killed", "--ignored"])
            .env(TRACES_FILE, &file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let traces = until_blocking("the other process to start a server", SOON, || Traces::read(&file));
        assert_eq!(traces.left(), ["folder", "port", "process"]);
        if frozen {
            kill_process(traces.pid, Signal::STOP).unwrap();
        }
        owner.kill().unwrap();
        owner.wait().unwrap();
        until_blocking("the server of the killed process to go", SOON, || {
            traces.left().is_empty().then_some(())
        });
    }
}

#[test]
fn what_a_killed_run_and_its_guard_left_is_removed_by_the_next() {
    let cluster = launch();
    let left = cluster.dir().with_file_name("cluster-leftover-of-a-test");
    fs::create_dir_all(left.join("data/base")).unwrap();
    fs::write(left.join("data/base/1"), "x").unwrap();
    fs::write(left.join("lock"), "").unwrap();
    // A process id that is in use again, by somebody else: it must not be stopped.
    fs::write(left.join("server.pid"), std::process::id().to_string()).unwrap();
    let other = launch();
    assert!(!left.exists());
    assert!(cluster.dir().exists() && other.dir().exists());
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let error = LocalCluster::launch(Options::default().set("no_such_setting", "1")).unwrap_err();
    assert!(matches!(error, ClusterError::Ended { .. }), "{error}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
    let error = LocalCluster::launch(Options::default().set("cluster_name", "a\nb")).unwrap_err();
    assert!(matches!(error, ClusterError::BadSetting { .. }), "{error}");
}

#[tokio::test]
async fn every_installed_major_version_starts() {
    let all = Binaries::find_all().unwrap();
    assert!(all.is_sorted_by(|a, b| a.version.major > b.version.major), "{all:?}");
    for binaries in all {
        let cluster = launch_with(Options { binaries: Some(binaries.clone()), ..Options::default() });
        connect(&cluster.admin_url()).await.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(cluster.version_num(), binaries.version.num());
    }
}

/// Needs a container engine and its image, and fails without.
#[cfg(feature = "containers")]
#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_data_and_port_as_a_local_cluster_does() {
    let mut cluster =
        strangler::cluster::ContainerCluster::launch("17").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cluster.version_num() / 10_000, 17);
    let url = cluster.admin_url();
    connect(&url).await.batch_execute("CREATE TABLE kept (x int)").await.unwrap();
    for mode in [StopMode::Smart, StopMode::Fast, StopMode::Immediate] {
        cluster.stop(mode).unwrap();
        assert!(try_connect(&url).await.is_err(), "{mode:?}");
        cluster.start().unwrap();
        connect(&url).await.batch_execute("TABLE kept").await.unwrap();
    }
}

#[tokio::test]
async fn a_copy_of_a_stopped_cluster_has_what_that_had_and_a_life_of_its_own() {
    let mut first = launch_with(Options::default().set("cluster_name", "first"));
    let setup = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    connect(&first.admin_url()).await.batch_execute(setup).await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')";
    connect(&first.admin_url()).await.batch_execute(slot).await.unwrap();
    assert!(matches!(first.copied(), Err(ClusterError::Running { .. })));
    first.stop(StopMode::Fast).unwrap();
    let copies = [first.copied().unwrap(), first.copied().unwrap()];
    assert_ne!(copies[0].port(), copies[1].port());
    for copy in &copies {
        // Through the socket as well, which is in the copy's own folder.
        for url in [copy.admin_url(), copy.socket_url("postgres")] {
            let client = connect(&url).await;
            client.batch_execute("INSERT INTO t SELECT max(id) + 1 FROM t").await.unwrap();
        }
        let found = "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'kept'), \
                     current_setting('cluster_name')";
        let row = connect(&copy.admin_url()).await.query_one(found, &[]).await.unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), (3_i64, 1_i64, "first".to_owned()));
    }
    drop(copies);
    first.start().unwrap();
    let rows = connect(&first.admin_url()).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 1, "and what is copied stays as it was");
}
