//! What waits until the data is in: secondary indexes, unique and exclusion constraints, checks that old rows may
//! break, and foreign keys inside the slice. It is written down in `strangler.deferred` in the order in which the
//! mirror puts it in place.

use super::Statement;
use super::anatomy::{ForeignKeyShape, IndexKey, IndexShape, Used};
use super::comments;
use super::draft::{Draft, Site};
use super::expression::{Stuck, carry, since, target_of};
use super::left_out::{Note, domains, left_out, not_nulls, parameters, remember};
use super::objects::enforced;
use super::tables::{describe, key_index};
use crate::catalog::{ConstraintKind, ForeignKey, Index, Table};
use crate::journal::statements as ours;
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident, quote_list};

/// One statement that waits. The order of the variants of `kind` is the order of execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deferred {
    pub(super) rank: Rank,
    pub(super) table: TableName,
    pub(super) object: String,
    pub(super) sql: String,
}

/// Foreign keys need the unique indexes they refer to, and are validated once all of them stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Index,
    Constraint,
    ForeignKey,
    Validate,
}

impl Rank {
    /// `kind` in `strangler.deferred`.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Constraint => "constraint",
            Self::ForeignKey => "foreign_key",
            Self::Validate => "statement",
        }
    }
}

/// Adds one step per slice with all that is not written down yet.
pub(super) fn record(draft: &mut Draft<'_>, site: &Site<'_>) {
    for slice in &site.slices {
        if site.state.mirrored(&slice.slice) {
            continue;
        }
        let mut found = Vec::new();
        let mut notes = Vec::new();
        for mapping in &slice.tables {
            let Some(table) = draft.survey.monolith.table(&mapping.source) else { continue };
            let major = site.catalog.major();
            indexes((draft, major), mapping, table, &mut found, &mut notes);
            checks((draft, major), mapping, table, &mut found, &mut notes);
            domains(draft, mapping, table, &mut notes);
            not_nulls(mapping, table, &mut notes);
            parameters((draft, site), (mapping, table), &mut notes);
            foreign_keys((draft, major), slice, (mapping, table), &mut found, &mut notes);
        }
        found.sort_by_key(|one| one.rank);
        let mut statements = insert(site, slice, &found);
        statements.extend(remember(draft, site, slice, notes));
        draft.journaled(site.database(), Some(&slice.slice), ("defer for slice", &slice.slice), statements);
    }
}

/// Rows for what is not in `strangler.deferred`, in the given order.
pub(super) fn insert(site: &Site<'_>, slice: &SliceMapping, found: &[Deferred]) -> Vec<Statement> {
    let remade = site.remade.contains(slice.slice.as_str());
    let known = |one: &&Deferred| {
        let kind = one.rank.kind().to_owned();
        let key = (slice.slice.clone(), one.table.to_string(), kind, one.object.clone());
        !remade && site.state.deferred.contains_key(&key)
    };
    let row = |one: &Deferred| {
        let table = one.table.to_string();
        let values = [slice.slice.as_str(), &table, one.rank.kind(), &one.object, &one.sql];
        Statement::from(ours::insert_deferred(values))
    };
    found.iter().filter(|one| !known(one)).map(row).collect()
}

