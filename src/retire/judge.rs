//! What stands in the way of retiring a slice's old tables, decided from what was seen of them.

use serde::{Serialize, Serializer};

use super::dependents::{Dependent, Kind};
use super::facts::{SliceFacts, StrayWrites};
use crate::authority::Side;
use crate::journal::alarms;
use crate::journal::usage::{How, SETTLES_US, TableUse, TableUser};
use crate::name::quote_ident;
use crate::postgres::clocks;
use crate::postgres::statements_seen::Blind;
use crate::problem::{Problem, Severity};
use crate::words;

/// A mirror looks every few seconds. When it has not for so long, nobody watches. Microseconds.
const STALE_US: i64 = 60_000_000;

/// Counters that were lost while nobody looked for this long may hide a reader; after a shorter time he will be seen again.
/// Microseconds.
const UNSEEN_US: i64 = 300_000_000;

/// What is said of one slice: a documented contract in its JSON form.
#[derive(Debug, Clone, Serialize)]
pub struct SliceReport {
    /// Slice.
    pub slice: String,
    /// Its service.
    pub service: String,
    /// Who may write.
    #[serde(serialize_with = "owner")]
    pub authority: Option<Side>,
    /// Since which epoch.
    pub epoch: i64,
    /// How long nobody may have used the tables, in seconds.
    pub quiet_period_s: i64,
    /// Its tables, in the plan's order.
    pub tables: Vec<TableReport>,
    /// What stands in the way, errors first.
    pub problems: Vec<Problem>,
}

/// What is said of one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    /// By the monolith's name.
    pub table: String,
    /// Whatever others read from here on was counted; absent while nobody watches.
    pub watched_since: Option<String>,
    /// When it was last looked at.
    pub looked_at: Option<String>,
    /// How often others have read it since, by sequential scans and by index; of a partitioned table each partition counts.
    pub scans_by_others: i64,
    /// How many rows others have read since, also without a scan: of a sample, or of a range of places (`ctid`).
    pub rows_by_others: i64,
    /// The last of these was after this look…
    pub last_use_after: Option<String>,
    /// … and before this one.
    pub last_use: Option<String>,
    /// Rows that were written past the gate.
    pub written_past_gate: i64,
    /// Nobody has used it since.
    pub quiet_since: Option<String>,
    /// Who was met.
    pub met: Vec<Met>,
    /// What needs it.
    pub dependents: Vec<Dependent>,
}

/// Somebody who was met at a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Met {
    /// `session` or `statement`.
    pub how: &'static str,
    /// Role.
    pub role: String,
    /// `application_name`; empty for a statement.
    pub application: String,
    /// Address, or `local`; empty for a statement.
    pub client: String,
    /// What ran, without constants.
    pub statement: String,
    /// Looks at which a session was met; how often a statement has run in all.
    pub times: i64,
    /// When last.
    pub last: String,
}

#[expect(clippy::cast_precision_loss, reason = "a period in words")]
fn period(us: i64) -> String {
    words::seconds(us.max(0) as f64 / 1e6)
}

/// What was seen of a slice, and what stands in the way.
#[must_use]
pub fn judge(facts: &SliceFacts) -> SliceReport {
    let mut problems: Vec<Problem> = of_slice(facts);
    let mut tables = Vec::with_capacity(facts.tables.len());
    for (table, seen) in &facts.tables {
        let seen = seen.as_ref().filter(|_| facts.authority == Some(Side::Service));
        let report = table_report(facts, table, seen);
        if facts.authority == Some(Side::Service) {
            problems.extend(of_table(facts, table, seen));
        }
        problems.extend(report.dependents.iter().map(|one| of_dependent(table, one)));
        tables.push(report);
    }
    problems.sort();
    SliceReport {
        slice: facts.slice.clone(),
        service: facts.service.clone(),
        authority: facts.authority,
        epoch: facts.epoch,
        quiet_period_s: facts.quiet_us / 1_000_000,
        tables,
        problems,
    }
}

fn table_report(facts: &SliceFacts, table: &str, seen: Option<&TableUse>) -> TableReport {
    let begun = seen.map(|seen| seen.since_us - SETTLES_US);
    let met = facts.users.iter().filter(|user| user.source_table == table);
    let met = met.filter_map(|user| met_since(user, begun?)).collect();
    TableReport {
        table: table.to_owned(),
        watched_since: seen.map(|seen| words::instant(seen.since_us)),
        looked_at: seen.map(|seen| words::instant(seen.sampled_us)),
        scans_by_others: seen.map_or(0, |seen| seen.others.scans),
        rows_by_others: seen.map_or(0, |seen| seen.others.rows),
        last_use_after: seen.and_then(|seen| seen.last_us).map(|(after, _)| words::instant(after)),
        last_use: seen.and_then(|seen| seen.last_us).map(|(_, at)| words::instant(at)),
        written_past_gate: strays(facts, table).map_or(0, |strays| strays.count),
        quiet_since: seen.map(|seen| words::instant(quiet_since(facts, table, seen))),
        met,
        dependents: facts.dependents.iter().filter(|one| one.source_table == table).cloned().collect(),
    }
}

