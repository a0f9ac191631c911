//! What goes with a slice, and what stays, in words for whoever confirms it. Pure.

use super::facts::{Facts, Side};
use super::service::{Fate, Origin, OwnTable};
use super::{Job, StepKind};
use crate::name::quote_ident;
use crate::problem::Problem;
use crate::words;

/// All of it.
#[must_use]
pub(super) fn problems(facts: &Facts, job: Job<'_>) -> Vec<Problem> {
    let of = |object: &str| format!("service {}, {object}", job.service);
    let mut problems = Vec::new();
    let emptied_by = facts.in_service.emptied_by_hand();
    // Those that an earlier run has emptied are what their own people made of them since.
    let over = |table: &&OwnTable| facts.decided.is_some() && table.fate() == Fate::Empty;
    for table in facts.in_service.tables.iter().filter(|table| !over(table)) {
        let object = of(&format!("table {}", table.name));
        problems.push(rows(table, (&object, emptied_by.as_deref())));
        problems.extend(
            own(table, facts, job)
                .map(|problem| Problem { object: of(&format!("table {}", table.name)), ..problem }),
        );
    }
    problems.extend(facts.in_service.strange().into_iter().map(|(name, part_of)| {
        Problem::warning("table-stays", of(&format!("table {name}")))
            .fact(part_of.map_or_else(
                || "the slice's gate hangs on it, and no table of the slice has that name: it was renamed or moved".to_owned(),
                |whole| format!("the slice's gate hangs on it: it was a partition of {whole} when that was adopted, and was detached since"),
            ))
            .consequence("the gate goes from it; it stays as it is, with its rows")
            .next(format!(
                "look at it; if none of it is needed, run in the service once it is done: DROP TABLE {};",
                name.sql()
            ))
    }));
    if let Some(strays) = facts.strays.as_ref().filter(|strays| strays.side == "service") {
        problems.push(
            Problem::warning("stray-writes", of(&format!("slice {}", job.slice)))
                .fact(format!(
                    "somebody wrote there past the gate, the last time into {} at {}: {} rows in {} transactions that nobody has acted upon",
                    strays.source_table, strays.raised_at, strays.count, strays.transactions
                ))
                .consequence("what was written there is in no other place")
                .next(format!("SELECT * FROM {} WHERE cleared_at IS NULL; save those rows first, if they matter", crate::journal::alarms::TABLE)),
        );
    }
    if let Some(outside) = &facts.outside {
        problems.push(
            Problem::warning("rows-outside-filter", of(&outside.tables.join(", ")))
                .fact(format!(
                    "the service's application wrote rows that the slice's filter forbids, first at {}",
                    outside.at
                ))
                .consequence("the way back did not carry them: they are in no other place")
                .next("save those rows first, if they matter"),
        );
    }
    problems.extend(stays(facts, job));
    problems.sort();
    problems.dedup();
    problems
}

fn rows(table: &OwnTable, (object, emptied_by): (&str, Option<&str>)) -> Problem {
    let count = words::count(u64::try_from(table.rows_copied).unwrap_or_default());
    match (table.fate(), table.origin) {
        (Fate::Drop, _) => Problem::warning("table-dropped", object)
            .fact(format!("provision made it, and {count} rows were copied into it"))
            .consequence("it is dropped with its rows, which the monolith has")
            .next("save what the service's own people still need of it"),
        (Fate::Empty, _) => Problem::warning("table-emptied", object)
            .fact(format!(
                "it is the service's own and held no row when it was adopted, and {count} rows were copied into it"
            ))
            .consequence("it is emptied, and gets the indexes and constraints back that were set aside")
            .next("save what the service's own people still need of it"),
        (Fate::Stay, Origin::Adopted) => Problem::warning("rows-stay", object)
            .fact(format!("{}; {count} rows were copied into it", table.doubts.join("; ")))
            .consequence("nothing proves that all of its rows came from the monolith, so they stay")
            .next(format!(
                "look at them; if none of them is needed, run in the service once it is done: {}",
                emptied_by.unwrap_or_default()
            )),
        (Fate::Stay, Origin::Made | Origin::Unknown) => {
            let known = table.doubts.join("; ");
            let fact = if known.is_empty() { "nothing says that provision made or adopted it" } else { known.as_str() };
            Problem::warning("table-stays", object)
                .fact(fact)
                .consequence("it stays as it is, with its rows")
                .next(format!(
                    "look at it; if none of it is needed, run in the service once it is done: DROP TABLE {};",
                    table.name.sql()
                ))
        }
    }
}

