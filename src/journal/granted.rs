//! Rights outside our schema that `provision` and `arm` have granted, so that `abandon` takes back these and no others.

use tokio_postgres::Client;

use super::JournalError;
use crate::name::{TableName, quote_ident, quote_literal};

/// What a right is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On<'a> {
    /// A schema.
    Schema(&'a str),
    /// A table, view, partitioned table or sequence.
    Relation(&'a TableName),
    /// A column.
    Column(&'a TableName, &'a str),
}

/// SQL that writes rights down, in the transaction that grants them; none for what is in our own schema, which goes with it.
#[must_use]
pub fn note(on: &On<'_>, grantee: &str, privileges: &[String]) -> Option<String> {
    let relation = |name: &TableName| format!("to_regclass({})", quote_literal(&name.sql()));
    let (catalog, object, attnum) = match on {
        On::Schema("strangler") => return None,
        On::Relation(name) | On::Column(name, _) if name.schema == "strangler" => return None,
        On::Schema(name) => (
            "pg_namespace",
            format!("to_regnamespace({})", quote_literal(&quote_ident(name))),
            "0".to_owned(),
        ),
        On::Relation(name) => ("pg_class", relation(name), "0".to_owned()),
        On::Column(name, column) => {
            let of = relation(name);
            let attnum = format!(
                "(SELECT attnum FROM pg_attribute WHERE attrelid = {of} AND attname = {})",
                quote_literal(column)
            );
            ("pg_class", of, attnum)
        }
    };
    let privileges: Vec<String> = privileges.iter().map(|one| quote_literal(one)).collect();
    Some(format!(
        "INSERT INTO strangler.granted SELECT {}, {object}, {attnum}, {}, p FROM unnest(ARRAY[{}]) AS p ON CONFLICT DO NOTHING",
        quote_literal(catalog),
        quote_literal(grantee),
        privileges.join(", ")
    ))
}

/// A right that was granted and that no slice but one needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    catalog: String,
    object: u32,
    attnum: i16,
    grantee: String,
    privilege: String,
    /// Quoted for SQL, with its sort; `None` where the object or the role is gone, or the right.
    on: Option<String>,
    column: Option<String>,
}

impl Granted {
    /// What takes it back, where there is something to take back.
    #[must_use]
    pub fn revoke(&self) -> Option<String> {
        let column = self.column.as_ref().map(|name| format!(" ({})", quote_ident(name)));
        let on = self.on.as_ref()?;
        Some(format!(
            "REVOKE {}{} ON {on} FROM {}",
            self.privilege,
            column.unwrap_or_default(),
            quote_ident(&self.grantee)
        ))
    }

    /// SQL that forgets it.
    #[must_use]
    pub fn forget(&self) -> String {
        format!(
            "DELETE FROM strangler.granted WHERE (catalog, object, attnum, grantee, privilege) = ({}, {}, {}, {}, {})",
            quote_literal(&self.catalog),
            self.object,
            self.attnum,
            quote_literal(&self.grantee),
            quote_literal(&self.privilege)
        )
    }
}

