//! One test for each defect that was found from outside: its name is what must hold.

use std::cell::RefCell;
use std::process::{Child, Command, ExitStatus, Stdio};

use tokio_postgres::Client;

use crate::support::cluster::Pair;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until, until_blocking};

/// A monolith, a service, and a plan with one slice `one`.
struct Split {
    pair: Pair,
    folder: tempfile::TempDir,
}

impl Split {
    /// `tables` is what the plan says of the slice's tables, in YAML's flow style.
    async fn launch(tables: &str, setup: &str) -> (Self, Client, Client) {
        let pair = Pair::launch().await;
        let folder = tempfile::tempdir().unwrap();
        let plan = format!(
            "version: 1\nplan: split\nmonolith: {{ url: \"${{MONOLITH}}\" }}\n\
             services: {{ service: {{ url: \"${{SERVICE}}\" }} }}\n\
             slices: {{ one: {{ service: service, tables: {tables} }} }}\n"
        );
        std::fs::write(folder.path().join("plan.yaml"), plan).unwrap();
        let (monolith, service) = (pair.monolith().await, pair.service().await);
        monolith.batch_execute(setup).await.unwrap();
        (Self { pair, folder }, monolith, service)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strangler"));
        command
            .args(arguments)
            .env_clear()
            .env("MONOLITH", self.pair.monolith_url())
            .env("SERVICE", self.pair.service_url())
            .stdin(Stdio::null())
            .current_dir(self.folder.path());
        command
    }