/// Whoever was met since the watch began. A statement that ran before it and not since is nobody.
fn met_since(user: &TableUser, begun: i64) -> Option<Met> {
    let last = user.last_us.filter(|last| *last >= begun)?;
    Some(Met {
        how: user.how.as_str(),
        role: user.role.clone(),
        application: user.application.clone(),
        client: user.client.clone(),
        statement: user.statement.clone(),
        times: user.calls,
        last: words::instant(last),
    })
}

fn strays<'a>(facts: &'a SliceFacts, table: &str) -> Option<&'a StrayWrites> {
    facts.strays.iter().find(|strays| strays.source_table == table)
}

/// Since when nobody has used a table, as far as anybody knows. A statement that names it has read it only if the counters say so,
/// so statements tell who, and not whether.
fn quiet_since(facts: &SliceFacts, table: &str, seen: &TableUse) -> i64 {
    let sessions = facts.users.iter().filter(|user| user.source_table == table && user.how == How::Session);
    let unseen = lost(seen);
    let times = [seen.last_us.map(|(_, at)| at), unseen.map(|(_, until)| until)];
    let times = times.into_iter().flatten();
    let times = times.chain(sessions.filter_map(|user| user.last_us));
    let times = times.chain(strays(facts, table).map(|strays| strays.last_us));
    times.fold(seen.since_us, i64::max)
}

/// `monolith`, `service` or `nobody`.
fn owner<S: Serializer>(owner: &Option<Side>, serializer: S) -> Result<S::Ok, S::Error> {
    match owner {
        Some(side) => serializer.collect_str(side),
        None => serializer.serialize_str("nobody"),
    }
}

fn of_slice(facts: &SliceFacts) -> Vec<Problem> {
    let slice = &facts.slice;
    let mut problems = Vec::new();
    match facts.authority {
        Some(Side::Service) => {}
        Some(Side::Monolith) => problems.push(
            Problem::error("not-flipped", format!("slice {slice}"))
                .fact("the monolith has the authority: its tables are no old ones")
                .consequence("nobody watches who uses them before a flip")
                .next(format!("strangler flip PLAN --slice {slice}")),
        ),
        None => problems.push(
            Problem::error("not-flipped", format!("slice {slice}"))
                .fact("nobody has the authority: a move is under way, or was cut off")
                .consequence("neither side may be written until it is finished")
                .next(format!(
                    "strangler status PLAN --slice {slice}, which names the command that finishes it"
                )),
        ),
    }
    problems.extend(facts.apart_us.map(clocks::problem));
    problems.extend(uncounted(facts));
    if facts.hidden {
        problems.push(
            Problem::warning("stats-hidden", "monolith")
                .fact("the mirror's role is not a member of pg_read_all_stats")
                .consequence("who reads is counted; sessions of other roles have no address, and statements are not shown")
                .next("run on the monolith: GRANT pg_read_all_stats TO strangler_apply;"),
        );
    } else if facts.blind == Some(Blind::NoExtension) {
        problems.push(
            Problem::note("no-statements", "monolith")
                .fact("the extension pg_stat_statements is not there")
                .consequence("who reads is counted, and named when a session is met; which statements did it is not known")
                .next(
                    "to know them: add it to shared_preload_libraries, restart the monolith, then CREATE EXTENSION \
                     pg_stat_statements;",
                ),
        );
    }
    problems
}

