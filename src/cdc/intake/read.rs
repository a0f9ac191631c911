//! A table of the service, and what the monolith promises of its own, as the catalogs have them.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::{Check, Column, DomainRule, Intake, Promises, Unique};
use crate::cdc::error::MirrorError;
use crate::mapping::TableMapping;
use crate::name::{TableName, quote_ident};
use crate::postgres::partitions::TREE_OF_C;
use crate::postgres::type_trees;

/// A table by its schema and name.
const OF: &str = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";
const IS: &str = "n.nspname = $1 AND c.relname = $2";

/// The service's table; `None` where there is none.
pub(super) async fn intake(target: &Client, table: &TableMapping) -> Result<Option<Intake>, MirrorError> {
    let failed = || MirrorError::sql("reading what a table of the service takes");
    let name = names(&table.target);
    let sql = format!("SELECT row_security_active(c.oid) {OF} WHERE {IS} AND c.relkind IN ('r', 'p')");
    let Some(row) = target.query_opt(&sql, &name).await.map_err(failed())? else { return Ok(None) };
    let sql = format!(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
                a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' \
         {OF} JOIN pg_attribute a ON a.attrelid = c.oid WHERE {IS} AND a.attnum > 0 AND NOT a.attisdropped"
    );
    let rows = target.query(&sql, &name).await.map_err(failed())?;
    let column = |row: &Row| Column {
        name: row.get(0),
        type_sql: row.get(1),
        not_null: row.get(2),
        filled: row.get(3),
        generated: row.get(4),
    };
    // One that is not enforced (PostgreSQL 18) refuses nothing.
    let enforced = "(to_jsonb(k) ->> 'conenforced') IS DISTINCT FROM 'false'";
    Ok(Some(Intake {
        filtered: row.get(0),
        columns: rows.iter().map(column).collect(),
        triggers: triggers(target, &table.target).await.map_err(failed())?,
        rules: rules(target, &table.target).await.map_err(failed())?,
        checks: checks(target, &table.target, enforced).await.map_err(failed())?,
        uniques: uniques(target, &table.target)
            .await
            .map_err(failed())?
            .into_iter()
            .map(|(one, _)| one)
            .collect(),
        domains: domains(target, &table.target).await.map_err(failed())?,
        types: type_trees::read(target, [&table.target].into_iter()).await.map_err(failed())?,
    }))
}

/// What holds for every row on the monolith, in the service's names of columns where indexes are meant.
pub(super) async fn promises(source: &Client, table: &TableMapping) -> Result<Promises, MirrorError> {
    let failed = || MirrorError::sql("reading what a table of the monolith promises");
    // From PostgreSQL 18 on a column may be NOT NULL for new rows only.
    let sql = format!(
        "SELECT a.attname::text {OF} JOIN pg_attribute a ON a.attrelid = c.oid WHERE {IS} AND a.attnotnull \
           AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'n' \
                           AND k.conkey = ARRAY[a.attnum] AND NOT k.convalidated)"
    );
    let rows = source.query(&sql, &names(&table.source)).await.map_err(failed())?;
    let not_null = rows.iter().map(|row| row.get(0)).collect();
    let checks = checks(source, &table.source, "k.convalidated").await.map_err(failed())?;
    let found = uniques(source, &table.source).await.map_err(failed())?;
    let valid = || found.iter().filter(|(_, valid)| *valid).map(|(unique, _)| unique);
    let definitions = valid().map(|unique| unique.definition.clone()).collect();
    let there = |unique: &Unique| -> Option<Unique> {
        let columns = unique.columns.iter();
        let columns = columns.map(|(name, equal)| Some((table.column(name)?.target.clone(), equal.clone())));
        Some(Unique { columns: columns.collect::<Option<_>>()?, ..unique.clone() })
    };
    let key = Unique {
        name: String::new(),
        drop_sql: None,
        columns: table.key_columns().map(|column| (column.target.clone(), String::new())).collect(),
        // A key never holds NULL.
        nulls_alike: true,
        partial: false,
        definition: String::new(),
    };
    let uniques = valid().filter(|unique| !unique.partial).filter_map(there).chain([key]).collect();
    let domains = domains(source, &table.source).await.map_err(failed())?.into_iter();
    Ok(Promises {
        not_null,
        checks: checks.into_iter().map(|check| check.sql).collect(),
        uniques,
        definitions,
        domains: domains.map(|rule| (rule.column, rule.check.map(|check| check.sql))).collect(),
        types: type_trees::read(source, [&table.source].into_iter()).await.map_err(failed())?,
    })
}

fn names(table: &TableName) -> [&(dyn ToSql + Sync); 2] {
    [&table.schema, &table.name]
}

/// Of a partition, too: a row fires what hangs on the one that it goes to. Our gates let the mirror pass.
async fn triggers(target: &Client, table: &TableName) -> Result<Vec<(String, String)>, Error> {
    let sql = format!(
        "SELECT t.tgname::text, p.relname::text, m.nspname::text {OF} \
         JOIN {TREE_OF_C} ON true \
         JOIN pg_class p ON p.oid = part.oid JOIN pg_namespace m ON m.oid = p.relnamespace \
         JOIN pg_trigger t ON t.tgrelid = p.oid JOIN pg_proc f ON f.oid = t.tgfoid \
         WHERE {IS} AND t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal \
           AND f.pronamespace <> 'strangler'::regnamespace ORDER BY 1, 2"
    );
    let trigger = |row: &Row| {
        let (trigger, table, schema): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let on = TableName::new(schema, table);
        let sql = format!("ALTER TABLE {} ENABLE TRIGGER {}", on.sql(), quote_ident(&trigger));
        (trigger, sql)
    };
    Ok(target.query(&sql, &names(table)).await?.iter().map(trigger).collect())
}

