//! Definitions of the monolith taken apart, so that they can be put together again under other names. The printed
//! definitions of `pg_get_indexdef` and its kin would have to be parsed for that.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use crate::name::TableName;
use crate::postgres::introspect;
use crate::postgres::places::{self, Places};

/// What a definition belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Used {
    /// Default or generation expression of a column.
    Column(TableName, String),
    /// A check or exclusion constraint.
    Constraint(TableName, String),
    /// An index, its expressions and predicate.
    Index(TableName, String),
    /// A type: checks and default of a domain, fields of a composite.
    Type(TableName),
}

impl Used {
    /// The table or type.
    fn of(&self) -> &TableName {
        match self {
            Self::Column(of, _) | Self::Constraint(of, _) | Self::Index(of, _) | Self::Type(of) => of,
        }
    }

    /// The same of what has another name; `None` where that has none.
    fn named(self, name: impl Fn(TableName) -> Option<TableName>) -> Option<Self> {
        Some(match self {
            Self::Column(of, column) => Self::Column(name(of)?, column),
            Self::Constraint(of, constraint) => Self::Constraint(name(of)?, constraint),
            Self::Index(of, index) => Self::Index(name(of)?, index),
            Self::Type(of) => Self::Type(name(of)?),
        })
    }
}

/// Something that a definition needs and that is not PostgreSQL's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A column of the same table.
    Column(String),
    /// A type, arrays taken off.
    Type(TableName),
    /// A function, operator or operator class.
    Routine {
        /// Kind, as `pg_identify_object` names it.
        kind: String,
        /// `pg_identify_object(…).identity`: the same text on every server.
        identity: String,
        /// Extension that brings it, when one does.
        extension: Option<String>,
    },
}

impl Reference {
    fn known(self, places: &Places) -> Self {
        match self {
            Self::Type(name) => Self::Type(places.translated(name)),
            Self::Routine { kind, identity, extension } => {
                Self::Routine { kind, identity: places.said(identity), extension }
            }
            column @ Self::Column(_) => column,
        }
    }
}

/// One column or expression of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexKey {
    /// Column; `None` for an expression.
    pub column: Option<String>,
    /// The expression as it stands in an index definition, in parentheses where it needs them.
    pub expression_sql: String,
    /// Collation, when it is not the column's.
    pub collation_sql: Option<String>,
    /// Operator class with its options, when it is not the obvious one.
    pub opclass_sql: Option<String>,
    /// DESC.
    pub descending: bool,
    /// NULLS FIRST.
    pub nulls_first: bool,
    /// Only stored, not searched: INCLUDE.
    pub included: bool,
}

/// An index in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexShape {
    /// Access method, e.g. `btree`.
    pub method: String,
    /// UNIQUE.
    pub unique: bool,
    /// NULLS NOT DISTINCT (15 and later).
    pub nulls_not_distinct: bool,
    /// The last key column of the owning constraint is WITHOUT OVERLAPS (18 and later).
    pub without_overlaps: bool,
    /// Keys, then included columns.
    pub keys: Vec<IndexKey>,
    /// WHERE.
    pub predicate_sql: Option<String>,
    /// WITH, as `name=value, …`.
    pub storage_sql: Option<String>,
    /// The owning constraint is DEFERRABLE.
    pub deferrable: bool,
    /// … INITIALLY DEFERRED.
    pub initially_deferred: bool,
}

impl IndexShape {
    fn known(self, places: &Places) -> Self {
        let key = |key: IndexKey| IndexKey { expression_sql: places.said(key.expression_sql), ..key };
        Self {
            keys: self.keys.into_iter().map(key).collect(),
            predicate_sql: self.predicate_sql.map(|text| places.said(text)),
            ..self
        }
    }
}