fn indexes(
    (draft, major): (&Draft<'_>, u32),
    mapping: &TableMapping,
    table: &Table,
    found: &mut Vec<Deferred>,
    notes: &mut Vec<Note>,
) {
    let key = key_index(mapping, table).map(|index| index.name.as_str());
    for index in table.indexes.iter().filter(|index| Some(index.name.as_str()) != key) {
        let what = if index.constraint.is_some() { "constraint" } else { "index" };
        let name = index.constraint.as_ref().unwrap_or(&index.name);
        if !index.valid {
            notes.push(left_out(what, name, table, "it is invalid on the monolith".to_owned()));
            continue;
        }
        let rank = if index.constraint.is_some() { Rank::Constraint } else { Rank::Index };
        match statement((draft, major), mapping, table, index) {
            Ok(sql) => {
                let sql = comments::with(sql, comments::on_index(&mapping.target, table, index));
                found.push(Deferred { rank, table: mapping.target.clone(), object: name.clone(), sql })
            }
            Err(stuck) => notes.push(left_out(what, name, table, stuck.fact())),
        }
    }
}

fn statement(
    (draft, major): (&Draft<'_>, u32),
    mapping: &TableMapping,
    table: &Table,
    index: &Index,
) -> Result<String, Stuck> {
    let anatomy = &draft.survey.anatomy;
    let exclusion = table
        .constraints
        .iter()
        .find(|one| one.kind == ConstraintKind::Exclusion && Some(&one.name) == index.constraint.as_ref());
    if let Some(exclusion) = exclusion {
        let used = Used::Constraint(table.name.clone(), exclusion.name.clone());
        let definition = carry(mapping, table, anatomy.needs_of(&used), &exclusion.definition_sql)?;
        return Ok(add(mapping, &exclusion.name, &definition));
    }
    let Some(shape) = anatomy.indexes.get(&(table.name.clone(), index.name.clone())) else {
        return Err(Stuck::Unreadable);
    };
    match &index.constraint {
        Some(constraint) => add_constraint((mapping, major), table, (constraint, index.primary), shape),
        None => create_index((draft, major), mapping, table, (&index.name, shape)),
    }
}

fn add(mapping: &TableMapping, name: &str, definition: &str) -> String {
    format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", mapping.target.sql(), quote_ident(name))
}

/// A primary key or unique constraint under the service's names; `major` is the service's version.
pub(super) fn add_constraint(
    (mapping, major): (&TableMapping, u32),
    table: &Table,
    (name, primary): (&str, bool),
    shape: &IndexShape,
) -> Result<String, Stuck> {
    knows(major, shape)?;
    let mut columns = Vec::new();
    for key in shape.keys.iter().filter(|key| !key.included) {
        columns.push(quote_ident(carried(mapping, table, key)?));
    }
    if let Some(period) = columns.last_mut().filter(|_| shape.without_overlaps) {
        period.push_str(" WITHOUT OVERLAPS");
    }
    let kind = if primary { "PRIMARY KEY" } else { "UNIQUE" };
    let distinct = if shape.nulls_not_distinct { " NULLS NOT DISTINCT" } else { "" };
    let mut definition = format!("{kind}{distinct} ({}){}", columns.join(", "), tail(mapping, table, shape));
    if shape.deferrable {
        definition.push_str(" DEFERRABLE");
    }
    if shape.initially_deferred {
        definition.push_str(" INITIALLY DEFERRED");
    }
    Ok(add(mapping, name, &definition))
}

/// Whether the service's server can have such an index.
fn knows(major: u32, shape: &IndexShape) -> Result<(), Stuck> {
    if shape.nulls_not_distinct {
        since("NULLS NOT DISTINCT", 15, major)?;
    }
    if shape.without_overlaps { since("WITHOUT OVERLAPS", 18, major) } else { Ok(()) }
}

/// An index under the service's names; `major` is the service's version.
pub(super) fn create_index(
    (draft, major): (&Draft<'_>, u32),
    mapping: &TableMapping,
    table: &Table,
    (name, shape): (&str, &IndexShape),
) -> Result<String, Stuck> {
    knows(major, shape)?;
    let used = Used::Index(table.name.clone(), name.to_owned());
    let needs = draft.survey.anatomy.needs_of(&used);
    let mut keys = Vec::new();
    for key in shape.keys.iter().filter(|key| !key.included) {
        let mut sql = match &key.column {
            Some(_) => quote_ident(carried(mapping, table, key)?),
            None => {
                // What the expression uses and what the predicate uses come as one list, so each is searched only
                // for its own: a column that stands in neither would otherwise seem lost.
                carry_part(mapping, table, needs, &key.expression_sql)?
            }
        };
        for (word, part) in [(" COLLATE ", &key.collation_sql), (" ", &key.opclass_sql)] {
            if let Some(part) = part {
                sql.push_str(word);
                sql.push_str(part);
            }
        }
        sql.push_str(order(key));
        keys.push(sql);
    }
    let predicate = match &shape.predicate_sql {
        Some(predicate) => format!(" WHERE {}", carry_part(mapping, table, needs, predicate)?),
        None => String::new(),
    };
    let distinct = if shape.nulls_not_distinct { " NULLS NOT DISTINCT" } else { "" };
    Ok(format!(
        "CREATE {}INDEX {} ON {} USING {} ({}){}{predicate}",
        if shape.unique { "UNIQUE " } else { "" },
        quote_ident(name),
        mapping.target.sql(),
        quote_ident(&shape.method),
        keys.join(", "),
        included(mapping, table, shape) + distinct + &storage(shape),
    ))
}

/// `carry` for one of several expressions that share a list of needs.
fn carry_part(
    mapping: &TableMapping,
    table: &Table,
    needs: &[super::anatomy::Reference],
    sql: &str,
) -> Result<String, Stuck> {
    let here = crate::name::identifiers_in(sql);
    let stands = |need: &&super::anatomy::Reference| match need {
        super::anatomy::Reference::Column(column) => here.iter().any(|(_, name)| name == column),
        super::anatomy::Reference::Type(_) | super::anatomy::Reference::Routine { .. } => false,
    };
    let needs: Vec<_> = needs.iter().filter(stands).cloned().collect();
    carry(mapping, table, &needs, sql)
}

fn carried<'a>(mapping: &'a TableMapping, table: &'a Table, key: &IndexKey) -> Result<&'a str, Stuck> {
    let column = key.column.as_deref().ok_or(Stuck::Unreadable)?;
    target_of(mapping, table, column).ok_or_else(|| Stuck::Dropped(vec![column.to_owned()]))
}

/// The order of an index key, where it is not the usual one: NULLS LAST for ascending, NULLS FIRST for descending.
fn order(key: &IndexKey) -> &'static str {
    match (key.descending, key.nulls_first) {
        (false, false) => "",
        (false, true) => " NULLS FIRST",
        (true, true) => " DESC",
        (true, false) => " DESC NULLS LAST",
    }
}

fn tail(mapping: &TableMapping, table: &Table, shape: &IndexShape) -> String {
    included(mapping, table, shape) + &storage(shape)
}

/// Included columns save a look at the table; those that stay behind are left out.
fn included(mapping: &TableMapping, table: &Table, shape: &IndexShape) -> String {
    let columns = shape.keys.iter().filter(|key| key.included);
    let names: Vec<&str> = columns.filter_map(|key| carried(mapping, table, key).ok()).collect();
    if names.is_empty() { String::new() } else { format!(" INCLUDE ({})", quote_list(names)) }
}

fn storage(shape: &IndexShape) -> String {
    shape.storage_sql.as_ref().map_or_else(String::new, |storage| format!(" WITH ({storage})"))
}

/// Checks that were never validated. `tables` refused those that can't be carried.
fn checks(
    (draft, major): (&Draft<'_>, u32),
    mapping: &TableMapping,
    table: &Table,
    found: &mut Vec<Deferred>,
    notes: &mut Vec<Note>,
) {
    let open = |one: &&crate::catalog::Constraint| one.kind == ConstraintKind::Check && !one.validated;
    for check in table.constraints.iter().filter(open) {
        if !enforced(&check.definition_sql)
            && let Err(stuck) = since("NOT ENFORCED", 18, major)
        {
            notes.push(left_out("constraint", &check.name, table, stuck.fact()));
            continue;
        }
        let used = Used::Constraint(table.name.clone(), check.name.clone());
        let needs = draft.survey.anatomy.needs_of(&used);
        if let Ok(definition) = carry(mapping, table, needs, &check.definition_sql) {
            let comment = comments::on_constraint(&mapping.target, &check.name, check.comment.as_deref());
            found.push(Deferred {
                rank: Rank::Constraint,
                table: mapping.target.clone(),
                object: check.name.clone(),
                sql: comments::with(add(mapping, &check.name, &definition), comment),
            });
        }
    }
}

fn foreign_keys(
    (draft, major): (&Draft<'_>, u32),
    slice: &SliceMapping,
    (mapping, table): (&TableMapping, &Table),
    found: &mut Vec<Deferred>,
    notes: &mut Vec<Note>,
) {
    let monolith = &draft.survey.monolith;
    for key in monolith.foreign_keys.iter().filter(|key| key.table == table.name && !key.inherited) {
        let Some(other) = slice.tables.iter().find(|other| other.source == key.references) else { continue };
        if !same_rows(mapping, other) {
            let why = format!("{} takes only some rows, which need not be those referred to", other.source);
            notes.push(left_out("foreign key", &key.name, table, why));
            continue;
        }
        let shape = draft.survey.anatomy.foreign_keys.get(&(table.name.clone(), key.name.clone()));
        let referenced = monolith.table(&other.source);
        let Some((shape, referenced)) = shape.zip(referenced) else { continue };
        match foreign_key(key, (shape, major), (mapping, table), (other, referenced)) {
            Ok(definition) => found.extend(with_validation(mapping, key, (shape, &definition))),
            Err(stuck) => notes.push(left_out("foreign key", &key.name, table, stuck.fact())),
        }
    }
    notes.extend(mapping.soft_references.iter().map(|soft| Note {
        action: "soft reference",
        object: format!(
            "{}({}) to {}({})",
            mapping.target,
            soft.columns.join(", "),
            soft.references,
            soft.referenced_columns.join(", ")
        ),
        detail: describe(soft),
        next: None,
    }));
}

/// Whether a row that is taken has all the rows it refers to beside it.
fn same_rows(mapping: &TableMapping, referenced: &TableMapping) -> bool {
    let terms = |of: &TableMapping| -> Vec<(Option<String>, Vec<String>)> {
        let name = |column: usize| of.columns.get(column).map(|column| column.source.clone());
        of.filter.iter().map(|term| (name(term.column), term.values.clone())).collect()
    };
    referenced.filter.is_empty() || terms(mapping) == terms(referenced)
}

/// Added without a look at the rows, then validated under a lock that lets writers through (ALTER TABLE).
fn with_validation(
    mapping: &TableMapping,
    key: &ForeignKey,
    (shape, definition): (&ForeignKeyShape, &str),
) -> Vec<Deferred> {
    let one = |rank, object, sql| Deferred { rank, table: mapping.target.clone(), object, sql };
    let how = if shape.enforced { "NOT VALID" } else { "NOT ENFORCED" };
    let definition = format!("{definition} {how}");
    let comment = comments::on_constraint(&mapping.target, &key.name, key.comment.as_deref());
    let sql = comments::with(add(mapping, &key.name, &definition), comment);
    let mut found = vec![one(Rank::ForeignKey, key.name.clone(), sql)];
    if key.validated {
        found.push(one(
            Rank::Validate,
            format!("validate {}", key.name),
            validate(&mapping.target, &key.name),
        ));
    }
    found
}

/// Looks at the rows of a constraint that was added NOT VALID.
pub(super) fn validate(table: &TableName, constraint: &str) -> String {
    format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", table.sql(), quote_ident(constraint))
}

/// Whether the service's server can have such a foreign key.
fn knows_key(major: u32, shape: &ForeignKeyShape) -> Result<(), Stuck> {
    if !shape.on_delete_columns.is_empty() {
        since("ON DELETE SET with columns", 15, major)?;
    }
    if shape.period {
        since("a foreign key with PERIOD", 18, major)?;
    }
    if shape.enforced { Ok(()) } else { since("NOT ENFORCED", 18, major) }
}

fn foreign_key(
    key: &ForeignKey,
    (shape, major): (&ForeignKeyShape, u32),
    (mapping, table): (&TableMapping, &Table),
    (other, referenced): (&TableMapping, &Table),
) -> Result<String, Stuck> {
    let list = |of: &TableMapping, in_table: &Table, columns: &[String]| -> Result<Vec<String>, Stuck> {
        let mut names = Vec::new();
        for column in columns {
            let target = target_of(of, in_table, column);
            names.push(quote_ident(target.ok_or_else(|| Stuck::Dropped(vec![column.clone()]))?));
        }
        Ok(names)
    };
    knows_key(major, shape)?;
    let key_list = |mut names: Vec<String>| {
        if let Some(period) = names.last_mut().filter(|_| shape.period) {
            period.insert_str(0, "PERIOD ");
        }
        names.join(", ")
    };
    let mut sql = format!(
        "FOREIGN KEY ({}) REFERENCES {} ({})",
        key_list(list(mapping, table, &key.columns)?),
        other.target.sql(),
        key_list(list(other, referenced, &key.referenced_columns)?)
    );
    if shape.match_kind == 'f' {
        sql.push_str(" MATCH FULL");
    }
    for (event, action) in [("UPDATE", shape.on_update), ("DELETE", shape.on_delete)] {
        if let Some(action) = action_sql(action) {
            sql.push_str(&format!(" ON {event} {action}"));
        }
    }
    if !shape.on_delete_columns.is_empty() {
        sql.push_str(&format!(" ({})", list(mapping, table, &shape.on_delete_columns)?.join(", ")));
    }
    if shape.deferrable {
        sql.push_str(" DEFERRABLE");
    }
    if shape.initially_deferred {
        sql.push_str(" INITIALLY DEFERRED");
    }
    Ok(sql)
}

/// `None` for NO ACTION, which needs no words.
fn action_sql(letter: char) -> Option<&'static str> {
    match letter {
        'r' => Some("RESTRICT"),
        'c' => Some("CASCADE"),
        'n' => Some("SET NULL"),
        'd' => Some("SET DEFAULT"),
        _ => None,
    }
}
