//! Functions that PostgreSQL itself calls when the way back writes, and whose text names an old table: they look the name up when they
//! are called, so each would fail, and stop the way back, once the table is away.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::rights::{Relation, oids};
use crate::name::{TableName, identifiers_in, is_named, quote_ident};
use crate::problem::Problem;

/// What a write to the relations ($1) evaluates, with the functions that lead there by way of what `pg_depend` knows: checks, also those
/// of domains, defaults, generated columns, expressions of indexes, policies, and triggers that fire for a replica.
const CALLED: &str = "WITH RECURSIVE moved AS (SELECT unnest($1::oid[]) AS oid), \
    roots (classid, objid) AS ( \
        SELECT 'pg_constraint'::regclass::oid, k.oid FROM pg_constraint k WHERE k.contype = 'c' AND k.conrelid IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'pg_attrdef'::regclass, d.oid FROM pg_attrdef d WHERE d.adrelid IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM pg_index x WHERE x.indrelid IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t \
            WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') AND t.tgrelid IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid AND c.relrowsecurity \
            WHERE p.polrelid IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'pg_type'::regclass, a.atttypid FROM pg_attribute a \
            WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid IN (SELECT oid FROM moved)), \
    reach (root_class, root, classid, objid) AS (SELECT classid, objid, classid, objid FROM roots \
        UNION SELECT r.root_class, r.root, e.classid, e.objid FROM reach r, LATERAL ( \
            SELECT d.refclassid AS classid, d.refobjid AS objid FROM pg_depend d WHERE d.classid = r.classid AND d.objid = r.objid \
                AND d.refclassid IN ('pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass) \
            UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k \
                WHERE r.classid = 'pg_type'::regclass AND k.contypid = r.objid AND k.contypid <> 0 \
            UNION ALL SELECT 'pg_type'::regclass, a.atttypid FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 \
                WHERE r.classid = 'pg_type'::regclass AND t.oid = r.objid AND t.typtype = 'c' AND NOT a.attisdropped) AS e) \
    SELECT r.objid, min(pg_describe_object(r.root_class, r.root, 0)) FROM reach r \
    WHERE r.classid = 'pg_proc'::regclass GROUP BY r.objid ORDER BY 1";

/// Functions whose body is a text that PostgreSQL reads when they are called.
const TEXTS: &str = "SELECT p.oid, n.nspname::text, p.proname::text, pg_get_function_identity_arguments(p.oid), p.prosrc, \
        CASE WHEN p.prokind = 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END \
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'strangler') \
    JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('internal', 'c') WHERE p.prosrc <> '' ORDER BY 1";

/// A function with a body of text.
#[derive(Debug, Clone)]
struct Text {
    /// Schema and name, as for tables.
    name: TableName,
    arguments: String,
    body: String,
    noun: String,
}

/// One problem for each function that is called, directly or by another one's text, and names one of the `old` tables.
///
/// # Errors
/// The server's.
pub(super) async fn problems(
    monolith: &Client,
    relations: &[Relation],
    old: &[TableName],
) -> Result<Vec<Problem>, Error> {
    let oids = oids(relations);
    let rows = monolith.query_typed(CALLED, &[(&oids, Type::OID_ARRAY)]).await?;
    let called: BTreeMap<u32, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if called.is_empty() {
        return Ok(Vec::new());
    }
    let rows = monolith.query_typed(TEXTS, &[]).await?;
    Ok(failing(&rows.iter().map(text).collect(), called, old))
}

fn text(row: &Row) -> (u32, Text) {
    let text = Text {
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        arguments: row.get(3),
        body: row.get(4),
        noun: row.get(5),
    };
    (row.get(0), text)
}

/// Follows calls from text to text; whatever errs, errs on the side of finding too much.
fn failing(texts: &BTreeMap<u32, Text>, called: BTreeMap<u32, String>, old: &[TableName]) -> Vec<Problem> {
    let mut seen: BTreeSet<u32> = called.keys().copied().collect();
    let mut left: Vec<(u32, String)> = called.into_iter().collect();
    let mut problems = Vec::new();
    while let Some((oid, by)) = left.pop() {
        let Some(text) = texts.get(&oid) else { continue };
        let named = identifiers_in(&text.body);
        let tables = old.iter().filter(|table| is_named(table, &named));
        problems.extend(tables.map(|table| problem(text, &by, table)));
        for (other, callee) in texts {
            if is_named(&callee.name, &named) && seen.insert(*other) {
                left.push((*other, by.clone()));
            }
        }
    }
    problems
}

fn problem(text: &Text, by: &str, table: &TableName) -> Problem {
    let Text { name, arguments, noun, .. } = text;
    Problem::error("retire-called", format!("{name}({arguments})"))
        .fact(format!("its text names {table}, and {by} calls it for rows that the way back writes"))
        .consequence("it would not find the table once that is away, and the way back would stop")
        .next(format!(
            "take the table out of {noun} {}.{}({arguments}), or drop {by}",
            quote_ident(&name.schema),
            quote_ident(&name.name)
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, body: &str) -> Text {
        Text {
            name: TableName::new("public", name),
            arguments: "int".into(),
            body: body.into(),
            noun: "FUNCTION".into(),
        }
    }

    #[test]
    fn calls_are_followed_from_text_to_text_and_round_in_circles() {
        let texts = BTreeMap::from([
            (1, text("outer_one", "BEGIN RETURN public.middle($1); END")),
            (2, text("middle", "SELECT outer_one($1) + inner_one($1)")),
            (3, text("inner_one", "SELECT count(*) FROM accounts")),
            (4, text("uncalled", "SELECT count(*) FROM accounts")),
        ]);
        let old = [TableName::new("public", "accounts"), TableName::new("logs", "accounts")];
        let found = failing(&texts, BTreeMap::from([(1, "constraint c on table t".to_owned())]), &old);
        let said: Vec<_> = found.iter().map(|one| (one.object.as_str(), one.fact.as_str())).collect();
        let fact = |table| {
            format!(
                "its text names {table}, and constraint c on table t calls it for rows that the way back writes"
            )
        };
        let (public, logs) = (fact("accounts"), fact("logs.accounts"));
        assert_eq!(
            said,
            [("inner_one(int)", public.as_str()), ("inner_one(int)", logs.as_str())],
            "without a schema the name may be either"
        );
        assert!(failing(&texts, BTreeMap::new(), &old).is_empty());
    }
}
