//! The forward publication of each slice: exactly the slice's tables.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::preflight::is_another;
use super::{Database, Publication, Statement};
use crate::catalog::{Catalog, TableKind};
use crate::mapping::SliceMapping;
use crate::name::{TableName, quote_ident};
use crate::problem::{Problem, START_ANEW};

/// `strangler_<plan>_<slice>`.
pub(super) fn name(plan: &str, slice: &str) -> String {
    format!("strangler_{plan}_{slice}")
}

/// Creates what is missing and makes existing publications exact. Before a stream begins that is free; after it,
/// changes of a table that was out for a while would be lost, so it is refused. A publication that is gone altogether is
/// made again: its entries get other oids, by which the mirror knows that every table has to be copied again.
pub(super) fn publish(draft: &mut Draft<'_>) {
    for slice in draft.mappings.values().filter(|slice| !is_another(draft, slice)).collect::<Vec<_>>() {
        let publication = name(&draft.plan.name, &slice.slice);
        if let Some(taken) = taken(draft, slice, &publication) {
            draft.problem(taken);
            continue;
        }
        let statements = statements(draft, slice, &publication);
        let streams = draft.survey.service_states.get(&slice.service);
        let begun = streams.is_some_and(|state| state.streams.contains(&slice.slice));
        let watches = streams.is_some_and(|state| state.watches.contains(&slice.slice));
        let rebuild = rebuild(&slice.slice, watches);
        let gone = !draft.survey.monolith_state.publications.contains_key(&publication);
        if begun && gone {
            draft.problem(
                Problem::warning("publication-gone", format!("publication {publication}"))
                    .fact("it is gone from the monolith, and the slice's stream has begun")
                    .consequence(
                        "what changed without it is not in the stream, so the mirror refuses to go on",
                    )
                    .next(format!("once provision has made it again: {rebuild}")),
            );
        } else if begun && !statements.is_empty() {
            draft.problem(
                Problem::error("publication-changed", format!("publication {publication}"))
                    .fact("it is not what the slice needs any more, and the slice's stream has begun")
                    .consequence("changes made meanwhile may be missing from the stream")
                    .next(format!(
                        "run on the monolith: {}; then {rebuild}. Where the plan changed, start the slice anew instead: \
                         {START_ANEW}",
                        statements.iter().map(Statement::shown).collect::<Vec<_>>().join("; "),
                    )),
            );
            continue;
        }
        let what = ("publish", publication.as_str());
        draft.journaled(Database::Monolith, Some(&slice.slice), what, statements);
    }
}

/// What makes up for changes that a stream lacks. One that only watches has no copies to make again.
fn rebuild(slice: &str, watches: bool) -> String {
    let command = format!("strangler mirror PLAN --slice {slice} --rebuild");
    if watches {
        format!(
            "{command}, which begins the watch anew and copies nothing; then strangler reconcile PLAN --slice {slice}"
        )
    } else {
        format!("{command}, which copies the slice again")
    }
}

/// Whether a publication of this name is somebody else's. Names of plan and slice run together in it, so that another plan's slice
/// may have it; and where no slice has it, it has only tables of this one, as after a run of ours that was cut off.
fn taken(draft: &Draft<'_>, slice: &SliceMapping, publication: &str) -> Option<Problem> {
    let state = &draft.survey.monolith_state;
    let holder =
        state.slices.iter().find(|(name, row)| **name != slice.slice && row.publication == publication);
    let known = state.slices.contains_key(&slice.slice);
    let foreign = || {
        let present = state.publications.get(publication)?;
        let ours = |name: &&TableName| slice.tables.iter().any(|table| table.source == **name);
        let foreign = present.tables.iter().find(|name| !ours(name)).filter(|_| !known)?;
        Some(format!("it holds the table {foreign}, and no slice that is provisioned has it"))
    };
    let (fact, next) = match holder {
        Some((name, row)) => (
            format!("slice {name} of the plan {} has it", row.plan),
            format!("give slice {} or the plan another name in the plan file", slice.slice),
        ),
        None => (
            foreign()?,
            format!(
                "if nobody needs it, run on the monolith: DROP PUBLICATION {}; else give slice {} another name",
                quote_ident(publication),
                slice.slice
            ),
        ),
    };
    Some(
        Problem::error("publication-taken", format!("publication {publication}"))
            .fact(fact)
            .consequence("whoever reads it would lose its tables to this slice's")
            .next(next),
    )
}

fn statements(draft: &mut Draft<'_>, slice: &SliceMapping, name: &str) -> Vec<Statement> {
    let catalog = &draft.survey.monolith;
    let wanted: BTreeSet<TableName> = slice.tables.iter().map(|table| table.source.clone()).collect();
    let present = draft.survey.monolith_state.publications.get(name);
    match exact(name, present, &wanted, catalog) {
        Ok(statements) => statements.into_iter().map(Statement::from).collect(),
        Err(taken) => {
            draft.problem(*taken.of("monolith"));
            Vec::new()
        }
    }
}

/// A publication of our name that somebody made FOR ALL TABLES.
#[derive(Debug)]
pub(crate) struct Taken(String);

impl Taken {
    /// In words; `database` is where it is.
    pub(crate) fn of(&self, database: &str) -> Box<Problem> {
        let problem = Problem::error("publication-taken", format!("publication {}", self.0))
            .fact("somebody else made it, FOR ALL TABLES")
            .consequence("it can't be narrowed to the slice's tables")
            .next(format!(
                "if nobody needs it, run on the {database}: DROP PUBLICATION {}",
                quote_ident(&self.0)
            ));
        Box::new(problem)
    }
}

/// What makes the publication one of exactly these tables, with every kind of change, those of partitions as their
/// root's. Nothing when it is that.
///
/// # Errors
/// [`Taken`].
pub(crate) fn exact(
    name: &str,
    present: Option<&Publication>,
    wanted: &BTreeSet<TableName>,
    catalog: &Catalog,
) -> Result<Vec<String>, Taken> {
    // ONLY, because a table's inheritance children would come in with it; for a partitioned table it must not stand,
    // for its partitions are always meant (CREATE PUBLICATION).
    let one = |table: &TableName| match catalog.table(table).map(|table| table.kind) {
        Some(TableKind::Partitioned) => table.sql(),
        _ => format!("ONLY {}", table.sql()),
    };
    let list = |tables: &mut dyn Iterator<Item = &TableName>| tables.map(one).collect::<Vec<_>>().join(", ");
    let publication = quote_ident(name);
    let Some(present) = present else {
        return Ok(vec![format!(
            "CREATE PUBLICATION {publication} FOR TABLE {} WITH (publish_via_partition_root = true)",
            list(&mut wanted.iter())
        )]);
    };
    if present.all_tables {
        return Err(Taken(name.to_owned()));
    }
    let mut statements = Vec::new();
    let mut missing = wanted.difference(&present.tables).peekable();
    if missing.peek().is_some() {
        statements.push(format!("ALTER PUBLICATION {publication} ADD TABLE {}", list(&mut missing)));
    }
    let mut superfluous = present.tables.difference(wanted).peekable();
    if superfluous.peek().is_some() {
        statements.push(format!("ALTER PUBLICATION {publication} DROP TABLE {}", list(&mut superfluous)));
    }
    if !present.as_ours {
        statements.push(format!(
            "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate', \
             publish_via_partition_root = true)"
        ));
    }
    Ok(statements)
}
