//! Types of the user's, down to PostgreSQL's own: through domains, arrays, composite attributes and ranges.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::{Client, Error, Row};

use super::places::Asked;
use crate::mapping::narrower::Domain;
use crate::mapping::type_tree::{Attribute, TypeTree};
use crate::name::TableName;

/// `FirstNormalObjectId`: below it are PostgreSQL's own types, which nobody alters and which are made of one another only.
/// Most columns have such a type, so that a wide table costs little.
pub const FIRST_USER_OID: u32 = 16_384;

/// A type can't contain itself, so this only bounds what a broken catalog could do.
const DEPTH_MAX: usize = 64;

/// Tables with the types of the user's in their columns.
pub type Trees = BTreeMap<(TableName, String), TypeTree>;

/// Tables with the domains that the types of their columns are made of.
pub type Domains = BTreeMap<(TableName, String), Vec<Domain>>;

/// `WITH RECURSIVE reached (root, oid) AS (…)`: for each root, the types of the user's that its types are made of, at any
/// depth. `roots` is a SELECT of `root` and `oid`, a type's.
#[must_use]
pub fn reached(roots: &str) -> String {
    format!(
        "WITH RECURSIVE reached (root, oid) AS ( \
         SELECT w.root, w.oid FROM ({roots}) AS w (root, oid) WHERE w.oid >= {FIRST_USER_OID} \
         UNION SELECT r.root, n.oid FROM reached r JOIN pg_type y ON y.oid = r.oid CROSS JOIN LATERAL ( \
            SELECT y.typelem UNION ALL SELECT y.typbasetype \
            UNION ALL SELECT b.atttypid FROM pg_attribute b \
                WHERE b.attrelid = y.typrelid AND y.typrelid <> 0 AND b.attnum > 0 AND NOT b.attisdropped \
            UNION ALL SELECT g.rngsubtype FROM pg_range g \
                WHERE y.typtype IN ('r', 'm') AND (g.rngtypid = y.oid OR g.rngmultitypid = y.oid)) AS n (oid) \
         WHERE n.oid >= {FIRST_USER_OID}) "
    )
}

/// A type as its row in the catalog has it.
struct Node {
    kind: String,
    name: String,
    /// Type and format of what a domain is over, of an array's element, of a range's bound.
    inner: Option<(u32, String)>,
    labels: Vec<String>,
    /// Name, type and format.
    attributes: Vec<(String, u32, String)>,
}

/// The columns of tables whose types are the user's, with what these are made of. Tables that are not there are left out.
///
/// # Errors
/// What the server said.
pub async fn read<'a>(client: &Client, tables: impl Iterator<Item = &'a TableName>) -> Result<Trees, Error> {
    let asked = Asked::of(tables);
    let (schemas, names) = asked.arrays();
    let columns = format!(
        "SELECT n.nspname::text, c.relname::text, a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod) \
         FROM unnest($1::text[], $2::text[]) AS w (schema, name) JOIN pg_namespace n ON n.nspname = w.schema \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE a.atttypid >= {FIRST_USER_OID}"
    );
    let columns = client.query(&columns, &[&schemas, &names]).await?;
    if columns.is_empty() {
        return Ok(Trees::new());
    }
    let mut roots: Vec<u32> = columns.iter().map(|row| row.get(3)).collect();
    roots.sort_unstable();
    roots.dedup();
    let nodes = nodes(client, &roots).await?;
    let tree = |row: &Row| {
        let table = asked.table(row.get(0), row.get(1));
        ((table, row.get(2)), grow(&nodes, row.get(3), row.get(4), 0))
    };
    Ok(columns.iter().map(tree).collect())
}

