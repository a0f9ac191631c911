//! Tables of the service in which nothing keeps a row of a key from being there twice.

use super::TableMapping;
use crate::name::quote_ident;
use crate::problem::Problem;

/// The problem of such a table, with what ends it. `object` is the table in the words of the report.
#[must_use]
pub fn problem(table: &TableMapping, object: String) -> Problem {
    let columns: Vec<String> = table.key_columns().map(|column| quote_ident(&column.target)).collect();
    let columns = columns.join(", ");
    Problem::error("target-without-key", object)
        .fact(format!(
            "it has no unique index on exactly its key ({columns}) that is not deferrable and whose columns are NOT NULL"
        ))
        .consequence("updates and deletes could not find their row, and a row could be there twice")
        .next(format!("run on the service: ALTER TABLE {} ADD PRIMARY KEY ({columns});", table.target.sql()))
}
