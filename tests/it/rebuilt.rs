//! A slice that is started over: rows that are right stay, whatever differs is copied, and a slot goes before it fills the monolith's disk.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use crate::crash::{killed_at, load};
use crate::support::bench::Bench;
use crate::support::cluster::{Pair, connect, create_database, launch};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until, until_blocking};
use crate::support::writers::Workload;

const SETUP: &str = "
CREATE TABLE r (id int PRIMARY KEY, v text, n numeric, f float8, j jsonb, u text UNIQUE);
INSERT INTO r SELECT g, 'v' || g, g + 0.5, g, jsonb_build_object('a', g), 'u' || g FROM generate_series(1, 5000) g;
CREATE TABLE same (id bigint PRIMARY KEY, v text);
INSERT INTO same SELECT g, repeat('x', 100) FROM generate_series(1, 3000) g;
CREATE TABLE ids (id uuid PRIMARY KEY, v text);
INSERT INTO ids SELECT md5(g::text)::uuid, 'v' || g FROM generate_series(1, 1000) g;
CREATE TABLE named (name text PRIMARY KEY, v text);
INSERT INTO named SELECT 'n' || g, 'v' || g FROM generate_series(1, 300) g;
CREATE TABLE two (a int, b text, v bytea, PRIMARY KEY (a, b));
INSERT INTO two SELECT g % 10, 'b' || g, decode(md5(g::text), 'hex') FROM generate_series(1, 200) g;
ANALYZE";

const TABLES: &str = "{ r: {}, same: {}, ids: {}, named: {}, two: {} }";

/// What changes on the monolith while nobody listens.
const MEANWHILE: &str = "
UPDATE r SET v = 'other' WHERE id = 17; DELETE FROM r WHERE id = 2500; INSERT INTO r VALUES (5001, 'new', 1, 1, '{}', 'u5001');
UPDATE r SET id = 9000 WHERE id = 1200; UPDATE r SET u = 'swap' WHERE id = 40; UPDATE r SET u = 'u40' WHERE id = 4040;
UPDATE r SET u = 'u4040' WHERE id = 40;
UPDATE ids SET v = 'other' WHERE id = md5('77')::uuid; DELETE FROM named WHERE name = 'n5'; UPDATE two SET v = NULL WHERE a = 3 AND b = 'b13'";

/// What goes wrong in the service, past every gate: values that differ only in how they look are among them.
const WRONG: &str = "
UPDATE r SET n = 100.50 WHERE id = 100; UPDATE r SET f = '-0' WHERE id = 300; UPDATE r SET v = '' WHERE id = 301;
UPDATE r SET v = NULL WHERE id = 302; UPDATE r SET j = '{\"a\": 303.0}' WHERE id = 303; DELETE FROM r WHERE id BETWEEN 600 AND 610;
INSERT INTO r VALUES (-5, 'extra', 1, 1, '{}', 'none'), (70000, 'extra', 1, 1, '{}', 'none either'); UPDATE r SET v = 'b' WHERE id = 900;
DELETE FROM ids WHERE id = md5('3')::uuid; INSERT INTO named VALUES ('extra', 'x'); UPDATE two SET b = 'b1 ' WHERE b = 'b1'";

async fn assert_all_the_same(monolith: &Client, service: &Client) {
    for query in [
        "SELECT id, v, n::text, f::text, j::text, u FROM r",
        "SELECT id, v FROM same",
        "SELECT id::text, v FROM ids",
        "SELECT name, v FROM named",
        "SELECT a, b, v::text FROM two",
    ] {
        assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
    }
}

async fn drop_slots(monolith: &Client) {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    monolith.batch_execute(drop).await.unwrap();
}