/// Readers that the server's counters never show.
fn uncounted(facts: &SliceFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !facts.uncounted.is_empty() {
        problems.push(
            Problem::error("not-counted", "monolith")
                .fact(format!("track_counts is off for {}", facts.uncounted.join(", ")))
                .consequence(
                    "what they read is in no counter, so nobody knows whether they use the old tables",
                )
                .next("RESET it there: ALTER SYSTEM, ALTER DATABASE … or ALTER ROLE … RESET track_counts"),
        );
    }
    if facts.standbys > 0 {
        problems.push(
            Problem::warning("standby-readers", "monolith")
                .fact(match facts.standbys {
                    1 => "1 standby follows it".to_owned(),
                    count => format!("{count} standbys follow it"),
                })
                .consequence("what is read on a standby is counted there and not here")
                .next("look on each standby: pg_stat_user_tables (from 15 on) and pg_stat_activity"),
        );
    }
    if let Some(Blind::Closed(schema)) = &facts.blind {
        problems.push(
            Problem::warning("stats-hidden", "monolith")
                .fact(format!(
                    "pg_stat_statements is in schema {schema}, which the mirror's role may not use"
                ))
                .consequence("who reads is counted; which statements did it is not known")
                .next(format!(
                    "run on the monolith: GRANT USAGE ON SCHEMA {} TO strangler_apply;",
                    quote_ident(schema)
                )),
        );
    }
    problems
}

fn of_table(facts: &SliceFacts, table: &str, seen: Option<&TableUse>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mirror = format!("strangler mirror PLAN --slice {}", facts.slice);
    let Some(seen) = seen else {
        return vec![
            Problem::error("not-watched", table)
                .fact("nobody has looked at who uses it since the authority moved")
                .consequence("whoever still reads it would not be known")
                .next(format!("{mirror}, and leave it running")),
        ];
    };
    let ago = facts.now_us - seen.sampled_us;
    if ago > STALE_US {
        problems.push(
            Problem::error("not-watched", table)
                .fact(format!("it was last looked at {} ago", period(ago)))
                .consequence("what happened since shows only when a mirror looks again")
                .next(format!("{mirror}, and leave it running")),
        );
    }
    if ago < -STALE_US {
        problems.push(
            Problem::error("clock-apart", table)
                .fact(format!("its mirror's machine says that it will be looked at in {}", period(-ago)))
                .consequence("when somebody used it is written down by that machine's clock, so nobody knows it")
                .next("set the clock of the machine that mirrors right, then look again once that time has come"),
        );
    }
    if let Some(strays) = strays(facts, table) {
        problems.push(written(facts, table, strays));
    }
    let quiet = quiet_since(facts, table, seen);
    let lacking = quiet + facts.quiet_us - facts.now_us;
    if lacking > 0 {
        problems.push(in_use(facts, table, (seen, quiet, lacking)));
    }
    problems
}

fn written(facts: &SliceFacts, table: &str, strays: &StrayWrites) -> Problem {
    let recent = strays.last_us + facts.quiet_us > facts.now_us;
    Problem::new(if recent { Severity::Error } else { Severity::Warning }, "written-past-gate", table)
        .fact(format!(
            "{} written into it past its gate since the authority moved, last at {}",
            if strays.count == 1 { "1 row was".to_owned() } else { format!("{} rows were", strays.count) },
            words::instant(strays.last_us)
        ))
        .consequence(
            "somebody still takes it for the place to write to, with rights that gates don't hold back",
        )
        .next(format!(
            "SELECT * FROM {} in the service shows which; then strangler reconcile PLAN --slice {}",
            alarms::TABLE,
            facts.slice
        ))
}

/// A table that was used of late, or that was not watched for long enough to say that it was not.
fn in_use(facts: &SliceFacts, table: &str, (seen, quiet, lacking): (&TableUse, i64, i64)) -> Problem {
    let until = words::instant(quiet + facts.quiet_us);
    if quiet == seen.since_us {
        // The watch begins to count some time behind a move, because a server may tell of a read that late.
        let watched = match seen.since_us > facts.now_us {
            true => "whether somebody uses it is counted from",
            false => "nobody was seen to use it since",
        };
        return Problem::error("quiet-period", table)
            .fact(format!(
                "{watched} {}, and quiet_period is {}",
                words::instant(seen.since_us),
                period(facts.quiet_us)
            ))
            .consequence(format!("for another {} nobody may use it", period(lacking)))
            .next(format!("leave the mirror running, and look again at {until}"));
    }
    let mut what = Vec::new();
    match (seen.others.scans, seen.others.rows) {
        (0, 0) => {}
        (0, rows) => what.push(format!(
            "others have read {rows} rows of it without a scan: a sample, or a range of places"
        )),
        (1, _) => what.push("others have read it once".to_owned()),
        (scans, _) => what.push(format!("others have read it {scans} times")),
    }
    if let Some((from, until)) = lost(seen) {
        let (from, until) = (words::instant(from), words::instant(until));
        what.push(format!(
            "the server lost its counters, so nobody knows what was read between {from} and {until}"
        ));
    }
    if let Some(strays) = strays(facts, table) {
        what.push(format!(
            "{} written past its gate",
            words::plural(usize::try_from(strays.count).unwrap_or(0), "row")
        ));
    }
    what.push(met_then(facts, table, quiet).unwrap_or_else(|| "nobody was met doing it".to_owned()));
    Problem::error("still-used", table)
        .fact(format!("{}; last at {}", what.join("; "), words::instant(quiet)))
        .consequence(format!("quiet_period is {}: whoever needs it would fail", period(facts.quiet_us)))
        .next(format!("move its readers to service {}, and look again at {until}", facts.service))
}