/// What the service's own people added.
fn own<'a>(table: &'a OwnTable, facts: &'a Facts, job: Job<'a>) -> impl Iterator<Item = Problem> + 'a {
    let pinned = facts.service.row.as_ref().map(|row| row.plan_hash.as_str());
    let mapping = job.mapping.filter(|mapping| pinned.is_some_and(|hash| mapping.is_pinned_by(hash)));
    let mapped = mapping.and_then(|mapping| mapping.tables.iter().find(|one| one.target == table.name));
    let own = |name: &&String| {
        mapped.is_none_or(|mapped| mapped.columns.iter().all(|column| column.target != **name))
    };
    let columns: Vec<&str> = table.columns.iter().filter(own).map(String::as_str).collect();
    let triggers: Vec<&str> =
        table.triggers.iter().map(String::as_str).filter(|_| table.fate() == Fate::Drop).collect();
    let of_its_own = |what: &str, names: &[&str]| {
        let whats = if names.len() == 1 { what.to_owned() } else { format!("{what}s") };
        format!("the service's own {whats}: {}", names.join(", "))
    };
    let said = match mapped {
        Some(_) => of_its_own("column", &columns),
        // Which columns the mirror wrote is known by the mapping alone.
        None => format!(
            "the plan maps the slice otherwise than it was provisioned, so nobody can tell which of its columns are the service's own: {}",
            columns.join(", ")
        ),
    };
    const ROWS: &str = "what is in them did not come from the monolith, and goes with the rows";
    let built = format!("somebody else's on it: {}", table.built.join(", "));
    let found = [
        (columns.is_empty(), said, ROWS),
        (triggers.is_empty(), of_its_own("trigger", &triggers), ROWS),
        (table.built.is_empty(), built, "it goes with the table"),
    ];
    found.into_iter().filter(|(none, ..)| !none && table.fate() != Fate::Stay).map(
        |(_, fact, consequence)| {
            Problem::warning("of-its-own", "")
                .fact(fact)
                .consequence(consequence)
                .next("save what matters of it first")
        },
    )
}

