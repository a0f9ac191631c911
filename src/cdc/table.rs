//! One table of a running slice: its mapping, its pieces, how it stands.

use std::sync::Arc;

use tokio_postgres::Client;

use super::error::MirrorError;
use crate::journal::copies::{Extent, PieceRow, TableRow, TableState};
use crate::landing::key::{Key, Point};
use crate::landing::pieces::{RangePiece, Stamp, TablePieces};
use crate::lsn::Lsn;
use crate::mapping::input::is_users;
use crate::mapping::{KeyOrder, TableMapping};
use crate::name::quote_ident;
use crate::postgres::{column_types, equality};

/// A table as the engine holds it in memory; the stored truth is in the service's database.
#[derive(Debug)]
pub struct TableRun {
    /// Name in the monolith, as a plan writes it: the key of our stored rows.
    pub label: String,
    /// Its mapping.
    pub mapping: Arc<TableMapping>,
    /// The same with types as the target names them, for statements that are run there: see `written`.
    pub written: Arc<TableMapping>,
    /// Copied pieces; empty while nothing is copied and while the table stands still.
    pub pieces: TablePieces,
    /// How it stands.
    pub state: TableState,
    /// Columns of the target table that are not mapped, quoted: what they hold is the target's own.
    pub left_behind: Vec<String>,
    /// By which operators the target finds a key, in key order.
    pub equality: Vec<String>,
    /// Copied in key ranges rather than as a whole.
    pub by_ranges: bool,
    /// The rows of its last copy are there: pieces are compared, and copied where they differ.
    pub kept: bool,
    /// Rows landed so far.
    pub rows_copied: u64,
    /// COPY bytes landed so far.
    pub bytes_copied: u64,
    /// COPY bytes on their way, not landed yet: for display.
    pub bytes_moving: u64,
    /// What the parts of an unfinished whole-table piece were read under.
    pub parts_read: Option<PieceRow>,
    /// Why it stands still, for the operator.
    pub detail: Option<String>,
}

/// What is known of the target's table.
#[derive(Debug)]
pub struct Target {
    left_behind: Vec<String>,
    equality: Vec<String>,
    written: TableMapping,
}

impl Target {
    /// Asks the target.
    ///
    /// # Errors
    /// [`MirrorError::Sql`], or [`MirrorError::Refused`] where the table is gone.
    pub async fn read(target: &Client, mapping: &TableMapping) -> Result<Self, MirrorError> {
        Ok(Self {
            left_behind: left_behind(target, mapping).await?,
            equality: key_equality(target, mapping).await?,
            written: written(target, mapping).await?,
        })
    }
}

impl TableRun {
    /// Every column of the target table is mapped, so that a changed key may become delete and insert.
    #[must_use]
    pub fn rows_are_whole(&self) -> bool {
        self.left_behind.is_empty()
    }

    /// A table as its stored rows tell.
    ///
    /// # Errors
    /// [`MirrorError::Unreadable`] when a stored piece can't be read.
    pub fn restore(
        mapping: &Arc<TableMapping>,
        row: &TableRow,
        pieces: &[PieceRow],
        Target { left_behind, equality, written }: Target,
        by_ranges: bool,
    ) -> Result<Self, MirrorError> {
        let order = mapping.key_order;
        let mut table = Self {
            label: row.source_table.clone(),
            mapping: Arc::clone(mapping),
            written: Arc::new(written),
            pieces: TablePieces::empty(order),
            state: row.state,
            left_behind,
            equality,
            by_ranges,
            kept: row.kept,
            rows_copied: u64::try_from(row.rows_copied).unwrap_or(0),
            bytes_copied: u64::try_from(row.bytes_copied).unwrap_or(0),
            bytes_moving: 0,
            parts_read: None,
            detail: row.detail.clone(),
        };
        if row.state == TableState::Live {
            // Of a live table only keys are stored: rows that entered its filter and were read again.
            table.pieces = TablePieces::live(order);
        }
        for piece in pieces.iter().filter(|piece| piece.source_table == row.source_table) {
            table.add(piece)?;
        }
        Ok(table)
    }

    /// Adds a piece that has landed.
    ///
    /// # Errors
    /// [`MirrorError::Unreadable`].
    pub fn add(&mut self, piece: &PieceRow) -> Result<(), MirrorError> {
        let unreadable =
            |what: &str| MirrorError::Unreadable { what: format!("a piece of {}: its {what}", self.label) };
        let snapshot = piece.snapshot.parse().map_err(|_| unreadable("snapshot"))?;
        let stamp = Stamp { snapshot: Arc::new(snapshot), lsn: piece.lsn };
        match &piece.extent {
            Extent::Whole => self.pieces.add_whole(stamp),
            Extent::Key(parts) => self.pieces.add_key(Key::from_strings(parts.clone()), stamp),
            Extent::Range { lo, hi } => {
                let order = self.mapping.key_order;
                let point = |text: &Option<String>| match text {
                    None => Ok(None),
                    Some(text) => Point::parse(order, text.as_bytes()).map(Some),
                };
                let lo = point(lo).map_err(|_| unreadable("lower border"))?;
                let hi = point(hi).map_err(|_| unreadable("upper border"))?;
                self.pieces.add_range(RangePiece { lo, hi, stamp });
            }
        }
        Ok(())
    }

