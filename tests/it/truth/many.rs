//! More rows that differ than are held at once, in a table that goes by buckets.

use strangler::reconcile::finding::FindingKind::{Differs, Duplicate, Extra, Misplaced, Missing, Orphan};
use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;
use crate::support::wait::{LONG, until};

/// More than a comparison holds on each side: 50,000.
const ROWS: u64 = 60_000;
/// Peak resident memory of a comparison, whatever differs.
const PEAK_KB_MAX: u64 = 100_000;

const SETUP: &str = "CREATE TABLE words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v text);
    INSERT INTO words SELECT md5(i::text) || i, md5(i::text) FROM generate_series(1, 60000) i; ANALYZE";

/// The row of `VmHWM` while the process lives.
fn peak_kb(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

async fn ask(client: &Client, sql: &str) -> bool {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_all_differ_are_found_and_counted_in_bounded_memory() {
    let (split, monolith, service) = Split::launch("{ words: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    corrupt(
        &service,
        "UPDATE words SET v = ''; DELETE FROM words WHERE word LIKE '0%77';
         INSERT INTO words SELECT 'extra ' || i, 'v' FROM generate_series(1, 50) i",
    )
    .await;
    let row = service.query_one("SELECT count(*) FROM words WHERE v = ''", &[]).await.unwrap();
    let differs = u64::try_from(row.get::<_, i64>(0)).unwrap();
    assert!(differs < ROWS);
    // Nobody reads its report before it ends, so that has to fit into a pipe.
    let running = split.start("reconcile", &["--format", "json", "--list", "50"]);
    let streams = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler reconcile' \
                   AND query LIKE '%ORDER BY bucket')";
    for client in [&monolith, &service] {
        until("rows come in the order of their buckets", LONG, async || {
            ask(client, streams).await.then_some(())
        })
        .await;
    }
    // Its memory can only be read for as long as it lives.
    let mut peak = 0;
    until("the comparison ends", LONG, || {
        let now = peak_kb(running.id());
        peak = peak.max(now.unwrap_or(0));
        std::future::ready(now.is_none().then_some(()))
    })
    .await;
    let run = Run::read(running.ended());
    let expected = [(Missing, ROWS - differs), (Extra, 50), (Differs, differs)];
    assert_eq!((run.counts(), run.reasons().as_str()), (expected.into(), ""), "{}", run.ended.stderr);
    assert_eq!(run.rows("words"), (ROWS, differs + 50));
    let told = run.told();
    assert_eq!(told.len(), 50);
    for (_, kind, key, columns) in told {
        let sql = "SELECT (SELECT v FROM words WHERE word = $1)";
        let on = async |client: &Client| -> Option<String> {
            client.query_one(sql, &[&key[0]]).await.unwrap().get(0)
        };
        let (here, there) = (on(&monolith).await, on(&service).await);
        let (is, of) = match kind {
            Missing => (here.is_some() && there.is_none(), vec![]),
            Extra => (here.is_none() && there.is_some(), vec![]),
            Differs => (here.is_some() && there.as_deref() == Some(""), vec!["v".to_owned()]),
            Duplicate | Misplaced | Orphan => (false, vec![]),
        };
        assert!(is && columns == of, "{kind} {key:?} {columns:?}");
    }
    assert!((1..PEAK_KB_MAX).contains(&peak), "{peak} kB at its peak");
    crate::support::say(&format!("{ROWS} rows that differ: peak {peak} kB"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_row_whose_key_is_spelled_in_two_ways_is_one_finding_however_many_there_are() {
    let setup = "CREATE EXTENSION citext; CREATE TABLE words (word citext PRIMARY KEY, v text);
        INSERT INTO words SELECT 'Word ' || i, 'v' FROM generate_series(1, 55000) i; ANALYZE";
    let (split, monolith, service) = Split::launch("{ words: {} }", setup).await;
    service.batch_execute("CREATE EXTENSION citext").await.unwrap();
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    // Some in every bucket, so that all of them are read, and each has its spellings in two.
    corrupt(&service, "UPDATE words SET word = upper(word::text) WHERE word LIKE '%7'").await;
    let run = Run::of(&split, &["--strict"]);
    assert_eq!(
        (run.counts(), run.reasons().as_str()),
        ([(Differs, 5_500)].into(), ""),
        "{}",
        run.ended.stderr
    );
}
