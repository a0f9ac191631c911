//! Relations and their columns.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::{USER_SCHEMA, char_at, name_at, optional_name_at, size_at};
use crate::catalog::{Column, Persistence, ReplicaIdentity, Table, TableKind};
use crate::name::TableName;

/// All relations, by name.
pub(super) type Tables = BTreeMap<TableName, Table>;

/// `pg_class` as `c` with `pg_namespace` as `n`: the relations that a catalog holds.
fn relations() -> String {
    format!(
        "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
         AND {USER_SCHEMA} AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass \
         AND e.objid = c.oid AND e.deptype = 'e')"
    )
}

/// Ranges that reach from the least to the greatest key are taken to have no gap in between.
const OPEN_PARTITIONS: &str = "EXISTS (SELECT FROM pg_partitioned_table p WHERE p.partrelid = c.oid AND p.partdefid = 0 \
     AND (p.partstrat = 'l' OR (p.partstrat = 'r' AND NOT (SELECT coalesce(bool_or(strpos(b.bound, 'FROM (MINVALUE') > 0) \
         AND bool_or(strpos(b.bound, 'TO (MAXVALUE') > 0), false) \
       FROM (SELECT pg_get_expr(k.relpartbound, k.oid) AS bound FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid \
         WHERE i.inhparent = c.oid) AS b))))";

/// Reads the relations, without columns, indexes and constraints.
pub(super) async fn read(client: &Client) -> Result<Tables, Error> {
    let sql = format!(
        "SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind, \
                c.relpersistence::text AS persistence, pg_get_userbyid(c.relowner)::text AS owner, \
                c.relreplident::text AS identity, \
                (SELECT i.relname::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
                  WHERE x.indrelid = c.oid AND x.indisreplident) AS identity_index, \
                {OPEN_PARTITIONS} AS open_partitions, c.relispartition AS partition, c.relrowsecurity AS row_security, \
                c.reltuples::float8 AS rows_estimate, \
                CASE WHEN c.relkind IN ('r', 'm') THEN coalesce(pg_total_relation_size(c.oid), 0) ELSE 0 END::int8 \
                  AS total_bytes, \
                CASE WHEN c.relkind IN ('r', 'm') THEN coalesce(pg_relation_size(c.oid), 0) ELSE 0 END::int8 \
                  AS heap_bytes, \
                obj_description(c.oid, 'pg_class') AS comment, \
                ARRAY(SELECT unnest(c.reloptions)) || ARRAY(SELECT 'toast.' || parameter FROM pg_class toast, \
                  unnest(toast.reloptions) AS parameter WHERE toast.oid = c.reltoastrelid) AS storage, \
                has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS can_select, \
                pg_has_role(c.relowner, 'USAGE') AS can_own \
         FROM {}",
        relations()
    );
    let rows = client.query_typed(&sql, &[]).await?;
    let mut tables = rows
        .iter()
        .map(|row| table_of(row).map(|table| (table.name.clone(), table)))
        .collect::<Result<Tables, _>>()?;
    read_parents(client, &mut tables).await?;
    Ok(tables)
}

fn table_of(row: &Row) -> Result<Table, Error> {
    let index: Option<String> = row.try_get("identity_index")?;
    Ok(Table {
        oid: row.try_get("oid")?,
        name: name_at(row, "schema", "name")?,
        kind: match char_at(row, "kind")? {
            'p' => TableKind::Partitioned,
            'v' => TableKind::View,
            'm' => TableKind::MaterializedView,
            'f' => TableKind::Foreign,
            _ => TableKind::Ordinary,
        },
        persistence: match char_at(row, "persistence")? {
            'u' => Persistence::Unlogged,
            't' => Persistence::Temporary,
            _ => Persistence::Permanent,
        },
        owner: row.try_get("owner")?,
        columns: Vec::new(),
        indexes: Vec::new(),
        constraints: Vec::new(),
        // USING INDEX without an index means that the index was dropped: PostgreSQL then logs no old key.
        replica_identity: match (char_at(row, "identity")?, index) {
            ('d', _) => ReplicaIdentity::Default,
            ('f', _) => ReplicaIdentity::Full,
            ('i', Some(name)) => ReplicaIdentity::Index(name),
            _ => ReplicaIdentity::Nothing,
        },
        open_partitions: row.try_get("open_partitions")?,
        partition_of: None,
        inherits: Vec::new(),
        row_security: row.try_get("row_security")?,
        rows_estimate: row.try_get("rows_estimate")?,
        total_bytes: size_at(row, "total_bytes")?,
        heap_bytes: size_at(row, "heap_bytes")?,
        comment: row.try_get("comment")?,
        storage: row.try_get("storage")?,
        can_select: row.try_get("can_select")?,
        can_own: row.try_get("can_own")?,
    })
}

