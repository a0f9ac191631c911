//! What a service's own tables do to mirrored rows: found beforehand where that can be, and kept to the one table where not.

use tokio_postgres::Client;

use crate::flip::mirrored_and_armed;
use crate::support::binary::flat;
use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const ADOPTING: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }\n\
    services: { service: { url: \"${SERVICE}\", ddl: adopt } }\n\
    slices: { one: { service: service, tables: { t: {} } } }\n";

async fn assert_equal(monolith: &Client, service: &Client, query: &str) {
    assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_the_service_computes_otherwise_is_refused() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        INSERT INTO t VALUES (1, 1)";
    let (split, monolith, service) = Split::with_plan(ADOPTING, setup).await;
    service
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 3) STORED)",
        )
        .await
        .unwrap();
    let check = split.run("check", &[]);
    assert_eq!(check.exit, Some(1), "{}", check.page());
    assert!(check.stdout.contains("(generated-differs"), "{}", check.page());
    let refused = split.run("provision", &[]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.stderr.contains("twice is generated as (n * 3)"), "{}", refused.page());
    let made = |factor: &str| {
        format!(
            "ALTER TABLE t DROP COLUMN twice, ADD COLUMN twice int GENERATED ALWAYS AS (n * {factor}) STORED"
        )
    };
    service.batch_execute(&made("2")).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "SELECT id, n, twice FROM t").await;
    mirror.stop();
    service.batch_execute(&made("4")).await.unwrap();
    let (status, log) = split.mirror(None).ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("the service computes t.twice as (n * 4)"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_fires_on_mirrored_rows_is_refused_beforehand() {
    let (split, _monolith, service) =
        Split::with_plan(ADOPTING, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let loud = "CREATE TABLE t (id int PRIMARY KEY, v text);
        CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := upper(NEW.v); RETURN NEW; END';
        CREATE TRIGGER shout BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION louder();
        ALTER TABLE t ENABLE ALWAYS TRIGGER shout";
    service.batch_execute(loud).await.unwrap();
    for _ in 0..2 {
        let check = split.run("check", &[]);
        assert_eq!(check.exit, Some(1), "{}", check.page());
        assert!(check.stdout.contains("(target-trigger"), "{}", check.page());
        let refused = split.run("provision", &[]);
        assert_eq!(refused.exit, Some(3), "{}", refused.page());
        assert!(refused.stderr.contains("ENABLE TRIGGER \"shout\""), "{}", refused.page());
        service.batch_execute("ALTER TABLE t ENABLE REPLICA TRIGGER shout").await.unwrap();
    }
    service.batch_execute("ALTER TABLE t ENABLE TRIGGER shout").await.unwrap();
    split.provision();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_a_default_names_as_text_is_made_known_before_the_service_gets_the_column() {
    let setup = "CREATE SEQUENCE ids; CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval('ids'::text))";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    let cure = "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"id\" SET DEFAULT nextval('ids'::regclass);";
    for (verb, exit) in [("check", 1), ("provision", 3)] {
        let refused = split.run(verb, &[]);
        assert_eq!(refused.exit, Some(exit), "{}", refused.page());
        assert_eq!(refused.page().matches("(late-sequence)").count(), 1, "{}", refused.page());
        let said = flat(&refused.page());
        assert!(said.contains(cure), "{}", refused.page());
    }
    monolith.batch_execute(cure).await.unwrap();
    split.provision();
    service.batch_execute("SELECT nextval('ids')").await.unwrap();
}

/// Waits until table `t` stands still and `u` is live, and returns why.
async fn stands_still(mirror: &Mirror, service: &Client) -> String {
    let sql = "SELECT detail FROM strangler.mirror_table WHERE source_table = 't' AND state = 'diverged' \
               AND EXISTS (SELECT FROM strangler.mirror_table WHERE source_table = 'u' AND state = 'live')";
    until("one table stands still and the other is live", SOON, async || {
        assert!(mirror.exited().is_none(), "the mirror ended:\n{}", mirror.log());
        service.query_opt(sql, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await
}

const TWO: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT g, 'secret' FROM generate_series(1, 500) g; INSERT INTO u VALUES (1, 'u'); ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_service_refuses_during_the_copy_stop_their_table_and_no_other() {
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", TWO).await;
    split.provision();
    service.batch_execute("ALTER TABLE t ADD CONSTRAINT short CHECK (length(v) < 3)").await.unwrap();
    let mirror = split.mirror(None);
    let detail = stands_still(&mirror, &service).await;
    assert!(detail.contains("constraint short") && !detail.contains("secret"), "{detail}");
    monolith.batch_execute("INSERT INTO u VALUES (2, 'later')").await.unwrap();
    until("the other table goes on", SOON, async || {
        service.query_opt("SELECT FROM u WHERE id = 2", &[]).await.unwrap()
    })
    .await;
    mirror.stop();
    assert!(!mirror.log().contains("secret"), "{}", mirror.log());
    service.batch_execute("ALTER TABLE t DROP CONSTRAINT short").await.unwrap();
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE t").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_raises_stops_its_table_and_what_it_says_is_kept_from_everybody() {
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", TWO).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let raising = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RAISE EXCEPTION ''never %'', NEW.v USING ERRCODE = ''45000''; END';
        CREATE TRIGGER no BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no";
    service.batch_execute(raising).await.unwrap();
    monolith
        .batch_execute("UPDATE t SET v = 'hidden' WHERE id = 1; INSERT INTO u VALUES (2, 'later')")
        .await
        .unwrap();
    let detail = stands_still(&mirror, &service).await;
    assert!(detail.contains("45000") && !detail.contains("hidden"), "{detail}");
    until("the other table goes on", SOON, async || {
        service.query_opt("SELECT FROM u WHERE id = 2", &[]).await.unwrap()
    })
    .await;
    mirror.stop();
    assert!(!mirror.log().contains("hidden"), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_takes_its_next_value_is_no_divergence() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, big text);
        CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, big text);
        ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE u ALTER big SET STORAGE EXTERNAL;
        INSERT INTO t (id, big) SELECT g, repeat('x', 5000) FROM generate_series(1, 9) g;
        INSERT INTO u (v, big) SELECT 'v', repeat('x', 5000) FROM generate_series(1, 9) g";
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for sql in [
        "UPDATE t SET n = DEFAULT WHERE id < 4",
        "UPDATE t SET n = DEFAULT, big = 'small' WHERE id = 5",
        "UPDATE u SET id = DEFAULT WHERE id < 4",
        "BEGIN; UPDATE u SET v = 'w' WHERE id = 5; UPDATE u SET id = DEFAULT, v = 'x' WHERE id = 5; COMMIT",
        "UPDATE t SET id = id + 100, n = DEFAULT WHERE id = 6",
    ] {
        monolith.batch_execute(sql).await.unwrap();
    }
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE t").await;
    assert_equal(&monolith, &service, "TABLE u").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_quote_every_identifier_are_no_obstacle() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v varchar(9) DEFAULT 'x', n int GENERATED ALWAYS AS (id * 2) STORED,
        CHECK (id > 0)); INSERT INTO t VALUES (1, 'v')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    for client in [&monolith, &service] {
        client
            .batch_execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET quote_all_identifiers = on', current_database()); END $$")
            .await
            .unwrap();
    }
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE t").await;
    mirror.stop();
    let again = split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_that_the_rows_contradict_is_an_alarm_with_its_reason() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE); INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    // As where the service's own migrations demand more than the monolith did.
    service
        .batch_execute("UPDATE strangler.deferred SET create_sql = 'ALTER TABLE public.t ADD CHECK (v <> ''a'')' WHERE done_at IS NULL")
        .await
        .unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    until("status tells that it failed", SOON, async || {
        let status = split.run("status", &[]);
        let told = status.stdout.contains("(SQLSTATE 23514) could not be made.");
        assert!(
            !told || (status.exit == Some(1) && !status.stdout.contains("made once the copy is done")),
            "{}",
            status.page()
        );
        told.then_some(())
    })
    .await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deferrable_key_of_an_adopted_table_is_told_by_check() {
    let (split, _monolith, service) = Split::with_plan(ADOPTING, "CREATE TABLE t (id int PRIMARY KEY)").await;
    service.batch_execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)").await.unwrap();
    let check = split.run("check", &[]);
    assert_eq!(check.exit, Some(1), "{}", check.page());
    assert!(check.stdout.contains("(target-without-key"), "{}", check.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_that_stops_the_mirror_is_told_also_where_its_link_is_a_superusers() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let (split, monolith, service) = Split::with_plan(ADOPTING, table).await;
    service.batch_execute(table).await.unwrap();
    service.batch_execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY").await.unwrap();
    let check = split.run("check", &[]);
    assert!(check.stdout.contains("(row-security)"), "{}", check.page());
    service.batch_execute("CREATE ROLE strangler_apply LOGIN BYPASSRLS").await.unwrap();
    let check = split.run("check", &[]);
    assert!(!check.stdout.contains("(row-security)"), "{}", check.page());
    split.provision();
    monolith.batch_execute("INSERT INTO t VALUES (1, 'one')").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE t").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_columns_of_wider_types_and_enums_of_another_name_take_every_change() {
    let setup = "CREATE TYPE state AS ENUM ('new', 'paid');
        CREATE TABLE t (id int, s state, many state[], n smallint, v varchar(5), PRIMARY KEY (id, s));
        INSERT INTO t SELECT g, 'new', '{new}', g, 'v' FROM generate_series(1, 300) g";
    let (split, monolith, service) = Split::with_plan(ADOPTING, setup).await;
    let theirs = "CREATE SCHEMA app; CREATE TYPE app.order_state AS ENUM ('new', 'paid');
        CREATE TABLE t (id bigint, s app.order_state, many app.order_state[], n int, v text, PRIMARY KEY (id, s))";
    service.batch_execute(theirs).await.unwrap();
    let check = split.run("check", &[]);
    assert_eq!(check.exit, Some(0), "{}", check.page());
    split.provision();
    let again = split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for change in [
        "INSERT INTO t VALUES (1000, 'paid', '{paid,NULL}', 1, 'x')",
        "UPDATE t SET s = 'paid', many = '{new,paid}' WHERE id < 10",
        "UPDATE t SET n = n + 1 WHERE id > 290",
        "DELETE FROM t WHERE id BETWEEN 20 AND 30",
    ] {
        monolith.batch_execute(change).await.unwrap();
    }
    mirror.caught_up(&monolith, &service).await;
    let rows = "SELECT id, s::text, many::text, n, v FROM t";
    assert_equal(&monolith, &service, rows).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_service_that_lost_its_key_is_not_armed_and_gets_no_authority() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')";
    let (split, monolith, service) = Split::launch("{ t: {} }", table).await;
    split.provision();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    service.batch_execute("ALTER TABLE t DROP CONSTRAINT t_pkey").await.unwrap();
    let reason = ["--accept-no-evidence", "a test"];
    for (verb, arguments) in [("check", &[][..]), ("arm", &[]), ("flip", &reason)] {
        let refused = split.run(verb, arguments);
        assert!(matches!(refused.exit, Some(1 | 3)), "{verb}: {}", refused.page());
        for words in ["target-without-key", "ALTER TABLE \"public\".\"t\" ADD PRIMARY KEY (\"id\")"] {
            assert!(flat(&refused.page()).contains(words), "{verb}: {}", refused.page());
        }
    }
    service.batch_execute("ALTER TABLE t ADD PRIMARY KEY (id)").await.unwrap();
    assert_eq!(split.run("arm", &[]).exit, Some(0));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_the_service_does_not_compute_any_more_is_told_and_keeps_authority_and_copies_away()
 {
    let table = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        INSERT INTO t VALUES (1, 1)";
    let (split, monolith, service) = Split::launch("{ t: {} }", table).await;
    split.provision();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    service.batch_execute("ALTER TABLE t ALTER twice DROP EXPRESSION").await.unwrap();
    let words = "the service does not compute t.twice, and the monolith computes it as (n * 2)";
    until("the mirror says it", SOON, async || mirror.log().contains(words).then_some(())).await;
    until("what was proven does not stand", SOON, async || {
        let status = split.run("status", &[]);
        flat(&status.stdout).contains("a generated column was computed otherwise").then_some(())
    })
    .await;
    let flip = split.run("flip", &["--accept-no-evidence", "a test"]);
    assert!(flip.exit == Some(3) && flat(&flip.page()).contains("(generated-differs"), "{}", flip.page());
    mirror.stop();
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    let stopped = format!("one: stopped ({words}");
    until("no table is copied", SOON, async || flat(&mirror.log()).contains(&stopped).then_some(())).await;
}
