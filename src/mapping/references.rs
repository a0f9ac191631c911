//! Foreign keys that cross the cut, as knowledge that outlives them.

use super::columns::object;
use super::expand::Listed;
use super::spelling::{advice, nearest_table};
use super::{ColumnMapping, SoftReference};
use crate::catalog::{Catalog, ForeignKey};
use crate::name::TableName;
use crate::plan::ColumnRule;
use crate::problem::Problem;

/// Soft references of one table: foreign keys of the catalog whose other end is not in the same slice, and those
/// that the plan declares.
pub(super) fn across_the_cut(
    monolith: &Catalog,
    one: &Listed<'_>,
    listed: &[Listed<'_>],
    columns: &[ColumnMapping],
    problems: &mut Vec<Problem>,
) -> Vec<SoftReference> {
    let inside =
        |table: &TableName| listed.iter().any(|other| other.slice == one.slice && other.table.name == *table);
    let mut found: Vec<SoftReference> = monolith
        .foreign_keys
        .iter()
        .filter(|key| key.table == one.table.name && !key.inherited && !inside(&key.references))
        .filter_map(|key| of_catalog(key, columns))
        .collect();
    for (name, rule) in &one.rule.columns {
        let ColumnRule::Keep { references: Some(referenced), .. } = rule else { continue };
        let Some(column) = columns.iter().find(|column| column.source == *name) else { continue };
        let known = found.iter_mut().find(|reference| {
            reference.references == *referenced && reference.columns == [column.target.as_str()]
        });
        if let Some(known) = known {
            known.declared = true;
        } else if inside(referenced) {
            problems.push(same_slice(one, name, referenced));
        } else {
            match declared(monolith, one, column, referenced) {
                Ok(reference) => found.push(reference),
                Err(problem) => problems.push(*problem),
            }
        }
    }
    found
}

fn of_catalog(key: &ForeignKey, columns: &[ColumnMapping]) -> Option<SoftReference> {
    let target =
        |name: &String| columns.iter().find(|column| column.source == *name).map(|c| c.target.clone());
    Some(SoftReference {
        columns: key.columns.iter().map(target).collect::<Option<_>>()?,
        references: key.references.clone(),
        referenced_columns: key.referenced_columns.clone(),
        declared: false,
    })
}

fn declared(
    monolith: &Catalog,
    one: &Listed<'_>,
    column: &ColumnMapping,
    referenced: &TableName,
) -> Result<SoftReference, Box<Problem>> {
    let at = object(&one.table.name, &column.source);
    let Some(table) = monolith.table(referenced) else {
        let near = nearest_table(referenced, &monolith.tables);
        let problem = Problem::error("unknown-table", at)
            .at(one.rule.place)
            .fact(format!("it references {referenced}, which the monolith does not have"))
            .consequence("orphans of this reference could not be found")
            .next(advice(near, "names are exact, case included"));
        return Err(Box::new(problem));
    };
    let key = table.primary_key().and_then(|index| match index.columns.as_slice() {
        [Some(only)] => table.column(only),
        _ => None,
    });
    let Some(key) = key else {
        let problem = Problem::error("reference-key", at)
            .at(one.rule.place)
            .fact(format!("it references {referenced}, which has no primary key of one column"))
            .consequence("it is not clear which value it should hold")
            .next("remove `references`, or give that table such a key");
        return Err(Box::new(problem));
    };
    if key.cast_sql != column.cast_sql {
        let problem = Problem::error("reference-type", at)
            .at(one.rule.place)
            .fact(format!(
                "its type is {}, and {referenced}.{} is {}",
                column.type_sql, key.name, key.type_sql
            ))
            .consequence("the two can't be compared without a cast that might change values")
            .next("remove `references`, or name the table that the values come from");
        return Err(Box::new(problem));
    }
    Ok(SoftReference {
        columns: vec![column.target.clone()],
        references: referenced.clone(),
        referenced_columns: vec![key.name.clone()],
        declared: true,
    })
}

fn same_slice(one: &Listed<'_>, column: &str, referenced: &TableName) -> Problem {
    Problem::warning("reference-inside-slice", object(&one.table.name, column))
        .at(one.rule.place)
        .fact(format!("it references {referenced}, which slice {} takes along", one.slice))
        .consequence("both tables stay in one database, so this is no reference across the cut")
        .next("remove `references`; a foreign key between the two is kept by itself")
}