    /// Something is left to copy.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        matches!(self.state, TableState::Pending | TableState::Copying) && self.pieces.first_gap().is_some()
    }

    /// All is copied, and the stream has passed it at `applied`; or the table is live, and the stream has passed the
    /// keys that were read again since.
    #[must_use]
    pub fn can_go_live(&self, applied: Lsn) -> bool {
        let waits = match self.state {
            TableState::Pending | TableState::Copying => true,
            TableState::Live => self.pieces.has_keys(),
            TableState::Diverged => false,
        };
        waits && self.pieces.passed_at().is_some_and(|lsn| applied >= lsn)
    }

    /// Every piece is passed: all events apply from here on.
    pub fn go_live(&mut self) {
        self.kept = false;
        self.pieces = TablePieces::live(self.mapping.key_order);
        self.state = TableState::Live;
    }

    /// The table stands still: its events are dropped until it is copied again.
    pub fn stand_still(&mut self, detail: String) {
        self.pieces = TablePieces::empty(self.mapping.key_order);
        self.state = TableState::Diverged;
        self.detail = Some(detail);
    }
}

/// Chooses key ranges for a table whose key is laid out in order on disk, so that a range reads few pages, and that
/// is large enough to be worth more than one piece.
#[must_use]
pub fn choose_ranges(mapping: &TableMapping, rows_per_range: u64) -> bool {
    /// Below this, index order jumps about the heap and a range reads more pages than it needs.
    const CORRELATED: f64 = 0.9;
    let correlated = match (mapping.key_order, mapping.key_correlation) {
        (KeyOrder::Opaque, _) => false,
        (_, Some(correlation)) => correlation.abs() >= CORRELATED,
        (KeyOrder::Integer, None) => true,
        (KeyOrder::Uuid, None) => false,
    };
    correlated && expected_rows(mapping) > rows_per_range.saturating_mul(2)
}

/// Chooses key ranges for a table whose rows are compared: what is equal costs nothing, so that small pieces are worth more reading.
#[must_use]
pub fn choose_kept_ranges(mapping: &TableMapping, rows_per_range: u64) -> bool {
    mapping.key_order != KeyOrder::Opaque && expected_rows(mapping) > rows_per_range
}

/// Rows that the catalogs promise; where a table was never analysed, a guess from its size.
#[must_use]
pub fn expected_rows(mapping: &TableMapping) -> u64 {
    /// A lean row with its header.
    const ROW_BYTES: u64 = 64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate that is never negative"
    )]
    let estimate = mapping.rows_estimate.max(0.0) as u64;
    if estimate > 0 { estimate } else { mapping.heap_bytes / ROW_BYTES }
}

/// Columns of the target table that can be written and are not mapped, quoted.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn left_behind(target: &Client, mapping: &TableMapping) -> Result<Vec<String>, MirrorError> {
    let rows = target
        .query(
            "SELECT a.attname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped \
               AND a.attgenerated = '' ORDER BY a.attnum",
            &[&mapping.target.place_schema(), &mapping.target.name],
        )
        .await
        .map_err(MirrorError::sql("reading the columns of a target table"))?;
    if rows.is_empty() {
        return Err(MirrorError::Refused {
            what: format!(
                "the table {} does not exist in the {}",
                mapping.target,
                if mapping.reversed { "monolith" } else { "service" }
            ),
            next: "strangler provision PLAN".to_owned(),
        });
    }
    let mapped = |name: &&str| mapping.columns.iter().any(|column| column.target == **name);
    Ok(rows.iter().map(|row| row.get(0)).filter(|name| !mapped(name)).map(quote_ident).collect())
}

/// By which operators the target finds a key, in key order.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn key_equality(target: &Client, mapping: &TableMapping) -> Result<Vec<String>, MirrorError> {
    let columns = mapping.key_columns().map(|column| column.target.as_str()).collect();
    let found = equality::of_keys(target, &[(mapping.target.sql(), columns)]).await;
    let found = found.map_err(MirrorError::sql("reading how keys are compared"))?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// The mapping with types as the target has them. An adopted table may have an enum of another name or schema, of which only
/// the labels are those of the monolith's, and larger integers, of which only the text is the same.
async fn written(target: &Client, mapping: &TableMapping) -> Result<TableMapping, MirrorError> {
    let theirs = column_types::of(target, &mapping.target).await;
    let mut theirs = theirs.map_err(MirrorError::sql("reading the types of a target table"))?;
    let mut written = mapping.clone();
    for column in &mut written.columns {
        let Some(sql) = theirs.remove(&column.target) else { continue };
        column.binary &= sql == column.cast_sql || TEXTS.contains(&sql.as_str());
        if is_users(&sql) {
            column.cast_sql = sql;
        }
    }
    Ok(written)
}

/// Types that take each other's binary form.
const TEXTS: [&str; 2] = ["text", "character varying"];
