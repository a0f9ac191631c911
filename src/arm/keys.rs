//! Foreign keys across the cut: which they are, how they go, and how they come back exactly as they were.

use super::design::Draft;
use super::locks::{LockMode, Locked, Locks};
use super::readiness::not_owner;
use super::survey::Survey;
use super::{KeyNamed, Step, Work};
use crate::catalog::{Catalog, ForeignKey, TableKind};
use crate::dualwrite::gate;
use crate::journal::arming::{self, CutKey};
use crate::mapping::SliceMapping;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::problem::Problem;
use crate::provision::{Database, Statement};

/// Major version from which a foreign key of a partitioned table can be NOT VALID.
const PARTITIONED_NOT_VALID: u32 = 18;

/// Whether rows of the table belong to the slice: it moves, or its root or a parent by inheritance does. Also of a slice
/// whose mapping lacks tables, because something is wrong with them: an armed one still needs its keys gone.
fn belongs(catalog: &Catalog, slice: &SliceMapping, table: &TableName) -> bool {
    let mut pending = vec![table.clone()];
    while let Some(name) = pending.pop() {
        let mut moved = slice.tables.iter().map(|mapping| &mapping.source).chain(&slice.unmapped);
        if moved.any(|moved| *moved == name) {
            return true;
        }
        if let Some(table) = catalog.table(&name) {
            pending.extend(table.partition_of.iter().chain(&table.inherits).cloned());
        }
    }
    false
}

/// One end moves with the slice and the other does not.
fn crosses(catalog: &Catalog, slice: &SliceMapping, (child, parent): (&TableName, &TableName)) -> bool {
    belongs(catalog, slice, child) != belongs(catalog, slice, parent)
}

/// The foreign keys that an armed slice must not have. Those that PostgreSQL made for partitions go with their parent's.
pub(super) fn crossing<'a>(survey: &'a Survey, slice: &SliceMapping) -> Vec<&'a ForeignKey> {
    let catalog = &survey.provisioned.monolith;
    let keys = catalog.foreign_keys.iter().filter(|key| !key.inherited && !key.cut);
    keys.filter(|key| crosses(catalog, slice, (&key.table, &key.references))).collect()
}

/// Drops each, in a transaction that writes it down.
pub(super) fn cut(draft: &mut Draft<'_>, slice: &SliceMapping) {
    let survey = draft.survey;
    let catalog = &survey.provisioned.monolith;
    for key in crossing(survey, slice) {
        if !draft.cut.insert((key.table.clone(), key.name.clone())) {
            continue;
        }
        if let Some(child) = catalog.table(&key.table).filter(|table| !table.can_own) {
            let user = survey.provisioned.monolith_state.user.clone();
            draft.problem(not_owner("monolith", child, &user));
        }
        let statements = vec![
            arming::insert_cut_key(&slice.slice, &key.table, &key.name, &key.references).into(),
            Statement::from(format!(
                "ALTER TABLE {} DROP CONSTRAINT {}",
                key.table.sql(),
                quote_ident(&key.name)
            )),
        ];
        let locks = both(catalog, LockMode::AccessExclusive, (&key.table, &key.references));
        draft.journaled(
            (Database::Monolith, &slice.slice),
            ("cut foreign key", &shown(&key.table, &key.name)),
            (Vec::new(), Some(locks), statements),
            "arm-key-cut",
        );
    }
}

fn shown(child: &TableName, name: &str) -> String {
    format!("{name} of {child}")
}

/// Both ends, as far as they may be locked: who does not own a table takes its lock by the ALTER TABLE itself.
fn both(catalog: &Catalog, mode: LockMode, (child, parent): (&TableName, &TableName)) -> Locks {
    let mut names = vec![child];
    if parent != child {
        names.push(parent);
    }
    let locked = names.into_iter().filter_map(|name| {
        let table = catalog.table(name).filter(|table| table.can_own)?;
        Some(Locked { table: name.clone(), partitioned: table.kind == TableKind::Partitioned })
    });
    Locks { mode, tables: locked.collect() }
}

