//! After a flip the service is right and the monolith is the copy.

use strangler::dualwrite::gate::Hinge;
use strangler::reconcile::finding::FindingKind::{Differs, Extra, Missing};
use tokio_postgres::Client;

use super::found::{Run, Told};
use super::stage::corrupt;
use crate::reverse::stage::Stage;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE ROLE strangler_apply LOGIN; CREATE TABLE things (id int PRIMARY KEY, region text NOT NULL, v text, gone text,
        loud text GENERATED ALWAYS AS (upper(v)) STORED);
    ALTER TABLE things REPLICA IDENTITY FULL;
    INSERT INTO things SELECT i, CASE WHEN i % 4 = 0 THEN 'US' ELSE 'EU' END, 'v ' || i, 'x'
    FROM generate_series(1, 4000) i;
    CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v int);
    INSERT INTO words SELECT 'word ' || i, i FROM generate_series(1, 1000) i; ANALYZE";
const TABLES: &str =
    "{ things: { where: { region: EU }, columns: { v: value, gone: { drop: true } } }, words: {} }";

/// As the apply role, which both gates let pass.
async fn damage(client: &Client, sql: &str) {
    let sql = format!(
        "SET SESSION AUTHORIZATION strangler_apply; BEGIN; \
         SELECT pg_logical_emit_message(true, 'strangler', 'one:2:' || uuid) FROM strangler.database; {sql}; COMMIT; RESET SESSION AUTHORIZATION"
    );
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_authority_at_the_service_the_monolith_is_what_is_wrong_and_is_repaired() {
    let hinges = [("things", Hinge::Statement), ("words", Hinge::Statement)];
    let stage = Stage::armed_for(Split::launch(TABLES, SETUP).await, "things, words", &hinges).await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    let (split, monolith, service) = (&stage.split, &stage.monolith, &stage.service);
    service.batch_execute("UPDATE things SET value = 'after the flip' WHERE id = 9").await.unwrap();
    let clean = Run::of(split, &["--strict"]);
    clean.assert_clean();
    assert_eq!((clean.document.slices[0].authority.as_str(), clean.document.slices[0].epoch), ("service", 2));
    assert_eq!(clean.rows("things"), (3000, 3000), "rows outside the filter are no part of it");

    // Tagged as the mirror's own, so that only the comparison finds it.
    damage(
        monolith,
        "UPDATE things SET v = 'old' WHERE id = 1; DELETE FROM things WHERE id = 2; \
         INSERT INTO things VALUES (9001, 'EU', 'extra', NULL), (9002, 'US', 'of another slice', NULL); \
         UPDATE things SET region = 'US' WHERE id = 3; UPDATE things SET v = 'other' WHERE id = 8; \
         DELETE FROM things WHERE id = 12; UPDATE words SET v = -1 WHERE word = 'word 9'",
    )
    .await;
    service.batch_execute("INSERT INTO words VALUES ('late', 1)").await.unwrap();
    let run = Run::of(split, &["--strict"]);
    let told = |table: &str, kind, key: &str, column: &[&str]| -> Told {
        let columns = column.iter().map(|name| (*name).to_owned()).collect();
        (table.to_owned(), kind, vec![key.to_owned()], columns)
    };
    let mut expected = vec![
        told("things", Differs, "1", &["loud", "value"]),
        told("things", Missing, "2", &[]),
        told("things", Missing, "3", &[]),
        told("things", Extra, "9001", &[]),
        told("words", Differs, "word 9", &["v"]),
    ];
    expected.sort();
    assert_eq!((run.told(), run.ended.exit), (expected, Some(1)), "{}", run.ended.stderr);
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    assert!(repaired.stdout.contains("service -> monolith"), "{}", repaired.page());
    Run::of(split, &["--strict"]).assert_clean();
    let kept: Option<String> =
        monolith.query_one("SELECT gone FROM things WHERE id = 1", &[]).await.unwrap().get(0);
    assert_eq!(kept.as_deref(), Some("x"), "a repair keeps what the plan left behind");
    let changed = Run::of(split, &["--changed-since", "last"]);
    changed.assert_clean();
    // Since authority has moved it is the monolith that a TRUNCATE empties, and that nobody may empty beside the mirror.
    service.batch_execute("TRUNCATE words; INSERT INTO words VALUES ('word 9', 9)").await.unwrap();
    service.batch_execute("VACUUM FULL words").await.unwrap();
    Run::of(split, &["--changed-since", "last"]).assert_clean();
    monolith.batch_execute("VACUUM FULL words").await.unwrap();
    let status = split.run("status", &[]);
    let void =
        "the copy of table words on the monolith's side was emptied or written anew, and not by the mirror";
    assert!(status.stdout.contains(void), "{}", status.page());
    // As where the way back ended, and the process that has it goes on. Its next sign of life says otherwise, so this is tried until
    // a run comes in between.
    let ended = "UPDATE strangler.mirror_process SET stopped_at = now(), detail = NULL WHERE dir = 'reverse'";
    let one_way = until("a run meets a way back that ended", SOON, async || {
        monolith.batch_execute(ended).await.unwrap();
        let run = split.run("reconcile", &[]);
        (run.exit == Some(5)).then_some(run)
    })
    .await;
    let way = "for the way back, from the service into the monolith (a mirror runs, for the other direction alone: process";
    assert!(one_way.stdout.contains(way), "{}", one_way.page());
    assert!(one_way.stderr.contains("end the mirror that runs"), "{}", one_way.page());
    mirror.stop();
    let stopped = split.run("reconcile", &[]);
    assert!(stopped.exit == Some(5) && stopped.stderr.contains("strangler mirror"), "{}", stopped.page());
    let way =
        "no mirror is running for the way back, from the service into the monolith: the last one was stopped";
    assert_eq!(stopped.stdout.matches(way).count(), 1, "{}", stopped.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_values_that_rows_of_the_monolith_hold_from_each_other_are_repaired_after_a_flip() {
    let setup = "CREATE ROLE strangler_apply LOGIN;
        CREATE TABLE coded (id int PRIMARY KEY, code text NOT NULL UNIQUE, kind text, gone text,
            loud text GENERATED ALWAYS AS (upper(code)) STORED);
        CREATE TABLE kids (id int PRIMARY KEY, coded int REFERENCES coded ON DELETE CASCADE);
        ALTER TABLE coded REPLICA IDENTITY FULL;
        INSERT INTO coded SELECT i, 'c' || i, CASE WHEN i % 2 = 0 THEN 'out' ELSE 'in' END, 'g' || i FROM generate_series(1, 600) i;
        INSERT INTO kids SELECT i, i FROM generate_series(1, 600) i; ANALYZE";
    let tables = "{ coded: { where: { kind: in }, columns: { gone: { drop: true } } } }";
    let stage =
        Stage::armed_for(Split::launch(tables, setup).await, "coded", &[("coded", Hinge::Statement)]).await;
    let mirror = stage.mirror().await;
    let (split, monolith, service) = (&stage.split, &stage.monolith, &stage.service);
    // A row of the service that differed and that nobody has proven right before it became the truth.
    corrupt(service, "UPDATE coded SET code = 'wrong' WHERE id = 599").await;
    let differs = split.run("reconcile", &[]);
    assert!(differs.exit == Some(1) && !differs.stderr.contains("warning: "), "{}", differs.page());
    corrupt(service, "UPDATE coded SET code = 'c599' WHERE id = 599").await;
    stage.flip(2).await;
    // A swap, a circle that is longer than the groups in which rows are repaired, a value that a deleted row holds, and
    // rows that the service itself should not have.
    damage(
        monolith,
        "UPDATE coded SET code = '-' || code WHERE id < 500 AND kind = 'in';
         UPDATE coded SET code = 'c' || CASE id WHEN 499 THEN 1 ELSE id + 2 END WHERE id < 500 AND kind = 'in';
         DELETE FROM coded WHERE id = 511; INSERT INTO coded VALUES (9001, 'c511', 'in', NULL)",
    )
    .await;
    service.batch_execute("INSERT INTO coded VALUES (9100, 'c9100', 'out')").await.unwrap();
    let preview = split.run("reconcile", &["--repair", "--dry-run"]);
    for words in [
        "would repair 252 rows of coded in the monolith: the mirror sets them there as the service has them",
        "1 row misplaced in the service, which has the authority: the application has to change or delete them",
        "warning: slice one: before its authority moved (epoch 2 now), the verdict of",
        "found that rows of coded differ, and the service was the copy then",
    ] {
        assert!(preview.stderr.contains(words), "{words}: {}", preview.page());
    }
    service.batch_execute("DELETE FROM coded WHERE id = 9100").await.unwrap();
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    Run::of(split, &["--strict"]).assert_clean();
    let kept = "SELECT count(*) FILTER (WHERE gone = 'g' || id), count(*) FROM coded";
    let kept = monolith.query_one(kept, &[]).await.unwrap();
    assert_eq!(
        (kept.get::<_, i64>(0), kept.get::<_, i64>(1)),
        (599, 600),
        "what the plan left behind is kept"
    );
    let kids: i64 = monolith.query_one("SELECT count(*) FROM kids", &[]).await.unwrap().get(0);
    assert_eq!(kids, 599, "only the damage itself took one with it");
    mirror.stop();
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

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_the_monolith_that_are_spelled_otherwise_are_repaired_after_a_flip() {
    let collation =
        "CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";
    let setup = format!(
        "CREATE ROLE strangler_apply LOGIN; {collation}
        CREATE TABLE knd (k text COLLATE nd PRIMARY KEY, v int); INSERT INTO knd SELECT 'K' || i, i FROM generate_series(1, 50) i;
        CREATE TABLE knum (k numeric, n int, v int, PRIMARY KEY (n, k));
        INSERT INTO knum SELECT i + 0.50, i, i FROM generate_series(1, 50) i; ANALYZE"
    );
    let (split, monolith, service) = Split::launch("{ knd: {}, knum: {} }", &setup).await;
    service.batch_execute(collation).await.unwrap();
    let hinges = [("knd", Hinge::Statement), ("knum", Hinge::Statement)];
    let stage = Stage::armed_for((split, monolith, service), "knd, knum", &hinges).await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    damage(
        &stage.monolith,
        "UPDATE knd SET k = lower(k) WHERE v = 20; UPDATE knum SET k = k::numeric(9, 4) WHERE v = 20;
         UPDATE knum SET v = -1 WHERE v = 21",
    )
    .await;
    let repaired = stage.split.run("reconcile", &["--strict", "--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    Run::of(&stage.split, &["--strict"]).assert_clean();
    mirror.stop();
}