async fn read_parents(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, c.relispartition AS partition, \
                pn.nspname::text AS parent_schema, p.relname::text AS parent_name \
         FROM {} JOIN pg_inherits i ON i.inhrelid = c.oid JOIN pg_class p ON p.oid = i.inhparent \
         JOIN pg_namespace pn ON pn.oid = p.relnamespace ORDER BY i.inhseqno",
        relations()
    );
    for row in client.query_typed(&sql, &[]).await? {
        let parent = name_at(&row, "parent_schema", "parent_name")?;
        let Some(table) = tables.get_mut(&name_at(&row, "schema", "name")?) else { continue };
        if row.try_get("partition")? {
            table.partition_of = Some(parent);
        } else {
            table.inherits.push(parent);
        }
    }
    Ok(())
}

/// Reads the columns of all relations.
pub(super) async fn read_columns(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    for row in client.query_typed(&columns_sql(), &[]).await? {
        if let Some(table) = tables.get_mut(&name_at(&row, "schema", "table")?) {
            table.columns.push(column_of(&row)?);
        }
    }
    Ok(())
}

/// `layer` walks each type that a column of a user's relation has down through arrays and domains: `depth` 0 is the type itself.
const LAYERS: &str = "layer AS ( \
    SELECT t.oid AS start, 0 AS depth, t.oid, t.typtype, t.typnamespace, t.typname, \
           t.typtype = 'b' AND t.typsubscript = 'array_subscript_handler'::regproc AS is_array, \
           t.typelem, t.typbasetype \
    FROM pg_type t WHERE t.oid IN (SELECT u.atttypid FROM pg_attribute u WHERE u.attrelid >= 16384 AND u.attnum > 0) \
    UNION ALL \
    SELECT l.start, l.depth + 1, t.oid, t.typtype, t.typnamespace, t.typname, \
           t.typtype = 'b' AND t.typsubscript = 'array_subscript_handler'::regproc, t.typelem, t.typbasetype \
    FROM layer l JOIN pg_type t ON t.oid = CASE WHEN l.is_array THEN l.typelem \
                                                WHEN l.typtype = 'd' THEN l.typbasetype END)";

/// `base` gives the type under all layers, `used` the first user type met on the way that is not an array.
fn type_layers() -> String {
    format!(
        "WITH RECURSIVE {LAYERS}, \
         base AS (SELECT DISTINCT ON (start) start, typtype FROM layer ORDER BY start, depth DESC), \
         used AS (SELECT DISTINCT ON (start) start, n.nspname::text AS schema, l.typname::text AS name \
                  FROM layer l JOIN pg_namespace n ON n.oid = l.typnamespace \
                  WHERE NOT l.is_array AND NOT (l.oid < 16384 AND n.nspname = 'pg_catalog') \
                  ORDER BY start, depth)"
    )
}

