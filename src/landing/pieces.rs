//! The copied pieces of one table, and how an event on a key stands towards them.

use std::collections::HashMap;
use std::sync::Arc;

use super::key::{Key, Point, PointError};
use crate::lsn::Lsn;
use crate::mapping::KeyOrder;
use crate::snapshot::Snapshot;

/// What a piece was read under.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Its snapshot.
    pub snapshot: Arc<Snapshot>,
    /// WAL insert position read after the snapshot: every transaction that the snapshot sees committed before it.
    pub lsn: Lsn,
}

impl Stamp {
    fn standing(&self, event: &EventOrigin) -> Standing {
        let xid = self.snapshot.extend(event.xid);
        if event.commit_lsn < self.lsn && self.snapshot.sees(xid) {
            Standing::Visible
        } else {
            Standing::Apply
        }
    }
}

/// Which transaction an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventOrigin {
    /// Top-level transaction id; never a subtransaction's, whose visibility means nothing.
    pub xid: u32,
    /// Start of its commit record.
    pub commit_lsn: Lsn,
}

/// How an event on one key stands towards the pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No piece holds the key's place: it has not been copied yet, or the filter leaves it out. (N)
    Absent,
    /// The piece was read with the event's effect already in it. (V)
    Visible,
    /// The piece was read without it. (A)
    Apply,
}

/// A range of keys, (lo, hi], open where `None`.
#[derive(Debug, Clone)]
pub struct RangePiece {
    /// Exclusive lower border.
    pub lo: Option<Point>,
    /// Inclusive upper border.
    pub hi: Option<Point>,
    /// What it was read under.
    pub stamp: Stamp,
}

impl RangePiece {
    fn holds(&self, point: Point) -> bool {
        self.lo.is_none_or(|lo| point > lo) && self.hi.is_none_or(|hi| point <= hi)
    }
}

/// What is copied of one table.
#[derive(Debug, Clone)]
pub struct TablePieces {
    order: KeyOrder,
    /// Everything is in and passed: all events apply, but for those of refetched keys.
    live: bool,
    whole: Option<Stamp>,
    /// Sorted by lower border; never overlap.
    ranges: Vec<RangePiece>,
    /// Refetched rows, which decide from their own snapshot on.
    keys: HashMap<Key, Stamp>,
}

impl TablePieces {
    /// A table of which nothing is copied.
    #[must_use]
    pub fn empty(order: KeyOrder) -> Self {
        Self { order, live: false, whole: None, ranges: Vec::new(), keys: HashMap::new() }
    }

    /// A table that needs no pieces any more.
    #[must_use]
    pub fn live(order: KeyOrder) -> Self {
        Self { live: true, ..Self::empty(order) }
    }

    /// Whether all events apply.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Adds the piece that holds the whole table.
    pub fn add_whole(&mut self, stamp: Stamp) {
        self.whole = Some(stamp);
    }

    /// Adds a range.
    pub fn add_range(&mut self, range: RangePiece) {
        let at = self.ranges.partition_point(|other| other.lo < range.lo);
        self.ranges.insert(at, range);
    }

    /// Refetched keys are remembered: a row that entered the filter of a live table, for example.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Adds or replaces the piece of one refetched key.
    pub fn add_key(&mut self, key: Key, stamp: Stamp) {
        self.keys.insert(key, stamp);
    }

    /// How an event on `key` stands.
    ///
    /// # Errors
    /// [`PointError`] when the key does not read as its type.
    pub fn standing(&self, key: &Key, event: &EventOrigin) -> Result<Standing, PointError> {
        if let Some(stamp) = self.keys.get(key) {
            return Ok(stamp.standing(event));
        }
        if self.live {
            return Ok(Standing::Apply);
        }
        if let Some(stamp) = &self.whole {
            return Ok(stamp.standing(event));
        }
        if self.ranges.is_empty() {
            return Ok(Standing::Absent);
        }
        let text = key.parts().first().map_or(&b""[..], |part| part);
        let point = Point::parse(self.order, text)?;
        Ok(self.range_of(point).map_or(Standing::Absent, |range| range.stamp.standing(event)))
    }

    fn range_of(&self, point: Point) -> Option<&RangePiece> {
        let after = self.ranges.partition_point(|range| range.lo.is_none_or(|lo| lo < point));
        self.ranges.get(after.checked_sub(1)?).filter(|range| range.holds(point))
    }

    /// The first stretch of keys that no range holds, as (lo, hi]; `None` when all is held.
    #[must_use]
    pub fn first_gap(&self) -> Option<(Option<Point>, Option<Point>)> {
        if self.live || self.whole.is_some() {
            return None;
        }
        let mut reached: Option<Point> = None;
        for (index, range) in self.ranges.iter().enumerate() {
            let continues = if index == 0 { range.lo.is_none() } else { range.lo == reached };
            if !continues {
                return Some((reached, range.lo));
            }
            reached = range.hi;
            reached?;
        }
        Some((reached, None))
    }

    /// Position that the stream must have passed before the pieces can be forgotten; `None` while keys are missing.
    #[must_use]
    pub fn passed_at(&self) -> Option<Lsn> {
        if self.first_gap().is_some() {
            return None;
        }
        let keys = self.keys.values().map(|stamp| stamp.lsn);
        let ranges = self.ranges.iter().map(|range| range.stamp.lsn);
        let whole = self.whole.iter().map(|stamp| stamp.lsn);
        keys.chain(ranges).chain(whole).max().or(Some(Lsn::ZERO))
    }

