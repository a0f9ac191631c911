//! What the catalogs say of tables beside what [`Catalog`](crate::catalog::Catalog) holds: how they are partitioned, what hangs on
//! them, and who may use them.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error, Row};

use crate::name::TableName;
use crate::postgres::places::Places;

/// Of all tables that are asked about, by their oids.
#[derive(Debug, Clone, Default)]
pub(super) struct Details {
    /// By relation.
    pub(super) relations: BTreeMap<u32, RelationDetails>,
    /// Extended statistics, triggers, rules and policies.
    pub(super) hanging: Vec<Hanging>,
    /// Rights, as they could be granted.
    pub(super) rights: Vec<Right>,
    /// Columns that are stored or measured in another way than their type's.
    pub(super) columns: Vec<ColumnDetails>,
}

/// One relation.
#[derive(Debug, Clone, Default)]
pub(super) struct RelationDetails {
    /// `PARTITION BY` this.
    pub(super) partition_key: Option<String>,
    /// `FOR VALUES …`, of a partition.
    pub(super) bound: Option<String>,
    /// Policies hold for its owner, too.
    pub(super) row_security_forced: bool,
}

/// Something that hangs on a table.
#[derive(Debug, Clone)]
pub(super) struct Hanging {
    /// `statistics`, `trigger`, `rule` or `policy`.
    pub(super) kind: String,
    /// The table.
    pub(super) table: u32,
    /// Its name.
    pub(super) name: String,
    /// The whole statement; of a policy what stands behind the name of its table.
    pub(super) sql: String,
    /// `tgenabled` or `ev_enabled`; of others O.
    pub(super) enabled: char,
}

/// A right on a relation or a column.
#[derive(Debug, Clone)]
pub(super) struct Right {
    /// The relation.
    pub(super) table: u32,
    /// The column, of a right on one.
    pub(super) column: Option<String>,
    /// `SELECT` and so on.
    pub(super) privilege: String,
    /// Who has it; `None` for everybody.
    pub(super) grantee: Option<String>,
    /// With grant option.
    pub(super) grantable: bool,
}

/// A column.
#[derive(Debug, Clone)]
pub(super) struct ColumnDetails {
    /// The relation.
    pub(super) table: u32,
    /// Its name.
    pub(super) column: String,
    /// Where it is set: `PLAIN`, `EXTERNAL`, `EXTENDED` or `MAIN`.
    pub(super) storage: Option<String>,
    /// Where it is set: `pglz` or `lz4`.
    pub(super) compression: Option<String>,
    /// Where it is set: the statistics target.
    pub(super) statistics: Option<i32>,
    /// `n_distinct=…` and so on.
    pub(super) options: Option<String>,
}

const RELATIONS: &str = "SELECT c.oid, CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END, \
        CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END, c.relforcerowsecurity \
    FROM pg_class c WHERE c.oid = ANY ($1)";

/// Gates are ours, and the triggers of foreign keys and those that partitions have from their parents come by themselves.
const HANGING: &str = "SELECT 'trigger', t.tgrelid, t.tgname::text, pg_get_triggerdef(t.oid), t.tgenabled::text \
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace \
        WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND t.tgparentid = 0 AND n.nspname <> 'strangler' \
    UNION ALL SELECT 'rule', r.ev_class, r.rulename::text, rtrim(pg_get_ruledef(r.oid), ';'), r.ev_enabled::text \
        FROM pg_rewrite r WHERE r.ev_class = ANY ($1) AND r.rulename <> '_RETURN' \
    UNION ALL SELECT 'statistics', s.stxrelid, s.stxname::text, pg_get_statisticsobjdef(s.oid), 'O' \
        FROM pg_statistic_ext s WHERE s.stxrelid = ANY ($1) \
    UNION ALL SELECT 'policy', p.polrelid, p.polname::text, concat(' AS ', CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, \
            ' FOR ', CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
            ' TO ', (SELECT string_agg(CASE WHEN role = 0 THEN 'PUBLIC' ELSE role::regrole::text END, ', ') FROM unnest(p.polroles) AS role), \
            ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'), 'O' \
        FROM pg_policy p WHERE p.polrelid = ANY ($1) \
    ORDER BY 1, 2, 3";

