//! By which collations the key columns of tables tell values apart, read from the catalogs in a few statements.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::places::Asked;
use super::type_trees::{FIRST_USER_OID, reached};
use crate::mapping::TableMapping;
use crate::mapping::adopted::Misfit;
use crate::mapping::collated::{self, KeyColumn, Keys, Place, Rule};
use crate::name::TableName;

/// What a collation `l` of a namespace `ln` is: its name as SQL, provider, locale and rules. The column of the locale has had three names,
/// and rules exist from 16 on.
const RULE: &str = "quote_ident(ln.nspname) || '.' || quote_ident(l.collname), l.collprovider::text, \
    coalesce(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale', l.collcollate, ''), \
    coalesce(to_jsonb(l) ->> 'collicurules', '')";

/// Name of the base type that a column `k` is of, or its domain is over, where it is none of PostgreSQL's. Enums, composite types and
/// ranges compare what they are made of.
const OWN_TYPE: &str = "(WITH RECURSIVE b (oid) AS (SELECT k.atttypid \
        UNION ALL SELECT y.typbasetype FROM b JOIN pg_type y ON y.oid = b.oid WHERE y.typtype = 'd') \
    SELECT y.typname::text FROM b JOIN pg_type y ON y.oid = b.oid \
    WHERE y.typtype = 'b' AND y.typcategory <> 'A' AND y.oid >= 16384)";

/// The key columns of tables, `$1` to `$3`, as `k`. `key` are all of their table.
const KEY_COLUMNS: &str = "
    SELECT w.schema, w.name, w.col, c.oid AS relid, a.attnum, a.atttypid, a.atttypmod, a.attcollation,
        array_agg(a.attnum) OVER (PARTITION BY c.oid) AS key
    FROM unnest($1::text[], $2::text[], $3::text[]) AS w (schema, name, col)
    JOIN pg_namespace n ON n.nspname = w.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col AND a.attnum > 0 AND NOT a.attisdropped";

/// Key columns that can't be told from each other where the sides' collations differ, each with its table by the monolith's name.
/// `tables` are mappings of the way there. A running mirror asks this every other second, so most databases answer a short question.
///
/// # Errors
/// What a server said.
pub async fn apart<'a>(
    (monolith, service): (&Client, &Client),
    tables: impl Iterator<Item = &'a TableMapping> + Clone,
) -> Result<Vec<(TableName, Misfit)>, Error> {
    let there = tables
        .clone()
        .map(|table| (&table.source, table.key_columns().map(|column| column.source.as_str()).collect()));
    let here = tables
        .clone()
        .map(|table| (&table.target, table.key_columns().map(|column| column.target.as_str()).collect()));
    let there = Columns::of(there);
    let here = Columns::of(here);
    if let (false, false) = tokio::try_join!(may_differ(monolith, &there), may_differ(service, &here))? {
        return Ok(Vec::new());
    }
    let (there, here) = tokio::try_join!(read_columns(monolith, &there), read_columns(service, &here))?;
    let of = |table: &TableMapping| -> Vec<(TableName, Misfit)> {
        let found = collated::apart(table, &there, &here).into_iter();
        found.map(|misfit| (table.source.clone(), misfit)).collect()
    };
    Ok(tables.flat_map(of).collect())
}

/// The key columns of tables, as a statement takes them.
struct Columns<'a> {
    asked: Asked<'a>,
    schemas: Vec<&'a str>,
    names: Vec<&'a str>,
    columns: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(tables: impl Iterator<Item = (&'a TableName, Vec<&'a str>)>) -> Self {
        let tables: Vec<(&TableName, Vec<&str>)> = tables.collect();
        let asked = Asked::of(tables.iter().map(|(table, _)| *table));
        let (mut schemas, mut names, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        for (table, key) in &tables {
            for column in key {
                schemas.push(table.place_schema());
                names.push(table.name.as_str());
                columns.push(*column);
            }
        }
        Self { asked, schemas, names, columns }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 3] {
        [&self.schemas, &self.names, &self.columns]
    }
}

/// Whether this database can tell keys apart in another way than by their bytes: it has a collation that is not deterministic, or a key
/// column of a type that says for itself what is equal.
async fn may_differ(client: &Client, of: &Columns<'_>) -> Result<bool, Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_collation WHERE NOT collisdeterministic) \
            OR EXISTS (SELECT FROM ({KEY_COLUMNS}) AS k WHERE k.atttypid >= {FIRST_USER_OID})"
    );
    client.query_one(&sql, &of.parameters()).await?.try_get(0)
}

/// What this database says of the key columns of tables. Columns that are not there are left out.
///
/// # Errors
/// What the server said.
pub async fn read<'a>(
    client: &Client,
    tables: impl Iterator<Item = (&'a TableName, Vec<&'a str>)>,
) -> Result<Keys, Error> {
    read_columns(client, &Columns::of(tables)).await
}