    fn provision(&self) {
        let output = self.command(&["provision", "plan.yaml"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn mirror(&self, failpoint: Option<&str>) -> Mirror {
        let log = self.folder.path().join("mirror.log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command = self.command(&["mirror", "plan.yaml", "--rows-per-piece", "100"]);
        if let Some(name) = failpoint {
            command.env("STRANGLER_FAILPOINT", name);
        }
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Mirror { child: RefCell::new(child), log }
    }
}

/// A mirror process; ends with the test.
struct Mirror {
    child: RefCell<Child>,
    log: std::path::PathBuf,
}

impl Mirror {
    /// Everything written so far is applied and every table live.
    async fn caught_up(&self, monolith: &Client, service: &Client) {
        let row = monolith.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        let position: String = row.get(0);
        let sql = "SELECT (SELECT bool_and(state = 'live') FROM strangler.mirror_table) \
                     AND (SELECT bool_and(applied_lsn >= $1::text::pg_lsn) FROM strangler.stream)";
        until("the mirror catches up", SOON, async || {
            assert!(self.exited().is_none(), "the mirror ended:\n{}", self.log());
            let row = service.query_one(sql, &[&position]).await.unwrap();
            row.get::<_, Option<bool>>(0).unwrap_or(false).then_some(())
        })
        .await;
    }

    fn exited(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().unwrap()
    }

    /// Waits until it has ended by itself or by its kill point, and returns what it said.
    fn ended(&self) -> (ExitStatus, String) {
        let status = until_blocking("the mirror ends", SOON, || self.exited());
        (status, self.log())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child.borrow());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

async fn assert_equal(monolith: &Client, left: &str, service: &Client, right: &str) {
    assert_same(Side { client: monolith, query: left }, Side { client: service, query: right }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_read_again_when_it_entered_the_filter_of_a_live_table_takes_no_event_twice() {
    let setup = "CREATE TABLE t (id int, kind text, big text, PRIMARY KEY (id, kind));
        ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT n, 'out', repeat(n::text, 4000) FROM generate_series(1, 9) n";
    let (split, monolith, service) = Split::launch("{ t: { where: { kind: in } } }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    // The values that the updates leave alone are not in the WAL: they are read when all of this has happened.
    for sql in [
        "UPDATE t SET kind = 'in' WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET kind = 'in' WHERE id = 2",
        "UPDATE t SET kind = 'out' WHERE id = 2",
        "UPDATE t SET kind = 'in' WHERE id = 3",
        "UPDATE t SET id = 30 WHERE id = 3",
        "UPDATE t SET kind = 'in' WHERE id = 4",
        "UPDATE t SET id = 40 WHERE id = 4",
        "INSERT INTO t VALUES (4, 'in', repeat('another', 4000))",
        "UPDATE t SET kind = 'in' WHERE id = 5",
    ] {
        monolith.batch_execute(sql).await.unwrap();
    }
    let mirror = split.mirror(Some("apply-committed"));
    mirror.ended();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "SELECT * FROM t WHERE kind = 'in'", &service, "TABLE t").await;
    monolith.batch_execute("UPDATE t SET big = 'short' WHERE id = 40; TRUNCATE t").await.unwrap();
    monolith.batch_execute("INSERT INTO t VALUES (5, 'in', 'new')").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
    until("read keys are forgotten", SOON, async || {
        let row = service.query_one("SELECT count(*) FROM strangler.piece", &[]).await.unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_an_administrator_do_not_change_what_values_mean() {
    let setup = r"CREATE TABLE t (id text PRIMARY KEY, texts text[], numbers int[], doc xml, f float8);
        INSERT INTO t VALUES ('a\b', '{NULL,x}', '{1,NULL}', '<a/>and text', 0.1::float8 + 0.2)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    for (client, name) in [(&monolith, Pair::MONOLITH), (&service, Pair::SERVICE)] {
        for setting in [
            "array_nulls = off",
            "standard_conforming_strings = off",
            "xmloption = document",
            "default_transaction_isolation = serializable",
            "extra_float_digits = -5",
            "idle_session_timeout = 500",
            "statement_timeout = 500",
        ] {
            let sql = format!("ALTER DATABASE {name} SET {setting}");
            client.batch_execute(&sql).await.unwrap();
        }
    }
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let sql = r"INSERT INTO t SELECT 'c\' || n, '{NULL,x}', '{1,NULL}', '<a/>and text', 1/3::float8
            FROM generate_series(1, 300) n;
        UPDATE t SET texts = '{y,NULL}', id = 'd\e' WHERE id = 'a\b'";
    monolith.batch_execute(sql).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_ranges_hold_as_many_rows_as_they_should() {
    let setup =
        "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5000); ANALYZE t";
    let (split, _monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(Some("round-ended"));
    mirror.ended();
    let sql = "SELECT DISTINCT rows FROM strangler.piece WHERE kind = 'range'";
    let rows: Vec<i64> = service.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_column_that_leaves_the_replica_identity_stops_the_mirror() {
    let setup = "CREATE TABLE t (id int UNIQUE, kind text, PRIMARY KEY (id, kind));
        INSERT INTO t VALUES (1, 'in'), (2, 'in'), (3, 'out')";
    let (split, monolith, service) = Split::launch("{ t: { where: { kind: in } } }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let sql = "ALTER TABLE t REPLICA IDENTITY USING INDEX t_id_key; UPDATE t SET kind = 'out' WHERE id = 2";
    monolith.batch_execute(sql).await.unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("column kind has left the replica identity"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_and_added_again_before_others_stops_the_mirror() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t VALUES (1, 'a', 'b')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let sql = "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a text DEFAULT 'other'; INSERT INTO t VALUES (2)";
    monolith.batch_execute(sql).await.unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("dropped and added again"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_no_longer_carries_everything_is_refused_at_the_start() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)";
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let publication = "ALTER PUBLICATION strangler_split_one";
    for (breaking, healing, words) in [
        ("DROP TABLE u", "ADD TABLE u", "has not the table u"),
        (
            "SET (publish = 'insert')",
            "SET (publish = 'insert, update, delete, truncate')",
            "every kind of change",
        ),
        ("SET (publish_via_partition_root = false)", "SET (publish_via_partition_root = true)", "every kind"),
    ] {
        monolith.batch_execute(&format!("{publication} {breaking}")).await.unwrap();
        let (status, log) = split.mirror(None).ended();
        assert_eq!(status.code(), Some(3), "{breaking}: {log}");
        assert!(log.contains(words), "{log}");
        monolith.batch_execute(&format!("{publication} {healing}")).await.unwrap();
    }
    split.mirror(None).caught_up(&monolith, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_read_only_for_a_while_is_waited_for() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let sql = "ALTER DATABASE service SET default_transaction_read_only = on;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'strangler mirror one'";
    service.batch_execute(sql).await.unwrap();
    monolith.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    until("the mirror says what it waits for", SOON, async || {
        assert!(mirror.exited().is_none(), "the mirror ended:\n{}", mirror.log());
        mirror.log().contains("read-only").then_some(())
    })
    .await;
    service.batch_execute("ALTER DATABASE service RESET default_transaction_read_only").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
}