const RIGHTS: &str = "SELECT r.oid, r.attname, a.privilege_type, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, a.is_grantable \
    FROM (SELECT oid, relowner, NULL::text AS attname, relacl AS acl FROM pg_class WHERE oid = ANY ($1) \
        UNION ALL SELECT t.attrelid, c.relowner, t.attname::text, t.attacl FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid \
            WHERE t.attrelid = ANY ($1) AND NOT t.attisdropped) AS r, LATERAL aclexplode(r.acl) AS a \
    WHERE a.grantee <> r.relowner ORDER BY 1, 2 NULLS FIRST, 4 NULLS FIRST, 3";

/// A target of -1 is the default up to 16, and null is from 17 on.
const COLUMNS: &str = "SELECT a.attrelid, a.attname::text, \
        CASE WHEN a.attstorage <> t.typstorage THEN CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' \
            ELSE 'EXTENDED' END END, \
        CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END, nullif(a.attstattarget, -1)::int, array_to_string(a.attoptions, ', ') \
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped \
        AND (a.attstorage <> t.typstorage OR a.attcompression <> '' OR nullif(a.attstattarget, -1) IS NOT NULL OR a.attoptions IS NOT NULL) \
    ORDER BY a.attrelid, a.attnum";

impl Details {
    /// With what the server printed before the tables were moved away.
    #[must_use]
    pub(super) fn known(mut self, places: &Places) -> Self {
        let said = |text: Option<String>| text.map(|text| places.said(text));
        for of in self.relations.values_mut() {
            of.partition_key = said(of.partition_key.take());
            of.bound = said(of.bound.take());
        }
        for one in &mut self.hanging {
            one.sql = places.said(std::mem::take(&mut one.sql));
        }
        self
    }
}

/// Asks the catalogs. The session's `search_path` is `pg_catalog`, so that names come out qualified.
pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<Details, Error> {
    let mut details = Details::default();
    for row in client.query(RELATIONS, &[&oids]).await? {
        let of = RelationDetails {
            partition_key: row.try_get(1)?,
            bound: row.try_get(2)?,
            row_security_forced: row.try_get(3)?,
        };
        details.relations.insert(row.try_get(0)?, of);
    }
    let read = |row: &Row| -> Result<Hanging, Error> {
        Ok(Hanging {
            kind: row.try_get(0)?,
            table: row.try_get(1)?,
            name: row.try_get(2)?,
            sql: row.try_get(3)?,
            enabled: row.try_get::<_, String>(4)?.chars().next().unwrap_or('O'),
        })
    };
    details.hanging = client.query(HANGING, &[&oids]).await?.iter().map(read).collect::<Result<_, _>>()?;
    let read = |row: &Row| -> Result<Right, Error> {
        Ok(Right {
            table: row.try_get(0)?,
            column: row.try_get(1)?,
            privilege: row.try_get(2)?,
            grantee: row.try_get(3)?,
            grantable: row.try_get(4)?,
        })
    };
    details.rights = client.query(RIGHTS, &[&oids]).await?.iter().map(read).collect::<Result<_, _>>()?;
    let read = |row: &Row| -> Result<ColumnDetails, Error> {
        Ok(ColumnDetails {
            table: row.try_get(0)?,
            column: row.try_get(1)?,
            storage: row.try_get(2)?,
            compression: row.try_get(3)?,
            statistics: row.try_get(4)?,
            options: row.try_get(5)?,
        })
    };
    details.columns = client.query(COLUMNS, &[&oids]).await?.iter().map(read).collect::<Result<_, _>>()?;
    Ok(details)
}

/// Where a sequence stands: its last value, and whether that was given out.
pub(super) async fn sequence_value(client: &Client, name: &TableName) -> Result<(i64, bool), Error> {
    let row =
        client.query_typed_one(&format!("SELECT last_value, is_called FROM {}", name.sql()), &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