/// Whoever was met about when the table was last used, sessions before statements, which only name it.
fn met_then(facts: &SliceFacts, table: &str, used_us: i64) -> Option<String> {
    let then = |user: &&TableUser| {
        user.source_table == table
            && user.last_us.is_some_and(|last| (last - used_us).abs() <= slack_us(user.how))
    };
    let user = facts.users.iter().filter(then).min_by_key(|user| user.how)?;
    let met = met_since(user, 0)?;
    Some(match user.how {
        How::Session => format!("met: {}", who(&met)),
        How::Statement => format!("perhaps {}", who(&met)),
    })
}

/// How far what was met may lie from what was counted: sessions are looked for every two seconds, counters every four, statements
/// every minute. Microseconds.
fn slack_us(how: How) -> i64 {
    match how {
        How::Session => 10_000_000,
        How::Statement => 70_000_000,
    }
}

/// Counters that were lost for so long that a reader may be hidden.
fn lost(seen: &TableUse) -> Option<(i64, i64)> {
    seen.unseen_us.filter(|(from, until)| until - from > UNSEEN_US)
}

pub(super) fn who(met: &Met) -> String {
    let mut words = format!("role {}", met.role);
    for part in [&met.application, &met.client] {
        if !part.is_empty() {
            words.push_str(&format!(", {part}"));
        }
    }
    if !met.statement.is_empty() {
        words.push_str(&format!(": {}", met.statement));
    }
    words
}

fn of_dependent(table: &str, one: &Dependent) -> Problem {
    let (severity, code, noun, consequence, next) = match one.kind {
        Kind::View | Kind::MaterializedView => (
            Severity::Error,
            "retire-view",
            "view",
            "it would follow the table unseen when that is moved away, and keep it from being dropped",
            "move its readers to the service, then: DROP VIEW …",
        ),
        Kind::Function => (
            Severity::Warning,
            "retire-function",
            "function",
            "if it is called, it fails once the table is away",
            "read it, and drop it or take the table out of it",
        ),
        Kind::ForeignKey => (
            Severity::Error,
            "retire-foreign-key",
            "foreign key",
            "each write at its other end looks rows up in the table, or in it for the table",
            "ALTER TABLE … DROP CONSTRAINT …, once the application checks it itself",
        ),
        Kind::Policy => (
            Severity::Error,
            "retire-policy",
            "policy",
            "each statement on the policy's table reads the old one",
            "write the policy without it, or: DROP POLICY …",
        ),
        Kind::Rule => (
            Severity::Error,
            "retire-rule",
            "rewrite rule",
            "it would follow the table unseen when that is moved away",
            "DROP RULE …",
        ),
        Kind::Publication => (
            Severity::Error,
            "retire-publication",
            "publication",
            "its subscribers would silently get nothing more of the table",
            "move its subscribers to the service's database, then take the table out: ALTER PUBLICATION … DROP TABLE …; one FOR ALL TABLES or \
             FOR TABLES IN SCHEMA leaves none out: make one that names the tables that stay, and DROP PUBLICATION …",
        ),
        Kind::Job => (
            Severity::Error,
            "retire-job",
            "scheduled job",
            "it fails once the table is away",
            "move it to the service, or unschedule it",
        ),
    };
    let definition = one
        .definition
        .as_deref()
        .map(|text| format!(": {}", words::one_line(text, DEFINITION_CHARS)))
        .unwrap_or_default();
    Problem::new(severity, code, &one.name)
        .fact(format!("the {noun} names {table}{definition}"))
        .consequence(consequence)
        .next(next)
}