/// What a foreign key says beyond tables and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKeyShape {
    /// `confmatchtype`: s simple, f full, p partial.
    pub match_kind: char,
    /// `confupdtype`: a, r, c, n, d.
    pub on_update: char,
    /// `confdeltype`: a, r, c, n, d.
    pub on_delete: char,
    /// Columns of ON DELETE SET NULL or DEFAULT (15 and later); empty means all.
    pub on_delete_columns: Vec<String>,
    /// DEFERRABLE.
    pub deferrable: bool,
    /// INITIALLY DEFERRED.
    pub initially_deferred: bool,
    /// The last column on each side is a PERIOD (18 and later).
    pub period: bool,
    /// Not NOT ENFORCED (18 and later).
    pub enforced: bool,
}

/// All definitions of one database in parts.
#[derive(Debug, Clone, Default)]
pub struct Anatomy {
    /// Indexes by table and name.
    pub indexes: BTreeMap<(TableName, String), IndexShape>,
    /// Foreign keys by table and name.
    pub foreign_keys: BTreeMap<(TableName, String), ForeignKeyShape>,
    /// What each definition needs.
    pub needs: BTreeMap<Used, Vec<Reference>>,
    /// Schema of each extension.
    pub extension_schemas: BTreeMap<String, String>,
}

impl Anatomy {
    /// The same by the names that tables had before they were moved away. What has come under one of these since is left out: it is
    /// none of the plan's.
    fn known(self, places: &Places) -> Self {
        let Self { indexes, foreign_keys, needs, extension_schemas } = self;
        let all = indexes.keys().chain(foreign_keys.keys()).map(|(table, _)| table);
        let all = all.chain(needs.keys().map(Used::of)).map(|name| places.translated(name.clone()));
        let moved: BTreeSet<TableName> = all.filter(|name| name.place_schema() != name.schema).collect();
        let name = |raw: TableName| {
            let name = places.translated(raw);
            (name.place_schema() != name.schema || !moved.contains(&name)).then_some(name)
        };
        let indexes = indexes
            .into_iter()
            .filter_map(|((table, index), shape)| Some(((name(table)?, index), shape.known(places))));
        let keys = foreign_keys.into_iter();
        let keys = keys.filter_map(|((table, key), shape)| Some(((name(table)?, key), shape)));
        let needs = needs.into_iter().filter_map(|(used, needed)| {
            let needed: Vec<Reference> = needed.into_iter().map(|one| one.known(places)).collect();
            Some((used.named(name)?, needed))
        });
        Self {
            indexes: indexes.collect(),
            foreign_keys: keys.collect(),
            needs: needs.collect(),
            extension_schemas,
        }
    }

    /// What a definition needs; nothing when it rests on PostgreSQL alone.
    #[must_use]
    pub fn needs_of(&self, used: &Used) -> &[Reference] {
        self.needs.get(used).map_or(&[], Vec::as_slice)
    }
}

/// Reads it in one read-only transaction with `search_path` reduced to `pg_catalog`, so that names come out qualified.
pub(crate) async fn read(client: &Client) -> Result<Anatomy, Error> {
    client.batch_execute(introspect::BEGIN).await?;
    let outcome = read_all(client).await;
    let ended = client.batch_execute("ROLLBACK").await;
    let anatomy = outcome?;
    ended?;
    Ok(anatomy)
}

