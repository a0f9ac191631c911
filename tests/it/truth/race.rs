//! What moves is never taken for wrong.

use std::time::{Duration, Instant};

use super::found::Run;
use super::stage::Writers;
use crate::support::split::Split;
use crate::support::{say, soak};

const SETUP: &str = "CREATE TABLE hot (id int PRIMARY KEY, kind text NOT NULL, v int, note text);
    ALTER TABLE hot REPLICA IDENTITY FULL;
    INSERT INTO hot SELECT i, 'in', i, 'note ' || i FROM generate_series(1, 500) i;
    CREATE TABLE hot_words (word text COLLATE \"en-x-icu\" PRIMARY KEY, v int);
    INSERT INTO hot_words SELECT 'word ' || i, i FROM generate_series(1, 500) i;
    CREATE TABLE cold (id int PRIMARY KEY, v int); INSERT INTO cold SELECT i, i FROM generate_series(1, 40) i; ANALYZE";

fn hammer(random: &mut fastrand::Rng) -> String {
    let (id, other) = (random.u32(1..=10), random.u32(1..=10));
    match random.u32(0..9) {
        0 | 1 => format!("UPDATE hot SET v = v + 1, note = note || '.' WHERE id = {id}"),
        2 => format!(
            "BEGIN; DELETE FROM hot WHERE id = {id}; INSERT INTO hot VALUES ({id}, 'in', 0, 'new') ON CONFLICT DO NOTHING; COMMIT"
        ),
        3 => format!("DELETE FROM hot WHERE id = {id}"),
        4 => format!(
            "INSERT INTO hot VALUES ({id}, 'in', 0, 'again') ON CONFLICT (id) DO UPDATE \
             SET kind = CASE hot.kind WHEN 'in' THEN 'out' ELSE 'in' END"
        ),
        5 => format!(
            "UPDATE hot SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM hot WHERE id = {other})"
        ),
        // A snapshot from before a TRUNCATE sees the table empty.
        6 => format!(
            "BEGIN; SET LOCAL lock_timeout = '100ms'; TRUNCATE cold; \
             INSERT INTO cold SELECT i, {id} FROM generate_series(1, 40) i; COMMIT"
        ),
        7 => format!("UPDATE hot_words SET v = v + 1 WHERE word = 'word {id}'"),
        _ => format!(
            "BEGIN; DELETE FROM hot_words WHERE word = 'word {id}'; \
             INSERT INTO hot_words VALUES ('word {id}', 0) ON CONFLICT DO NOTHING; COMMIT"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_keys_that_are_hammered_are_never_a_finding() {
    let tables = "{ hot: { where: { kind: in } }, hot_words: {}, cold: {} }";
    let (split, monolith, service) = Split::launch(tables, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let writers = Writers::start(&split.pair.monolith_url(), hammer).await;
    let began = Instant::now();
    let (mut clean, mut reasons) = (0, Vec::new());
    while began.elapsed() < Duration::from_secs(if soak() { 60 } else { 12 }) {
        let before = writers.done();
        let arguments: &[&str] = if clean % 2 == 0 { &["--strict"] } else { &[] };
        let run = Run::of(&split, arguments);
        assert_eq!((run.told(), run.counts().len()), (vec![], 0), "{}", run.ended.page());
        writers.assert_got_on(&before);
        if run.ended.exit == Some(0) {
            clean += 1;
        } else {
            run.assert_incomplete(&["row"]);
            reasons.push(run.reasons());
        }
    }
    let written = writers.stop().await;
    say(&format!("{clean} runs clean, {} incomplete, beside {written} writes: {reasons:?}", reasons.len()));
    assert!(clean > reasons.len(), "most runs come to a verdict: {clean} clean, {reasons:?}");
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
}