/// Brings back what was dropped for the slice, unless another armed slice, of whatever plan, needs it gone as well: then that
/// one answers for it from now on.
pub(super) fn restore(draft: &mut Draft<'_>, slice: &SliceMapping) {
    let survey = draft.survey;
    for key in survey.cut_keys.iter().filter(|key| key.slice == slice.slice) {
        let heir = survey.mappings.values().find(|other| {
            !draft.only(&other.slice)
                && survey.reversed.contains(&other.slice)
                && crosses(&survey.provisioned.monolith, other, (&key.child, &key.parent))
        });
        match heir.map(|heir| heir.slice.as_str()).or_else(|| of_another_plan(survey, slice, key)) {
            Some(heir) => hand_over(draft, slice, (key, heir)),
            None => bring_back(draft, slice, key),
        }
    }
}

/// The slice of another plan whose gate hangs on one end of the key: while that side may be closed, what the key does and
/// asks there would be past its gate.
fn of_another_plan<'a>(survey: &'a Survey, slice: &SliceMapping, key: &CutKey) -> Option<&'a str> {
    let holdings = &survey.provisioned.monolith_state.holdings;
    let theirs = holdings.iter().find(|one| {
        one.gated
            && one.slice != slice.slice
            && !survey.mappings.contains_key(&one.slice)
            && (one.table == key.child || one.table == key.parent)
    });
    theirs.map(|one| one.slice.as_str())
}

fn hand_over(draft: &mut Draft<'_>, slice: &SliceMapping, (key, heir): (&CutKey, &str)) {
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("leave cut, for another slice that is armed, foreign key", &shown(&key.child, &key.name)),
        (Vec::new(), None, vec![arming::hand_over(key.id, heir).into()]),
        "disarm-key-handed-over",
    );
}

fn bring_back(draft: &mut Draft<'_>, slice: &SliceMapping, key: &CutKey) {
    let catalog = &draft.survey.provisioned.monolith;
    let (Some(child), Some(_)) = (catalog.table(&key.child), catalog.table(&key.parent)) else {
        draft.problem(
            Problem::warning("key-without-table", format!("foreign key {}", shown(&key.child, &key.name)))
                .fact("a table of it is not there any more")
                .consequence("it can't come back")
                .next("nothing, when that was meant"),
        );
        return;
    };
    let standing =
        catalog.foreign_keys.iter().find(|one| !one.cut && one.table == key.child && one.name == key.name);
    let at_once = child.kind == TableKind::Partitioned && catalog.major() < PARTITIONED_NOT_VALID;
    match standing {
        Some(standing) if standing.validated || !key.validated => note(draft, slice, key),
        Some(_) => prove(draft, slice, key),
        None if at_once && key.validated => add_proven(draft, slice, key),
        None => {
            add(draft, slice, key);
            if key.validated {
                prove(draft, slice, key);
            }
        }
    }
}

/// Somebody else has brought it back.
fn note(draft: &mut Draft<'_>, slice: &SliceMapping, key: &CutKey) {
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("find back in place foreign key", &shown(&key.child, &key.name)),
        (Vec::new(), None, vec![arming::set_restored(key.id).into()]),
        "disarm-key-added",
    );
}

/// Without looking at the rows that are there: writers wait for a moment only.
fn add(draft: &mut Draft<'_>, slice: &SliceMapping, key: &CutKey) {
    let unproven = if key.validated { " NOT VALID" } else { "" };
    let mut statements = definition(key, unproven);
    if !key.validated {
        statements.push(arming::set_restored(key.id).into());
    }
    let catalog = &draft.survey.provisioned.monolith;
    let locks = both(catalog, LockMode::ShareRowExclusive, (&key.child, &key.parent));
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("bring back foreign key", &shown(&key.child, &key.name)),
        (Vec::new(), Some(locks), statements),
        "disarm-key-added",
    );
}

/// The key of a partitioned table can't stand unproven before PostgreSQL 18, so writers wait for its proof.
fn add_proven(draft: &mut Draft<'_>, slice: &SliceMapping, key: &CutKey) {
    let mut statements = definition(key, "");
    statements.push(arming::set_restored(key.id).into());
    let catalog = &draft.survey.provisioned.monolith;
    let locks = both(catalog, LockMode::ShareRowExclusive, (&key.child, &key.parent));
    proof(draft, slice, (key, false), ("bring back and prove foreign key", locks, statements));
}

