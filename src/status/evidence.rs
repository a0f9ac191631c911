//! What the ledger says of whether both sides of a slice are equal, and whether it still holds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::as_text;
use crate::journal::grounds::Ground;
use crate::journal::ledger::{Broken, Fault};
use crate::lsn::Lsn;
use crate::reconcile::evidence::{Evidence, LastVerdict, Void, voids};
use crate::reconcile::verdict::{Counts, Coverage, Outcome};

/// What the service's database says.
#[derive(Debug, Clone, Default)]
pub struct EvidenceFacts {
    /// The ledger's verdicts on the slice.
    pub evidence: Evidence,
    /// What they would have to rest on now, without the monolith's part; absent when it is not provisioned.
    pub ground: Option<Ground>,
}

/// Whether both sides are proven equal. Serialised as `status --format json` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvidenceStatus {
    /// They are, by the rule that a flip asks. Absent where that can't be told because the monolith can't be read.
    pub stands: Option<bool>,
    /// Why not, a clause each.
    pub lacks: Vec<String>,
    /// The last verdict.
    pub last: Option<VerdictStatus>,
    /// The last one that covers every row of every table; often the same.
    pub last_full: Option<VerdictStatus>,
    /// The alarm about differences that were found and may still be there.
    #[serde(skip)]
    pub(super) alarm: Option<String>,
    /// See [`Evidence::asks_for_strict`].
    #[serde(skip)]
    pub(super) asks_for_strict: bool,
    /// The ledger is not what was written, and nobody has accepted that.
    #[serde(skip)]
    pub(super) broken: bool,
}

/// One verdict of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictStatus {
    /// Number of its entry in the ledger.
    pub entry: i64,
    /// The run's uuid.
    pub run: String,
    /// `clean`, `differs` or `incomplete`.
    pub outcome: Outcome,
    /// Every row of every table was compared.
    pub full: bool,
    /// Representations were compared too.
    pub strict: bool,
    /// How many tables it is about.
    pub tables_compared: usize,
    /// How many tables the slice had.
    pub tables: usize,
    /// What was looked at of them, each once.
    pub coverage: Vec<Coverage>,
    /// When it was given, as RFC 3339.
    pub at: String,
    /// Seconds since then.
    pub age_seconds: f64,
    /// Seconds since its run began: what the plan's `evidence_max_age` is compared with.
    pub begun_seconds_ago: f64,
    /// Position on the authority that everything compared had reached.
    #[serde(serialize_with = "as_text")]
    pub lsn: Lsn,
    /// Epoch of the authority.
    pub epoch: i64,
    /// How many findings there are, by kind; kinds without any are left out.
    pub findings: Counts,
    /// The tables that differ, by the monolith's names.
    pub differing: Vec<String>,
}

/// Judges what the service said, with the shapes of the monolith's tables where those could be read.
#[must_use]
pub fn judge(
    facts: &EvidenceFacts,
    monolith: Option<&BTreeMap<String, String>>,
    max_age: Duration,
) -> EvidenceStatus {
    let ground = match (&facts.ground, monolith) {
        (Some(ground), Some(shapes)) => Some(ground.clone().with_monolith(shapes)),
        (ground, _) => ground.clone(),
    };
    let lacks = facts.evidence.lacks(ground.as_ref(), max_age);
    let stands = if lacks.is_empty() { monolith.map(|_| true) } else { Some(false) };
    EvidenceStatus {
        stands,
        lacks: lacks.iter().map(ToString::to_string).collect(),
        last: facts.evidence.last.as_ref().map(status),
        last_full: facts.evidence.last_full.as_ref().map(status),
        alarm: alarm(&facts.evidence, ground.as_ref()),
        asks_for_strict: facts.evidence.asks_for_strict(),
        broken: unaccepted(&facts.evidence).is_some(),
    }
}

fn status(verdict: &LastVerdict) -> VerdictStatus {
    VerdictStatus {
        entry: verdict.entry,
        run: verdict.run.clone(),
        outcome: verdict.outcome,
        full: verdict.full,
        strict: verdict.strict,
        tables_compared: verdict.compared,
        tables: verdict.ground.tables.len(),
        coverage: verdict.coverage.clone(),
        at: verdict.at.clone(),
        age_seconds: verdict.age.as_secs_f64(),
        begun_seconds_ago: verdict.begun_ago.as_secs_f64(),
        lsn: verdict.lsn,
        epoch: verdict.epoch,
        findings: verdict.counts.clone(),
        differing: verdict.differing.clone(),
    }
}