    /// How a TRUNCATE stands towards each piece: pieces that must lose their rows, and whether that is all of them.
    #[must_use]
    pub fn truncation(&self, event: &EventOrigin) -> Truncation {
        let applies = |stamp: &Stamp| stamp.standing(event) == Standing::Apply;
        let ranges: Vec<(Option<Point>, Option<Point>)> = self
            .ranges
            .iter()
            .filter(|range| applies(&range.stamp))
            .map(|range| (range.lo, range.hi))
            .collect();
        let keys_seen: Vec<Key> =
            self.keys.iter().filter(|(_, stamp)| !applies(stamp)).map(|(key, _)| key.clone()).collect();
        let keys_gone: Vec<Key> =
            self.keys.iter().filter(|(_, stamp)| applies(stamp)).map(|(key, _)| key.clone()).collect();
        let whole = self.live || self.whole.as_ref().is_some_and(applies);
        let everything = whole || (self.whole.is_none() && ranges.len() == self.ranges.len());
        if everything && keys_seen.is_empty() {
            Truncation::All
        } else {
            Truncation::Some { whole, ranges, keys_gone, keys_kept: keys_seen }
        }
    }
}

/// What a TRUNCATE means for the copied pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truncation {
    /// Every copied row goes.
    All,
    /// Rows of some pieces go.
    Some {
        /// Rows of the whole-table piece go.
        whole: bool,
        /// Rows of these ranges go.
        ranges: Vec<(Option<Point>, Option<Point>)>,
        /// Rows of these keys go, whatever their range says.
        keys_gone: Vec<Key>,
        /// Rows of these keys stay, whatever their range says.
        keys_kept: Vec<Key>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(snapshot: &str, lsn: u64) -> Stamp {
        Stamp { snapshot: Arc::new(snapshot.parse().unwrap()), lsn: Lsn(lsn) }
    }

    fn key(number: i64) -> Key {
        Key::from_strings(vec![number.to_string()])
    }

    fn range(lo: Option<i64>, hi: Option<i64>, at: Stamp) -> RangePiece {
        RangePiece { lo: lo.map(Point::Integer), hi: hi.map(Point::Integer), stamp: at }
    }

    fn event(xid: u32, commit: u64) -> EventOrigin {
        EventOrigin { xid, commit_lsn: Lsn(commit) }
    }

    #[test]
    fn an_event_is_skipped_exactly_when_its_transaction_is_visible_in_the_piece() {
        let mut pieces = TablePieces::empty(KeyOrder::Integer);
        pieces.add_range(range(None, Some(10), stamp("100:105:102", 1000)));
        let standing = |number, xid, lsn| pieces.standing(&key(number), &event(xid, lsn)).unwrap();
        assert_eq!(standing(5, 101, 900), Standing::Visible);
        assert_eq!(standing(5, 102, 900), Standing::Apply, "in the stream before it is visible");
        assert_eq!(standing(5, 101, 1000), Standing::Apply, "committed past the piece");
        assert_eq!(standing(10, 101, 900), Standing::Visible, "the upper border belongs to the range");
        assert_eq!(standing(11, 101, 900), Standing::Absent);
    }

    #[test]
    fn a_refetched_key_overrides_its_range() {
        let mut pieces = TablePieces::empty(KeyOrder::Integer);
        pieces.add_range(range(None, None, stamp("100:100:", 1000)));
        assert_eq!(pieces.standing(&key(7), &event(150, 1500)), Ok(Standing::Apply));
        pieces.add_key(key(7), stamp("200:200:", 2000));
        assert_eq!(pieces.standing(&key(7), &event(150, 1500)), Ok(Standing::Visible));
        assert_eq!(pieces.standing(&key(8), &event(150, 1500)), Ok(Standing::Apply));
        assert_eq!(pieces.passed_at(), Some(Lsn(2000)));
    }

    #[test]
    fn gaps_are_found_in_order_until_all_keys_are_held() {
        let at = stamp("1:1:", 1);
        let mut pieces = TablePieces::empty(KeyOrder::Integer);
        let point = |number| Some(Point::Integer(number));
        assert_eq!(pieces.first_gap(), Some((None, None)));
        pieces.add_range(range(Some(10), Some(20), at.clone()));
        assert_eq!(pieces.first_gap(), Some((None, point(10))));
        pieces.add_range(range(None, Some(10), at.clone()));
        assert_eq!(pieces.first_gap(), Some((point(20), None)));
        assert_eq!(pieces.passed_at(), None);
        pieces.add_range(range(Some(30), None, at.clone()));
        assert_eq!(pieces.first_gap(), Some((point(20), point(30))));
        pieces.add_range(range(Some(20), Some(30), at));
        assert_eq!(pieces.first_gap(), None);
    }

    #[test]
    fn a_truncation_spares_what_was_copied_after_it() {
        let mut pieces = TablePieces::empty(KeyOrder::Integer);
        pieces.add_range(range(None, Some(10), stamp("100:100:", 1000)));
        assert_eq!(pieces.truncation(&event(150, 1500)), Truncation::All);
        pieces.add_range(range(Some(10), None, stamp("200:200:", 2000)));
        let Truncation::Some { ranges, .. } = pieces.truncation(&event(150, 1500)) else { panic!("not all") };
        assert_eq!(ranges, [(None, Some(Point::Integer(10)))]);
    }
}
