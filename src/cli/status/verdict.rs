//! The last verdict and what it still proves, as text.

use crate::cli::ui::{Ink, Paint};
use crate::reconcile::verdict::{Coverage, Outcome};
use crate::status::{Phase, SliceStatus, VerdictStatus};
use crate::words;

/// The lines: what each is about, and its words. None before there is anything to compare.
pub(super) fn lines(status: &SliceStatus, paint: Paint) -> Vec<(&'static str, String)> {
    let Some(proof) = &status.evidence else { return Vec::new() };
    let Some(last) = &proof.last else {
        let comparable = matches!(status.phase, Phase::Streaming | Phase::Stopped | Phase::Dead);
        let none = || ("verdict", "none: nothing was compared yet".to_owned());
        return comparable.then(none).into_iter().collect();
    };
    let mut lines = vec![("verdict", verdict_words(last, paint))];
    if let Some(full) = proof.last_full.as_ref().filter(|full| full.entry != last.entry) {
        lines.push(("full", verdict_words(full, paint)));
    }
    let evidence = match proof.stands {
        Some(true) => paint.ink(Ink::Good, "stands: both sides are proven equal"),
        Some(false) => paint.ink(Ink::Caution, &format!("none: {}", proof.lacks.join("; "))),
        None => paint.ink(Ink::Caution, "unknown: the monolith can't be read"),
    };
    lines.push(("evidence", evidence));
    lines
}

/// The part of a headline: without ages, which change all the time.
pub(super) fn headline(status: &SliceStatus) -> Option<String> {
    let proof = status.evidence.as_ref()?;
    let last = proof.last.as_ref()?;
    let evidence = match proof.stands {
        Some(true) => "evidence stands",
        Some(false) => "no evidence",
        None => "evidence unknown",
    };
    Some(format!("last verdict {} (entry {}), {evidence}", last.outcome, last.entry))
}

/// `differs 5.0 s ago, strict, 2 of 5 tables, a sample of 5 %: 3 missing, 1 differs; up to 0/1000, ledger entry 12`.
fn verdict_words(verdict: &VerdictStatus, paint: Paint) -> String {
    let ink = match verdict.outcome {
        Outcome::Clean => Ink::Good,
        Outcome::Differs => Ink::Alarm,
        Outcome::Incomplete => Ink::Caution,
    };
    let outcome = paint.ink(ink, verdict.outcome.as_str());
    let mut parts = vec![format!("{outcome} {} ago", words::seconds(verdict.age_seconds))];
    if verdict.strict {
        parts.push("strict".to_owned());
    }
    parts.push(extent_words(verdict));
    let findings: Vec<String> = verdict
        .findings
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{} {kind}", words::count(*count)))
        .collect();
    let findings = if findings.is_empty() { String::new() } else { format!(": {}", findings.join(", ")) };
    format!("{}{findings}; up to {}, ledger entry {}", parts.join(", "), verdict.lsn, verdict.entry)
}

fn extent_words(verdict: &VerdictStatus) -> String {
    let (compared, tables) = (verdict.tables_compared, verdict.tables);
    let of_tables = if compared == tables {
        words::plural(tables, "table")
    } else {
        format!("{compared} of {}", words::plural(tables, "table"))
    };
    let coverage: Vec<String> = verdict.coverage.iter().map(coverage_words).collect();
    if verdict.coverage.iter().all(|coverage| *coverage == Coverage::Full) {
        // Rows may be open, or something may have happened to what was compared.
        match verdict.outcome {
            Outcome::Incomplete => format!("{of_tables}, with something left out"),
            Outcome::Clean | Outcome::Differs => format!("every row of {of_tables}"),
        }
    } else {
        format!("{of_tables}, {}", coverage.join(" or "))
    }
}

fn coverage_words(coverage: &Coverage) -> String {
    match coverage {
        Coverage::Full => "every row".to_owned(),
        Coverage::CutShort => "not all rows".to_owned(),
        Coverage::Sample { percent } => format!("a sample of {percent} %"),
        Coverage::References => "references alone".to_owned(),
        Coverage::ChangedSince { lsn } => format!("what changed since {lsn}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::reconcile::finding::FindingKind;

    fn verdict() -> VerdictStatus {
        VerdictStatus {
            entry: 12,
            run: "run".to_owned(),
            outcome: Outcome::Clean,
            full: true,
            strict: false,
            tables_compared: 5,
            tables: 5,
            coverage: vec![Coverage::Full],
            at: "2026-01-01T00:00:00Z".to_owned(),
            age_seconds: 11_040.0,
            begun_seconds_ago: 11_100.0,
            lsn: Lsn(4096),
            epoch: 1,
            findings: [(FindingKind::Orphan, 0)].into(),
            differing: Vec::new(),
        }
    }

    #[test]
    fn a_verdict_says_outcome_age_extent_findings_and_position() {
        let words = |verdict: &VerdictStatus| verdict_words(verdict, Paint::Plain);
        let full = verdict();
        assert_eq!(words(&full), "clean 3 h 4 min ago, every row of 5 tables; up to 0/1000, ledger entry 12");
        let sample = VerdictStatus {
            outcome: Outcome::Differs,
            strict: true,
            tables_compared: 2,
            coverage: vec![Coverage::Sample { percent: 2.5 }],
            findings: [(FindingKind::Missing, 1_234), (FindingKind::Differs, 1)].into(),
            ..verdict()
        };
        assert_eq!(
            words(&sample),
            "differs 3 h 4 min ago, strict, 2 of 5 tables, a sample of 2.5 %: 1,234 missing, 1 differs; up to 0/1000, \
             ledger entry 12"
        );
        let cut = VerdictStatus {
            outcome: Outcome::Incomplete,
            tables_compared: 1,
            coverage: vec![Coverage::CutShort],
            full: false,
            ..verdict()
        };
        assert!(words(&cut).contains("1 of 5 tables, not all rows; up to"), "{}", words(&cut));
        let open = VerdictStatus { coverage: vec![Coverage::Full], ..cut };
        assert!(words(&open).contains("1 of 5 tables, with something left out; up to"), "{}", words(&open));
        let since = VerdictStatus {
            coverage: vec![Coverage::ChangedSince { lsn: Lsn(2048) }],
            full: false,
            ..verdict()
        };
        assert!(words(&since).contains("5 tables, what changed since 0/800; up to"), "{}", words(&since));
    }
}
