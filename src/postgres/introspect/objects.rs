//! Types of user schemas, and sequences.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error, Row};

use super::{USER_SCHEMA, char_at, name_at, optional_name_at};
use crate::catalog::{Sequence, UserType, UserTypeKind};
use crate::name::TableName;

/// Reads enums, domains, composites, ranges and base types, those that extensions own among them.
pub(super) async fn read_types(client: &Client) -> Result<BTreeMap<TableName, UserType>, Error> {
    // A composite belongs here only when it was made by CREATE TYPE (relkind c), not as the row type of a table;
    // an array type comes with its element.
    let sql = format!(
        "SELECT t.oid, n.nspname::text AS schema, t.typname::text AS name, t.typtype::text AS kind, \
                format_type(t.typbasetype, t.typtypmod) AS base_sql, pg_get_expr(t.typdefaultbin, 0) AS default_sql, \
                t.typnotnull AS not_null, bn.nspname::text AS base_schema, b.typname::text AS base_name, \
                obj_description(t.oid, 'pg_type') AS comment, \
                (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
                  WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e' \
                    AND d.refclassid = 'pg_extension'::regclass) AS extension, \
                ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder) AS labels, \
                ARRAY(SELECT conname::text FROM pg_constraint WHERE contypid = t.oid AND contype = 'c' \
                      ORDER BY conname) AS check_names, \
                ARRAY(SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = t.oid AND contype = 'c' \
                      ORDER BY conname) AS check_definitions, \
                ARRAY(SELECT coalesce(obj_description(oid, 'pg_constraint'), '') FROM pg_constraint \
                      WHERE contypid = t.oid AND contype = 'c' ORDER BY conname) AS check_comments, \
                ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 \
                      AND NOT attisdropped ORDER BY attnum) AS field_names, \
                ARRAY(SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = t.typrelid \
                      AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS field_types \
         FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace AND {USER_SCHEMA} \
         LEFT JOIN pg_class c ON c.oid = t.typrelid \
         LEFT JOIN pg_type base ON base.oid = t.typbasetype \
         LEFT JOIN pg_type b ON b.oid = CASE \
           WHEN base.typsubscript = 'array_subscript_handler'::regproc THEN base.typelem ELSE base.oid END \
           AND NOT (b.oid < 16384 AND b.typnamespace = 'pg_catalog'::regnamespace) \
         LEFT JOIN pg_namespace bn ON bn.oid = b.typnamespace \
         WHERE (t.typrelid = 0 OR c.relkind = 'c') \
           AND t.typsubscript IS DISTINCT FROM 'array_subscript_handler'::regproc"
    );
    let rows = client.query_typed(&sql, &[]).await?;
    rows.iter().map(|row| type_of(row).map(|one| (one.name.clone(), one))).collect()
}

fn type_of(row: &Row) -> Result<UserType, Error> {
    let pairs = |names: &str, values: &str| -> Result<Vec<(String, String)>, Error> {
        let names: Vec<String> = row.try_get(names)?;
        let values: Vec<String> = row.try_get(values)?;
        Ok(names.into_iter().zip(values).collect())
    };
    let mut check_comments = pairs("check_names", "check_comments")?;
    check_comments.retain(|(_, comment)| !comment.is_empty());
    Ok(UserType {
        name: name_at(row, "schema", "name")?,
        kind: match char_at(row, "kind")? {
            'e' => UserTypeKind::Enum(row.try_get("labels")?),
            'c' => UserTypeKind::Composite(pairs("field_names", "field_types")?),
            'd' => UserTypeKind::Domain {
                base_sql: row.try_get("base_sql")?,
                default_sql: row.try_get("default_sql")?,
                not_null: row.try_get("not_null")?,
                checks: pairs("check_names", "check_definitions")?,
                base_type: optional_name_at(row, "base_schema", "base_name")?,
            },
            _ => UserTypeKind::Other,
        },
        extension: row.try_get("extension")?,
        comment: row.try_get("comment")?,
        check_comments,
    })
}

/// Reads the sequences, with who owns and who uses them.
pub(super) async fn read_sequences(client: &Client) -> Result<BTreeMap<TableName, Sequence>, Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, format_type(s.seqtypid, -1) AS type_sql, \
                s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, \
                obj_description(c.oid, 'pg_class') AS comment \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace AND {USER_SCHEMA} \
         WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass \
           AND e.objid = c.oid AND e.deptype = 'e')"
    );
    let rows = client.query_typed(&sql, &[]).await?;
    let mut sequences = rows
        .iter()
        .map(|row| sequence_of(row).map(|one| (one.name.clone(), one)))
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    read_sequence_columns(client, &mut sequences).await?;
    Ok(sequences)
}

fn sequence_of(row: &Row) -> Result<Sequence, Error> {
    Ok(Sequence {
        name: name_at(row, "schema", "name")?,
        type_sql: row.try_get("type_sql")?,
        start: row.try_get("seqstart")?,
        increment: row.try_get("seqincrement")?,
        min: row.try_get("seqmin")?,
        max: row.try_get("seqmax")?,
        cache: row.try_get("seqcache")?,
        cycle: row.try_get("seqcycle")?,
        owned_by: None,
        used_by: Vec::new(),
        comment: row.try_get("comment")?,
    })
}

/// `pg_depend` knows three links: OWNED BY (a) and identity (i) from the sequence to the column, and a default's
/// `nextval('...'::regclass)` from the default to the sequence. Where the owner has no default, the application draws for it.
async fn read_sequence_columns(
    client: &Client,
    sequences: &mut BTreeMap<TableName, Sequence>,
) -> Result<(), Error> {
    let sql = "WITH link AS ( \
                 SELECT objid AS sequence, refobjid AS relation, refobjsubid AS number, true AS owns, \
                        deptype = 'i' OR NOT EXISTS (SELECT FROM pg_attrdef f \
                          WHERE f.adrelid = refobjid AND f.adnum = refobjsubid) AS uses \
                 FROM pg_depend WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass \
                   AND deptype IN ('a', 'i') AND refobjsubid > 0 \
                 UNION ALL \
                 SELECT p.refobjid, d.adrelid, d.adnum, false, true \
                 FROM pg_depend p JOIN pg_attrdef d ON d.oid = p.objid \
                 WHERE p.classid = 'pg_attrdef'::regclass AND p.refclassid = 'pg_class'::regclass) \
               SELECT DISTINCT sn.nspname::text AS schema, s.relname::text AS name, n.nspname::text AS table_schema, \
                      c.relname::text AS table_name, a.attname::text AS column, l.owns, l.uses \
               FROM link l JOIN pg_class s ON s.oid = l.sequence AND s.relkind = 'S' \
               JOIN pg_namespace sn ON sn.oid = s.relnamespace \
               JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = l.number ORDER BY 1, 2, 3, 4, 5";
    for row in client.query_typed(sql, &[]).await? {
        let Some(sequence) = sequences.get_mut(&name_at(&row, "schema", "name")?) else { continue };
        let column = (name_at(&row, "table_schema", "table_name")?, row.try_get("column")?);
        if row.try_get("owns")? {
            sequence.owned_by = Some(column.clone());
        }
        if row.try_get("uses")? && !sequence.used_by.contains(&column) {
            sequence.used_by.push(column);
        }
    }
    Ok(())
}
