//! What keeps tables of the service from taking the monolith's rows. It is asked before rows are emptied to be copied again,
//! and all of it is told at once.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::error::MirrorError;
use super::rights::{self, Lack};
use crate::journal::deferred;
use crate::mapping::adopted::wider;
use crate::mapping::input::is_users;
use crate::mapping::{ColumnMapping, TableMapping};
use crate::name::{TableName, quote_ident};

/// Why a table would not take rows, and what to run in the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The fact.
    pub(super) fact: String,
    /// The statement, without an end, or what to do.
    pub(super) next: String,
}

/// A table of the service as its catalog has it.
#[derive(Debug, Clone, Default)]
struct Intake {
    /// The mirror's role sees only rows that a policy shows.
    filtered: bool,
    columns: Vec<Column>,
    /// Triggers that fire on mirrored rows: name, and the statement that makes an ordinary one of it.
    triggers: Vec<(String, String)>,
    /// Checks: name and expression.
    checks: Vec<(String, String)>,
    /// Unique indexes and exclusion constraints.
    uniques: Vec<Unique>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    type_sql: String,
    not_null: bool,
    /// It has a default, is an identity, or is generated.
    filled: bool,
    generated: bool,
}

#[derive(Debug, Clone)]
struct Unique {
    name: String,
    /// The statement that takes it away.
    drop_sql: String,
    /// Plain columns whose values must be unique together; none for expressions and exclusions.
    columns: BTreeSet<String>,
}

/// What the monolith itself promises of a table's rows.
#[derive(Debug, Clone, Default)]
struct Promises {
    not_null: BTreeSet<String>,
    checks: BTreeSet<String>,
    uniques: Vec<BTreeSet<String>>,
}

/// Everything that would keep a table from taking its rows.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn faults(
    (source, target): (&Client, &Client),
    slice: &str,
    table: &TableMapping,
) -> Result<Vec<Fault>, MirrorError> {
    let Some(mut intake) = intake(target, table).await? else {
        let fact = "it does not exist".to_owned();
        return Ok(vec![Fault {
            fact,
            next: "strangler check PLAN, which says what to do about it".to_owned(),
        }]);
    };
    let names: Vec<&str> = table.columns.iter().map(|column| column.target.as_str()).collect();
    let lack = rights::lacking(target, (&table.target, &names), rights::WRITING).await?;
    // What waits for the data, or is taken off right before it is copied, stands in no row's way.
    let ours = deferred::objects(target, slice, &table.target.to_string()).await?;
    intake.checks.retain(|(name, _)| !ours.contains(name));
    intake.uniques.retain(|unique| !ours.contains(&unique.name));
    let promises = promises(source, table).await?;
    let mut found = judge(table, &intake, lack, &promises);
    for (fact, next, condition) in conditions(table, &intake, &promises) {
        if is_broken(source, table, &condition).await? {
            found.push(Fault { fact, next });
        }
    }
    Ok(found)
}

/// What can be said without looking at rows. Pure.
fn judge(table: &TableMapping, intake: &Intake, lack: Option<Lack>, promises: &Promises) -> Vec<Fault> {
    let target = table.target.sql();
    let mut found: Vec<Fault> = Vec::new();
    if let Some(Lack { role, privileges, grants }) = lack {
        let what = if privileges.is_empty() {
            "use its schema".to_owned()
        } else {
            format!("{} there", privileges.join(", "))
        };
        found.push(Fault { fact: format!("{role} may not {what}"), next: grants.join("; ") });
    }
    if intake.filtered {
        found.push(Fault {
            fact: "row level security applies to the mirror's role".to_owned(),
            next: format!("ALTER ROLE {} BYPASSRLS", crate::postgres::connect::APPLY_ROLE),
        });
    }
    for wanted in &table.columns {
        found.extend(column(table, wanted, intake.columns.iter().find(|one| one.name == wanted.target)));
    }
    let mapped = |name: &str| table.columns.iter().any(|column| column.target == name);
    let unfed = intake.columns.iter().filter(|one| one.not_null && !one.filled && !mapped(&one.name));
    found.extend(unfed.map(|one| Fault {
        fact: format!("its column {} is NOT NULL without a default, and nothing is mapped to it", one.name),
        next: format!("ALTER TABLE {target} ALTER COLUMN {} DROP NOT NULL", quote_ident(&one.name)),
    }));
    found.extend(intake.triggers.iter().map(|(name, sql)| Fault {
        fact: format!("its trigger {name} fires on mirrored rows, and may change or refuse them"),
        next: sql.clone(),
    }));
    let kept = |unique: &&Unique| promises.uniques.iter().any(|columns| columns.is_subset(&unique.columns));
    found.extend(intake.uniques.iter().filter(|unique| !kept(unique)).map(|unique| Fault {
        fact: format!("{} keeps rows out that the monolith may have together", unique.name),
        next: format!("{}, and make it again once the table is live", unique.drop_sql),
    }));
    found
}

