//! Column definitions of a service's table.

use super::anatomy::Used;
use super::comments::on_constraint;
use super::draft::{Draft, Site};
use super::expression::{carry, target_of};
use super::objects::{options, sequence_target};
use crate::catalog::{Column, Constraint, Table};
use crate::dualwrite::readiness::defaults::ColumnDefault;
use crate::mapping::TableMapping;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::problem::{Problem, Severity};

/// Since when a generated column can be computed when it is read (PostgreSQL 18 release notes). Older servers store
/// it, with the same values.
const VIRTUAL_SINCE: u32 = 18;

/// Since when NOT NULL is a constraint with a name (PostgreSQL 18 release notes).
const NAMED_NOT_NULL_SINCE: u32 = 18;

/// Comments of the constraints that [`definitions`] names after the monolith's.
pub(super) fn not_null_comments(site: &Site<'_>, mapping: &TableMapping, table: &Table) -> Vec<String> {
    if site.catalog.major() < NAMED_NOT_NULL_SINCE {
        return Vec::new();
    }
    let carried = table
        .columns
        .iter()
        .filter(|column| column.not_null && target_of(mapping, table, &column.name).is_some());
    let constraints = carried.filter_map(|column| table.not_null(&column.name));
    let comment = |one: &Constraint| on_constraint(&mapping.target, &one.name, one.comment.as_deref());
    constraints.filter_map(comment).collect()
}

/// Why a column can't be made: fact and advice of a problem.
type Refusal = (String, String);

/// Definitions of all columns that the service gets, in the monolith's order, and a problem for each that can't be
/// made.
pub(super) fn definitions(
    draft: &Draft<'_>,
    site: &Site<'_>,
    mapping: &TableMapping,
    table: &Table,
) -> (Vec<String>, Vec<Problem>) {
    let mut definitions = Vec::new();
    let mut problems = Vec::new();
    for column in &table.columns {
        let Some(name) = target_of(mapping, table, &column.name) else { continue };
        let default = ColumnDefault::of(&table.name, column).and_then(|default| default.problem("monolith"));
        problems.extend(default.filter(|problem| problem.severity == Severity::Error));
        match definition(draft, site, mapping, (table, column), name) {
            Ok(sql) => definitions.push(sql),
            Err((fact, next)) => problems.push(
                Problem::error("column-not-created", format!("{}.{}", table.name, column.name))
                    .fact(fact)
                    .consequence(format!("service {} could not have the column", site.name))
                    .next(next),
            ),
        }
    }
    (definitions, problems)
}

fn definition(
    draft: &Draft<'_>,
    site: &Site<'_>,
    mapping: &TableMapping,
    (table, column): (&Table, &Column),
    name: &str,
) -> Result<String, Refusal> {
    let mut sql = format!("{} {}", quote_ident(name), column.type_sql);
    if let Some(collation) = &column.collation_sql {
        if !site.state.collations.contains(collation) {
            return Err((
                format!("its collation {collation} does not exist in service {}", site.name),
                "create the collation there (CREATE COLLATION), then run provision again".to_owned(),
            ));
        }
        sql.push_str(&format!(" COLLATE {collation}"));
    }
    if let Some(kind) = column.identity {
        sql.push_str(&identity(draft, site, mapping, column, kind));
    } else if let Some(expression) = &column.generated_sql {
        let used = Used::Column(table.name.clone(), column.name.clone());
        let needs = draft.survey.anatomy.needs_of(&used);
        let expression = carry(mapping, table, needs, expression).map_err(|stuck| {
            (
                stuck.fact(),
                "keep those columns and their names, or drop this one with `drop: true`".to_owned(),
            )
        })?;
        let kept = if column.generated_virtual && site.catalog.major() >= VIRTUAL_SINCE {
            "VIRTUAL"
        } else {
            "STORED"
        };
        sql.push_str(&format!(" GENERATED ALWAYS AS ({expression}) {kept}"));
    } else if let Some(default) = &column.default_sql {
        sql.push_str(&format!(" DEFAULT {}", default_sql(site, column, default)?));
    }
    if column.not_null {
        let named = table.not_null(&column.name).filter(|_| site.catalog.major() >= NAMED_NOT_NULL_SINCE);
        if let Some(constraint) = named {
            sql.push_str(&format!(" CONSTRAINT {}", quote_ident(&constraint.name)));
        }
        sql.push_str(" NOT NULL");
    }
    Ok(sql)
}

fn identity(
    draft: &Draft<'_>,
    site: &Site<'_>,
    mapping: &TableMapping,
    column: &Column,
    kind: char,
) -> String {
    let when = if kind == 'a' { "ALWAYS" } else { "BY DEFAULT" };
    let sequence = column.sequence.as_ref().and_then(|name| draft.survey.monolith.sequences.get(name));
    let sequence = sequence.map_or_else(String::new, |sequence| {
        // The sequence of an identity must be in the table's schema (CREATE TABLE).
        let name = TableName::new(&mapping.target.schema, &sequence_target(site, &sequence.name).name);
        format!(" (SEQUENCE NAME {} {})", name.sql(), options(sequence))
    });
    format!(" GENERATED {when} AS IDENTITY{sequence}")
}

/// A default that draws from a sequence names it in a constant, which moves with the sequence.
fn default_sql(site: &Site<'_>, column: &Column, default: &str) -> Result<String, Refusal> {
    let Some(sequence) = &column.sequence else { return Ok(default.to_owned()) };
    let target = sequence_target(site, sequence);
    if target == *sequence {
        return Ok(default.to_owned());
    }
    let moved = move_sequence(default, &target);
    moved.ok_or_else(|| {
        (
            format!("its default draws from sequence {sequence}, which would be {target}, in a form not understood"),
            "give it a default of the form nextval('sequence'), or leave `into:` out".to_owned(),
        )
    })
}

/// Puts another name into the one `nextval('…'::regclass)` of an expression.
fn move_sequence(default: &str, target: &TableName) -> Option<String> {
    const CALL: &str = "nextval('";
    let start = default.find(CALL)? + CALL.len();
    let rest = default.get(start..)?;
    let mut end = rest.find('\'')?;
    while rest.get(end + 1..)?.starts_with('\'') {
        end += 2 + rest.get(end + 2..)?.find('\'')?;
    }
    let tail = rest.get(end + 1..)?;
    let literal = quote_literal(&target.sql());
    let alone = tail.starts_with("::regclass)");
    if !alone || tail.contains(CALL) {
        return None;
    }
    Some(format!("{}{literal}{tail}", default.get(..start - 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_their_sequence_into_another_schema() {
        let target = TableName::new("sales", "Orders_Id_seq");
        for (default, expected) in [
            (
                "nextval('public.\"Orders_Id_seq\"'::regclass)",
                "nextval('\"sales\".\"Orders_Id_seq\"'::regclass)",
            ),
            (
                "('N-'::text || nextval('a''b'::regclass))",
                "('N-'::text || nextval('\"sales\".\"Orders_Id_seq\"'::regclass))",
            ),
        ] {
            assert_eq!(move_sequence(default, &target).as_deref(), Some(expected));
        }
    }

    #[test]
    fn defaults_of_another_form_are_not_guessed_at() {
        let target = TableName::new("sales", "s");
        for default in [
            "my_next()",
            "nextval('s'::text)",
            "(nextval('a'::regclass) + nextval('b'::regclass))",
            "nextval('a",
        ] {
            assert_eq!(move_sequence(default, &target), None, "{default}");
        }
    }
}