/// Longest definition in a problem, in characters; the JSON document has all of it.
const DEFINITION_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::usage::Count;

    const DAY: i64 = 86_400_000_000;

    fn seen() -> TableUse {
        TableUse {
            epoch: 2,
            since_us: 100 * DAY,
            counted: Count { scans: 10, rows: 10 },
            others: Count::default(),
            unseen_us: None,
            last_us: None,
            sampled_us: 110 * DAY,
        }
    }

    fn facts(seen: TableUse) -> SliceFacts {
        SliceFacts {
            slice: "ordering".into(),
            service: "orders".into(),
            authority: Some(Side::Service),
            epoch: 2,
            now_us: 110 * DAY,
            apart_us: None,
            quiet_us: 7 * DAY,
            tables: vec![("Orders".into(), Some(seen))],
            users: Vec::new(),
            strays: Vec::new(),
            dependents: Vec::new(),
            blind: None,
            hidden: false,
            standbys: 0,
            uncounted: Vec::new(),
        }
    }

    fn codes(facts: &SliceFacts) -> Vec<&'static str> {
        judge(facts).problems.iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn a_table_is_quiet_when_nobody_was_seen_for_long_enough() {
        assert_eq!(codes(&facts(seen())), Vec::<&str>::new());
        assert_eq!(codes(&facts(TableUse { since_us: 104 * DAY, ..seen() })), ["quiet-period"]);
        let to_come = facts(TableUse { since_us: 1_000 * DAY, ..seen() });
        assert!(judge(&to_come).problems[0].fact.starts_with("whether somebody uses it is counted from"));
        let used =
            |at: i64| TableUse { others: Count { scans: 3, rows: 3 }, last_us: Some((at - 1, at)), ..seen() };
        assert_eq!(codes(&facts(used(104 * DAY))), ["still-used"]);
        assert_eq!(codes(&facts(used(102 * DAY))), Vec::<&str>::new());
    }

    #[test]
    fn a_reader_that_appears_on_the_last_day_is_named_and_stands_in_the_way() {
        let mut facts = facts(TableUse {
            others: Count { scans: 1, rows: 1 },
            last_us: Some((109 * DAY, 109 * DAY + 1)),
            ..seen()
        });
        facts.users.push(TableUser {
            source_table: "Orders".into(),
            how: How::Session,
            role: "bi".into(),
            application: "tableau".into(),
            client: "10.0.0.7".into(),
            statement_id: 0,
            statement: "SELECT ? FROM \"Orders\"".into(),
            calls: 1,
            last_us: Some(109 * DAY),
        });
        let report = judge(&facts);
        let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
        assert!(
            problem.fact.contains("role bi, tableau, 10.0.0.7: SELECT ? FROM \"Orders\""),
            "{}",
            problem.fact
        );
        assert!(problem.next.contains("1970-04-27T00:00:00Z"), "{}", problem.next);
    }

    #[test]
    fn statements_tell_who_and_not_whether() {
        let mut facts = facts(seen());
        facts.users.push(TableUser {
            source_table: "Orders".into(),
            how: How::Statement,
            role: "bi".into(),
            application: String::new(),
            client: String::new(),
            statement_id: 7,
            statement: "SELECT 1 AS \"Orders\"".into(),
            calls: 9,
            last_us: Some(110 * DAY),
        });
        let report = judge(&facts);
        assert_eq!((report.problems.len(), report.tables[0].met.len()), (0, 1), "{report:?}");
    }

    #[test]
    fn nobody_watching_counters_lost_for_long_and_writes_past_the_gate_are_said() {
        let mut nobody = facts(seen());
        nobody.tables = vec![("Orders".into(), None)];
        assert_eq!(codes(&nobody), ["not-watched"]);
        assert_eq!(codes(&facts(TableUse { sampled_us: 109 * DAY, ..seen() })), ["not-watched"]);
        assert_eq!(codes(&facts(TableUse { sampled_us: 111 * DAY, ..seen() })), ["clock-apart"]);
        assert_eq!(codes(&SliceFacts { apart_us: Some(-DAY), ..facts(seen()) }), ["clock-apart"]);
        let lost = |for_us: i64| TableUse { unseen_us: Some((109 * DAY - for_us, 109 * DAY)), ..seen() };
        assert_eq!(codes(&facts(lost(UNSEEN_US + 1))), ["still-used"]);
        assert_eq!(codes(&facts(lost(UNSEEN_US))), Vec::<&str>::new());
        let mut written = facts(seen());
        written.strays.push(StrayWrites { source_table: "Orders".into(), count: 1, last_us: 101 * DAY });
        let old = judge(&written).problems;
        assert_eq!((old[0].code, old[0].severity), ("written-past-gate", Severity::Warning), "{old:?}");
        written.strays[0].last_us = 109 * DAY;
        assert_eq!(codes(&written), ["still-used", "written-past-gate"]);
    }

    #[test]
    fn before_a_flip_nothing_is_said_about_use() {
        let mut facts = facts(seen());
        facts.authority = Some(Side::Monolith);
        assert_eq!(codes(&facts), ["not-flipped"]);
        assert_eq!(judge(&facts).tables[0].watched_since, None);
    }
}