fn unaccepted(evidence: &Evidence) -> Option<&Broken> {
    evidence.broken.as_ref().filter(|broken| broken.fault != Fault::Accepted)
}

/// Proven differences are an alarm until a verdict that covers everything says otherwise, or until all the rows that
/// differed were copied anew. That evidence is old, void or absent is none: nothing is known to be wrong.
fn alarm(evidence: &Evidence, ground: Option<&Ground>) -> Option<String> {
    if let Some(broken) = unaccepted(evidence) {
        return Some(format!(
            "{broken}; `strangler ledger` with --verify looks at all of it, and with --accept-broken REASON goes on from here"
        ));
    }
    let differs = |verdict: &&LastVerdict| verdict.outcome == Outcome::Differs;
    let found = evidence.last.iter().chain(&evidence.last_full).find(differs);
    let Some(verdict) = found else {
        let incomplete =
            evidence.last_full.as_ref().is_some_and(|verdict| verdict.outcome == Outcome::Incomplete);
        let words = if evidence.differs_strictly && !evidence.differs_since {
            "a verdict with --strict found rows that differ, which one by meaning does not see"
        } else if incomplete {
            "a verdict found differences, and the last full one left something out"
        } else {
            "a verdict about a part of the rows found differences after the last full one"
        };
        return (evidence.differs_since || evidence.differs_strictly).then(|| words.to_owned());
    };
    let voids = voids(&verdict.ground, ground);
    let replaced = |void: &Void| matches!(void, Void::Mapping | Void::StreamAnew | Void::NotProvisioned);
    if voids.iter().any(replaced) {
        return None;
    }
    let left: Vec<&str> =
        verdict.differing.iter().map(String::as_str).filter(|table| !copied_anew(&voids, table)).collect();
    if left.is_empty() && !verdict.differing.is_empty() {
        return None;
    }
    let within = if left.is_empty() { String::new() } else { format!(" in {}", left.join(", ")) };
    let (at, entry) = (&verdict.at, verdict.entry);
    Some(format!("the verdict of {at} (ledger entry {entry}) found differences{within}"))
}