/// `draws` has for each column the sequence that it draws from, or that it owns where it has no default and the application
/// calls nextval; `calls` has the functions of its default. Of all tables at once: looked up for each column anew, a
/// table of 800 columns took twenty seconds.
fn columns_sql() -> String {
    format!(
        "{}, draws AS MATERIALIZED (SELECT DISTINCT ON (relation, number) relation, number, sequence FROM ( \
           SELECT d.adrelid AS relation, d.adnum AS number, s.oid AS sequence \
           FROM pg_attrdef d JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid \
             AND p.refclassid = 'pg_class'::regclass \
           JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S' \
           UNION \
           SELECT p.refobjid, p.refobjsubid, s.oid FROM pg_depend p \
           JOIN pg_class s ON s.oid = p.objid AND s.relkind = 'S' \
           WHERE p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND (p.deptype = 'i' \
             OR p.deptype = 'a' AND p.refobjsubid > 0 AND NOT EXISTS ( \
               SELECT FROM pg_attrdef d WHERE d.adrelid = p.refobjid AND d.adnum = p.refobjsubid)) \
           ) AS d (relation, number, sequence) ORDER BY relation, number, sequence), \
         calls AS MATERIALIZED (SELECT d.adrelid AS relation, d.adnum AS number, \
             array_agg(DISTINCT format('%I.%I', n.nspname, f.proname)) AS names \
           FROM pg_attrdef d JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid \
             AND p.refclassid = 'pg_proc'::regclass \
           JOIN pg_proc f ON f.oid = p.refobjid AND f.provolatile = 'v' \
           JOIN pg_namespace n ON n.oid = f.pronamespace AND n.nspname <> 'pg_catalog' \
           WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid \
             AND e.deptype = 'e') GROUP BY 1, 2) \
         SELECT n.nspname::text AS schema, c.relname::text AS table, a.attnum AS number, a.attname::text AS name, \
                format_type(a.atttypid, a.atttypmod) AS type_sql, format_type(a.atttypid, -1) AS cast_sql, \
                a.atttypid AS type_oid, \
                t.oid < 16384 AND t.typnamespace = 'pg_catalog'::regnamespace AS builtin, \
                base.typtype::text AS base_kind, used.schema AS user_schema, used.name AS user_name, \
                {NOT_NULL} AS not_null, {EXPRESSION} AS expression, \
                a.attgenerated::text AS generated, a.attidentity::text AS identity, \
                sn.nspname::text AS sequence_schema, sc.relname::text AS sequence_name, \
                coalesce(k.names, '{{}}') AS default_calls, \
                CASE WHEN a.attcollation <> t.typcollation \
                  THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END AS collation_sql, \
                {COLLATION_IS_C} AS collation_is_c, coalesce(co.collisdeterministic, true) AS deterministic, \
                col_description(c.oid, a.attnum) AS comment \
         FROM {} \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_type t ON t.oid = a.atttypid \
         JOIN base ON base.start = t.oid LEFT JOIN used ON used.start = t.oid \
         JOIN pg_database db ON db.datname = current_database() \
         LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
         LEFT JOIN pg_collation co ON co.oid = a.attcollation \
         LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace \
         LEFT JOIN draws AS s ON s.relation = c.oid AND s.number = a.attnum \
         LEFT JOIN calls AS k ON k.relation = c.oid AND k.number = a.attnum \
         LEFT JOIN pg_class sc ON sc.oid = s.sequence LEFT JOIN pg_namespace sn ON sn.oid = sc.relnamespace \
         ORDER BY c.oid, a.attnum",
        type_layers(),
        relations()
    )
}

/// A default names no column, and then the names of the table's columns, which take long to prepare for each expression of
/// a wide table, are not needed (PostgreSQL documentation, section 9.26.4, `pg_get_expr`).
const EXPRESSION: &str = "pg_get_expr(d.adbin, CASE WHEN a.attgenerated = '' THEN 0::oid ELSE d.adrelid END)";

/// Holds for every row there is: a NOT NULL that was never validated (18 and later) does not.
const NOT_NULL: &str = "a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid \
    AND o.contype = 'n' AND o.conkey = ARRAY[a.attnum] AND NOT o.convalidated)";

