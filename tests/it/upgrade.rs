//! Databases that an earlier version provisioned: told by every verb, upgraded by `provision`, and nothing is lost.

use refinery_core::{Migration, Runner, Target};
use strangler::cluster::Cluster;
use strangler::journal::migrate::{CREATE_SCHEMA, HISTORY, VERSIONS};
use tokio_postgres::Client;

use crate::support::cluster::{connect, create_database};
use crate::support::split::Split;

/// Takes back what later versions added, so that a database is as the first one leaves it.
const BACK_TO_V1: &str = "
DROP TABLE strangler.abandonment, strangler.granted, strangler.home, strangler.begun_empty;
DROP TABLE strangler.dropped;
CREATE OR REPLACE VIEW strangler.freshness AS SELECT slice, dir AS direction, source_time AS as_of,
    now() - source_time AS age, state FROM strangler.stream WHERE mode = 'APPLY';
ALTER TABLE strangler.mirror_table DROP COLUMN kept;
DROP TABLE strangler.lineage;
DROP TABLE strangler.archive;
DROP TABLE strangler.retirement, strangler.revoked_right, strangler.quarantine, strangler.quarantined;
ALTER TABLE strangler.mirror_table DROP COLUMN emptied_as;
ALTER TABLE strangler.piece DROP COLUMN number;
DROP TABLE strangler.own_scan, strangler.table_use, strangler.table_user;
DROP VIEW strangler.authority;
DROP FUNCTION strangler.authority_rows();
DROP TABLE strangler.cut_key, strangler.alarm, strangler.canary, strangler.move_group, strangler.operator,
    strangler.baseline;
ALTER TABLE strangler.gate_one DROP COLUMN move_group;
DROP TABLE strangler.repair, strangler.touched_floor, strangler.touched, strangler.reconcile_chunk,
    strangler.reconcile_run, strangler.ledger;
ALTER TABLE strangler.mirror_table DROP COLUMN copy_number;
DROP FUNCTION strangler.append_only() CASCADE;
DROP INDEX strangler.journal_ledger_head;
DELETE FROM strangler.schema_history WHERE version >= 2;";

/// What the mirror leaves while it works and clears away in the end, here of a slice of another plan.
const WORK_IN_PROGRESS: &str = "
INSERT INTO strangler.mirror_table (slice, source_table, target_table, state)
    VALUES ('other', 'Others', 'others', 'copying');
INSERT INTO strangler.piece VALUES ('other', 'Others', 'range', NULL, '100', NULL, '7:7:', '0/10', 100);
INSERT INTO strangler.part VALUES ('other', 'Others', 1, 4, '7:7:', 25);
INSERT INTO strangler.deferred (slice, target_table, kind, object, create_sql)
    VALUES ('other', 'others', 'index', 'others_i', 'CREATE INDEX others_i ON others (id)');";

const KEPT: &[&str] =
    &["database", "slice", "stream", "mirror_table", "piece", "part", "deferred", "journal"];

/// Columns, keys, indexes and triggers of our tables, but for gates.
const SHAPE: &str = "
SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'strangler'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname !~ '^gate_'
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'strangler' AND tablename !~ '^gate_'
UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger t
    WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'strangler'::regnamespace)
      AND NOT tgisinternal
UNION ALL SELECT version || ' ' || name || ' ' || checksum FROM strangler.schema_history
ORDER BY 1";

