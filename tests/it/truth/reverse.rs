//! After a flip the service is right and the monolith is the copy.

use std::time::Duration;

use strangler::reconcile::finding::FindingKind::{Differs, Extra, Misplaced, Missing};
use tokio_postgres::Client;

use super::found::{Run, Told};
use crate::support::cluster::connect;
use crate::support::split::Split;

const SETUP: &str = "CREATE ROLE strangler_apply LOGIN; CREATE TABLE things (id int PRIMARY KEY, region text NOT NULL, v text, gone text);
    ALTER TABLE things REPLICA IDENTITY FULL;
    INSERT INTO things SELECT i, CASE WHEN i % 4 = 0 THEN 'US' ELSE 'EU' END, 'v ' || i, 'x'
    FROM generate_series(1, 4000) i;
    CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v int);
    INSERT INTO words SELECT 'word ' || i, i FROM generate_series(1, 1000) i; ANALYZE";
const TABLES: &str =
    "{ things: { where: { region: EU }, columns: { v: value, gone: { drop: true } } }, words: {} }";

/// As a flip leaves it; the stream back is one that the test keeps moving, since nothing writes meanwhile.
async fn flip(monolith: &Client, service: &Client) {
    let epoch = "UPDATE strangler.gate_one SET epoch = 2, owner = 'service', state =";
    monolith.batch_execute(&format!("{epoch} 'FENCED', cause = 'fence'")).await.unwrap();
    service.batch_execute(&format!("{epoch} 'OPEN', cause = 'open'")).await.unwrap();
    monolith
        .batch_execute(
            "INSERT INTO strangler.stream (slice, dir, epoch, mode, state, slot, publication, src_system_identifier, \
                 src_database_oid, src_uuid, src_timeline, applied_lsn) \
             SELECT 'one', 'reverse', 2, 'APPLY', 'running', 'none', 'none', '1', 1, gen_random_uuid(), 1, '0/0'",
        )
        .await
        .unwrap();
}

/// A mirror that brings nothing, as there is nothing to be brought, and is as far as can be.
fn follow(monolith: Client, service: Client) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let row = service.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
            let position: String = row.get(0);
            let sql = "UPDATE strangler.stream SET applied_lsn = $1::text::pg_lsn WHERE dir = 'reverse'";
            monolith.execute(sql, &[&position]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// As the apply role, which both gates let pass.
async fn damage(client: &Client, sql: &str) {
    let sql = format!("SET SESSION AUTHORIZATION strangler_apply; {sql}; RESET SESSION AUTHORIZATION");
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_authority_at_the_service_the_monolith_is_what_is_wrong() {
    let (split, monolith, service) = Split::launch(TABLES, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    flip(&monolith, &service).await;
    let (source, target) = (split.pair.monolith_url(), split.pair.service_url());
    let following = follow(connect(&source).await, connect(&target).await);
    let clean = Run::of(&split, &["--strict"]);
    clean.assert_clean();
    assert_eq!((clean.document.slices[0].authority.as_str(), clean.document.slices[0].epoch), ("service", 2));
    assert_eq!(clean.rows("things"), (3000, 3000), "rows outside the filter are no part of it");

    monolith.batch_execute("GRANT ALL ON things, words TO strangler_apply").await.unwrap();
    damage(
        &monolith,
        "UPDATE things SET v = 'old' WHERE id = 1; DELETE FROM things WHERE id = 2; \
         INSERT INTO things VALUES (9001, 'EU', 'extra', NULL), (9002, 'US', 'of another slice', NULL); \
         UPDATE things SET region = 'US' WHERE id = 3; UPDATE things SET v = 'other' WHERE id = 8; \
         DELETE FROM things WHERE id = 12; UPDATE words SET v = -1 WHERE word = 'word 9'",
    )
    .await;
    damage(&service, "UPDATE things SET region = 'US' WHERE id = 5; INSERT INTO words VALUES ('late', 1)")
        .await;
    let run = Run::of(&split, &["--strict"]);
    let told = |table: &str, kind, key: &str, column: &[&str]| -> Told {
        let columns = column.iter().map(|name| (*name).to_owned()).collect();
        (table.to_owned(), kind, vec![key.to_owned()], columns)
    };
    let mut expected = vec![
        told("things", Differs, "1", &["value"]),
        told("things", Missing, "2", &[]),
        told("things", Missing, "3", &[]),
        told("things", Extra, "9001", &[]),
        told("things", Misplaced, "5", &[]),
        told("words", Differs, "word 9", &["v"]),
        told("words", Missing, "late", &[]),
    ];
    expected.sort();
    assert_eq!((run.told(), run.ended.exit), (expected, Some(1)), "{}", run.ended.stderr);
    following.abort();
    let stuck = split.run("reconcile", &["--repair", "--table", "words"]);
    assert!(!matches!(stuck.exit, Some(0)), "nothing repairs the monolith here: {}", stuck.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_authority_or_two_nothing_is_compared() {
    let (split, monolith, service) = Split::launch("{ words: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for (client, state, words) in [(&service, "OPEN", "both gates are open"), (&monolith, "FENCED", "")] {
        let cause = if state == "OPEN" { "open" } else { "fence" };
        let sql = format!("UPDATE strangler.gate_one SET state = '{state}', cause = '{cause}'");
        client.batch_execute(&sql).await.unwrap();
        if words.is_empty() {
            let back = "UPDATE strangler.gate_one SET state = 'FENCED', cause = 'fence'";
            service.batch_execute(back).await.unwrap();
        }
        let ended = split.run("reconcile", &[]);
        let said = if words.is_empty() { "neither gate is open" } else { words };
        assert!(ended.exit == Some(3) && ended.stderr.contains(said), "{}", ended.page());
    }
}