/// Bytewise order for certain: libc's C and POSIX, and PostgreSQL's own provider (17 and later), whose locales all
/// order by code point. `collprovider` d is the database's default.
const COLLATION_IS_C: &str = "coalesce(CASE co.collprovider \
    WHEN 'b' THEN true \
    WHEN 'c' THEN co.collcollate IN ('C', 'POSIX') \
    WHEN 'd' THEN CASE coalesce(to_jsonb(db) ->> 'datlocprovider', 'c') \
      WHEN 'b' THEN true WHEN 'c' THEN db.datcollate IN ('C', 'POSIX') ELSE false END \
    ELSE false END, false)";

fn column_of(row: &Row) -> Result<Column, Error> {
    let expression: Option<String> = row.try_get("expression")?;
    let kind = row.try_get::<_, String>("generated")?;
    let (default_sql, generated_sql) = if kind.is_empty() { (expression, None) } else { (None, expression) };
    Ok(Column {
        number: row.try_get("number")?,
        name: row.try_get("name")?,
        type_sql: row.try_get("type_sql")?,
        cast_sql: row.try_get("cast_sql")?,
        type_oid: row.try_get("type_oid")?,
        type_builtin: row.try_get("builtin")?,
        base_kind: char_at(row, "base_kind")?,
        user_type: optional_name_at(row, "user_schema", "user_name")?,
        not_null: row.try_get("not_null")?,
        default_sql,
        sequence: optional_name_at(row, "sequence_schema", "sequence_name")?,
        identity: row.try_get::<_, String>("identity")?.chars().next(),
        generated_sql,
        generated_virtual: kind == "v",
        collation_sql: row.try_get("collation_sql")?,
        collation_is_c: row.try_get("collation_is_c")?,
        deterministic: row.try_get("deterministic")?,
        comment: row.try_get("comment")?,
        correlation: None,
        default_calls: row.try_get("default_calls")?,
    })
}

/// Fills in what `ANALYZE` found about the order of columns, as far as the role may see it. The view is asked for names of tables: it
/// looks up every column's rights, and in most databases the catalogs have most of them.
pub(super) async fn read_correlations(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    let names: BTreeSet<&str> = tables.keys().map(|table| table.name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let sql = format!(
        "SELECT n.nspname::text AS schema, s.tablename::text AS table, s.attname::text AS name, \
                s.correlation::float8 AS correlation \
         FROM pg_stats s JOIN pg_namespace n ON n.nspname = s.schemaname AND {USER_SCHEMA} \
         WHERE s.tablename = ANY($1::text[]::name[]) AND s.correlation IS NOT NULL AND NOT s.inherited"
    );
    for row in client.query(&sql, &[&names]).await? {
        let Some(table) = tables.get_mut(&name_at(&row, "schema", "table")?) else { continue };
        let name: String = row.try_get("name")?;
        if let Some(column) = table.columns.iter_mut().find(|column| column.name == name) {
            column.correlation = row.try_get("correlation")?;
        }
    }
    Ok(())
}

/// Gives each partitioned table the sizes of its leaves, and their row estimates where it has none of its own:
/// only an explicit ANALYZE counts a partitioned table.
pub(super) fn sum_partitions(tables: &mut Tables) {
    let leaves: Vec<(Option<TableName>, u64, u64, f64)> = tables
        .values()
        .filter(|table| table.kind != TableKind::Partitioned && table.partition_of.is_some())
        .map(|leaf| (leaf.partition_of.clone(), leaf.heap_bytes, leaf.total_bytes, leaf.rows_estimate))
        .collect();
    let mut rows: BTreeMap<TableName, f64> = BTreeMap::new();
    for (mut parent, heap_bytes, total_bytes, rows_estimate) in leaves {
        while let Some(table) = parent.as_ref().and_then(|name| tables.get_mut(name)) {
            table.heap_bytes += heap_bytes;
            table.total_bytes += total_bytes;
            *rows.entry(table.name.clone()).or_default() += rows_estimate.max(0.0);
            parent = table.partition_of.clone();
        }
    }
    for (name, rows) in rows {
        if let Some(table) = tables.get_mut(&name).filter(|table| table.rows_estimate < 0.0) {
            table.rows_estimate = rows;
        }
    }
}
