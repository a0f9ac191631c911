//! Everything that was planted is found, and nothing else; and what is repaired is right.

use super::corruptions::Planted;
use super::found::{Run, Told};
use super::stage::{Sizes, Stage, Writers, corrupt, writes};
use crate::support::{say, soak};

/// # Panics
/// With what is found too much and what is not found.
fn assert_told(run: &Run, expected: &[Told]) {
    let told = run.told();
    let only = |these: &[Told], those: &[Told]| -> Vec<Told> {
        these.iter().filter(|one| !those.contains(one)).cloned().collect()
    };
    let (lost, invented) = (only(expected, &told), only(&told, expected));
    assert!(lost.is_empty() && invented.is_empty(), "not found: {lost:#?}\nnot planted: {invented:#?}");
    assert_eq!(told.len(), expected.len(), "each once");
    assert_eq!(run.ended.exit, Some(1), "{}", run.ended.stderr);
    assert_eq!(run.counts().values().sum::<u64>(), expected.len() as u64);
    assert_eq!(run.reasons(), "", "everything was compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_corruption_is_found_and_nothing_else_while_the_application_writes() {
    let sizes = Sizes::of(soak());
    let stage = Stage::open(sizes).await;
    let planted = Planted::new(sizes, if soak() { 15 } else { 2 });
    assert!(planted.sorts >= 25 && planted.strict.len() > planted.loose.len());
    let writers = Writers::start(&stage.split.pair.monolith_url(), writes(sizes)).await;
    stage.service.batch_execute("ALTER TABLE days DROP CONSTRAINT days_pkey").await.unwrap();
    corrupt(&stage.service, &planted.sql.join("; ")).await;
    for (strict, arguments) in [(true, &["--strict"][..]), (false, &[])] {
        let before = writers.done();
        let run = Run::of(&stage.split, arguments);
        writers.assert_got_on(&before);
        assert_told(&run, &planted.expected(strict));
        let rows = run.rows("things").0;
        assert!(rows > sizes.things.unsigned_abs() * 3 / 4, "only {rows} of the rows were compared");
    }
    repaired(&stage, &planted).await;
    for _ in 0..if soak() { 20 } else { 3 } {
        let before = writers.done();
        Run::of(&stage.split, &["--strict"]).assert_clean();
        writers.assert_got_on(&before);
    }
    let (found, written) = (planted.strict.len(), writers.stop().await);
    say(&format!("{found} corruptions of {} sorts found, beside {written} writes", planted.sorts));
}

/// Has everything repaired, and looks at what the ledger says of it.
async fn repaired(stage: &Stage, planted: &Planted) {
    let preview = Run::of(&stage.split, &["--strict", "--repair", "--dry-run"]);
    assert_told(&preview, &planted.expected(true));
    let repair = Run::of(&stage.split, &["--strict", "--repair"]);
    let found = repair.told();
    assert_eq!((repair.ended.exit, found), (Some(0), planted.expected(true)), "{}", repair.ended.stderr);
    let sql = "SELECT kind, body ->> 'outcome', body::text FROM strangler.ledger ORDER BY id";
    let rows = stage.service.query(sql, &[]).await.unwrap();
    let entries: Vec<(String, Option<String>)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let verdicts: Vec<&str> = entries.iter().filter_map(|(_, outcome)| outcome.as_deref()).collect();
    assert_eq!(verdicts, ["differs"; 4], "{entries:?}");
    let repairs: Vec<String> =
        rows.iter().filter(|row| row.get::<_, &str>(0) == "repair").map(|row| row.get(2)).collect();
    assert_eq!(repairs.len(), 6, "one of each table: {entries:?}");
    let keys = |text: &str| repairs.iter().any(|body| body.contains(text));
    assert!(keys("90000000") && keys("strasse 3"), "{repairs:?}");
}