/// Types of the user are compared by what they are made of, elsewhere.
fn column(table: &TableMapping, wanted: &ColumnMapping, present: Option<&Column>) -> Option<Fault> {
    let (name, target) = (&wanted.target, table.target.sql());
    let (column, of) = (quote_ident(name), &wanted.type_sql);
    let fault = |fact: String, next: String| Some(Fault { fact, next });
    let Some(present) = present else {
        return fault(
            format!("it has no column {name}"),
            format!("ALTER TABLE {target} ADD COLUMN {column} {of}"),
        );
    };
    if present.generated {
        let next = format!("ALTER TABLE {target} DROP COLUMN {column}, ADD COLUMN {column} {of}");
        return fault(format!("its column {name} is generated"), next);
    }
    if is_users(&wanted.cast_sql) || is_users(&present.type_sql) || wider(of, &present.type_sql) {
        return None;
    }
    fault(
        format!("its column {name} is {}, and the monolith's {of} does not fit into it", present.type_sql),
        format!("ALTER TABLE {target} ALTER COLUMN {column} TYPE {of} USING {column}::{of}"),
    )
}

/// What rows must meet in the service and need not on the monolith: fact, statement, condition on the service's columns. Pure.
fn conditions(table: &TableMapping, intake: &Intake, promises: &Promises) -> Vec<(String, String, String)> {
    let target = table.target.sql();
    let mut found = Vec::new();
    for wanted in &table.columns {
        let strict = intake.columns.iter().any(|one| one.name == wanted.target && one.not_null);
        if strict && !promises.not_null.contains(&wanted.source) {
            let column = quote_ident(&wanted.target);
            found.push((
                format!(
                    "its column {} is NOT NULL, and rows of the monolith hold nothing there",
                    wanted.target
                ),
                format!("ALTER TABLE {target} ALTER COLUMN {column} DROP NOT NULL"),
                format!("{column} IS NOT NULL"),
            ));
        }
    }
    for (name, expression) in intake.checks.iter().filter(|(_, sql)| !promises.checks.contains(sql)) {
        found.push((
            format!("its constraint {name} refuses rows that the monolith has"),
            format!("ALTER TABLE {target} DROP CONSTRAINT {}", quote_ident(name)),
            expression.clone(),
        ));
    }
    found
}

/// Whether a row of the monolith does not meet a condition that was written for the service. One that the monolith can't
/// work out, because it needs a function or a column of the service's, is left to the rows that are tried.
async fn is_broken(source: &Client, table: &TableMapping, condition: &str) -> Result<bool, MirrorError> {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!("{} AS {}", quote_ident(&column.source), quote_ident(&column.target)))
        .collect();
    let filter = table.filter_sql().map_or_else(String::new, |sql| format!(" WHERE {sql}"));
    let only = if table.partitioned { "" } else { "ONLY " };
    let sql = format!(
        "SELECT EXISTS (SELECT FROM (SELECT {} FROM {only}{}{filter}) AS t WHERE NOT ({condition}))",
        columns.join(", "),
        table.source.sql()
    );
    match source.query_one(&sql, &[]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.as_db_error().is_some() && !crate::postgres::sqlstate::is_retryable(&error) => {
            Ok(false)
        }
        Err(error) => {
            Err(MirrorError::sql("asking the monolith for rows that the service would refuse")(error))
        }
    }
}