/// A table is needed while another slice publishes it or has its gate on it; a schema while such a table, a type of one of its columns, or a
/// table into which another slice is mirrored is in it, or an old table of another slice comes back to it from quarantine, and while the role, or a member of it that has no other way into the schema, may use anything else
/// there, by rights that are none of ours to take back or because it owns it. A right that somebody has made grantable since is not the one that
/// was granted: who else has got it through that is not ours to judge, so it stays, and is forgotten.
const JUDGED: &str = "WITH RECURSIVE gated AS ( \
        SELECT g.tgrelid AS oid FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace \
            WHERE n.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_' AND p.proname <> 'gate_' || $1 \
        UNION SELECT i.inhparent FROM gated t JOIN pg_inherits i ON i.inhrelid = t.oid), \
    tables AS (SELECT oid FROM gated UNION SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
            JOIN strangler.slice s ON s.publication = p.pubname AND s.side = 'monolith' WHERE s.slice <> $1), \
    types AS (SELECT a.atttypid AS oid FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped \
        UNION SELECT CASE WHEN y.typelem <> 0 THEN y.typelem ELSE y.typbasetype END FROM types t JOIN pg_type y ON y.oid = t.oid \
            WHERE y.typelem <> 0 OR y.typbasetype <> 0), \
    needed (catalog, object) AS (SELECT 'pg_class', oid FROM tables \
        UNION SELECT 'pg_namespace', c.relnamespace FROM tables t JOIN pg_class c ON c.oid = t.oid \
        UNION SELECT 'pg_namespace', n.oid FROM strangler.quarantined q JOIN pg_namespace n ON n.nspname::text = q.schema_name WHERE q.slice <> $1 \
        UNION SELECT 'pg_namespace', y.typnamespace FROM types t JOIN pg_type y ON y.oid = t.oid), \
    rights AS (SELECT 'pg_namespace' AS catalog, n.oid AS object, 0 AS attnum, a.grantee, a.privilege_type, a.is_grantable FROM pg_namespace n \
            CROSS JOIN LATERAL aclexplode(n.nspacl) a \
        UNION ALL SELECT 'pg_class', c.oid, 0, a.grantee, a.privilege_type, a.is_grantable FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a \
        UNION ALL SELECT 'pg_class', t.attrelid, t.attnum, a.grantee, a.privilege_type, a.is_grantable FROM pg_attribute t \
            CROSS JOIN LATERAL aclexplode(t.attacl) a WHERE NOT t.attisdropped), \
    going AS (SELECT e.relation AS oid FROM strangler.begun_empty e WHERE e.slice = $1), \
    ours AS (SELECT g.object, g.attnum, r.oid AS grantee, g.privilege FROM strangler.granted g JOIN pg_roles r ON r.rolname = g.grantee \
        WHERE g.catalog = 'pg_class' AND NOT EXISTS (SELECT FROM needed d WHERE d.catalog = g.catalog AND d.object = g.object)), \
    users (schema, grantee, oid) AS (SELECT g.object, g.grantee, m.oid FROM strangler.granted g JOIN pg_roles r ON r.rolname = g.grantee \
            JOIN pg_roles m ON m.oid = r.oid OR NOT m.rolsuper AND NOT r.rolsuper AND pg_has_role(m.oid, r.oid, 'USAGE') \
                AND NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = g.object AND pg_has_role(m.oid, n.nspowner, 'USAGE')) \
                AND NOT EXISTS (SELECT FROM rights w WHERE w.catalog = 'pg_namespace' AND w.object = g.object AND w.privilege_type = 'USAGE' \
                    AND w.grantee <> r.oid AND (w.grantee = 0 OR pg_has_role(m.oid, w.grantee, 'USAGE'))) \
        WHERE g.catalog = 'pg_namespace' AND g.privilege = 'USAGE'), \
    uses (schema, grantee, who, what) AS (SELECT c.relnamespace, u.grantee, u.oid, c.oid::regclass::text FROM users u JOIN pg_roles r ON r.oid = u.oid \
            JOIN pg_class c ON c.relnamespace = u.schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
            WHERE pg_has_role(u.oid, c.relowner, 'USAGE') AND NOT r.rolsuper AND c.oid NOT IN (SELECT oid FROM going) \
        UNION SELECT c.relnamespace, u.grantee, u.oid, c.oid::regclass::text FROM users u \
            JOIN pg_class c ON c.relnamespace = u.schema JOIN rights w ON w.catalog = 'pg_class' AND w.object = c.oid \
            WHERE CASE WHEN u.grantee = 'strangler_apply' AND u.oid = to_regrole('strangler_apply')::oid THEN w.grantee = u.oid \
                    WHEN w.grantee = 0 THEN true ELSE w.grantee = u.oid OR pg_has_role(u.oid, w.grantee, 'USAGE') END \
                AND w.grantee IS DISTINCT FROM c.relowner \
                AND NOT EXISTS (SELECT FROM ours o WHERE (o.object, o.attnum) = (w.object, w.attnum) \
                    AND o.grantee = w.grantee AND o.privilege = w.privilege_type AND NOT w.is_grantable) \
        UNION SELECT p.pronamespace, u.grantee, u.oid, p.oid::regprocedure::text FROM users u \
            JOIN pg_proc p ON p.pronamespace = u.schema WHERE u.grantee <> 'strangler_apply' \
                AND p.prorettype <> 'trigger'::regtype AND has_function_privilege(u.oid, p.oid, 'EXECUTE')), \
    held AS (SELECT g.catalog, g.object, g.attnum, g.grantee, g.privilege, w.is_grantable, \
            CASE WHEN w.object IS NULL THEN NULL WHEN g.catalog = 'pg_namespace' THEN 'SCHEMA ' || quote_ident(n.nspname) \
                ELSE CASE WHEN c.relkind = 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END \
                    || quote_ident(s.nspname) || '.' || quote_ident(c.relname) END AS place, a.attname::text \
        FROM strangler.granted g LEFT JOIN pg_roles r ON r.rolname = g.grantee \
            LEFT JOIN LATERAL (SELECT w.object, bool_or(w.is_grantable) AS is_grantable FROM rights w \
                WHERE (w.catalog, w.object, w.attnum) = (g.catalog, g.object, g.attnum) \
                AND w.grantee = r.oid AND w.privilege_type = g.privilege GROUP BY w.object) w ON true \
            LEFT JOIN pg_namespace n ON g.catalog = 'pg_namespace' AND n.oid = g.object \
            LEFT JOIN pg_class c ON g.catalog = 'pg_class' AND c.oid = g.object LEFT JOIN pg_namespace s ON s.oid = c.relnamespace \
            LEFT JOIN pg_attribute a ON g.attnum <> 0 AND a.attrelid = c.oid AND a.attnum = g.attnum \
        WHERE NOT EXISTS (SELECT FROM needed d WHERE d.catalog = g.catalog AND d.object = g.object) \
            AND ($2 OR c.relkind IS DISTINCT FROM 'S')) ";