async fn read_all(client: &Client) -> Result<Anatomy, Error> {
    let mut anatomy = Anatomy::default();
    for row in client.query_typed(INDEXES, &[]).await? {
        let key = (name_at(&row, 0)?, row.try_get(2)?);
        let shape = anatomy.indexes.entry(key).or_insert(index_of(&row)?);
        shape.keys.push(index_key_of(&row)?);
    }
    for row in client.query_typed(FOREIGN_KEYS, &[]).await? {
        anatomy.foreign_keys.insert((name_at(&row, 0)?, row.try_get(2)?), foreign_key_of(&row)?);
    }
    for row in client.query_typed(NEEDS, &[]).await? {
        let (used, reference) = need_of(&row)?;
        anatomy.needs.entry(used).or_default().push(reference);
    }
    let sql = "SELECT e.extname::text, n.nspname::text FROM pg_extension e \
               JOIN pg_namespace n ON n.oid = e.extnamespace";
    for row in client.query_typed(sql, &[]).await? {
        anatomy.extension_schemas.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let schemas = anatomy.indexes.keys().map(|(table, _)| &table.schema);
    let schemas = schemas.chain(anatomy.needs.keys().map(|used| &used.of().schema));
    let places = places::among(client, schemas.map(String::as_str)).await?;
    Ok(if places.0.is_empty() { anatomy } else { anatomy.known(&places) })
}

/// One row per key of each index. The operator class may be left out only where PostgreSQL would choose the same one
/// again: it is the default of exactly the key's type, of a polymorphic type, or text's for varchar.
const INDEXES: &str = "\
    SELECT n.nspname::text, c.relname::text, i.relname::text, m.amname::text, x.indisunique, \
           coalesce((to_jsonb(x) ->> 'indnullsnotdistinct')::bool, false), \
           pg_get_expr(x.indpred, x.indrelid), array_to_string(i.reloptions, ', '), \
           coalesce(o.condeferrable, false), coalesce(o.condeferred, false), \
           a.attname::text, pg_get_indexdef(x.indexrelid, k.place, false), \
           CASE WHEN l.oid <> 0 AND l.oid IS DISTINCT FROM a.attcollation \
             THEN quote_ident(ln.nspname) || '.' || quote_ident(l.collname) END, \
           CASE WHEN k.place <= x.indnkeyatts AND (ia.attoptions IS NOT NULL OR NOT (p.opcdefault \
               AND (p.opcintype = ia.atttypid OR pt.typtype = 'p' \
                 OR (p.opcintype = 'text'::regtype AND ia.atttypid IN ('varchar'::regtype, 'text'::regtype))))) \
             THEN quote_ident(pn.nspname) || '.' || quote_ident(p.opcname) \
               || coalesce(' (' || array_to_string(ia.attoptions, ', ') || ')', '') END, \
           CASE WHEN k.place <= x.indnkeyatts THEN x.indoption[k.place - 1] & 1 ELSE 0 END = 1, \
           CASE WHEN k.place <= x.indnkeyatts THEN x.indoption[k.place - 1] & 2 ELSE 0 END = 2, \
           k.place > x.indnkeyatts, coalesce((to_jsonb(o) ->> 'conperiod')::bool, false) \
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam \
    JOIN pg_class c ON c.oid = x.indrelid \
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_' \
      AND n.nspname NOT IN ('information_schema', 'strangler') \
    LEFT JOIN pg_constraint o ON o.conindid = x.indexrelid AND o.conrelid = x.indrelid \
      AND o.contype IN ('p', 'u', 'x') \
    CROSS JOIN LATERAL generate_series(1, x.indnatts::int) k(place) \
    JOIN pg_attribute ia ON ia.attrelid = x.indexrelid AND ia.attnum = k.place \
    LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[k.place - 1] \
      AND x.indkey[k.place - 1] > 0 \
    LEFT JOIN pg_collation l ON k.place <= x.indnkeyatts AND l.oid = x.indcollation[k.place - 1] \
    LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace \
    LEFT JOIN pg_opclass p ON k.place <= x.indnkeyatts AND p.oid = x.indclass[k.place - 1] \
    LEFT JOIN pg_namespace pn ON pn.oid = p.opcnamespace LEFT JOIN pg_type pt ON pt.oid = p.opcintype \
    ORDER BY 1, 2, 3, k.place";

const FOREIGN_KEYS: &str = "\
    SELECT n.nspname::text, c.relname::text, o.conname::text, o.confmatchtype::text, o.confupdtype::text, \
           o.confdeltype::text, o.condeferrable, o.condeferred, \
           ARRAY(SELECT a.attname::text FROM jsonb_array_elements_text( \
               CASE jsonb_typeof(to_jsonb(o) -> 'confdelsetcols') WHEN 'array' \
               THEN to_jsonb(o) -> 'confdelsetcols' ELSE '[]' END) WITH ORDINALITY k(number, place) \
             JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.number::int ORDER BY k.place), \
           coalesce((to_jsonb(o) ->> 'conperiod')::bool, false), \
           coalesce((to_jsonb(o) ->> 'conenforced')::bool, true) \
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_' WHERE o.contype = 'f'";

/// `pg_depend` records what each definition uses, without what is PostgreSQL's own (documentation, section 5.14).
/// A default also depends on its own column, which says nothing. Before PostgreSQL 15 it is the generated column, and
/// not its expression, that depends on what the expression uses.
const NEEDS: &str = "\
    WITH definition AS ( \
      SELECT 'pg_attrdef'::regclass::oid AS class, d.oid, 'column' AS kind, d.adrelid AS relation, \
             a.attname::text AS name, d.adnum AS own, NULL::int AS part FROM pg_attrdef d \
      JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
      UNION ALL SELECT 'pg_class'::regclass, attrelid, 'column', attrelid, attname::text, attnum, attnum \
      FROM pg_attribute WHERE attgenerated <> '' AND current_setting('server_version_num')::int < 150000 \
      UNION ALL SELECT 'pg_constraint'::regclass, oid, 'constraint', conrelid, conname::text, 0, NULL \
      FROM pg_constraint WHERE contype IN ('c', 'x') AND conrelid <> 0 \
      UNION ALL SELECT 'pg_class'::regclass, x.indexrelid, 'index', x.indrelid, i.relname::text, 0, NULL \
      FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
      UNION ALL SELECT 'pg_type'::regclass, oid, 'type', oid, typname::text, 0, NULL FROM pg_type WHERE oid >= 16384 \
      UNION ALL SELECT 'pg_constraint'::regclass, oid, 'type', contypid, '', 0, NULL \
      FROM pg_constraint WHERE contypid <> 0 \
      UNION ALL SELECT 'pg_class'::regclass, typrelid, 'type', oid, typname::text, 0, NULL \
      FROM pg_type WHERE typtype = 'c' AND oid >= 16384), \
    placed AS ( \
      SELECT d.*, coalesce(c.relname, t.typname)::text AS of_name, \
             (SELECT nspname::text FROM pg_namespace WHERE oid = coalesce(c.relnamespace, t.typnamespace)) AS schema \
      FROM definition d LEFT JOIN pg_class c ON d.kind <> 'type' AND c.oid = d.relation \
      LEFT JOIN pg_type t ON d.kind = 'type' AND t.oid = d.relation) \
    SELECT DISTINCT d.schema, d.of_name, d.kind, d.name, a.attname::text, \
           tn.nspname::text, t.typname::text, \
           CASE WHEN a.attname IS NULL AND t.oid IS NULL \
             THEN (pg_identify_object(p.refclassid, p.refobjid, 0)).type END, \
           CASE WHEN a.attname IS NULL AND t.oid IS NULL \
             THEN (pg_identify_object(p.refclassid, p.refobjid, 0)).identity END, \
           (SELECT e.extname::text FROM pg_depend x JOIN pg_extension e ON e.oid = x.refobjid \
             WHERE x.classid = p.refclassid AND x.objid = p.refobjid AND x.deptype = 'e' \
               AND x.refclassid = 'pg_extension'::regclass) \
    FROM placed d JOIN pg_depend p ON p.classid = d.class AND p.objid = d.oid AND p.deptype IN ('n', 'a') \
      AND p.objsubid = coalesce(d.part, p.objsubid) \
    LEFT JOIN pg_attribute a ON p.refclassid = 'pg_class'::regclass AND d.kind <> 'type' \
      AND p.refobjid = d.relation AND p.refobjsubid > 0 AND p.refobjsubid <> d.own \
      AND a.attrelid = p.refobjid AND a.attnum = p.refobjsubid \
    LEFT JOIN pg_type rt ON p.refclassid = 'pg_type'::regclass AND rt.oid = p.refobjid \
    LEFT JOIN pg_type t ON t.oid = CASE WHEN rt.typsubscript = 'array_subscript_handler'::regproc \
      THEN rt.typelem ELSE rt.oid END AND t.oid >= 16384 \
    LEFT JOIN pg_namespace tn ON tn.oid = t.typnamespace \
    WHERE d.schema !~ '^pg_' AND d.schema NOT IN ('information_schema', 'strangler') \
      AND (a.attname IS NOT NULL OR t.oid IS NOT NULL OR p.refclassid IN \
        ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass)) \
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_type'::regclass AND d.kind = 'type' \
        AND e.objid = d.relation AND e.deptype = 'e') \
    ORDER BY 1, 2, 3, 4, 5, 6, 7, 9";

