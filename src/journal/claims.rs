//! The right to write as one stream's mirror, shown to the database in every transaction, and the tag that such a
//! transaction begins with.

use futures_util::future::join;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Statement};

use super::JournalError;
use super::slices;
use super::streams::{Direction, Mode, StreamOf};
use crate::lsn::Lsn;
use crate::name::quote_ident;

/// What a process must find in the stream row before it may write: its own nonce, epoch and position.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Slice.
    pub slice: String,
    /// Which of its streams.
    pub direction: Direction,
    /// What that stream was for at start.
    pub mode: Mode,
    /// Nonce taken at start.
    pub nonce: i64,
    /// Epoch read at start.
    pub epoch: i64,
    /// Position up to which everything is applied, or looked through by a tripwire.
    pub applied: Lsn,
}

/// The statements of a [`Claim`], prepared once per connection.
#[derive(Debug, Clone)]
pub struct ClaimStatements {
    lock: Statement,
    share: Statement,
    advance: Statement,
    tag: Statement,
    secret: String,
}

impl ClaimStatements {
    /// Prepares them for one stream in one mode.
    ///
    /// Nothing is applied to a side that is open to its application: whatever a stream row says, the gate beside it in
    /// the same database has the last word.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn prepare(client: &Client, claim: &Claim) -> Result<Self, JournalError> {
        let (direction, mode) = (claim.direction.as_str(), claim.mode.as_str());
        let row = format!(
            "slice = $1 AND dir = '{direction}' AND lane = 0 AND nonce = $2 AND epoch = $3 AND mode = '{mode}' \
             AND applied_lsn = $4"
        );
        let fenced = match claim.mode {
            Mode::Apply => format!(
                "AND NOT EXISTS (SELECT FROM strangler.{} WHERE state = 'OPEN')",
                quote_ident(&format!("gate_{}", claim.slice))
            ),
            Mode::Tripwire | Mode::Off => String::new(),
        };
        let check =
            |strength: &str| format!("SELECT 1 FROM strangler.stream WHERE {row} {fenced} {strength}");
        let advance = format!(
            "UPDATE strangler.stream SET applied_lsn = $5, applied_at = now(), \
                 source_time = greatest(source_time, \
                     timestamptz '2000-01-01 00:00:00+00' + $6::bigint * interval '1 microsecond') \
             WHERE {row}"
        );
        let prepare = async |sql: &str| {
            client.prepare(sql).await.map_err(JournalError::database("preparing the stream row's statements"))
        };
        Ok(Self {
            lock: prepare(&check("FOR UPDATE OF stream")).await?,
            share: prepare(&check("FOR SHARE OF stream")).await?,
            advance: prepare(&advance).await?,
            tag: prepare("SELECT pg_logical_emit_message(true, $1, $2)").await?,
            secret: slices::database_uuid(client).await?.unwrap_or_default(),
        })
    }
}

/// Prefix of the logical message that every transaction of a mirror begins with, in both directions: by it the stream
/// of the other direction knows what it must not send back. Everybody may send a message, so its content ends with the uuid
/// of the database that it is sent in, which no role of an application may read.
pub const TAG_PREFIX: &str = "strangler";

/// Whether a tag is one of this slice's mirror, of whatever epoch. `secret` is the uuid of the database that it was sent in. A
/// slice's name holds no colon.
#[must_use]
pub fn tag_is_of(content: &[u8], slice: &str, secret: &str) -> bool {
    let mut parts = content.splitn(3, |byte| *byte == b':');
    let (of, epoch, knows) = (parts.next(), parts.next(), parts.next());
    !slice.is_empty()
        && !secret.is_empty()
        && of == Some(slice.as_bytes())
        && epoch.is_some()
        && knows == Some(secret.as_bytes())
}

impl Claim {
    /// Whose row it is about.
    #[must_use]
    pub fn of(&self) -> StreamOf<'_> {
        StreamOf { slice: &self.slice, direction: self.direction }
    }

    /// First statements of an apply transaction: lock the row if it still is as claimed, and tag the transaction before
    /// its first row. `false` means that this process was shut out, and that the transaction must be rolled back.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn lock(&self, client: &Client, statements: &ClaimStatements) -> Result<bool, JournalError> {
        self.begin(client, &statements.lock, statements).await
    }

    /// First statements of a landing: the same check, shared, so that landings of one process run side by side.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn share(&self, client: &Client, statements: &ClaimStatements) -> Result<bool, JournalError> {
        self.begin(client, &statements.share, statements).await
    }

    async fn begin(
        &self,
        client: &Client,
        check: &Statement,
        statements: &ClaimStatements,
    ) -> Result<bool, JournalError> {
        let applied = PgLsn::from(self.applied);
        let params: [&(dyn ToSql + Sync); 4] = [&self.slice, &self.nonce, &self.epoch, &applied];
        let content = format!("{}:{}:{}", self.slice, self.epoch, statements.secret);
        let tag: [&(dyn ToSql + Sync); 2] = [&TAG_PREFIX, &content];
        // Sent in one go, so the tag costs no round trip of its own.
        let (checked, tagged) =
            join(client.query_opt(check, &params), client.execute(&statements.tag, &tag)).await;
        let checked = checked.map_err(JournalError::database("checking the stream row"))?;
        tagged.map_err(JournalError::database("tagging a transaction"))?;
        Ok(checked.is_some())
    }

    /// Last statement of an apply transaction that holds the lock: the position moves to `to`.
    /// `source_time_us` is the source's time of that state, in microseconds since 2000-01-01 UTC.
    ///
    /// # Errors
    /// [`JournalError::Database`].
    pub async fn advance(
        &self,
        client: &Client,
        statements: &ClaimStatements,
        to: Lsn,
        source_time_us: i64,
    ) -> Result<bool, JournalError> {
        client
            .execute(
                &statements.advance,
                &[
                    &self.slice,
                    &self.nonce,
                    &self.epoch,
                    &PgLsn::from(self.applied),
                    &PgLsn::from(to),
                    &source_time_us,
                ],
            )
            .await
            .map(|rows| rows == 1)
            .map_err(JournalError::database("moving the applied position"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_the_slice_that_its_content_begins_with_where_it_knows_the_secret() {
        assert!(
            tag_is_of(b"orders:7:uuid", "orders", "uuid") && tag_is_of(b"orders::uuid", "orders", "uuid")
        );
        for other in ["order", "orders2", "", "orders:7"] {
            assert!(!tag_is_of(b"orders:7:uuid", other, "uuid"), "{other}");
        }
        for forged in
            ["orders:7", "orders:7:", "orders:7:other", "orders:7:uuid:", "orders:uuid", "orders", ""]
        {
            assert!(!tag_is_of(forged.as_bytes(), "orders", "uuid"), "{forged}");
            assert!(!tag_is_of(forged.as_bytes(), "orders", ""), "{forged}");
        }
    }
}