/// What is not taken back, and why.
fn stays(facts: &Facts, job: Job<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let last = facts.monolith.others.slices.is_empty();
    let in_use = |side: &Side, ledger: bool| {
        let ledger = ledger.then(|| "a ledger, because it is a service of another split".to_owned());
        let dropped = &side.others.dropped;
        let dropped = (!dropped.is_empty()).then(|| {
            format!("what is written down of slices whose old tables are dropped: {}", dropped.join(", "))
        });
        let found: Vec<String> = side.foreign.iter().cloned().chain(dropped).chain(ledger).collect();
        (!found.is_empty()).then(|| found.join(", "))
    };
    let stays = |place: String, what: String| {
        Problem::warning("schema-stays", place)
            .fact(format!("no slice is left there, and the schema strangler is needed by {what}"))
            .consequence("it stays")
            .next("once nobody needs that any more: DROP SCHEMA strangler CASCADE;")
    };
    let monolith = in_use(&facts.monolith, facts.monolith.others.ledger);
    problems.extend(monolith.filter(|_| last).map(|what| stays("monolith".to_owned(), what)));
    let alone = facts.service.others.slices.is_empty();
    let place = format!("service {}", job.service);
    if job.drop_ledger && !facts.drop_ledger {
        problems.push(
            Problem::warning("ledger-stays", &place)
                .fact("--drop-ledger was not typed when it was begun, so it was not confirmed")
                .consequence("it does nothing now")
                .next("once it is done, the same command with --drop-ledger"),
        );
    } else if alone && facts.drop_ledger {
        problems.extend(in_use(&facts.service, false).map(|what| stays(place.clone(), what)));
    } else if facts.drop_ledger {
        problems.push(
            Problem::warning("ledger-stays", &place)
                .fact(format!(
                    "other slices are provisioned there: {}",
                    facts.service.others.slices.join(", ")
                ))
                .consequence("--drop-ledger does nothing now")
                .next("nothing; with the service's last slice it goes"),
        );
    }
    if !alone {
        problems.extend(facts.in_service.keys_between.iter().map(|(object, aside)| {
            Problem::warning("key-stays-away", format!("{place}, {object}"))
                .fact("it was set aside, because its tables are of two slices")
                .consequence("it stays away as long as another slice is mirrored into the service")
                .next(format!("then run there: {};", aside.sql))
        }));
    }
    problems.extend(relied_on(facts, &place));
    let roles = &facts.service.others.roles;
    if alone && !roles.is_empty() {
        problems.push(
            Problem::note("roles-stay", &place)
                .fact(format!("provision made the roles {}", roles.join(", ")))
                .consequence("they stay, as do schemas, types and free sequences: the service's application may log in with them")
                .next("drop by hand what is not needed"),
        );
    }
    problems
}

/// Rights that were granted for the slice, and that others rely on. `place` is the service.
fn relied_on(facts: &Facts, place: &str) -> Vec<Problem> {
    let sides = [("monolith", &facts.on_monolith.relied_on), (place, &facts.in_service.relied_on)];
    let kept = sides.into_iter().flat_map(|(place, kept)| kept.iter().map(move |right| (place, right)));
    kept.map(|(place, right)| {
        Problem::note("right-stays", format!("{place}, role {}", right.grantee))
            .fact(format!("provision or arm granted {}, and {}", right.right, right.why))
            .consequence("it stays")
            .next(format!(
                "once nobody relies on it: REVOKE {} FROM {};",
                right.right,
                quote_ident(&right.grantee)
            ))
    })
    .collect()
}

/// Definitions that the rows of adopted tables did not allow.
#[must_use]
pub(super) fn could_not_put_back(job: Job<'_>, away: &[String]) -> Vec<Problem> {
    let one = |sql: &String| {
        Problem::warning("stays-away", format!("service {}", job.service))
            .fact("what was set aside of an adopted table could not be put back: rows that stay there, or what is there now, do not allow it, or its table is gone")
            .consequence("it stays away")
            .next(format!("once they do, on the table that it should be on, run in the service: {sql};"))
    };
    away.iter().map(one).collect()
}

/// Whether our schema goes from the monolith with its last slice, whoever takes that back.
pub(super) fn schema_may_go(facts: &Facts) -> bool {
    let here = &facts.monolith;
    here.foreign.is_empty() && !here.others.ledger && here.others.dropped.is_empty()
}

/// Whether our schema goes from a database with this step.
pub(super) fn drops_schema(facts: &Facts, kind: StepKind) -> bool {
    let (side, ledger_stays) = match kind {
        StepKind::Service => (&facts.service, !facts.drop_ledger),
        StepKind::Begin | StepKind::Copies | StepKind::Slot | StepKind::Monolith | StepKind::Schema => {
            (&facts.monolith, facts.monolith.others.ledger)
        }
    };
    side.form == crate::journal::migrate::Form::Current
        && side.others.slices.is_empty()
        && side.foreign.is_empty()
        && side.others.dropped.is_empty()
        && !ledger_stays
}
