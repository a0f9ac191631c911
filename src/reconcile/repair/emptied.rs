//! Tables of which the authority holds no row and the copy does. Whoever lost them by accident has the copy's rows alone, and a
//! repair would delete these as well.

use std::fmt;

use tokio_postgres::Client;

use super::{RepairError, wanted};
use crate::cdc::mirror::chain_of;
use crate::mapping::TableMapping;
use crate::reconcile::finding::FindingKind;
use crate::reconcile::form::Side;
use crate::reconcile::run::{Done, RunError, SliceJob};
use crate::reconcile::sides::Sides;
use crate::words;

/// Such a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emptied {
    /// Slice.
    pub slice: String,
    /// The monolith's name of the table.
    pub table: String,
    /// `monolith` or `service`: the side that holds no row of it.
    pub authority: &'static str,
    /// The other one.
    pub copy: &'static str,
    /// Rows that a repair would take out of the copy.
    pub rows: usize,
}

impl fmt::Display for Emptied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slice, table, authority, copy, rows } = self;
        let rows = words::plural(*rows, "row");
        write!(
            f,
            "slice {slice}: the {authority} has the authority and holds no row of {table} at all, so a repair would delete {rows} from \
             the {copy}"
        )
    }
}

/// Somebody says that it is right that the authority holds no row of these tables.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// `--accept-no-rows REASON`.
    pub reason: &'a str,
    /// The tables.
    pub tables: &'a [Emptied],
}

impl<'a> Accepted<'a> {
    /// The reason, where it is about this table of the slice, by the monolith's name.
    #[must_use]
    pub fn of(&self, slice: &str, table: &str) -> Option<&'a str> {
        self.tables.iter().any(|one| one.slice == slice && one.table == table).then_some(self.reason)
    }
}

/// The tables of a run that found differences which the authority holds no row of, while a repair would delete rows of the copy. The
/// authority is asked now: a run may be a while ago. Who calls it: the command, before anything is asked for.
///
/// # Errors
/// [`RepairError::NotAsked`].
pub async fn emptied(job: &SliceJob, done: &Done) -> Result<Vec<Emptied>, RepairError> {
    let (slice, authority) = (&job.mapping.slice, done.sides.authority);
    let mut found = Vec::new();
    let mut reader = None;
    for wanted in wanted(job, done) {
        let rows = wanted.rows.iter().filter(|(_, kind)| *kind == FindingKind::Extra).count();
        if rows == 0 {
            continue;
        }
        let client = match reader.take() {
            Some(client) => client,
            None => done.sides.reader(authority).await.map_err(RunError::Connect)?,
        };
        let asked = has_rows(&client, wanted.mapping, authority).await;
        let failed = |error| RepairError::NotAsked { slice: slice.clone(), why: chain_of(&error) };
        if !asked.map_err(failed)? {
            found.push(Emptied {
                slice: slice.clone(),
                table: wanted.mapping.source.to_string(),
                authority: Sides::word(authority),
                copy: Sides::word(done.sides.copy()),
                rows,
            });
        }
        reader = Some(client);
    }
    Ok(found)
}

/// Whether a side has a row of a table that the slice takes.
async fn has_rows(
    client: &Client,
    mapping: &TableMapping,
    side: Side,
) -> Result<bool, tokio_postgres::Error> {
    let (table, filter) = match side {
        Side::Source => (&mapping.source, mapping.filter_sql()),
        Side::Target => (&mapping.target, mapping.target_filter_sql()),
    };
    let filter = filter.map_or_else(String::new, |filter| format!(" WHERE {filter}"));
    let sql = format!("SELECT EXISTS (SELECT FROM {}{filter})", table.sql());
    Ok(client.query_typed_one(&sql, &[]).await?.get(0))
}
