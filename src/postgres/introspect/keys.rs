//! Indexes, constraints and foreign keys.

use tokio_postgres::{Client, Error};

use super::tables::Tables;
use super::{USER_SCHEMA, char_at, name_at};
use crate::catalog::{Constraint, ConstraintKind, ForeignKey, Index, IndexSettings};
use crate::name::TableName;

/// Keys of an index `x` that have a target for statistics of their own: -1 says that they have none, and NULL from PostgreSQL 17 on.
const STATISTICS: &str = "a.attrelid = x.indexrelid AND (to_jsonb(a) ->> 'attstattarget')::int >= 0";

/// Reads the indexes of all tables.
pub(super) async fn read_indexes(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS table, i.relname::text AS name, \
                pg_get_indexdef(x.indexrelid) AS definition, \
                ARRAY(SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY k(number, place) \
                      LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number AND k.number > 0 \
                      WHERE k.place <= x.indnkeyatts ORDER BY k.place) AS columns, \
                x.indisunique AS unique, x.indisprimary AS primary, x.indisexclusion AS exclusion, \
                x.indimmediate AS immediate, x.indisvalid AND x.indisready AS valid, \
                x.indpred IS NOT NULL AS partial, x.indisreplident AS replica_identity, \
                obj_description(x.indexrelid, 'pg_class') AS comment, \
                array_to_string(i.reloptions, ', ') AS storage, x.indisclustered AS clustered, \
                ARRAY(SELECT a.attnum::int FROM pg_attribute a WHERE {STATISTICS} ORDER BY a.attnum) AS measured, \
                ARRAY(SELECT (to_jsonb(a) ->> 'attstattarget')::int FROM pg_attribute a WHERE {STATISTICS} \
                      ORDER BY a.attnum) AS statistics, \
                (SELECT o.conname::text FROM pg_constraint o WHERE o.conindid = x.indexrelid \
                  AND o.conrelid = x.indrelid AND o.contype IN ('p', 'u', 'x')) AS constraint \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} ORDER BY c.oid, i.relname"
    );
    for row in client.query_typed(&sql, &[]).await? {
        let Some(table) = tables.get_mut(&name_at(&row, "schema", "table")?) else { continue };
        table.indexes.push(Index {
            name: row.try_get("name")?,
            definition_sql: row.try_get("definition")?,
            columns: row.try_get("columns")?,
            unique: row.try_get("unique")?,
            primary: row.try_get("primary")?,
            exclusion: row.try_get("exclusion")?,
            immediate: row.try_get("immediate")?,
            valid: row.try_get("valid")?,
            partial: row.try_get("partial")?,
            constraint: row.try_get("constraint")?,
            replica_identity: row.try_get("replica_identity")?,
            comment: row.try_get("comment")?,
            settings: IndexSettings {
                storage_sql: row.try_get("storage")?,
                clustered: row.try_get("clustered")?,
                statistics: row
                    .try_get::<_, Vec<i32>>("measured")?
                    .into_iter()
                    .zip(row.try_get::<_, Vec<i32>>("statistics")?)
                    .collect(),
            },
        });
    }
    Ok(())
}

/// The names behind an array of attribute numbers, in its order.
fn columns_of(relation: &str, numbers: &str) -> String {
    format!(
        "ARRAY(SELECT a.attname::text FROM unnest({numbers}) WITH ORDINALITY k(number, place) \
         JOIN pg_attribute a ON a.attrelid = {relation} AND a.attnum = k.number ORDER BY k.place)"
    )
}

/// Reads primary key, unique, check, exclusion and not null constraints of all tables.
pub(super) async fn read_constraints(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS table, o.conname::text AS name, \
                o.contype::text AS kind, pg_get_constraintdef(o.oid) AS definition, {} AS columns, \
                o.convalidated AS validated, obj_description(o.oid, 'pg_constraint') AS comment \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} \
         WHERE o.contype IN ('p', 'u', 'c', 'x', 'n') ORDER BY c.oid, o.conname",
        columns_of("o.conrelid", "o.conkey")
    );
    for row in client.query_typed(&sql, &[]).await? {
        let Some(table) = tables.get_mut(&name_at(&row, "schema", "table")?) else { continue };
        table.constraints.push(Constraint {
            name: row.try_get("name")?,
            kind: match char_at(&row, "kind")? {
                'p' => ConstraintKind::PrimaryKey,
                'u' => ConstraintKind::Unique,
                'x' => ConstraintKind::Exclusion,
                'n' => ConstraintKind::NotNull,
                _ => ConstraintKind::Check,
            },
            definition_sql: row.try_get("definition")?,
            columns: row.try_get("columns")?,
            validated: row.try_get("validated")?,
            comment: row.try_get("comment")?,
        });
    }
    Ok(())
}

