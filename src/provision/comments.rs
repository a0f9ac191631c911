//! Comments of what a table brings with it: its columns, indexes, constraints and sequences.

use super::draft::{Draft, Site};
use super::expression::target_of;
use super::objects::sequence_target;
use super::tables::describe;
use crate::catalog::{Index, Table};
use crate::mapping::TableMapping;
use crate::name::{TableName, quote_ident, quote_literal};

/// Of the table itself, of its columns, with what the plan's soft references say of them, and of the sequences of identities.
pub(super) fn of_table(
    draft: &Draft<'_>,
    site: &Site<'_>,
    mapping: &TableMapping,
    table: &Table,
) -> Vec<String> {
    let mut statements = Vec::new();
    let target = mapping.target.sql();
    if let Some(comment) = &table.comment {
        statements.push(format!("COMMENT ON TABLE {target} IS {}", quote_literal(comment)));
    }
    for column in &table.columns {
        let Some(name) = target_of(mapping, table, &column.name) else { continue };
        let soft = mapping.soft_references.iter().filter(|soft| soft.columns.iter().any(|one| one == name));
        let words: Vec<String> = column.comment.iter().cloned().chain(soft.map(describe)).collect();
        if !words.is_empty() {
            statements.push(format!(
                "COMMENT ON COLUMN {target}.{} IS {}",
                quote_ident(name),
                quote_literal(&words.join("\n"))
            ));
        }
        let drawn = column.sequence.as_ref().filter(|_| column.identity.is_some());
        let sequence = drawn.and_then(|name| draft.survey.monolith.sequences.get(name));
        if let Some(sequence) = sequence {
            // An identity's sequence is in its table's schema.
            let name = TableName::new(&mapping.target.schema, &sequence_target(site, &sequence.name).name);
            statements.extend(on_sequence(&name, sequence.comment.as_deref()));
        }
    }
    statements
}

/// Of a sequence, by its name in the service.
pub(super) fn on_sequence(name: &TableName, comment: Option<&str>) -> Option<String> {
    Some(format!("COMMENT ON SEQUENCE {} IS {}", name.sql(), quote_literal(comment?)))
}

/// Of a constraint of a service's table.
pub(super) fn on_constraint(target: &TableName, name: &str, comment: Option<&str>) -> Option<String> {
    let comment = quote_literal(comment?);
    Some(format!("COMMENT ON CONSTRAINT {} ON {} IS {comment}", quote_ident(name), target.sql()))
}

/// Of an index of a service's table, and of the constraint that it carries. `table` is the one that was read.
pub(super) fn on_index(target: &TableName, table: &Table, index: &Index) -> Vec<String> {
    let own = index.comment.as_ref().map(|comment| {
        let name = TableName::new(&target.schema, &index.name);
        format!("COMMENT ON INDEX {} IS {}", name.sql(), quote_literal(comment))
    });
    let constraint = index.constraint.as_ref().and_then(|name| {
        let of = table.constraints.iter().find(|one| one.name == *name)?;
        on_constraint(target, name, of.comment.as_deref())
    });
    own.into_iter().chain(constraint).collect()
}

/// A statement that waits, with the comments of what it makes: they are run together.
pub(super) fn with(statement: String, comments: impl IntoIterator<Item = String>) -> String {
    comments.into_iter().fold(statement, |sql, comment| format!("{sql}; {comment}"))
}
