//! Values and definitions of old tables that do not survive being moved or archived, though nothing in the catalog hangs on them.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::rights::{Relation, oids};
use crate::problem::Problem;

/// Columns of relations, with what their types are made of at any depth.
const TYPES: &str = "
WITH RECURSIVE t (attrelid, attnum, oid) AS (
    SELECT a.attrelid, a.attnum, a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND NOT c.relispartition
    UNION SELECT t.attrelid, t.attnum, n.oid FROM t JOIN pg_type y ON y.oid = t.oid CROSS JOIN LATERAL (
        SELECT y.typelem UNION ALL SELECT y.typbasetype
        UNION ALL SELECT b.atttypid FROM pg_attribute b
            WHERE b.attrelid = y.typrelid AND y.typrelid <> 0 AND b.attnum > 0 AND NOT b.attisdropped
        UNION ALL SELECT g.rngsubtype FROM pg_range g
            WHERE y.typtype IN ('r', 'm') AND (g.rngtypid = y.oid OR g.rngmultitypid = y.oid)) AS n (oid)
    WHERE n.oid <> 0)";

/// Columns that hold numbers of tables, which are printed as their names: those of a table that moves are other ones then, in the archive
/// and for the way back, which brings what the service prints.
///
/// # Errors
/// The server's.
pub(super) async fn names(monolith: &Client, relations: &[Relation]) -> Result<Vec<Problem>, Error> {
    let sql = format!(
        "{TYPES} SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(c.relname) || '.' || quote_ident(a.attname), t.oid::regtype::text \
         FROM t JOIN pg_attribute a ON (a.attrelid, a.attnum) = (t.attrelid, t.attnum) JOIN pg_class c ON c.oid = t.attrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.oid IN ('regclass'::regtype, 'regtype'::regtype) ORDER BY 1"
    );
    let rows = monolith.query_typed(&sql, &[(&oids(relations), Type::OID_ARRAY)]).await?;
    let problem = |row: &tokio_postgres::Row| {
        let (column, of): (&str, &str) = (row.get(0), row.get(1));
        Problem::warning("retire-names", column)
            .fact(format!("its values are of type {of}, which are printed as names of tables and types"))
            .consequence(
                "a value that means a table of this slice prints another name once that is moved: the archive could not be restored, and the \
                 way back stops over such a row",
            )
            .next("look whether it has such values; if so, drop the column on both sides, or leave the tables where they are")
    };
    Ok(rows.iter().map(problem).collect())
}

/// Collations of somebody's own, which no archive keeps.
///
/// # Errors
/// The server's.
pub(super) async fn collations(monolith: &Client, relations: &[Relation]) -> Result<Vec<Problem>, Error> {
    let sql = format!(
        "{TYPES} SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname), string_agg(DISTINCT u.place, ', ' ORDER BY u.place) FROM ( \
            SELECT a.attrelid::regclass || '.' || quote_ident(a.attname), a.attcollation FROM t \
                JOIN pg_attribute a ON (a.attrelid, a.attnum) = (t.attrelid, t.attnum) \
            UNION SELECT t.oid::regtype::text, y.typcollation FROM t JOIN pg_type y ON y.oid = t.oid \
            UNION SELECT t.oid::regtype::text, b.attcollation FROM t JOIN pg_type y ON y.oid = t.oid \
                JOIN pg_attribute b ON b.attrelid = y.typrelid AND y.typrelid <> 0 AND b.attnum > 0 AND NOT b.attisdropped \
            UNION SELECT t.oid::regtype::text, g.rngcollation FROM t JOIN pg_range g ON t.oid IN (g.rngtypid, g.rngmultitypid) \
            UNION SELECT x.indexrelid::regclass::text, i.oid FROM pg_index x \
                CROSS JOIN LATERAL unnest(string_to_array(x.indcollation::text, ' ')::oid[]) AS i (oid) WHERE x.indrelid = ANY ($1) \
            UNION SELECT p.partrelid::regclass::text, i.oid FROM pg_partitioned_table p \
                CROSS JOIN LATERAL unnest(string_to_array(p.partcollation::text, ' ')::oid[]) AS i (oid) WHERE p.partrelid = ANY ($1) \
            ) AS u (place, oid) JOIN pg_collation l ON l.oid = u.oid JOIN pg_namespace n ON n.oid = l.collnamespace \
         WHERE l.oid >= 16384 GROUP BY 1 ORDER BY 1"
    );
    let rows = monolith.query_typed(&sql, &[(&oids(relations), Type::OID_ARRAY)]).await?;
    let problem = |row: &tokio_postgres::Row| {
        let (collation, places): (&str, &str) = (row.get(0), row.get(1));
        Problem::error("archive-collation", collation)
            .fact(format!("it is a collation of your own, and {places} has it; archives keep no collations so far"))
            .consequence("the tables could not be made again from the archive where it is not there")
            .next("give them a collation that PostgreSQL brings, on both sides; else the tables stay in quarantine")
    };
    Ok(rows.iter().map(problem).collect())
}