/// Those that go.
const DISPENSABLE: &str = "SELECT h.catalog, h.object, h.attnum, h.grantee, h.privilege, CASE WHEN NOT h.is_grantable THEN h.place END, h.attname \
    FROM held h WHERE NOT EXISTS (SELECT FROM uses u WHERE h.catalog = 'pg_namespace' AND (u.schema, u.grantee) = (h.object, h.grantee)) \
    ORDER BY 6 NULLS LAST, h.grantee, h.privilege, 7, h.catalog, h.object, h.attnum";

/// Those that no slice needs and that stay all the same, each with the first of those who rely on it.
const RELIED_ON: &str = "SELECT h.privilege || CASE WHEN h.attname IS NOT NULL THEN format(' (%I)', h.attname) ELSE '' END || ' ON ' || h.place, \
        h.grantee, coalesce((SELECT format('%s uses %s', pg_get_userbyid(u.who), u.what) FROM uses u WHERE h.catalog = 'pg_namespace' \
            AND (u.schema, u.grantee) = (h.object, h.grantee) ORDER BY 1 LIMIT 1), 'somebody has made it grantable since') \
    FROM held h WHERE h.place IS NOT NULL AND (h.is_grantable OR h.catalog = 'pg_namespace' AND EXISTS (SELECT FROM uses u \
        WHERE (u.schema, u.grantee) = (h.object, h.grantee))) ORDER BY 1, 2";

/// A right that was granted for slices, and that stays because others rely on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReliedOn {
    /// `USAGE ON SCHEMA sales`, as it stands between REVOKE and FROM.
    pub right: String,
    /// The role that has it, as it is called.
    pub grantee: String,
    /// Who relies on it, in words.
    pub why: String,
}

/// Rights that no slice but this one needs and that others rely on. `last` as in [`dispensable`].
///
/// # Errors
/// [`JournalError::Database`].
pub async fn relied_on(client: &Client, slice: &str, last: bool) -> Result<Vec<ReliedOn>, JournalError> {
    let rows = client.query(&format!("{JUDGED}{RELIED_ON}"), &[&slice, &last]).await;
    let rows = rows.map_err(JournalError::database("reading which rights are relied on"))?;
    let of = |row: &tokio_postgres::Row| ReliedOn { right: row.get(0), grantee: row.get(1), why: row.get(2) };
    Ok(rows.iter().map(of).collect())
}

/// Rights that no slice but this one needs. What sequences are for is not written down, so theirs go with the `last` slice.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn dispensable(client: &Client, slice: &str, last: bool) -> Result<Vec<Granted>, JournalError> {
    let rows = client.query(&format!("{JUDGED}{DISPENSABLE}"), &[&slice, &last]).await;
    let rows = rows.map_err(JournalError::database("reading which rights were granted"))?;
    let of = |row: &tokio_postgres::Row| Granted {
        catalog: row.get(0),
        object: row.get(1),
        attnum: row.get(2),
        grantee: row.get(3),
        privilege: row.get(4),
        on: row.get(5),
        column: row.get(6),
    };
    Ok(rows.iter().map(of).collect())
}