/// Of the table that statements name only: those of its partitions are not asked.
async fn rules(target: &Client, table: &TableName) -> Result<Vec<(String, String)>, Error> {
    let sql = format!(
        "SELECT r.rulename::text {OF} JOIN pg_rewrite r ON r.ev_class = c.oid WHERE {IS} AND r.ev_enabled IN ('A', 'R') ORDER BY 1"
    );
    let rule = |row: &Row| {
        let rule: String = row.get(0);
        let sql = format!("ALTER TABLE {} ENABLE RULE {}", table.sql(), quote_ident(&rule));
        (rule, sql)
    };
    Ok(target.query(&sql, &names(table)).await?.iter().map(rule).collect())
}

async fn checks(client: &Client, table: &TableName, which: &str) -> Result<Vec<Check>, Error> {
    let sql = format!(
        "SELECT k.conname::text, pg_get_expr(k.conbin, k.conrelid), k.conbin::text {OF} \
         JOIN pg_constraint k ON k.conrelid = c.oid WHERE {IS} AND k.contype = 'c' AND {which} ORDER BY 1"
    );
    let check = |row: &Row| Check { name: row.get(0), sql: row.get(1), tree: row.get(2) };
    Ok(client.query(&sql, &names(table)).await?.iter().map(check).collect())
}

/// Unique indexes and exclusion constraints, and whether they are valid.
async fn uniques(client: &Client, table: &TableName) -> Result<Vec<(Unique, bool)>, Error> {
    // Values that are not written alike are equal under a collation that is not deterministic, and under operators of somebody.
    let keys = "FROM generate_series(0, x.indnkeyatts - 1) AS k (n) \
                JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[k.n] \
                JOIN pg_opclass o ON o.oid = x.indclass[k.n] LEFT JOIN pg_collation l ON l.oid = x.indcollation[k.n] \
                ORDER BY k.n";
    let sql = format!(
        "SELECT coalesce(k.conname, i.relname)::text, k.conname IS NOT NULL, m.nspname::text, i.relname::text, \
            x.indisexclusion OR x.indexprs IS NOT NULL, ARRAY(SELECT a.attname::text {keys}), \
            ARRAY(SELECT CASE WHEN l.collisdeterministic IS FALSE THEN l.collname::text ELSE '' END \
                || CASE WHEN o.oid >= {own} THEN ' ' || o.opcname ELSE '' END {keys}), \
            coalesce((to_jsonb(x) ->> 'indnullsnotdistinct')::bool, false), x.indpred IS NOT NULL, x.indisprimary, \
            coalesce(pg_get_constraintdef(k.oid), '') || substring(pg_get_indexdef(i.oid) FROM ' USING .*'), x.indisvalid \
         {OF} JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid \
         JOIN pg_namespace m ON m.oid = i.relnamespace \
         LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.contype IN ('p', 'u', 'x') \
         WHERE {IS} AND (x.indisunique OR x.indisexclusion) ORDER BY 1",
        own = type_trees::FIRST_USER_OID
    );
    let unique = |row: &Row| {
        let (name, constraint): (String, bool) = (row.get(0), row.get(1));
        let (schema, index): (String, String) = (row.get(2), row.get(3));
        let drop_sql = if constraint {
            format!("ALTER TABLE {} DROP CONSTRAINT {}", table.sql(), quote_ident(&name))
        } else {
            format!("DROP INDEX {}", TableName::new(schema, index).sql())
        };
        let columns = row.get::<_, Vec<String>>(5).into_iter().zip(row.get::<_, Vec<String>>(6));
        let unique = Unique {
            name,
            drop_sql: (!row.get::<_, bool>(9)).then_some(drop_sql),
            columns: if row.get(4) { BTreeMap::new() } else { columns.collect() },
            nulls_alike: row.get(7),
            partial: row.get(8),
            definition: row.get(10),
        };
        (unique, row.get(11))
    };
    Ok(client.query(&sql, &names(table)).await?.iter().map(unique).collect())
}

/// What the domains ask that a table's columns are made of, at any depth.
async fn domains(client: &Client, table: &TableName) -> Result<Vec<DomainRule>, Error> {
    let columns = format!(
        "SELECT a.attnum::int, a.atttypid {OF} JOIN pg_attribute a ON a.attrelid = c.oid WHERE {IS} AND a.attnum > 0"
    );
    let sql = type_trees::reached(&columns)
        + &format!(
            "SELECT a.attname::text, format_type(y.oid, -1), \
                y.oid IN (a.atttypid, (SELECT b.typbasetype FROM pg_type b WHERE b.oid = a.atttypid)), k.name, k.sql, k.tree \
             {OF} JOIN pg_attribute a ON a.attrelid = c.oid JOIN reached r ON r.root = a.attnum \
             JOIN pg_type y ON y.oid = r.oid AND y.typtype = 'd' JOIN LATERAL ( \
                SELECT NULL::text, NULL::text, NULL::text WHERE y.typnotnull \
                UNION ALL SELECT d.conname::text, pg_get_expr(d.conbin, 0), d.conbin::text FROM pg_constraint d \
                    WHERE d.contypid = y.oid AND d.contype = 'c') AS k (name, sql, tree) ON true \
             WHERE {IS} ORDER BY 1, 2, 4"
        );
    let rule = |row: &Row| {
        let check = row.get::<_, Option<String>>(3).zip(row.get(4)).zip(row.get(5));
        DomainRule {
            column: row.get(0),
            domain: row.get(1),
            whole: row.get(2),
            check: check.map(|((name, sql), tree)| Check { name, sql, tree }),
        }
    };
    Ok(client.query(&sql, &names(table)).await?.iter().map(rule).collect())
}
