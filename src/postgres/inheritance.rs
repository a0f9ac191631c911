//! Plain inheritance, which partitions don't count to. Reading or writing a table includes its children's rows, and neither
//! the stream of the table nor a statement trigger on a child knows of that (PostgreSQL documentation, section 5.11).

use std::fmt;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::name::TableName;

/// One table inherits from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inherited {
    /// Who inherits.
    pub child: TableName,
    /// From whom.
    pub parent: TableName,
}

/// As an operator reads it.
impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} inherits from {}", self.child, self.parent)
    }
}

impl Inherited {
    /// The statement that ends it; both keep their rows.
    #[must_use]
    pub fn undo(&self) -> String {
        format!("ALTER TABLE {} NO INHERIT {}", self.child.sql(), self.parent.sql())
    }
}

const READ: &str = "
WITH asked AS (SELECT to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) AS w (name))
SELECT m.nspname::text, c.relname::text, n.nspname::text, p.relname::text FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace m ON m.oid = c.relnamespace
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
WHERE c.relkind IN ('r', 'f') AND p.relkind IN ('r', 'f')
    AND (i.inhrelid IN (SELECT oid FROM asked) OR i.inhparent IN (SELECT oid FROM asked))
ORDER BY 1, 2, 3, 4";

/// Where one of `tables` inherits or is inherited from.
///
/// # Errors
/// What the server said.
pub async fn read(client: &Client, tables: &[TableName]) -> Result<Vec<Inherited>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let rows = client.query_typed(READ, &parameters).await?;
    let inherited = rows.iter().map(|row| Inherited {
        child: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        parent: TableName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
    });
    Ok(inherited.collect())
}

/// As [`read`], only where one of `tables` is the parent.
///
/// # Errors
/// What the server said.
pub async fn children(client: &Client, tables: &[TableName]) -> Result<Vec<Inherited>, Error> {
    let mut found = read(client, tables).await?;
    found.retain(|one| tables.contains(&one.parent));
    Ok(found)
}
