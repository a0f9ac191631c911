//! Values of classified columns are in no report, no log and no ledger.

use strangler::reconcile::finding::FindingKind;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;
use crate::support::tables::dump;

const PLAN: &str = "version: 1
plan: split
monolith: { url: '${MONOLITH}' }
services: { service: { url: '${SERVICE}', accepts: [pii] } }
slices:
  one:
    service: service
    tables: { people: { columns: { mail: email } }, mails: {} }
policy:
  classify: [{ table: people, column: mail, class: pii }, { table: mails, column: mail, class: pii }]
";

/// Every planted value holds this, and nothing else does.
const SECRET: &str = "hushhush";

const SETUP: &str = "CREATE TABLE people (id int PRIMARY KEY, mail text, age int);
    INSERT INTO people SELECT i, 'hushhush' || i || '@example.org', i FROM generate_series(1, 300) i;
    CREATE TABLE mails (mail text PRIMARY KEY, sent int);
    INSERT INTO mails SELECT 'hushhush' || i, i FROM generate_series(1, 300) i; ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn a_classified_value_is_in_no_report_no_log_and_no_ledger() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(
        &service,
        "UPDATE people SET email = 'hushhush@elsewhere' WHERE id = 3; UPDATE people SET email = NULL WHERE id = 4; \
         DELETE FROM people WHERE id = 5; UPDATE mails SET sent = 0 WHERE mail = 'hushhush7'; \
         DELETE FROM mails WHERE mail = 'hushhush8'; INSERT INTO mails VALUES ('hushhush-extra', 1)",
    )
    .await;
    for format in ["text", "json", "junit", "html", "markdown"] {
        let ended = split.run("reconcile", &["--format", format, "--strict", "--log-level", "debug"]);
        assert_eq!(ended.exit, Some(1), "{}", ended.page());
        assert!(ended.stdout.contains("people"), "{format}: {}", ended.stdout);
        for page in [&ended.stdout, &ended.stderr] {
            assert!(!page.contains(SECRET), "{format}: {page}");
        }
    }
    let run = Run::of(&split, &[]);
    let expected = [(FindingKind::Missing, 2), (FindingKind::Extra, 1), (FindingKind::Differs, 3)];
    assert_eq!(run.counts(), expected.into());
    let repair = split.run("reconcile", &["--repair", "--log-level", "debug"]);
    assert_eq!(repair.exit, Some(0), "{}", repair.page());
    assert!(!repair.page().contains(SECRET), "{}", repair.page());
    Run::of(&split, &["--strict"]).assert_clean();
    let entries = dump(&service, "SELECT * FROM strangler.ledger").await;
    assert!(entries.len() > 7 && !entries.join("\n").contains(SECRET), "{entries:#?}");
    for (client, table) in [(&monolith, "strangler.journal"), (&service, "strangler.journal")] {
        assert!(
            !dump(client, &format!("SELECT * FROM {table}")).await.join("\n").contains(SECRET),
            "{table}"
        );
    }
    assert!(!mirror.log().contains(SECRET), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_value_has_one_digest_in_all_entries_of_a_repair() {
    let setup = "CREATE TABLE people (id int PRIMARY KEY, mail text);
        CREATE TABLE mails (mail text, no int, PRIMARY KEY (mail, no));
        INSERT INTO mails SELECT 'hushhush', i FROM generate_series(1, 10050) i; ANALYZE";
    let (split, monolith, service) = Split::with_plan(PLAN, setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "DELETE FROM mails").await;
    let run = Run::of(&split, &["--repair"]);
    assert_eq!(run.ended.exit, Some(0), "{}", run.ended.page());
    // What is asked for at once is an entry of its own.
    let sql = "SELECT count(DISTINCT l.id), count(*), count(DISTINCT r -> 0 ->> 'value')
        FROM strangler.ledger l, json_array_elements(l.body -> 'rows') r WHERE l.kind = 'repair'";
    let row = service.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (2, 10_050, 1));
}
