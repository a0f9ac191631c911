//! Rows as the journal stores them, as rows that are decided about.

use super::facts::{Cause, Epoch, Gate, GateState, GroupId, Mode, Rows, Stream};
use crate::journal::authority::{GateRow, IncomingRow, SliceRows};
use crate::journal::streams::StreamState;

/// A word in one of our rows that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {found}")]
pub struct UnknownWord {
    what: &'static str,
    found: String,
}

fn known<T>(found: Option<T>, what: &'static str, word: &str) -> Result<T, UnknownWord> {
    found.ok_or_else(|| UnknownWord { what, found: word.to_owned() })
}

impl TryFrom<&GateRow> for Gate {
    type Error = UnknownWord;

    fn try_from(row: &GateRow) -> Result<Self, UnknownWord> {
        Ok(Self {
            state: known(GateState::parse(&row.state), "the gate's state", &row.state)?,
            epoch: Epoch(row.epoch),
            cause: known(Cause::parse(&row.cause), "the gate's cause", &row.cause)?,
            fence_lsn: row.fence,
            cut_lsn: row.cut,
            group: row.group.map(GroupId),
        })
    }
}

impl TryFrom<&IncomingRow> for Stream {
    type Error = UnknownWord;

    fn try_from(row: &IncomingRow) -> Result<Self, UnknownWord> {
        let states = [StreamState::Creating, StreamState::Running, StreamState::Gap, StreamState::Diverged];
        let state = states.into_iter().find(|state| state.as_str() == row.state);
        Ok(Self {
            mode: known(Mode::parse(&row.mode).ok(), "the stream's mode", &row.mode)?,
            epoch: Epoch(row.epoch),
            applied: row.applied,
            state: known(state, "the stream's state", &row.state)?,
        })
    }
}

impl TryFrom<&SliceRows> for Rows {
    type Error = UnknownWord;

    fn try_from(rows: &SliceRows) -> Result<Self, UnknownWord> {
        let incoming = rows.incoming.as_ref().map(Stream::try_from).transpose()?;
        Ok(Self { gate: Gate::try_from(&rows.gate)?, incoming })
    }
}
