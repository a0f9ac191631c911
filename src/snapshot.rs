//! PostgreSQL snapshots as values: which transactions a `pg_snapshot` sees.

use std::fmt;
use std::str::FromStr;

/// A 64-bit transaction id (`xid8`): the 32-bit id with its epoch.
pub type FullXid = u64;

/// The text form `xmin:xmax:xip,xip` of `pg_current_snapshot()` (PostgreSQL documentation, section 9.27.9).
/// Lists top-level transaction ids only.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: FullXid,
    xmax: FullXid,
    /// In progress when the snapshot was taken; ascending.
    in_progress: Vec<FullXid>,
}

/// The text is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a snapshot; one looks like 744:747:744,745")]
pub struct SnapshotParseError {
    text: String,
}

impl Snapshot {
    /// Whether the effects of `xid` are visible, if it committed at all: the rule of `pg_visible_in_snapshot`.
    /// `xid` must be a top-level id; for a subtransaction's the answer means nothing.
    #[must_use]
    pub fn sees(&self, xid: FullXid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Every transaction below it had ended.
    #[must_use]
    pub fn xmin(&self) -> FullXid {
        self.xmin
    }

    /// Gives a 32-bit id of the stream its epoch: the full id nearest to this snapshot's `xmax`. Right while the
    /// two are less than 2^31 transactions apart, which PostgreSQL's own wraparound protection guarantees.
    #[must_use]
    pub fn extend(&self, xid: u32) -> FullXid {
        extend_xid(xid, self.xmax)
    }
}

/// The full id whose low half is `xid` and that is nearest to `near`.
#[must_use]
pub fn extend_xid(xid: u32, near: FullXid) -> FullXid {
    const EPOCH: u64 = 1 << 32;
    let candidate = (near & !(EPOCH - 1)) | u64::from(xid);
    if candidate > near && candidate - near > EPOCH / 2 && candidate >= EPOCH {
        candidate - EPOCH
    } else if near > candidate && near - candidate > EPOCH / 2 {
        candidate + EPOCH
    } else {
        candidate
    }
}

impl FromStr for Snapshot {
    type Err = SnapshotParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SnapshotParseError { text: text.to_owned() };
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(list), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let number = |digits: &str| digits.parse::<FullXid>().map_err(|_| error());
        let mut in_progress = if list.is_empty() {
            Vec::new()
        } else {
            list.split(',').map(number).collect::<Result<_, _>>()?
        };
        in_progress.sort_unstable();
        Ok(Self { xmin: number(xmin)?, xmax: number(xmax)?, in_progress })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> = self.in_progress.iter().map(ToString::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, list.join(","))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended_and_nothing_else() {
        let snapshot: Snapshot = "744:750:744,747".parse().unwrap();
        let seen: Vec<u64> = (740..755).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [740, 741, 742, 743, 745, 746, 748, 749]);
    }

    #[test]
    fn the_text_form_is_kept() {
        for text in ["744:744:", "744:750:744,747", "1:9:3"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1:2", "1:2:3:4", "a:2:", "1:2:x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn xids_are_extended_across_the_wraparound() {
        const EPOCH: u64 = 1 << 32;
        assert_eq!(extend_xid(5, 10), 5);
        assert_eq!(extend_xid(5, EPOCH + 10), EPOCH + 5);
        assert_eq!(extend_xid(u32::MAX, EPOCH + 10), EPOCH - 1);
        assert_eq!(extend_xid(7, EPOCH - 3), EPOCH + 7);
        assert_eq!(extend_xid(u32::MAX, 10), EPOCH - 1, "no epoch before the first");
    }
}
