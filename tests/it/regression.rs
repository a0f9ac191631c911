//! One test for each defect that was found from outside: its name is what must hold.

use tokio_postgres::Client;

use crate::support::cluster::Pair;
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

async fn assert_equal(monolith: &Client, left: &str, service: &Client, right: &str) {
    assert_same(Side { client: monolith, query: left }, Side { client: service, query: right }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_read_again_when_it_entered_the_filter_of_a_live_table_takes_no_event_twice() {
    let setup = "CREATE TABLE t (id int, kind text, big text, PRIMARY KEY (id, kind));
        ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t SELECT n, 'out', repeat(n::text, 4000) FROM generate_series(1, 9) n;
        CREATE EXTENSION ltree; CREATE TABLE u (place ltree, kind text, big text, PRIMARY KEY (place, kind));
        ALTER TABLE u ALTER big SET STORAGE EXTERNAL; INSERT INTO u VALUES ('a.b', 'out', repeat('u', 4000))";
    let tables = "{ t: { where: { kind: in } }, u: { where: { kind: in } } }";
    let (split, monolith, service) = Split::launch(tables, setup).await;
    for client in [&monolith, &service] {
        // As change data capture makes it: our own tables are published with all others.
        client.batch_execute("CREATE PUBLICATION capture FOR ALL TABLES").await.unwrap();
    }
    split.provision();
    for client in [&monolith, &service] {
        let bare = "SELECT coalesce(string_agg(c.oid::regclass::text, ' '), '') FROM pg_class c
            WHERE relnamespace = 'strangler'::regnamespace AND relkind = 'r' AND relreplident <> 'f'
            AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)";
        let bare: String = client.query_one(bare, &[]).await.unwrap().get(0);
        assert_eq!(bare, "", "nothing identifies the rows of these");
    }
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
        "UPDATE u SET kind = 'in'",
        "TRUNCATE u",
        "INSERT INTO u VALUES ('a.c', 'in', 'new')",
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
    assert_equal(&monolith, "TABLE u", &service, "TABLE u").await;
    let armed = split.run("arm", &[]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_the_mirror_waits_for_in_the_service_is_told_and_no_reader_waits_behind_its_truncate() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let told = async |words: &str| {
        until(words, SOON, async || {
            let sql = "SELECT phase || ' ' || coalesce(detail, '') FROM strangler.mirror_process";
            let said: String = service.query_one(sql, &[]).await.unwrap().get(0);
            (said.starts_with("waiting") && said.contains(words)).then_some(())
        })
        .await;
    };
    let holder = split.pair.service().await;
    holder.batch_execute("SET application_name = 'a report'; BEGIN; SELECT FROM t FOR UPDATE").await.unwrap();
    monolith.batch_execute("UPDATE t SET v = 'c' WHERE id = 1").await.unwrap();
    told("(a report) holds a lock that the mirror has waited for").await;
    holder.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;

    holder.batch_execute("BEGIN; SELECT FROM t").await.unwrap();
    monolith
        .batch_execute("INSERT INTO t VALUES (3, 'd'); TRUNCATE t; INSERT INTO t VALUES (4, 'e')")
        .await
        .unwrap();
    told("a TRUNCATE waits while table t is in use: process").await;
    service.batch_execute("SET lock_timeout = '5s'; SELECT FROM t").await.expect("no reader waits behind it");
    holder.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
    mirror.stop();
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
        let (status, log) = split.mirror(None).ended();
        assert_eq!(status.code(), Some(3), "what it left out does not come with the option: {log}");
        assert!(log.contains("--rebuild"), "{log}");
        let mirror = split.mirror_with(None, &["--rebuild"]);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
    }
    monolith.batch_execute(&format!("{publication} DROP TABLE u; INSERT INTO u VALUES (1)")).await.unwrap();
    let (status, log) = split.mirror(None).ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("it lacks u"), "{log}");
    monolith.batch_execute(&format!("{publication} ADD TABLE u")).await.unwrap();
    let (status, log) = split.mirror(None).ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("--retry u"), "what changed meanwhile is not in the stream: {log}");
    split.mirror_with(None, &["--retry", "u"]).caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE u", &service, "TABLE u").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_read_only_for_a_while_is_waited_for() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    // As a host of databases does when a disk runs full.
    for sql in [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'strangler mirror one'",
    ] {
        service.batch_execute(sql).await.unwrap();
    }
    monolith.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    until("the mirror says what it waits for", SOON, async || {
        assert!(mirror.exited().is_none(), "the mirror ended:\n{}", mirror.log());
        mirror.log().contains("read-only").then_some(())
    })
    .await;
    for sql in ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"] {
        service.batch_execute(sql).await.unwrap();
    }
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_new_slot_waits_for_is_said_and_shown_by_status() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let forgotten = split.pair.monolith().await;
    forgotten
        .batch_execute("SET application_name = 'forgotten'; BEGIN; INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let mirror = split.mirror(None);
    until("the mirror says whom it waits for", SOON, async || {
        assert!(mirror.exited().is_none(), "the mirror ended:\n{}", mirror.log());
        mirror.log().contains("(forgotten, database monolith), open for").then_some(())
    })
    .await;
    until("status shows it", SOON, async || {
        split.run("status", &[]).stdout.contains("(forgotten, database").then_some(())
    })
    .await;
    forgotten.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rows_may_break_waits_again_when_a_table_is_copied_again() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, n int CONSTRAINT t_code UNIQUE);
        CREATE UNIQUE INDEX code ON t (code); ALTER TABLE t REPLICA IDENTITY USING INDEX code;
        CREATE TABLE u (id int PRIMARY KEY, n int CONSTRAINT leans REFERENCES t (n), note text);
        INSERT INTO t SELECT g, 'c' || g, g FROM generate_series(1, 300) g;
        INSERT INTO u SELECT g, g, 'long enough' FROM generate_series(1, 300) g;
        ALTER TABLE u ADD CONSTRAINT short CHECK (length(note) < 5) NOT VALID";
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", setup).await;
    split.provision();
    let keys = "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint \
                WHERE conrelid IN ('t'::regclass, 'u'::regclass) AND contype <> 'n'";
    for order in [&[][..], &["--retry", "t"], &["--retry", "u"], &["--rebuild"]] {
        let mirror = split.mirror_with(None, order);
        mirror.caught_up(&monolith, &service).await;
        until("everything that waited stands", SOON, async || {
            let waiting = "SELECT FROM strangler.deferred WHERE done_at IS NULL";
            service.query(waiting, &[]).await.unwrap().is_empty().then_some(())
        })
        .await;
        assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
        assert_equal(&monolith, "TABLE u", &service, "TABLE u").await;
        assert_equal(&monolith, keys, &service, keys).await;
        mirror.stop();
    }
    service.batch_execute("CREATE TABLE mine (n int CONSTRAINT by_hand REFERENCES t (n))").await.unwrap();
    let (status, log) = split.mirror_with(None, &["--retry", "t"]).ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("ALTER TABLE \"public\".\"mine\" DROP CONSTRAINT \"by_hand\";"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_domain_that_was_never_validated_stops_no_row() {
    let setup = "CREATE DOMAIN amount AS int; CREATE TABLE t (id int PRIMARY KEY, v amount, note text);
        INSERT INTO t VALUES (1, -1), (2, 2); ALTER DOMAIN amount ADD CONSTRAINT positive CHECK (value > 0) NOT VALID";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    let ended = split.run("provision", &[]);
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert!(ended.stderr.contains("constraint positive of domain amount (left-out)"), "{}", ended.page());
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    monolith.batch_execute("UPDATE t SET note = 'v is left alone'").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_be_refused_is_refused_before_the_rows_that_are_there_go() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, a int, b int, g int GENERATED ALWAYS AS (a + 1) STORED);
        CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON t TO reader; GRANT USAGE ON SCHEMA public TO reader;
        INSERT INTO t SELECT i, i, -i FROM generate_series(1, 5) i";
    let (mut split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let swap = "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b";
    let secured = "ALTER TABLE t ENABLE ROW LEVEL SECURITY";
    split.change_plan(
        "{ url: \"${MONOLITH}\" }",
        "{ admin: \"${MONOLITH}\", read: \"${READER}\", apply: \"${MONOLITH}\" }",
    );
    let reader = split.pair.monolith_url().replace("postgres@", "reader@");
    split.lead("READER", &reader);
    monolith.batch_execute("GRANT USAGE ON SCHEMA strangler TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA strangler TO reader").await.unwrap();
    let (revoked, granted) = (
        "REVOKE SELECT ON t FROM reader",
        "run on the monolith: GRANT SELECT ON \"public\".\"t\" TO \"reader\"; then",
    );
    for (sql, words) in
        [(revoked, granted), (secured, "row-level security"), (swap, "the monolith as (b + 1)")]
    {
        monolith.batch_execute(sql).await.unwrap();
        for copy in [&["--retry", "t"][..], &["--rebuild"]] {
            let (_, log) = split.mirror_with(None, copy).ended();
            assert!(log.contains(words), "{copy:?}: {log}");
            let kept: i64 = service.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
            assert_eq!(kept, 5, "{copy:?}: {log}");
        }
        let undone = "GRANT SELECT ON t TO reader; ALTER TABLE t DISABLE ROW LEVEL SECURITY";
        monolith.batch_execute(undone).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_table_lost_a_column_says_what_compares_the_sides() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v int)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    service.batch_execute("ALTER TABLE t DROP COLUMN v").await.unwrap();
    monolith.batch_execute("INSERT INTO t VALUES (1, 1)").await.unwrap();
    let (_, log) = mirror.ended();
    assert!(log.contains("hint: strangler check plan.yaml"), "{log}");
    let status = split.run("status", &[]);
    assert!(
        status.stdout.contains("next strangler check plan.yaml")
            || status.stdout.contains("strangler check plan.yaml, which"),
        "{}",
        status.page()
    );
    let checked = split.run("check", &[]);
    assert!(checked.page().contains("(target-differs)"), "{}", checked.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_came_and_went_is_no_obstacle_and_one_that_the_service_rounds_stops_the_mirror() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), at timestamptz);
        INSERT INTO t VALUES (1, 1.25, '2026-01-01 00:00:00.5Z')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let came = "ALTER TABLE t ADD x int; INSERT INTO t (id, n, x) VALUES (2, 2.25, 7)";
    monolith.batch_execute(came).await.unwrap();
    monolith.batch_execute("UPDATE t SET x = 8, n = 3.25 WHERE id = 1").await.unwrap();
    monolith.batch_execute("ALTER TABLE t DROP x; INSERT INTO t VALUES (3, 4.25)").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;

    let coarser = "ALTER TABLE t ALTER n TYPE numeric(10,1), ALTER at TYPE timestamptz(0)";
    service.batch_execute(coarser).await.unwrap();
    let remedy = "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"n\" TYPE numeric(10,2); \
                  ALTER TABLE \"public\".\"t\" ALTER COLUMN \"at\" TYPE timestamp with time zone";
    let assert_refused = |(status, log): (std::process::ExitStatus, String)| {
        assert_eq!(status.code(), Some(3), "{log}");
        assert!(log.contains("t.n is numeric(10,1), and numeric(10,2) on the monolith"), "{log}");
        assert!(log.contains(&format!("run in the service: {remedy}; then strangler mirror")), "{log}");
    };
    assert_refused(mirror.ended());
    assert_refused(split.mirror(None).ended());
    service.batch_execute(remedy).await.unwrap();
    monolith.batch_execute("INSERT INTO t VALUES (4, 5.25)").await.unwrap();
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, "TABLE t", &service, "TABLE t").await;
    mirror.stop();
}
