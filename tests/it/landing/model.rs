//! The landing rule against a model of a source: random histories in which transactions become visible in another
//! order than they enter the log, pieces that are read at random moments, crashes. What decides is the code of the
//! library; the model only plays server and hands. The rule always ends with what the source has, and every mutant
//! of it is found out.

mod mirror;
mod source;

use mirror::{Counts, Mirror, Wrong};
use source::Source;

/// Histories for the rule itself, and the most that a mutant is given to fail in.
const HISTORIES: u64 = 4_000;

/// Plays one history and gives what the load met.
fn play(seed: u64, wrong: Option<Wrong>) -> Result<Counts, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut source = Source::new(&mut random);
    let mut mirror = Mirror::new(random.bool(), wrong);
    for _ in 0..random.usize(60..300) {
        match random.u8(0..30) {
            0..=2 => {
                let refetched = mirror.counts.refetched;
                mirror.consume(random.usize(1..4), &mut source, &mut random)?;
                // What a refetch leaves behind matters most to the one who comes next.
                if mirror.counts.refetched > refetched && random.bool() {
                    mirror.restart();
                }
            }
            4..=6 => mirror.round(&mut source, &mut random)?,
            7 => mirror.restart(),
            _ => source.step(&mut random, false),
        }
    }
    while !mirror.is_copied() {
        source.finish(&mut random);
        mirror.consume(usize::MAX, &mut source, &mut random)?;
        mirror.round(&mut source, &mut random)?;
    }
    source.finish(&mut random);
    mirror.consume(usize::MAX, &mut source, &mut random)?;
    if !mirror.is_live() {
        return Err("the table is copied and passed, and not live".to_owned());
    }
    if mirror.target == source.visible { Ok(mirror.counts) } else { Err("the target is another".to_owned()) }
}

#[test]
fn the_rule_gives_what_the_source_has() {
    let mut met = Counts::default();
    for seed in 0..HISTORIES {
        let counts = play(seed, None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        met.mixed_key_changes += counts.mixed_key_changes;
        met.refetched += counts.refetched;
        met.kept_by_truncation += counts.kept_by_truncation;
        met.refused_snapshots += counts.refused_snapshots;
    }
    assert!(met.mixed_key_changes > 1_000, "{met:?}");
    assert!(met.refetched > 500, "{met:?}");
    assert!(met.kept_by_truncation > 20, "{met:?}");
    assert!(met.refused_snapshots > 500, "{met:?}");
}

#[test]
fn every_wrong_form_of_the_rule_has_a_history_that_finds_it_out() {
    for wrong in Wrong::ALL {
        let found = (0..HISTORIES).find(|seed| play(*seed, Some(wrong)).is_err());
        assert!(found.is_some(), "{wrong:?} went unnoticed in {HISTORIES} histories");
    }
}