fn copied_anew(voids: &[Void], name: &str) -> bool {
    voids.iter().any(|void| match void {
        Void::Copied { table } | Void::Tables { table } => table == name,
        Void::NotLive { table, state } => table == name && matches!(state.as_str(), "pending" | "copying"),
        Void::Mapping
        | Void::Epoch { .. }
        | Void::StreamAnew
        | Void::Stream { .. }
        | Void::Unwatched { .. }
        | Void::Unheard { .. }
        | Void::Unlogged { .. }
        | Void::Changed { .. }
        | Void::Files { .. }
        | Void::Disturbed
        | Void::NotProvisioned => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::grounds::TableGround;
    use crate::reconcile::finding::FindingKind;

    const DAY: Duration = Duration::from_secs(86_400);

    fn ground() -> Ground {
        let table = || TableGround {
            copy: 1,
            state: "live".to_owned(),
            unheard: false,
            target_shape: "t".to_owned(),
            source_shape: Some("s".to_owned()),
        };
        Ground {
            plan_hash: "hash".to_owned(),
            epoch: 1,
            slot: Some("slot".to_owned()),
            stream: Some("running".to_owned()),
            disturbances: 0,
            way_back: None,
            copy: Some("service".to_owned()),
            tables: [("Orders".to_owned(), table()), ("Lines".to_owned(), table())].into(),
        }
    }

    fn shapes() -> BTreeMap<String, String> {
        ["Orders", "Lines"].map(|table| (table.to_owned(), "s".to_owned())).into()
    }

    fn verdict(entry: i64, outcome: Outcome, full: bool) -> LastVerdict {
        let differs = outcome == Outcome::Differs;
        LastVerdict {
            entry,
            run: "run".to_owned(),
            outcome,
            full,
            strict: false,
            authority: "monolith".to_owned(),
            at: "2026-01-01T00:00:00Z".to_owned(),
            age: Duration::from_secs(60),
            begun_ago: Duration::from_secs(120),
            epoch: 1,
            lsn: Lsn(1000),
            from_lsn: Lsn(900),
            plan_hash: "hash".to_owned(),
            counts: differs.then_some((FindingKind::Missing, 3)).into_iter().collect(),
            compared: 2,
            coverage: vec![Coverage::Full],
            differing: if differs { vec!["Orders".to_owned()] } else { Vec::new() },
            ground: ground(),
        }
    }

    fn facts(last: LastVerdict, full: LastVerdict) -> EvidenceFacts {
        let differs_since = last.entry > full.entry && last.outcome == Outcome::Differs;
        let evidence = Evidence {
            last: Some(last),
            last_full: Some(full),
            differs_since,
            rows_differ_since: differs_since,
            differs_strictly: false,
            broken: None,
        };
        EvidenceFacts { evidence, ground: Some(Ground { tables: tables(), ..ground() }) }
    }

    /// As the service tells them: without the monolith's shapes.
    fn tables() -> BTreeMap<String, TableGround> {
        ground()
            .tables
            .into_iter()
            .map(|(name, table)| (name, TableGround { source_shape: None, ..table }))
            .collect()
    }

    fn full(outcome: Outcome) -> EvidenceFacts {
        facts(verdict(5, outcome, true), verdict(5, outcome, true))
    }

    fn judged(facts: &EvidenceFacts) -> EvidenceStatus {
        judge(facts, Some(&shapes()), DAY)
    }

    #[test]
    fn a_clean_full_verdict_on_the_same_ground_stands_and_needs_the_monoliths_word() {
        let proof = judged(&full(Outcome::Clean));
        assert_eq!((proof.stands, proof.lacks.len(), &proof.alarm), (Some(true), 0, &None));
        assert_eq!(proof.last, proof.last_full);
        assert_eq!(
            judge(&full(Outcome::Clean), None, DAY).stands,
            None,
            "nobody knows the monolith's tables"
        );
        let moved = judge(&full(Outcome::Clean), Some(&BTreeMap::new()), DAY);
        assert_eq!((moved.stands, moved.alarm), (Some(false), None));
        assert_eq!(moved.lacks.len(), 2, "{:?}", moved.lacks);
    }

    #[test]
    fn absent_old_and_incomplete_evidence_is_no_alarm_and_no_proof() {
        let none = judged(&EvidenceFacts::default());
        assert_eq!((none.stands, none.alarm), (Some(false), None));
        assert_eq!(none.lacks, ["nothing was compared yet"]);
        let old = judge(&full(Outcome::Clean), Some(&shapes()), Duration::from_secs(60));
        assert_eq!((old.stands, old.alarm), (Some(false), None));
        let incomplete = judged(&full(Outcome::Incomplete));
        assert_eq!((incomplete.stands, incomplete.alarm), (Some(false), None));
    }

    #[test]
    fn differences_are_an_alarm_until_their_rows_were_copied_anew() {
        let mut facts = full(Outcome::Differs);
        let alarm = judged(&facts).alarm.unwrap();
        assert_eq!(alarm, "the verdict of 2026-01-01T00:00:00Z (ledger entry 5) found differences in Orders");
        let ground =
            |facts: &mut EvidenceFacts, change: &dyn Fn(&mut Ground)| change(facts.ground.as_mut().unwrap());
        ground(&mut facts, &|ground| ground.tables.get_mut("Lines").unwrap().copy = 2);
        assert!(judged(&facts).alarm.is_some(), "another table was copied");
        ground(&mut facts, &|ground| ground.epoch = 2);
        assert!(judged(&facts).alarm.is_some(), "moving the authority mends no row");
        ground(&mut facts, &|ground| ground.tables.get_mut("Orders").unwrap().copy = 2);
        assert_eq!(judged(&facts).alarm, None);
        let mut facts = full(Outcome::Differs);
        ground(&mut facts, &|ground| ground.slot = Some("another".to_owned()));
        assert_eq!(judged(&facts).alarm, None, "all was copied anew");
    }

    #[test]
    fn a_clean_look_at_a_part_does_not_end_an_alarm_and_a_difference_in_a_part_begins_one() {
        let proof = judged(&facts(verdict(6, Outcome::Clean, false), verdict(5, Outcome::Differs, true)));
        assert!(proof.alarm.unwrap().contains("entry 5"));
        let part = verdict(6, Outcome::Differs, false);
        let mut facts = facts(part, verdict(5, Outcome::Clean, true));
        assert!(judged(&facts).alarm.unwrap().contains("entry 6"));
        facts.evidence.last = Some(verdict(7, Outcome::Clean, false));
        assert!(judged(&facts).alarm.unwrap().contains("about a part"));
    }
}