async fn lines(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every row of our tables, as JSON without the columns that later versions add.
async fn contents(client: &Client) -> Vec<(&'static str, Vec<String>)> {
    let mut all = Vec::new();
    for table in KEPT {
        let sql = format!(
            "SELECT (to_jsonb(t) - '{{copy_number,number,emptied_as,kept}}'::text[])::text FROM strangler.{table} t ORDER BY 1"
        );
        all.push((*table, lines(client, &sql).await));
    }
    all
}

/// The shape of a database to which only the first version was applied.
async fn shape_of_v1(split: &Split) -> Vec<String> {
    create_database(&split.pair.service, "first").await;
    let mut client = connect(&split.pair.service.url("first")).await;
    client.batch_execute(CREATE_SCHEMA).await.unwrap();
    let versions: Vec<Migration> =
        VERSIONS.iter().map(|(name, sql)| Migration::unapplied(name, sql).unwrap()).collect();
    let mut runner = Runner::new(&versions).set_target(Target::Version(1)).set_grouped(true);
    runner.set_migration_table_name(HISTORY);
    runner.run_async(&mut client).await.unwrap();
    lines(&client, SHAPE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_first_version_are_told_by_every_verb_and_upgraded_with_all_their_rows() {
    let shop = "CREATE TABLE orders (id int PRIMARY KEY, number text UNIQUE);
        INSERT INTO orders SELECT n, 'number ' || n FROM generate_series(1, 300) n; ANALYZE";
    let (split, monolith, service) = Split::launch("{ orders: {} }", shop).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let first = shape_of_v1(&split).await;
    for client in [&monolith, &service] {
        client.batch_execute(BACK_TO_V1).await.unwrap();
        assert_eq!(lines(client, SHAPE).await, first, "this is what the first version leaves");
    }
    service.batch_execute(WORK_IN_PROGRESS).await.unwrap();
    let before = (contents(&monolith).await, contents(&service).await);

    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    let told =
        "strangler's tables in monolith and service are of an earlier version; provision upgrades them";
    assert!(status.stdout.contains(told), "{}", status.stdout);
    assert!(
        status.stdout.contains("next       strangler provision plan.yaml --slice one"),
        "{}",
        status.stdout
    );
    let json: serde_json::Value =
        serde_json::from_str(&split.run("status", &["--format", "json"]).stdout).unwrap();
    assert_eq!(json["slices"][0]["outdated"], serde_json::json!(["monolith", "service"]));
    assert_eq!(json["slices"][0]["evidence"], serde_json::Value::Null);

    let (refused, words) = split.mirror(None).ended();
    assert_eq!(refused.code(), Some(3), "{words}");
    assert!(words.contains("are of an earlier version"), "{words}");
    assert!(words.contains("strangler provision plan.yaml --slice one"), "{words}");
    let check = split.run("check", &[]);
    assert!(check.stdout.contains("(older-tables)"), "{}", check.page());
    assert_eq!((contents(&monolith).await, contents(&service).await), before, "nobody has written");

    let dry = split.run("provision", &["--dry-run"]);
    assert!(dry.stdout.contains("CREATE TABLE strangler.ledger"), "{}", dry.page());
    split.provision();
    let after = (contents(&monolith).await, contents(&service).await);
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        for ((table, before), (_, after)) in before.iter().zip(&after) {
            let missing: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
            assert!(missing.is_empty(), "{table} lost {missing:?}");
            assert!(*table == "journal" || before.len() == after.len(), "{table} gained rows");
        }
    }
    let asked = "SELECT slice || ' ' || state || ' ' || owner || ' ' || epoch FROM strangler.authority";
    assert_eq!(lines(&monolith, asked).await, ["one OPEN monolith 1"]);
    assert_eq!(lines(&service, asked).await, ["one FENCED monolith 1"]);
    let gates = "SELECT coalesce(move_group::text, 'alone') FROM strangler.gate_one";
    assert_eq!(
        (lines(&monolith, gates).await, lines(&service, gates).await),
        (vec!["alone".to_owned()], vec!["alone".to_owned()])
    );
    let again = split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());
    let apply = connect(&split.pair.service.url_as("strangler_apply", "", "service")).await;
    let told = "SELECT DISTINCT kind FROM strangler.ledger ORDER BY 1";
    assert_eq!(lines(&apply, told).await, ["plan", "provision"], "what the journal remembers is told");

    let live = "SELECT live_at::text || ' ' || copy_number FROM strangler.mirror_table WHERE slice = 'one'";
    let copied = lines(&service, live).await;
    service.batch_execute("DELETE FROM strangler.mirror_table WHERE slice = 'other'").await.unwrap();
    monolith.batch_execute("INSERT INTO orders VALUES (301, 'later')").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    assert_eq!(lines(&service, "SELECT number FROM orders WHERE id = 301").await, ["later"]);
    assert_eq!(lines(&service, live).await, copied, "nothing was copied again");
}
