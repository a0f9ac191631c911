//! Whether a stage of retirement may be taken, decided without I/O.

use std::time::Duration;

use super::judge::SliceReport;
use crate::authority::Side;
use crate::journal::retirement::Stage;
use crate::problem::{Problem, Severity};
use crate::reconcile::evidence::Lack;
use crate::words;

/// What a stage asks for beside the use of the tables.
#[derive(Debug, Clone)]
pub struct Grounds {
    /// How long ago the authority moved; `None` where the ledger does not tell.
    pub moved_ago: Option<Duration>,
    /// The plan's `safety_period`.
    pub safety_period: Duration,
    /// Full clean verdicts since then.
    pub clean_runs: i64,
    /// The plan's `clean_runs_before_retire`.
    pub clean_runs_wanted: u32,
    /// The plan wants an approval, and nobody is named.
    pub not_approved: bool,
    /// Why the last verdict is no proof that both sides are equal.
    pub lacks: Vec<Lack>,
}

/// What is about to be done, in the order in which it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Rights are taken away.
    Revoke,
    /// Tables are moved away.
    Quarantine,
    /// What they hold is kept in files.
    Archive,
    /// They go.
    Drop,
}

/// Foreign keys between an old table and one that stays.
const FOREIGN_KEY: &str = "retire-foreign-key";

/// What stands in the way of taking the rights on old tables away: whatever stands in the way of retiring them at all, but for foreign
/// keys, whose checks need nobody's rights but the owners'.
#[must_use]
pub(super) fn before_revoking(report: &SliceReport, grounds: &Grounds) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Before a flip there is nothing to say of the time since.
    if report.authority == Some(Side::Service) {
        problems.extend(asked_of_all(&report.slice, grounds));
    }
    problems.extend(report.problems.iter().map(|problem| {
        match problem.code {
            FOREIGN_KEY => Problem {
                severity: Severity::Note,
                consequence:
                    "it is checked with the rights of the tables' owners, so writes at its other end go on"
                        .to_owned(),
                next: "nothing now; it stands in the way of moving the table away".to_owned(),
                ..problem.clone()
            },
            _ => problem.clone(),
        }
    }));
    problems
}

/// What stands in the way of moving old tables away: whatever stands in the way of retiring them at all, and rights that others still
/// have.
#[must_use]
pub(super) fn before_moving(report: &SliceReport, grounds: &Grounds, revoked: Revoked) -> Vec<Problem> {
    let mut problems = Vec::new();
    if report.authority == Some(Side::Service) {
        problems.extend(asked_of_all(&report.slice, grounds));
    }
    problems.extend(report.problems.iter().cloned());
    let slice = &report.slice;
    let again = |fact: &str, consequence: &str| {
        Problem::error("stage-before", format!("slice {slice}"))
            .fact(fact)
            .consequence(consequence)
            .next(format!("strangler retire PLAN --slice {slice} --stage revoke"))
    };
    match revoked {
        Revoked::Wholly => {}
        Revoked::Not => problems.push(again(
            "the rights on its old tables are not taken away",
            "whoever has them would fail by the name of a table, and not by a right that can be given back at once",
        )),
        Revoked::GivenSince => problems.push(again(
            "somebody has given rights on its old tables since they were taken away",
            "whoever got them means to use the tables",
        )),
    }
    problems
}

/// What stands in the way of archiving old tables: whatever stands in the way of moving them, and that they are not moved yet. Nothing
/// is taken from anybody, but a stage that drops them rests on what is kept.
#[must_use]
pub(super) fn before_archiving(
    report: &SliceReport,
    grounds: &Grounds,
    (taken, revoked): (Option<Stage>, Revoked),
) -> Vec<Problem> {
    let mut problems = before_moving(report, grounds, revoked);
    if taken == Some(Stage::Revoked) {
        problems.push(
            Problem::error("stage-before", format!("slice {}", report.slice))
                .fact("its old tables are not moved away")
                .consequence(
                    "whoever still looks them up by name would not be noticed before they are dropped",
                )
                .next(format!("strangler retire PLAN --slice {} --stage quarantine", report.slice)),
        );
    }
    problems
}

/// Whether a problem says of a function that its text names a table, while `bound` says of the same one that it follows the table, or
/// that the way back calls it.
#[must_use]
pub(super) fn is_said_of(problem: &Problem, bound: &[Problem]) -> bool {
    let name = |object: &str| object.split('(').next().unwrap_or_default().to_owned();
    let same = |one: &Problem| {
        let object = name(&one.object);
        matches!(one.code, "retire-body" | "retire-called")
            && (object == problem.object || object == format!("public.{}", problem.object))
    };
    problem.code == "retire-function" && bound.iter().any(same)
}

/// How the stage before stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Revoked {
    /// It was not taken.
    Not,
    /// Nobody has rights that it takes.
    Wholly,
    /// Somebody has such again.
    GivenSince,
}