/// Readers and writers go on meanwhile.
fn prove(draft: &mut Draft<'_>, slice: &SliceMapping, key: &CutKey) {
    let statements = vec![
        Statement::from(format!(
            "ALTER TABLE {} VALIDATE CONSTRAINT {}",
            key.child.sql(),
            quote_ident(&key.name)
        )),
        arming::set_restored(key.id).into(),
    ];
    let catalog = &draft.survey.provisioned.monolith;
    let child = catalog.table(&key.child);
    let partitioned = child.is_some_and(|table| table.kind == TableKind::Partitioned);
    let locks = Locks::of(LockMode::ShareUpdateExclusive, &key.child, partitioned);
    proof(draft, slice, (key, true), ("prove foreign key", locks, statements));
}

fn proof(
    draft: &mut Draft<'_>,
    slice: &SliceMapping,
    (key, stands): (&CutKey, bool),
    (purpose, locks, mut statements): (&'static str, Locks, Vec<Statement>),
) {
    let object = shown(&key.child, &key.name);
    statements.push(draft.entry(&slice.slice, purpose, &object));
    let named =
        KeyNamed { child: key.child.clone(), name: key.name.clone(), orphans_sql: orphans(key), stands };
    draft.step(Step {
        database: Database::Monolith,
        slice: slice.slice.clone(),
        object,
        purpose,
        work: Work::Prove { locks, statements, key: named },
        point: "disarm-key-proven",
    });
}

/// The constraint and its comment.
fn definition(key: &CutKey, unproven: &str) -> Vec<Statement> {
    let (child, name) = (key.child.sql(), quote_ident(&key.name));
    let mut statements = vec![Statement::from(format!(
        "ALTER TABLE {child} ADD CONSTRAINT {name} {}{unproven}",
        key.definition
    ))];
    if let Some(comment) = &key.comment {
        let comment = quote_literal(comment);
        statements.push(format!("COMMENT ON CONSTRAINT {name} ON {child} IS {comment}").into());
    }
    statements
}

/// FROM and WHERE for the rows that refer to nothing. `None` for a key over periods, which is more than equality.
fn orphans(key: &CutKey) -> Option<String> {
    if key.definition.contains("PERIOD ") {
        return None;
    }
    let columns: Vec<String> = key.columns.iter().map(|column| quote_ident(column)).collect();
    let referenced = key.referenced_columns.iter().map(|column| quote_ident(column));
    let known: Vec<String> = columns.iter().map(|column| format!("c.{column} IS NOT NULL")).collect();
    let equal: Vec<String> =
        columns.iter().zip(referenced).map(|(one, other)| format!("p.{other} = c.{one}")).collect();
    Some(format!(
        "FROM {} AS c WHERE {} AND NOT EXISTS (SELECT FROM {} AS p WHERE {})",
        key.child.sql(),
        known.join(" AND "),
        key.parent.sql(),
        equal.join(" AND ")
    ))
}

/// What disarm puts before the locks of a step that takes a gate off.
pub(super) fn only_while_open(slice: &str, lock_key: i32) -> Vec<Statement> {
    vec![gate::require_open(slice, lock_key).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_rows_whose_whole_reference_is_known_and_leads_nowhere() {
        let mut key = CutKey {
            id: 1,
            slice: "one".to_owned(),
            child: TableName::new("public", "c"),
            name: "fk".to_owned(),
            parent: TableName::new("s", "p \"("),
            columns: vec!["a".to_owned(), "b, (".to_owned()],
            referenced_columns: vec!["x".to_owned(), "y".to_owned()],
            definition: "FOREIGN KEY (a, \"b, (\") REFERENCES s.\"p \"\"(\"(x, y)".to_owned(),
            validated: true,
            comment: None,
        };
        assert_eq!(
            orphans(&key).as_deref(),
            Some(
                "FROM \"public\".\"c\" AS c WHERE c.\"a\" IS NOT NULL AND c.\"b, (\" IS NOT NULL AND NOT EXISTS \
                 (SELECT FROM \"s\".\"p \"\"(\" AS p WHERE p.\"x\" = c.\"a\" AND p.\"y\" = c.\"b, (\")"
            )
        );
        key.definition = "FOREIGN KEY (a, PERIOD b) REFERENCES p(a, PERIOD b)".to_owned();
        assert_eq!(orphans(&key), None);
    }
}