/// Reads the foreign keys of all tables, in the order of their tables and names. That order is in the plan hash by way of
/// the soft references, so it must not be the database's own, and keys that were cut stand where they stood.
pub(super) async fn read_foreign_keys(client: &Client) -> Result<Vec<ForeignKey>, Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS table, o.conname::text AS name, {} AS columns, \
                rn.nspname::text AS ref_schema, r.relname::text AS ref_table, {} AS ref_columns, \
                pg_get_constraintdef(o.oid) AS definition, o.confdeltype::text AS on_delete, \
                o.convalidated AS validated, o.conparentid <> 0 AS inherited, \
                obj_description(o.oid, 'pg_constraint') AS comment \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} \
         JOIN pg_class r ON r.oid = o.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE o.contype = 'f'",
        columns_of("o.conrelid", "o.conkey"),
        columns_of("o.confrelid", "o.confkey")
    );
    let mut keys = Vec::new();
    for row in client.query_typed(&sql, &[]).await? {
        keys.push(ForeignKey {
            name: row.try_get("name")?,
            table: name_at(&row, "schema", "table")?,
            columns: row.try_get("columns")?,
            references: name_at(&row, "ref_schema", "ref_table")?,
            referenced_columns: row.try_get("ref_columns")?,
            definition_sql: row.try_get("definition")?,
            on_delete: char_at(&row, "on_delete")?,
            validated: row.try_get("validated")?,
            inherited: row.try_get("inherited")?,
            cut: false,
            comment: row.try_get("comment")?,
        });
    }
    Ok(keys)
}

/// What may be read of the foreign keys that `arm` dropped.
pub(super) enum CutKeys {
    /// There is no such table of ours here.
    None,
    /// The role may not read it.
    Closed,
    /// Those that stand again are left out.
    Read(Vec<ForeignKey>),
}

/// Reads the foreign keys that `arm` dropped.
pub(super) async fn read_cut_keys(client: &Client) -> Result<CutKeys, Error> {
    let sql = "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname = 'cut_key'";
    match client.query_typed_opt(sql, &[]).await? {
        None => return Ok(CutKeys::None),
        Some(row) if !row.try_get::<_, bool>(0)? => return Ok(CutKeys::Closed),
        Some(_) => {}
    }
    let sql = "SELECT child_table, name, columns, parent_table, referenced_columns, on_delete, definition, validated, \
                      comment FROM strangler.cut_key WHERE restored_at IS NULL";
    let mut keys = Vec::new();
    for row in client.query_typed(sql, &[]).await? {
        let table = |index: usize| TableName::parse(row.get(index), "public").ok();
        let (Some(child), Some(parent)) = (table(0), table(3)) else { continue };
        keys.push(ForeignKey {
            name: row.try_get(1)?,
            table: child,
            columns: row.try_get(2)?,
            references: parent,
            referenced_columns: row.try_get(4)?,
            definition_sql: row.try_get(6)?,
            on_delete: char_at(&row, "on_delete")?,
            validated: row.try_get(7)?,
            inherited: false,
            cut: true,
            comment: row.try_get(8)?,
        });
    }
    Ok(CutKeys::Read(keys))
}

/// All keys in their order. One that stands again and has not been proven yet counts as standing.
pub(super) fn joined(mut standing: Vec<ForeignKey>, cut: Vec<ForeignKey>) -> Vec<ForeignKey> {
    let there = |one: &ForeignKey| standing.iter().any(|key| key.table == one.table && key.name == one.name);
    let gone: Vec<ForeignKey> = cut.into_iter().filter(|key| !there(key)).collect();
    standing.extend(gone);
    standing.sort_by(|a, b| (&a.table, &a.name).cmp(&(&b.table, &b.name)));
    standing
}
