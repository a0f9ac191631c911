//! Looking at a part: a sample, what changed since, single tables.

use tokio_postgres::Client;

use strangler::reconcile::finding::FindingKind;
use strangler::reconcile::verdict::Coverage;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::{Mirror, Split};

const SETUP: &str = "CREATE TABLE things (id int PRIMARY KEY, v text);
    INSERT INTO things SELECT i, 'v ' || i FROM generate_series(1, 20000) i;
    CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v text);
    INSERT INTO words SELECT 'word ' || i, 'v' FROM generate_series(1, 8000) i; ANALYZE";

async fn open() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::launch("{ things: {}, words: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    (split, monolith, service, mirror)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_compares_its_share_and_finds_its_share() {
    let (split, _monolith, service, _mirror) = open().await;
    let run = Run::of(&split, &["--sample", "5%"]);
    run.assert_clean();
    assert!(!run.document.slices[0].full, "a clean sample is no proof");
    // Six standard deviations around the mean.
    let near = |rows: u64, of: f64| (rows as f64 - of * 0.05).abs() < 6.0 * (of * 0.05 * 0.95).sqrt();
    for (table, of) in [("things", 20_000.0), ("words", 8_000.0)] {
        let (authority, copy) = run.rows(table);
        assert!(authority == copy && near(authority, of), "{authority} of {of} rows of {table}");
    }
    corrupt(&service, "UPDATE things SET v = '' WHERE id % 2 = 0; DELETE FROM words WHERE word LIKE '%1'")
        .await;
    let run = Run::of(&split, &["--sample", "5%", "--strict"]);
    assert_eq!(run.ended.exit, Some(1), "{}", run.ended.page());
    let counts = run.counts();
    assert!(
        near(counts[&FindingKind::Differs], 10_000.0) && near(counts[&FindingKind::Missing], 800.0),
        "{counts:?}"
    );
    // Another share each time.
    let other = Run::of(&split, &["--sample", "5%", "--strict"]);
    assert_ne!(run.told(), other.told());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_the_last_clean_verdict_is_looked_at_and_nothing_else() {
    let (split, monolith, service, mirror) = open().await;
    let ended = split.run("reconcile", &["--changed-since", "last"]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(
        ended.stderr.contains("strangler reconcile plan.yaml --slice one, without --changed-since"),
        "{}",
        ended.stderr
    );
    // A part is nothing to look back to, either.
    Run::of(&split, &["--table", "things"]).assert_clean();
    assert_eq!(split.run("reconcile", &["--changed-since", "last"]).exit, Some(3));
    Run::of(&split, &[]).assert_clean();

    let write = "UPDATE things SET v = v || '.' WHERE id BETWEEN 101 AND 120; DELETE FROM things WHERE id = 200; \
                 INSERT INTO words VALUES ('new', 'v')";
    monolith.batch_execute(write).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &["--changed-since", "last"]);
    run.assert_clean();
    assert!((20..200).contains(&run.rows("things").0), "{:?}", run.rows("things"));
    let coverage = run.document.slices[0].tables[0].coverage;
    assert!(matches!(coverage, Coverage::ChangedSince { .. }) && !run.document.slices[0].full);

    // Of two wrong rows the one is found that was written since.
    corrupt(&service, "UPDATE things SET v = 'wrong' WHERE id IN (110, 500)").await;
    let run = Run::of(&split, &["--changed-since", "last"]);
    assert_eq!(run.ended.exit, Some(1), "{}", run.ended.page());
    let expected = ("things".to_owned(), FindingKind::Differs, vec!["110".to_owned()], vec!["v".to_owned()]);
    assert_eq!(run.told(), [expected]);
    // Since a position that the test says.
    let row = monolith.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
    let position: String = row.get(0);
    monolith.batch_execute("UPDATE things SET v = 'later' WHERE id = 7").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &["--changed-since", &position]);
    run.assert_clean();
    assert!((1..20).contains(&run.rows("things").0), "{:?}", run.rows("things"));
    let full = Run::of(&split, &[]);
    assert_eq!(full.counts(), [(FindingKind::Differs, 2)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn single_tables_are_compared_and_the_verdict_is_not_about_the_slice() {
    let (split, _monolith, service, _mirror) = open().await;
    corrupt(&service, "DELETE FROM words WHERE word = 'word 7'").await;
    let things = Run::of(&split, &["--table", "things"]);
    things.assert_clean();
    assert_eq!((things.document.slices[0].tables.len(), things.document.slices[0].full), (1, false));
    let words = Run::of(&split, &["--table", "words", "--table", "public.things"]);
    assert_eq!((words.ended.exit, words.document.slices[0].tables.len()), (Some(1), 2));
    let ended = split.run("reconcile", &["--table", "thing"]);
    assert_eq!(ended.exit, Some(2), "{}", ended.page());
    assert!(ended.stderr.contains("things"), "{}", ended.stderr);
    let ended = split.run("reconcile", &["--slice", "on"]);
    assert!(ended.exit == Some(2) && ended.stderr.contains("one"), "{}", ended.page());
}
