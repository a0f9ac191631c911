//! What the databases say about a slice's old tables.

use super::dependents::Dependent;
use crate::authority::Side;
use crate::journal::usage::{TableUse, TableUser};
use crate::postgres::statements_seen::Blind;

/// Writes into an old table that got past its gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayWrites {
    /// The table, by the monolith's name.
    pub source_table: String,
    /// Rows, and TRUNCATEs.
    pub count: i64,
    /// When the last was met, in microseconds since 1970.
    pub last_us: i64,
}

/// One slice.
#[derive(Debug, Clone)]
pub struct SliceFacts {
    /// Slice.
    pub slice: String,
    /// Its service.
    pub service: String,
    /// Who may write; nobody while authority moves.
    pub authority: Option<Side>,
    /// Epoch of the monolith's gate.
    pub epoch: i64,
    /// When it was looked, in microseconds since 1970, as all times here.
    pub now_us: i64,
    /// By how much this machine's clock is ahead of the servers', in microseconds, where it agrees with neither.
    pub apart_us: Option<i64>,
    /// How long nobody may have used the tables: the plan's `quiet_period`.
    pub quiet_us: i64,
    /// Its tables by the monolith's names, in the plan's order, with what was seen of each since authority moved.
    pub tables: Vec<(String, Option<TableUse>)>,
    /// Whoever was met there.
    pub users: Vec<TableUser>,
    /// Writes on the monolith since authority moved.
    pub strays: Vec<StrayWrites>,
    /// Objects of the monolith that need the tables.
    pub dependents: Vec<Dependent>,
    /// Why nothing is known of statements.
    pub blind: Option<Blind>,
    /// Physical standbys of the monolith: what is read there is not counted here.
    pub standbys: i64,
    /// Whose reading the server does not count: `the server`, roles, databases.
    pub uncounted: Vec<String>,
    /// The role that looks may not see what others do, so that sessions have no names.
    pub hidden: bool,
}