/// The domains that the types of these tables' columns are made of, at any depth. Columns without any are left out.
///
/// # Errors
/// What the server said.
pub async fn domains<'a>(
    client: &Client,
    tables: impl Iterator<Item = &'a TableName>,
) -> Result<Domains, Error> {
    let asked = Asked::of(tables);
    let (schemas, names) = asked.arrays();
    let sql = reached(
        "SELECT concat_ws(' ', a.attrelid, a.attnum), a.atttypid \
         FROM unnest($1::text[], $2::text[]) AS w (schema, name) JOIN pg_namespace n ON n.nspname = w.schema \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped",
    ) + "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(y.oid, -1), y.typnotnull, \
            ARRAY(SELECT k.conname::text FROM pg_constraint k WHERE k.contypid = y.oid AND k.contype = 'c' \
                ORDER BY k.conname), \
            ARRAY(SELECT regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '') FROM pg_constraint k \
                WHERE k.contypid = y.oid AND k.contype = 'c' ORDER BY k.conname) \
        FROM reached r JOIN pg_type y ON y.oid = r.oid AND y.typtype = 'd' \
        JOIN pg_attribute a ON concat_ws(' ', a.attrelid, a.attnum) = r.root \
        JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 4";
    let mut found = Domains::new();
    for row in client.query(&sql, &[&schemas, &names]).await? {
        let table = asked.table(row.get(0), row.get(1));
        let (checks, says): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
        let domain =
            Domain { name: row.get(3), not_null: row.get(4), checks: checks.into_iter().zip(says).collect() };
        found.entry((table, row.get(2))).or_default().push(domain);
    }
    Ok(found)
}

async fn nodes(client: &Client, roots: &[u32]) -> Result<HashMap<u32, Node>, Error> {
    let sql = reached("SELECT 0, r.oid FROM unnest($1::oid[]) AS r (oid)")
        + "SELECT y.oid, y.typtype::text, format_type(y.oid, -1), i.oid, format_type(i.oid, i.typmod), \
            ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = y.oid ORDER BY e.enumsortorder), \
            ARRAY(SELECT b.attname::text FROM pg_attribute b WHERE b.attrelid = y.typrelid AND b.attnum > 0 \
                AND NOT b.attisdropped ORDER BY b.attnum), \
            ARRAY(SELECT b.atttypid FROM pg_attribute b WHERE b.attrelid = y.typrelid AND b.attnum > 0 \
                AND NOT b.attisdropped ORDER BY b.attnum), \
            ARRAY(SELECT format_type(b.atttypid, b.atttypmod) FROM pg_attribute b WHERE b.attrelid = y.typrelid \
                AND b.attnum > 0 AND NOT b.attisdropped ORDER BY b.attnum) \
        FROM reached r JOIN pg_type y ON y.oid = r.oid LEFT JOIN LATERAL ( \
            SELECT y.typbasetype, y.typtypmod WHERE y.typtype = 'd' \
            UNION ALL SELECT y.typelem, -1 WHERE y.typtype = 'b' AND y.typcategory = 'A' AND y.typelem <> 0 \
            UNION ALL SELECT g.rngsubtype, -1 FROM pg_range g \
                WHERE y.typtype IN ('r', 'm') AND (g.rngtypid = y.oid OR g.rngmultitypid = y.oid)) \
            AS i (oid, typmod) ON true";
    let node = |row: &Row| {
        let (names, types, formats): (Vec<String>, Vec<u32>, Vec<String>) =
            (row.get(6), row.get(7), row.get(8));
        let attributes = names.into_iter().zip(types).zip(formats);
        let node = Node {
            kind: row.get(1),
            name: row.get(2),
            inner: row.get::<_, Option<u32>>(3).zip(row.get(4)),
            labels: row.get(5),
            attributes: attributes.map(|((name, of), format)| (name, of, format)).collect(),
        };
        (row.get(0), node)
    };
    Ok(client.query(&sql, &[&roots]).await?.iter().map(node).collect())
}

fn grow(nodes: &HashMap<u32, Node>, oid: u32, format: String, depth: usize) -> TypeTree {
    let Some(node) = nodes.get(&oid).filter(|_| depth < DEPTH_MAX) else { return TypeTree::Plain(format) };
    let inner = node.inner.as_ref().map(|(of, format)| grow(nodes, *of, format.clone(), depth + 1));
    match (node.kind.as_str(), inner) {
        ("d", Some(of)) => of,
        ("b", Some(of)) => TypeTree::Array(Box::new(of)),
        ("r" | "m", Some(of)) => TypeTree::Range(Box::new(of)),
        ("e", _) => TypeTree::Enum { name: node.name.clone(), labels: node.labels.clone() },
        ("c", _) => {
            let attribute = |(name, of, format): &(String, u32, String)| Attribute {
                name: name.clone(),
                type_sql: format.clone(),
                of: grow(nodes, *of, format.clone(), depth + 1),
            };
            TypeTree::Composite {
                name: node.name.clone(),
                attributes: node.attributes.iter().map(attribute).collect(),
            }
        }
        _ => TypeTree::Plain(format),
    }
}
