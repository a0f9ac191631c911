//! What the monolith is asked about its rows before tables of the service are emptied: whether all of them meet a condition
//! that was written for the service. Whoever owns the service's tables wrote it, so that only what can neither write, nor
//! read anything but the row, nor run for long is worked out under the read link's role. The rest is left to the rows that
//! are tried.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::mapping::TableMapping;
use crate::mapping::input::is_users;
use crate::name::quote_ident;
use crate::postgres::sqlstate::{Failure, is_retryable};
use crate::postgres::type_trees::FIRST_USER_OID;

/// Long enough to read some hundred million rows, and short enough for who has to wait for it: nothing is lost where a
/// question is given up, and a statement whose session went away ends by then.
const LIMIT_MS: u32 = 120_000;

/// Nodes of an expression that only put values of their row together. Those that call what is not written in them (input
/// functions of a type, domains, the time, sequences, queries) are not among them.
const NODES: &[&str] = &[
    "ARRAY",
    "ARRAYEXPR",
    "BOOLEANTEST",
    "BOOLEXPR",
    "CASE",
    "CASEEXPR",
    "CASETESTEXPR",
    "CASEWHEN",
    "WHEN",
    "COALESCE",
    "COALESCEEXPR",
    "COERCETODOMAINVALUE",
    "COLLATE",
    "COLLATEEXPR",
    "CONST",
    "DISTINCTEXPR",
    "FUNCEXPR",
    "NULLIFEXPR",
    "NULLTEST",
    "OPEXPR",
    "RELABELTYPE",
    "SCALARARRAYOPEXPR",
    "VAR",
];

/// What rows must meet in the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// SQL over the service's columns; over `VALUE` as well, where it is a domain's.
    pub(super) sql: String,
    /// The expression as the service's catalog keeps it; `None` where it is of our own making.
    pub(super) tree: Option<String>,
    /// Column of the monolith that `VALUE` stands for.
    pub(super) value: Option<String>,
}

/// Whether a row of the monolith does not meet a condition. `types` are the types of the service's columns, as SQL, by their
/// names: what is worked out there on a wider type must not overflow here on a narrower one.
///
/// # Errors
/// [`MirrorError::Sql`] where the question itself can't be asked.
pub(super) async fn is_broken(
    source: &Client,
    table: &TableMapping,
    (condition, types): (&Condition, &[(&str, &str)]),
) -> Result<bool, MirrorError> {
    let failed = || MirrorError::sql("asking the monolith for rows that the service would refuse");
    if let Some(tree) = &condition.tree {
        let Some(functions) = functions(tree) else { return Ok(false) };
        // What is immutable does not depend on who asks, and writes nothing.
        let sql = "SELECT count(*) FROM pg_proc WHERE oid = ANY ($1) AND provolatile = 'i'";
        let functions: Vec<u32> = functions.into_iter().collect();
        let known: i64 = source.query_one(sql, &[&functions]).await.map_err(failed())?.get(0);
        if usize::try_from(known) != Ok(functions.len()) {
            return Ok(false);
        }
    }
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {LIMIT_MS}");
    source.batch_execute(&begin).await.map_err(failed())?;
    let answer = match source.query_typed_one(&sql(table, condition, types), &[]).await {
        Err(error) if error.as_db_error().is_none() || is_retryable(&error) => return Err(failed()(error)),
        answer => answer,
    };
    source.batch_execute("ROLLBACK").await.map_err(failed())?;
    Ok(match answer {
        Ok(row) => row.get(0),
        // The service can't work it out for that row either, and refuses it.
        Err(error) => Failure::of(&error) == Failure::Data,
    })
}

fn sql(table: &TableMapping, condition: &Condition, types: &[(&str, &str)]) -> String {
    let mut columns: Vec<String> = Vec::new();
    for column in &table.columns {
        let of = types.iter().find(|(name, of)| *name == column.target && !is_users(of));
        let cast = of.map_or_else(String::new, |(_, of)| format!("::{of}"));
        columns.push(format!("{}{cast} AS {}", quote_ident(&column.source), quote_ident(&column.target)));
    }
    if let Some(column) = &condition.value {
        columns = vec![format!("{} AS value", quote_ident(column))];
    }
    let filter = table.filter_sql().map_or_else(String::new, |sql| format!(" WHERE {sql}"));
    let only = if table.partitioned { "" } else { "ONLY " };
    // OFFSET keeps the condition from being worked out for rows that are not the slice's, and might fail on them.
    format!(
        "SELECT EXISTS (SELECT FROM (SELECT {} FROM {only}{}{filter} OFFSET 0) AS t WHERE NOT ({}))",
        columns.join(", "),
        table.source.sql(),
        condition.sql
    )
}

/// The functions that an expression calls, where nothing in it is other than PostgreSQL's own. The text is that of
/// `pg_node_tree`: `{NODE :field value …}`. Pure.
fn functions(tree: &str) -> Option<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut field = "";
    for word in tree.split([' ', '(', ')', '}', '\n']) {
        if let Some(node) = word.strip_prefix('{') {
            if !NODES.contains(&node) {
                return None;
            }
        } else if let Some(name) = word.strip_prefix(':') {
            field = name;
        } else if let Ok(number) = word.parse::<u32>() {
            let is_function = field.ends_with("funcid");
            let is_object = ["type", "collid", "opno"].iter().any(|kind| field.to_lowercase().contains(kind));
            if (is_function || is_object) && number >= FIRST_USER_OID {
                return None;
            }
            // Two more kinds of function ids are 0 where there is none.
            if is_function && number != 0 {
                found.insert(number);
            } else if is_function && matches!(field, "funcid" | "opfuncid") {
                return None;
            }
            field = "";
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_built_in_functions_and_plain_nodes_are_worked_out_elsewhere() {
        let of = |node: &str, function: u32, of: u32| {
            format!(
                "{{OPEXPR :opno 521 :opfuncid 147 :opresulttype 16 :args ({{{node} :funcid {function} :funcresulttype {of} \
                 :args ({{VAR :varno 1 :varattno 1 :vartype 23}})}} {{CONST :consttype 23 :constvalue 4 [ 0 64 99 0 0 ]}})}}"
            )
        };
        assert_eq!(functions(&of("FUNCEXPR", 1397, 23)), Some([147, 1397].into()));
        assert_eq!(functions(&of("FUNCEXPR", 16_384, 23)), None, "somebody's function");
        assert_eq!(functions(&of("FUNCEXPR", 1397, 20_000)), None, "somebody's type");
        for node in ["SQLVALUEFUNCTION", "NEXTVALUEEXPR", "SUBLINK", "COERCETODOMAIN", "COERCEVIAIO"] {
            assert_eq!(functions(&of(node, 1397, 23)), None, "{node}");
        }
    }
}