fn index_of(row: &Row) -> Result<IndexShape, Error> {
    Ok(IndexShape {
        method: row.try_get(3)?,
        unique: row.try_get(4)?,
        nulls_not_distinct: row.try_get(5)?,
        without_overlaps: row.try_get(17)?,
        keys: Vec::new(),
        predicate_sql: row.try_get(6)?,
        storage_sql: row.try_get(7)?,
        deferrable: row.try_get(8)?,
        initially_deferred: row.try_get(9)?,
    })
}

fn index_key_of(row: &Row) -> Result<IndexKey, Error> {
    Ok(IndexKey {
        column: row.try_get(10)?,
        expression_sql: row.try_get(11)?,
        collation_sql: row.try_get(12)?,
        opclass_sql: row.try_get(13)?,
        descending: row.try_get(14)?,
        nulls_first: row.try_get(15)?,
        included: row.try_get(16)?,
    })
}

fn foreign_key_of(row: &Row) -> Result<ForeignKeyShape, Error> {
    let letter =
        |index| -> Result<char, Error> { Ok(row.try_get::<_, String>(index)?.chars().next().unwrap_or(' ')) };
    Ok(ForeignKeyShape {
        match_kind: letter(3)?,
        on_update: letter(4)?,
        on_delete: letter(5)?,
        on_delete_columns: row.try_get(8)?,
        deferrable: row.try_get(6)?,
        initially_deferred: row.try_get(7)?,
        period: row.try_get(9)?,
        enforced: row.try_get(10)?,
    })
}

