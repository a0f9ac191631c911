//! The operators that say whether two values of a key column are equal.
//!
//! Sessions look names up in `pg_catalog` alone, so a bare `=` between two values of an extension's type is a built-in
//! operator on whatever the type can be taken for: of `citext` that of `text`, which tells apart what the column calls
//! equal and can't use its index; of `ltree` none at all. So the operator is named, and it is the one that the table's
//! index means.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::name::quote_ident;

/// Equality of everything that no index says otherwise of.
pub const BUILT_IN: &str = "OPERATOR(pg_catalog.=)";

/// For each column, in the order of the parameters: schema and name of the operator by which the best index on its key
/// finds equal values, or else that of its type's default operator class. An index is better when it has more of the
/// key's columns, and then when it is the replica identity, the primary key, a unique one. Domains have the classes of
/// the type below them.
const SQL: &str = "
WITH k AS (
    SELECT w.n, a.attrelid, a.attnum, a.atttypid, array_agg(a.attnum) OVER (PARTITION BY w.number) AS key
    FROM unnest($1::int4[], $2::text[], $3::text[]) WITH ORDINALITY AS w (number, name, col, n)
    LEFT JOIN pg_attribute a ON a.attrelid = to_regclass(w.name) AND a.attname = w.col AND a.attnum > 0
        AND NOT a.attisdropped),
c AS (
    SELECT c.oid, c.opcfamily, c.opcintype, c.opcdefault, m.amname,
        CASE m.amname WHEN 'btree' THEN 3 ELSE 1 END AS strategy
    FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod WHERE m.amname IN ('btree', 'hash')),
e AS (
    SELECT c.*, n.nspname, o.oprname FROM c
    JOIN pg_amop s ON s.amopfamily = c.opcfamily AND s.amoplefttype = c.opcintype
        AND s.amoprighttype = c.opcintype AND s.amopstrategy = c.strategy
    JOIN pg_operator o ON o.oid = s.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace)
SELECT coalesce(i.nspname, d.nspname)::text, coalesce(i.oprname, d.oprname)::text FROM k
LEFT JOIN LATERAL (
    SELECT e.nspname, e.oprname FROM pg_index x
    CROSS JOIN LATERAL unnest(string_to_array(x.indkey::text, ' ')::int2[],
        string_to_array(x.indclass::text, ' ')::oid[]) AS p (attnum, opclass)
    JOIN e ON e.oid = p.opclass
    WHERE x.indrelid = k.attrelid AND p.attnum = k.attnum AND x.indisvalid AND x.indpred IS NULL
    ORDER BY string_to_array(x.indkey::text, ' ')::int2[] @> k.key DESC, x.indisreplident DESC, x.indisprimary DESC,
        x.indisunique DESC, e.amname, x.indexrelid LIMIT 1) AS i ON true
LEFT JOIN LATERAL (
    WITH RECURSIVE b (oid) AS (SELECT k.atttypid UNION ALL
        SELECT t.typbasetype FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
    SELECT e.nspname, e.oprname FROM b JOIN e ON e.opcintype = b.oid WHERE e.opcdefault
    ORDER BY e.amname LIMIT 1) AS d ON i.oprname IS NULL
ORDER BY k.n";

/// Operators for the key columns of tables, `OPERATOR("public".=)`, in the order of `keys`: a table's name as SQL with
/// the names of its columns. A column that is not there, or whose type has no classes, gets [`BUILT_IN`].
///
/// # Errors
/// What the server said.
pub async fn of_keys(
    client: &Client,
    keys: &[(String, Vec<&str>)],
) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let (mut numbers, mut names, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (name, of_key)) in (0_i32..).zip(keys) {
        for column in of_key {
            numbers.push(number);
            names.push(name.as_str());
            columns.push(*column);
        }
    }
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&numbers, Type::INT4_ARRAY), (&names, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)];
    let rows = client.query_typed(SQL, &parameters).await?;
    let mut found = rows.iter().map(|row| -> Result<String, tokio_postgres::Error> {
        let (schema, operator): (Option<&str>, Option<&str>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match (schema, operator) {
            (Some(schema), Some(operator)) => format!("OPERATOR({}.{operator})", quote_ident(schema)),
            (_, _) => BUILT_IN.to_owned(),
        })
    });
    keys.iter().map(|(_, columns)| found.by_ref().take(columns.len()).collect()).collect()
}
