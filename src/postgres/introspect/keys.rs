//! Indexes, constraints and foreign keys.

use tokio_postgres::{Client, Error};

use super::tables::Tables;
use super::{USER_SCHEMA, char_at, name_at};
use crate::catalog::{Constraint, ConstraintKind, ForeignKey, Index};

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
                (SELECT o.conname::text FROM pg_constraint o WHERE o.conindid = x.indexrelid \
                  AND o.conrelid = x.indrelid AND o.contype IN ('p', 'u', 'x')) AS constraint \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} ORDER BY c.oid, i.relname"
    );
    for row in client.query(&sql, &[]).await? {
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

/// Reads primary key, unique, check and exclusion constraints of all tables.
pub(super) async fn read_constraints(client: &Client, tables: &mut Tables) -> Result<(), Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS table, o.conname::text AS name, \
                o.contype::text AS kind, pg_get_constraintdef(o.oid) AS definition, {} AS columns, \
                o.convalidated AS validated \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} \
         WHERE o.contype IN ('p', 'u', 'c', 'x') ORDER BY c.oid, o.conname",
        columns_of("o.conrelid", "o.conkey")
    );
    for row in client.query(&sql, &[]).await? {
        let Some(table) = tables.get_mut(&name_at(&row, "schema", "table")?) else { continue };
        table.constraints.push(Constraint {
            name: row.try_get("name")?,
            kind: match char_at(&row, "kind")? {
                'p' => ConstraintKind::PrimaryKey,
                'u' => ConstraintKind::Unique,
                'x' => ConstraintKind::Exclusion,
                _ => ConstraintKind::Check,
            },
            definition_sql: row.try_get("definition")?,
            columns: row.try_get("columns")?,
            validated: row.try_get("validated")?,
        });
    }
    Ok(())
}

/// Reads the foreign keys of all tables.
pub(super) async fn read_foreign_keys(client: &Client) -> Result<Vec<ForeignKey>, Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS table, o.conname::text AS name, {} AS columns, \
                rn.nspname::text AS ref_schema, r.relname::text AS ref_table, {} AS ref_columns, \
                pg_get_constraintdef(o.oid) AS definition, o.confdeltype::text AS on_delete, \
                o.convalidated AS validated, o.conparentid <> 0 AS inherited \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} \
         JOIN pg_class r ON r.oid = o.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace \
         WHERE o.contype = 'f' ORDER BY 1, 2, 3",
        columns_of("o.conrelid", "o.conkey"),
        columns_of("o.confrelid", "o.confkey")
    );
    let rows = client.query(&sql, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(ForeignKey {
                name: row.try_get("name")?,
                table: name_at(row, "schema", "table")?,
                columns: row.try_get("columns")?,
                references: name_at(row, "ref_schema", "ref_table")?,
                referenced_columns: row.try_get("ref_columns")?,
                definition_sql: row.try_get("definition")?,
                on_delete: char_at(row, "on_delete")?,
                validated: row.try_get("validated")?,
                inherited: row.try_get("inherited")?,
            })
        })
        .collect()
}