fn asked_of_all(slice: &str, grounds: &Grounds) -> Vec<Problem> {
    let of = |code| Problem::error(code, format!("slice {slice}"));
    let mut problems = Vec::new();
    match grounds.moved_ago {
        None => problems.push(
            of("safety-period")
                .fact("the ledger has no entry of the move that gave the service the authority")
                .consequence("nobody knows whether safety_period is over")
                .next(format!("strangler ledger PLAN --slice {slice} --kind flip")),
        ),
        Some(ago) if ago < grounds.safety_period => problems.push(
            of("safety-period")
                .fact(format!(
                    "the service has had the authority for {}, and safety_period is {}",
                    period(ago),
                    period(grounds.safety_period)
                ))
                .consequence("the old tables are kept as they are until it is over")
                .next(format!("wait for another {}", period(grounds.safety_period.saturating_sub(ago)))),
        ),
        Some(_) => {}
    }
    if grounds.clean_runs < i64::from(grounds.clean_runs_wanted) {
        problems.push(
            of("clean-runs")
                .fact(format!(
                    "{} since the authority moved, and clean_runs_before_retire is {}",
                    match grounds.clean_runs {
                        1 => "1 full verdict was clean".to_owned(),
                        count => format!("{count} full verdicts were clean"),
                    },
                    grounds.clean_runs_wanted
                ))
                .consequence("it is not proven that the old tables have nothing that the service lacks")
                .next(format!("strangler reconcile PLAN --slice {slice}")),
        );
    }
    if !grounds.lacks.is_empty() {
        let lacks: Vec<String> = grounds.lacks.iter().map(ToString::to_string).collect();
        problems.push(
            of("no-evidence")
                .fact(lacks.join("; "))
                .consequence("it is not proven that both sides are equal now")
                .next(format!("strangler reconcile PLAN --slice {slice}")),
        );
    }
    if grounds.not_approved {
        problems.push(
            of("not-approved")
                .fact("the plan says approval: required, and nobody is named who approved this")
                .consequence("nothing was begun")
                .next("the same command with --approved-by NAME, once somebody has"),
        );
    }
    problems
}

fn period(period: Duration) -> String {
    words::seconds(period.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn grounds() -> Grounds {
        Grounds {
            moved_ago: Some(DAY * 30),
            safety_period: DAY * 30,
            clean_runs: 3,
            clean_runs_wanted: 3,
            not_approved: false,
            lacks: Vec::new(),
        }
    }

    fn report(problems: Vec<Problem>) -> SliceReport {
        SliceReport {
            slice: "one".into(),
            service: "s".into(),
            authority: Some(Side::Service),
            epoch: 2,
            quiet_period_s: 0,
            tables: Vec::new(),
            problems,
        }
    }

    fn codes(grounds: &Grounds, problems: Vec<Problem>) -> Vec<&'static str> {
        before_revoking(&report(problems), grounds).iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn each_ground_that_is_missing_is_said() {
        assert_eq!(codes(&grounds(), Vec::new()), Vec::<&str>::new());
        let young = Grounds { moved_ago: Some(DAY * 29), ..grounds() };
        assert_eq!(codes(&young, Vec::new()), ["safety-period"]);
        assert_eq!(codes(&Grounds { moved_ago: None, ..grounds() }, Vec::new()), ["safety-period"]);
        assert_eq!(codes(&Grounds { clean_runs: 2, ..grounds() }, Vec::new()), ["clean-runs"]);
        assert_eq!(codes(&Grounds { not_approved: true, ..grounds() }, Vec::new()), ["not-approved"]);
        assert_eq!(
            codes(&Grounds { lacks: vec![Lack::NoVerdict], ..grounds() }, Vec::new()),
            ["no-evidence"]
        );
    }

    #[test]
    fn what_the_report_finds_stands_in_the_way_but_for_foreign_keys_which_go_on() {
        let found = vec![
            Problem::error("still-used", "t"),
            Problem::error("retire-view", "v"),
            Problem::error("retire-foreign-key", "k"),
            Problem::warning("x", "y"),
        ];
        let problems = before_revoking(&report(found), &grounds());
        let said: Vec<_> = problems.iter().map(|problem| (problem.code, problem.severity)).collect();
        let expected = [
            ("still-used", Severity::Error),
            ("retire-view", Severity::Error),
            ("retire-foreign-key", Severity::Note),
            ("x", Severity::Warning),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn tables_are_moved_when_nobody_has_rights_on_them_and_nothing_refers_to_them() {
        let found = |revoked, problems| {
            let problems = before_moving(&report(problems), &grounds(), revoked);
            problems.iter().map(|problem| (problem.code, problem.severity)).collect::<Vec<_>>()
        };
        assert_eq!(found(Revoked::Wholly, Vec::new()), []);
        assert_eq!(found(Revoked::Not, Vec::new()), [("stage-before", Severity::Error)]);
        assert_eq!(found(Revoked::GivenSince, Vec::new()), [("stage-before", Severity::Error)]);
        let key = vec![Problem::error("retire-foreign-key", "k")];
        assert_eq!(found(Revoked::Wholly, key), [("retire-foreign-key", Severity::Error)]);
        let young = Grounds { moved_ago: Some(DAY * 29), ..grounds() };
        assert_eq!(before_moving(&report(Vec::new()), &young, Revoked::Wholly)[0].code, "safety-period");
    }

    #[test]
    fn tables_are_archived_once_they_are_moved_away() {
        let found = |taken, revoked| {
            let problems = before_archiving(&report(Vec::new()), &grounds(), (taken, revoked));
            problems.into_iter().map(|problem| (problem.code, problem.next)).collect::<Vec<_>>()
        };
        let stage = |name: &str| format!("strangler retire PLAN --slice one --stage {name}");
        let (moved, only_revoked) = (Some(Stage::Quarantined), Some(Stage::Revoked));
        assert_eq!(found(moved, Revoked::Wholly), []);
        assert_eq!(found(only_revoked, Revoked::Wholly), [("stage-before", stage("quarantine"))]);
        assert_eq!(found(None, Revoked::Not), [("stage-before", stage("revoke"))]);
        assert_eq!(found(moved, Revoked::GivenSince), [("stage-before", stage("revoke"))]);
    }

    #[test]
    fn before_a_flip_nothing_is_said_of_the_time_since() {
        let not_flipped = Problem::error("not-flipped", "slice one");
        let report = SliceReport { authority: Some(Side::Monolith), ..report(vec![not_flipped]) };
        let problems = before_revoking(&report, &Grounds { moved_ago: None, clean_runs: 0, ..grounds() });
        assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), ["not-flipped"]);
    }
}