/// Rows and bytes that the last copy of a table brought.
async fn copied(service: &Client, table: &str) -> (i64, i64) {
    let sql = "SELECT rows_copied, bytes_copied FROM strangler.mirror_table WHERE source_table = $1";
    let row = service.query_one(sql, &[&table]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_keeps_the_rows_that_are_right_and_copies_the_pieces_that_differ() {
    let (split, monolith, service) = Split::launch(TABLES, SETUP).await;
    monolith
        .batch_execute(
            "UPDATE r SET f = 0, v = NULL WHERE id = 300; UPDATE r SET v = NULL WHERE id = 301;
        UPDATE r SET v = '' WHERE id = 302",
        )
        .await
        .unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let (whole, _) = (copied(&service, "r").await.1, drop_slots(&monolith).await);
    monolith.batch_execute(MEANWHILE).await.unwrap();
    let wrong = format!(
        "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; {WRONG}; \
         RESET SESSION AUTHORIZATION; RESET session_replication_role"
    );
    service.batch_execute(&wrong).await.unwrap();
    // The gap is noted by a start, as always.
    assert_eq!(split.mirror(None).ended().0.code(), Some(3));

    split.mirror_with(Some("rebuild-reset"), &["--rebuild"]).died_at("rebuild-reset");
    let rows: i64 = service.query_one("SELECT count(*) FROM same", &[]).await.unwrap().get(0);
    assert_eq!(rows, 3000, "readers keep what there is");
    let known = "SELECT as_of IS NOT NULL FROM strangler.freshness";
    assert!(!service.query_one(known, &[]).await.unwrap().get::<_, bool>(0), "and nobody says how old it is");
    split.mirror(Some("range-landed")).died_at("range-landed");
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_all_the_same(&monolith, &service).await;
    assert!(service.query_one(known, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(copied(&service, "same").await, (3000, 0), "nothing of it differs");
    let (rows, bytes) = copied(&service, "r").await;
    assert_eq!(rows, 5000);
    assert!(bytes > 0 && bytes < whole / 3, "{bytes} of {whole} bytes, in pieces of 100 rows");
    let index = "SELECT count(*) FROM pg_indexes WHERE tablename = 'r' AND indexdef LIKE '%UNIQUE%(u)'";
    until("what waited for the data is made again", SOON, async || {
        let found: i64 = service.query_one(index, &[]).await.unwrap().get(0);
        (found == 1).then_some(())
    })
    .await;
    mirror.stop();

    drop_slots(&monolith).await;
    monolith.batch_execute("UPDATE same SET v = 'y' WHERE id = 5").await.unwrap();
    let mirror = split.mirror_with(None, &["--rebuild", "--empty"]);
    mirror.caught_up(&monolith, &service).await;
    assert_all_the_same(&monolith, &service).await;
    assert!(copied(&service, "same").await.1 > 300_000, "everything is copied where that is asked");
    mirror.stop();
    let alone = split.run("mirror", &["--empty"]);
    assert_eq!(alone.exit, Some(2), "{}", alone.page());
}

/// "é" has the bytes in UTF-8 that "Ã©" has in LATIN1: the usual damage of text that was read in the wrong encoding.
#[tokio::test(flavor = "multi_thread")]
async fn text_that_has_the_same_bytes_in_another_encoding_is_not_taken_for_equal() {
    let pair = Pair { monolith: launch(), service: launch() };
    let admin = connect(&pair.monolith.admin_url()).await;
    let latin = "CREATE DATABASE monolith TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'";
    admin.batch_execute(latin).await.unwrap();
    create_database(&pair.service, Pair::SERVICE).await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text); \
                 INSERT INTO t SELECT g, chr(195) || chr(169) FROM generate_series(1, 300) g";
    let (split, monolith, service) = Split::between(pair, &Split::plan("{ t: {} }"), setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let wrong = "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; \
                 UPDATE t SET v = chr(233) WHERE id < 100; RESET SESSION AUTHORIZATION; RESET session_replication_role";
    service.batch_execute(wrong).await.unwrap();
    let mirror = split.mirror_with(None, &["--rebuild"]);
    mirror.caught_up(&monolith, &service).await;
    let query = "SELECT id, v FROM t";
    let same = assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
    assert_eq!(same, 300);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slot_that_nearly_fills_its_budget_is_dropped_where_the_plan_says_so() {
    let plan =
        format!("{}policy: {{ wal_budget: 40MB, at_wal_limit: drop_slot }}\n", Split::plan("{ same: {} }"));
    let (split, monolith, service) = Split::with_plan(&plan, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;

    // An old transaction of somebody else holds the slot back, however current the stream is.
    let old = split.pair.monolith().await;
    old.batch_execute("BEGIN; CREATE TABLE mine (); INSERT INTO same VALUES (7000, 'open')").await.unwrap();
    let write = "SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 33); CHECKPOINT";
    monolith.batch_execute(write).await.unwrap();
    until_blocking("the operator is warned", SOON, || {
        mirror.log().contains("at 90 % the mirror drops its slot").then_some(())
    });
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(monolith.query_one(slots, &[]).await.unwrap().get::<_, i64>(0), 1, "not yet");
    let more =
        "SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 5)";
    monolith.batch_execute(more).await.unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    for words in [
        "dropped its replication slot",
        "at_wal_limit: drop_slot",
        "of its wal_budget of 40.0 MB",
        "--slice one --rebuild",
    ] {
        assert!(log.contains(words), "{words} is not in {log}");
    }
    assert_eq!(monolith.query_one(slots, &[]).await.unwrap().get::<_, i64>(0), 0, "the disk has room");
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    for words in ["gap", "dropped its replication slot", "strangler mirror plan.yaml --slice one --rebuild"] {
        assert!(status.page().contains(words), "{words} is not in {}", status.page());
    }
    monolith.batch_execute("UPDATE same SET v = 'since' WHERE id = 1500").await.unwrap();
    old.batch_execute("COMMIT").await.unwrap();
    let mirror = split.mirror_with(None, &["--rebuild"]);
    mirror.caught_up(&monolith, &service).await;
    let query = "SELECT id, v FROM same";
    assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
    assert!(copied(&service, "same").await.1 < 50_000, "two pieces of thirty differ");
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slot_is_kept_by_default_and_a_mirror_that_dies_behind_dropping_it_leaves_a_gap() {
    let plan = format!("{}policy: {{ wal_budget: 16MB }}\n", Split::plan("{ same: {} }"));
    let (split, monolith, service) = Split::with_plan(&plan, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    // Who holds a table of the service has the stream bring nothing.
    let busy = split.pair.service().await;
    busy.batch_execute("BEGIN; LOCK TABLE same").await.unwrap();
    let write = "UPDATE same SET v = v WHERE id = 1; \
                 SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 20)";
    monolith.batch_execute(write).await.unwrap();
    until_blocking("it warns", SOON, || mirror.log().contains("at which nothing stops").then_some(()));
    mirror.looked_twice(&service).await;
    assert!(mirror.exited().is_none(), "{}", mirror.log());
    mirror.kill();

    split.change_plan("16MB", "16MB, at_wal_limit: drop_slot");
    // The one that was killed still waits for the table.
    split.mirror_with(Some("slot-let-go"), &["--take-over"]).died_at("slot-let-go");
    busy.batch_execute("COMMIT").await.unwrap();
    let (status, log) = split.mirror(None).ended();
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("is gone") && log.contains("--rebuild"), "{log}");
    let mirror = split.mirror_with(None, &["--rebuild"]);
    mirror.caught_up(&monolith, &service).await;
    assert_eq!(copied(&service, "same").await, (3000, 0));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn nothing_is_lost_when_a_rebuild_over_rows_that_were_kept_is_killed() {
    let bench = Bench::launch(&[]).await;
    let workload = Workload::start(&bench.application(), &load()).await;
    bench.succeed(&["provision", "plan.yaml"]);
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    mirror.stop();
    for point in [
        "rebuild-reset",
        "range-before-commit",
        "range-landed",
        "whole-before-commit",
        "round-ended",
        "table-live",
    ] {
        assert!(killed_at(&bench, &workload, point, &["--rebuild"]).await, "{point} was not reached");
    }
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    crate::crash::finish(&bench, workload, mirror).await;
}