fn need_of(row: &Row) -> Result<(Used, Reference), Error> {
    let of = name_at(row, 0)?;
    let name: String = row.try_get(3)?;
    let used = match row.try_get::<_, String>(2)?.as_str() {
        "column" => Used::Column(of, name),
        "constraint" => Used::Constraint(of, name),
        "index" => Used::Index(of, name),
        _ => Used::Type(of),
    };
    let column: Option<String> = row.try_get(4)?;
    let type_schema: Option<String> = row.try_get(5)?;
    let type_name: Option<String> = row.try_get(6)?;
    let reference = match (column, type_schema.zip(type_name)) {
        (Some(column), _) => Reference::Column(column),
        (None, Some((schema, name))) => Reference::Type(TableName::new(schema, name)),
        (None, None) => Reference::Routine {
            kind: row.try_get(7)?,
            identity: row.try_get(8)?,
            extension: row.try_get(9)?,
        },
    };
    Ok((used, reference))
}

fn name_at(row: &Row, first: usize) -> Result<TableName, Error> {
    Ok(TableName::new(row.try_get::<_, String>(first)?, row.try_get::<_, String>(first + 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::places::Quarantine;

    #[test]
    fn what_was_moved_is_known_by_its_name_and_what_came_under_that_name_is_not() {
        let quarantine = "strangler_quarantine_one";
        let place =
            Quarantine { slice: "one".into(), schema: "public".into(), quarantine: quarantine.into() };
        let of = |schema: &str| Used::Column(TableName::new(schema, "orders"), "twice".into());
        let calls = |identity: &str| {
            vec![Reference::Routine { kind: "function".into(), identity: identity.into(), extension: None }]
        };
        let needs = BTreeMap::from([
            (of(quarantine), calls("public.f(strangler_quarantine_one.orders)")),
            (of("public"), calls("public.of_another()")),
            (of("sales"), calls("public.g()")),
        ]);
        let known = Anatomy { needs, ..Anatomy::default() }.known(&Places(vec![place]));
        assert_eq!(known.needs_of(&of("public")), calls("public.f(public.orders)"));
        assert_eq!(known.needs_of(&of("sales")), calls("public.g()"));
        assert_eq!(known.needs.len(), 2);
    }
}