async fn read_columns(client: &Client, of: &Columns<'_>) -> Result<Keys, Error> {
    let sql = format!(
        "WITH k AS ({KEY_COLUMNS}) SELECT k.schema, k.name, k.col, format_type(k.atttypid, k.atttypmod), k.atttypid, \
            p.place, l.collisdeterministic, {RULE}, {OWN_TYPE} \
         FROM k CROSS JOIN LATERAL ( \
            SELECT NULL::text AS place, k.attcollation AS oid \
            UNION ALL SELECT quote_ident(xn.nspname) || '.' || quote_ident(i.relname), u.oid \
            FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace xn ON xn.oid = i.relnamespace \
            CROSS JOIN LATERAL (SELECT (string_to_array(x.indkey::text, ' ')::int2[])[1:x.indnkeyatts] AS columns) AS c \
            CROSS JOIN LATERAL unnest(c.columns, string_to_array(x.indcollation::text, ' ')::oid[]) AS u (attnum, oid) \
            WHERE x.indrelid = k.relid AND x.indisunique AND x.indisvalid AND x.indpred IS NULL \
                AND c.columns @> k.key AND c.columns <@ k.key AND u.attnum = k.attnum AND u.oid <> k.attcollation) AS p \
         LEFT JOIN pg_collation l ON l.oid = p.oid LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace"
    );
    let loose = format!(
        "SELECT {RULE} FROM pg_collation l JOIN pg_namespace ln ON ln.oid = l.collnamespace \
         WHERE NOT l.collisdeterministic AND l.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))"
    );
    let (rows, known) = tokio::try_join!(
        async { client.query(&sql, &of.parameters()).await },
        client.query_typed(&loose, &[])
    )?;
    let collations: BTreeMap<String, Rule> = known.iter().map(|row| (row.get(0), rule(row, 1))).collect();
    let mut keys = Keys { columns: BTreeMap::new(), collations };
    for row in &rows {
        let column = keys.columns.entry((of.asked.table(row.get(0), row.get(1)), row.get(2)));
        let column = column.or_insert_with(|| KeyColumn {
            type_sql: row.get(3),
            own_type: row.get(11),
            collation_sql: None,
            loose: BTreeMap::new(),
        });
        let place = row.get::<_, Option<String>>(5).map_or(Place::Column, Place::Index);
        let name: Option<String> = row.get(7);
        if place == Place::Column {
            column.collation_sql.clone_from(&name);
        }
        if let (Some(false), Some(name)) = (row.get(6), name) {
            column.loose.insert(place, (name, rule(row, 8)));
        }
    }
    if !keys.collations.is_empty() && rows.iter().any(|row| row.get::<_, u32>(4) >= FIRST_USER_OID) {
        look_into_types(client, of, &mut keys).await?;
    }
    Ok(keys)
}

/// Adds what attributes of composite types, and ranges, have of such collations, at any depth.
async fn look_into_types(client: &Client, of: &Columns<'_>, keys: &mut Keys) -> Result<(), Error> {
    let sql = reached(&format!(
        "SELECT concat_ws(' ', k.relid, k.attnum), k.atttypid FROM ({KEY_COLUMNS}) AS k"
    )) + &format!(
        "SELECT k.schema, k.name, k.col, p.place, {RULE} \
             FROM ({KEY_COLUMNS}) AS k JOIN reached r ON r.root = concat_ws(' ', k.relid, k.attnum) \
             JOIN pg_type y ON y.oid = r.oid CROSS JOIN LATERAL ( \
                SELECT format_type(y.oid, -1) || '.' || quote_ident(b.attname) AS place, b.attcollation AS oid \
                FROM pg_attribute b WHERE b.attrelid = y.typrelid AND y.typrelid <> 0 AND b.attnum > 0 AND NOT b.attisdropped \
                UNION ALL SELECT format_type(y.oid, -1), g.rngcollation FROM pg_range g WHERE g.rngtypid = y.oid) AS p \
             JOIN pg_collation l ON l.oid = p.oid AND NOT l.collisdeterministic JOIN pg_namespace ln ON ln.oid = l.collnamespace"
    );
    for row in client.query(&sql, &of.parameters()).await? {
        let place = (of.asked.table(row.get(0), row.get(1)), row.get(2));
        if let Some(column) = keys.columns.get_mut(&place) {
            column.loose.insert(Place::Within(row.get(3)), (row.get(4), rule(&row, 5)));
        }
    }
    Ok(())
}

fn rule(row: &Row, at: usize) -> Rule {
    Rule { provider: row.get(at), locale: row.get(at + 1), rules: row.get(at + 2) }
}