async fn intake(target: &Client, table: &TableMapping) -> Result<Option<Intake>, MirrorError> {
    let failed = || MirrorError::sql("reading what a table of the service takes");
    let name: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&table.target.schema, &table.target.name];
    let of = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";
    let is = "n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";
    let sql = format!("SELECT row_security_active(c.oid) {of} WHERE {is}");
    let Some(row) = target.query_opt(&sql, &name).await.map_err(failed())? else { return Ok(None) };
    let mut found = Intake { filtered: row.get(0), ..Intake::default() };
    let sql = format!(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
                a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' \
         {of} JOIN pg_attribute a ON a.attrelid = c.oid WHERE {is} AND a.attnum > 0 AND NOT a.attisdropped"
    );
    let rows = target.query(&sql, &name).await.map_err(failed())?;
    let column = |row: &tokio_postgres::Row| Column {
        name: row.get(0),
        type_sql: row.get(1),
        not_null: row.get(2),
        filled: row.get(3),
        generated: row.get(4),
    };
    found.columns = rows.iter().map(column).collect();
    // Of a partition, too: a row fires what hangs on the one that it goes to. Our gates let the mirror pass.
    let sql = format!(
        "SELECT t.tgname::text, p.relname::text, m.nspname::text {of} \
         JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS part (oid) ON true \
         JOIN pg_class p ON p.oid = part.oid JOIN pg_namespace m ON m.oid = p.relnamespace \
         JOIN pg_trigger t ON t.tgrelid = p.oid JOIN pg_proc f ON f.oid = t.tgfoid \
         WHERE {is} AND t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal \
           AND f.pronamespace <> 'strangler'::regnamespace ORDER BY 1, 2"
    );
    for row in target.query(&sql, &name).await.map_err(failed())? {
        let (trigger, table, schema): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let on = TableName::new(schema, table);
        let sql = format!("ALTER TABLE {} ENABLE TRIGGER {}", on.sql(), quote_ident(&trigger));
        found.triggers.push((trigger, sql));
    }
    let checks =
        format!("{CHECKS} {of} JOIN pg_constraint k ON k.conrelid = c.oid WHERE {is} AND k.contype = 'c'");
    let rows = target.query(&checks, &name).await.map_err(failed())?;
    found.checks = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    found.uniques = uniques(target, table).await.map_err(failed())?;
    Ok(Some(found))
}

const CHECKS: &str = "SELECT k.conname::text, pg_get_expr(k.conbin, k.conrelid)";

async fn uniques(target: &Client, table: &TableMapping) -> Result<Vec<Unique>, tokio_postgres::Error> {
    let sql = "SELECT coalesce(k.conname, i.relname)::text, k.conname IS NOT NULL, m.nspname::text, i.relname::text, \
                      x.indisexclusion OR x.indexprs IS NOT NULL, \
                      ARRAY(SELECT a.attname::text FROM unnest(x.indkey[0:x.indnkeyatts - 1]) AS key (num) \
                            JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = key.num) \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid \
               JOIN pg_namespace m ON m.oid = i.relnamespace \
               LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.contype IN ('p', 'u', 'x') \
               WHERE n.nspname = $1 AND c.relname = $2 AND (x.indisunique OR x.indisexclusion) ORDER BY 1";
    let rows = target.query(sql, &[&table.target.schema, &table.target.name]).await?;
    let unique = |row: &tokio_postgres::Row| {
        let (name, constraint): (String, bool) = (row.get(0), row.get(1));
        let (schema, index): (String, String) = (row.get(2), row.get(3));
        let drop_sql = if constraint {
            format!("ALTER TABLE {} DROP CONSTRAINT {}", table.target.sql(), quote_ident(&name))
        } else {
            format!("DROP INDEX {}", TableName::new(schema, index).sql())
        };
        let columns = if row.get(4) { Vec::new() } else { row.get::<_, Vec<String>>(5) };
        Unique { name, drop_sql, columns: columns.into_iter().collect() }
    };
    Ok(rows.iter().map(unique).collect())
}

/// What holds for every row on the monolith, in the service's names of columns where indexes are meant.
async fn promises(source: &Client, table: &TableMapping) -> Result<Promises, MirrorError> {
    let failed = || MirrorError::sql("reading what a table of the monolith promises");
    let name: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&table.source.schema, &table.source.name];
    let of = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";
    let is = "n.nspname = $1 AND c.relname = $2";
    let sql = format!(
        "SELECT a.attname::text {of} JOIN pg_attribute a ON a.attrelid = c.oid WHERE {is} AND a.attnotnull"
    );
    let rows = source.query(&sql, &name).await.map_err(failed())?;
    let not_null = rows.iter().map(|row| row.get(0)).collect();
    let sql = format!(
        "{CHECKS} {of} JOIN pg_constraint k ON k.conrelid = c.oid WHERE {is} AND k.contype = 'c' AND k.convalidated"
    );
    let rows = source.query(&sql, &name).await.map_err(failed())?;
    let checks = rows.iter().map(|row| row.get(1)).collect();
    let sql = format!(
        "SELECT ARRAY(SELECT a.attname::text FROM unnest(x.indkey[0:x.indnkeyatts - 1]) AS key (num) \
                      JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = key.num) \
         {of} JOIN pg_index x ON x.indrelid = c.oid \
         WHERE {is} AND x.indisunique AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL"
    );
    let rows = source.query(&sql, &name).await.map_err(failed())?;
    let there = |row: &tokio_postgres::Row| -> Option<BTreeSet<String>> {
        let columns: Vec<String> = row.get(0);
        columns.iter().map(|name| Some(table.column(name)?.target.clone())).collect()
    };
    let key = table.key_columns().map(|column| column.target.clone()).collect();
    let uniques = rows.iter().filter_map(there).chain([key]).collect();
    Ok(Promises { not_null, checks, uniques })
}
