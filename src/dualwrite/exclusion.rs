//! One at a time: a session lock by which verbs that change what guards a slice keep each other away.
//!
//! Taken in every database that a verb works on, by `provision`, `arm` and `disarm`; a flip that takes it on both sides
//! meets no change of gates half-way. A session lock rather than a transaction, so that nothing is held open across
//! databases; it ends with its session, however that ends. Safety does not rest on it.

use tokio_postgres::{Client, Error};

use super::gate::LOCK_CLASS;

/// Takes it; `false` when somebody else holds it.
///
/// # Errors
/// What the server said.
pub async fn try_take(client: &Client) -> Result<bool, Error> {
    client.query_one("SELECT pg_try_advisory_lock($1, 0)", &[&LOCK_CLASS]).await?.try_get(0)
}

/// Lets it go, where this session holds it.
pub async fn release(client: &Client) {
    let sql = format!(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() \
         AND classid = {LOCK_CLASS} AND objid = 0 AND objsubid = 2) \
         THEN PERFORM pg_advisory_unlock({LOCK_CLASS}, 0); END IF; END $$"
    );
    // A broken connection has released it already.
    let _ = client.batch_execute(&sql).await;
}
