//! What others have built on a table that goes, and what goes with it.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::JournalError;

/// Publications, indexes, foreign keys, rules, policies and statistics that are none of the slice's: what the mirror makes is in
/// `strangler.deferred`, and the unique index that is older than all others came with the table.
const BUILT: &str = "SELECT 'publication ' || quote_ident(p.pubname) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
        WHERE r.prrelid = $1 \
    UNION ALL SELECT 'index ' || quote_ident(i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = $1 \
        AND x.indexrelid IS DISTINCT FROM (SELECT min(k.indexrelid) FROM pg_index k WHERE k.indrelid = $1 AND k.indisunique) \
        AND NOT EXISTS (SELECT FROM strangler.deferred d WHERE d.slice = $2 AND d.target_table = $3 AND d.object = i.relname::text) \
    UNION ALL SELECT 'foreign key ' || quote_ident(k.conname) FROM pg_constraint k WHERE k.conrelid = $1 AND k.contype = 'f' \
        AND NOT EXISTS (SELECT FROM strangler.deferred d WHERE d.slice = $2 AND d.target_table = $3 AND d.object = k.conname::text) \
    UNION ALL SELECT 'rule ' || quote_ident(r.rulename) FROM pg_rewrite r WHERE r.ev_class = $1 \
    UNION ALL SELECT 'policy ' || quote_ident(p.polname) FROM pg_policy p WHERE p.polrelid = $1 \
    UNION ALL SELECT 'statistics ' || s.stxnamespace::regnamespace || '.' || quote_ident(s.stxname) FROM pg_statistic_ext s WHERE s.stxrelid = $1 \
    ORDER BY 1";

/// Kind and name of each. `label` is the table as it is shown. Who calls it: `abandon`, before it drops a table of a service.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(
    service: &Client,
    slice: &str,
    (oid, label): (u32, &str),
) -> Result<Vec<String>, JournalError> {
    let asked: [(&(dyn ToSql + Sync), Type); 3] =
        [(&oid, Type::OID), (&slice, Type::TEXT), (&label, Type::TEXT)];
    let rows = service.query_typed(BUILT, &asked).await;
    let rows = rows.map_err(JournalError::database("looking what is built on a table"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
