//! Moves of authority that have begun, in the service's journal: who began one, who approved it, and why without evidence. Whoever
//! finishes it may be another process, and the ledger is to say the reason even so. And in the monolith's, why one can't be finished.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::JournalError;
use super::abandonment::of_this_life;
use super::ledger::Author;

/// `journal.action` of these entries.
const ACTION: &str = "flip-begun";

/// `journal.action` of the entries of moves that can't be finished.
const BLOCKED: &str = "flip-blocked";

/// Why a side can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The epoch that the move would end with.
    pub epoch: i64,
    /// Why, in words.
    pub why: String,
}

/// What is noted before a gate closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// `flip` or `flip-back`.
    pub action: String,
    /// The epoch that the move ends with.
    pub epoch: i64,
    /// Who.
    pub operator: String,
    /// Where.
    pub host: String,
    /// `--accept-no-evidence`.
    pub remark: Option<String>,
    /// `--approved-by`.
    #[serde(default)]
    pub approved_by: Option<String>,
}

impl Begun {
    /// What is noted of a move that this author begins.
    #[must_use]
    pub fn by(
        author: &Author,
        action: &str,
        epoch: i64,
        (remark, approved_by): (Option<&str>, Option<&str>),
    ) -> Self {
        Self {
            action: action.to_owned(),
            epoch,
            operator: author.operator.clone(),
            host: author.host.clone(),
            remark: remark.map(str::to_owned),
            approved_by: approved_by.map(str::to_owned),
        }
    }
}

/// Notes that a move begins.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn begin(client: &Client, slice: &str, begun: &Begun) -> Result<(), JournalError> {
    let detail = serde_json::to_value(begun).unwrap_or_default();
    super::record(client, Some(slice), ACTION, &detail).await
}

/// What was noted last of the move that ends with this epoch.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn begun(client: &Client, slice: &str, epoch: i64) -> Result<Option<Begun>, JournalError> {
    let sql = format!(
        "SELECT detail::text FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {} \
               AND detail->>'epoch' = $3::int8::text ORDER BY id DESC LIMIT 1",
        of_this_life("j", "$1")
    );
    let row = client.query_opt(&sql, &[&slice, &ACTION, &epoch]).await;
    let row = row.map_err(JournalError::database("reading who began a move"))?;
    // An entry of another form says nothing to us.
    Ok(row.and_then(|row| serde_json::from_str(row.get(0)).ok()))
}

/// Notes in the monolith why the side that was to be opened with this epoch can't be.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn block(client: &Client, slice: &str, blocked: &Blocked) -> Result<(), JournalError> {
    let detail = serde_json::to_value(blocked).unwrap_or_default();
    super::record(client, Some(slice), BLOCKED, &detail).await
}

/// What was noted last of a move of the slice that could not be finished, which may be over since.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn blocked(client: &Client, slice: &str) -> Result<Option<Blocked>, JournalError> {
    let sql = format!(
        "SELECT detail::text FROM strangler.journal j WHERE slice = $1 AND action = $2 AND {} ORDER BY id DESC LIMIT 1",
        of_this_life("j", "$1")
    );
    let row = client.query_opt(&sql, &[&slice, &BLOCKED]).await;
    let row = row.map_err(JournalError::database("reading why a move can't be finished"))?;
    Ok(row.and_then(|row| serde_json::from_str(row.get(0)).ok()))
}
