//! A mirror of the model: it reads pieces, keeps what is durable over a crash, and lets the library decide.

use std::sync::Arc;

use strangler::change::{Tuple, Value};
use strangler::landing::key::{Key, Point};
use strangler::landing::pieces::{EventOrigin, RangePiece, Stamp, Standing, TablePieces, Truncation};
use strangler::landing::ring::Ring;
use strangler::landing::rule::{UpdateVerdict, decide_update};
use strangler::landing::sets::{RowOperation, Sets, coalesce};
use strangler::lsn::Lsn;
use strangler::mapping::KeyOrder;
use strangler::snapshot::Snapshot;

use super::source::{Change, KEYS, Row, Rows, Source};

/// A wrong form of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    LsnWatermark,
    NoR1,
    NoBarrier,
    OneUpdate,
    NoRefetch,
    PartsKept,
    LateLock,
    /// Visibility is asked for the subtransaction of the change.
    SubtransactionXid,
}

impl Wrong {
    pub const ALL: [Self; 8] = [
        Self::LsnWatermark,
        Self::NoR1,
        Self::NoBarrier,
        Self::OneUpdate,
        Self::NoRefetch,
        Self::PartsKept,
        Self::LateLock,
        Self::SubtransactionXid,
    ];
}

/// What the load met.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub mixed_key_changes: usize,
    pub refetched: usize,
    pub kept_by_truncation: usize,
    pub refused_snapshots: usize,
}

#[derive(Debug, Clone)]
enum Piece {
    Range(RangePiece),
    Whole(Stamp),
    Key(Key, Stamp),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Unknown,
    Waiting(u64),
    Passed,
}

pub struct Mirror {
    pub target: Rows,
    pub counts: Counts,
    wrong: Option<Wrong>,
    by_ranges: bool,
    pieces: TablePieces,
    stored: Vec<Piece>,
    ring: Ring,
    trust: Trust,
    /// Transactions of the log that are decided about, and those whose outcome is durable.
    consumed: usize,
    durable: usize,
    passed: Lsn,
    /// The first of two parts was landed when the mirror died.
    part: bool,
}

impl Mirror {
    pub fn new(by_ranges: bool, wrong: Option<Wrong>) -> Self {
        Self {
            target: Rows::new(),
            counts: Counts::default(),
            wrong,
            by_ranges,
            pieces: TablePieces::empty(KeyOrder::Integer),
            stored: Vec::new(),
            ring: Ring::default(),
            trust: Trust::Unknown,
            consumed: 0,
            durable: 0,
            passed: Lsn::ZERO,
            part: false,
        }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    pub fn is_copied(&self) -> bool {
        self.pieces.first_gap().is_none()
    }

    pub fn is_live(&self) -> bool {
        self.pieces.is_live()
    }

    /// A crash and a new start.
    pub fn restart(&mut self) {
        self.ring = Ring::default();
        self.trust = Trust::Unknown;
        self.consumed = self.durable;
        if self.pieces.is_live() {
            return;
        }
        if self.part && !self.is(Wrong::PartsKept) {
            self.part = false;
            self.target.clear();
            self.stored.clear();
        }
        self.pieces = TablePieces::empty(KeyOrder::Integer);
        for piece in self.stored.clone() {
            self.hold(piece);
        }
    }

    fn add(&mut self, piece: Piece) {
        self.stored.push(piece.clone());
        self.hold(piece);
    }

    fn hold(&mut self, piece: Piece) {
        match piece {
            Piece::Range(range) => self.pieces.add_range(range),
            Piece::Whole(stamp) => self.pieces.add_whole(stamp),
            Piece::Key(key, stamp) => self.pieces.add_key(key, stamp),
        }
    }

    fn may_copy(&mut self, source: &mut Source) -> bool {
        match self.trust {
            Trust::Unknown if self.is(Wrong::NoBarrier) => self.trust = Trust::Passed,
            Trust::Unknown => self.trust = Trust::Waiting(source.barrier()),
            Trust::Waiting(barrier) if source.snapshot().xmin() > barrier => self.trust = Trust::Passed,
            Trust::Waiting(_) | Trust::Passed => {}
        }
        self.trust == Trust::Passed
    }

    /// Copies something under one snapshot, if it may.
    pub fn round(&mut self, source: &mut Source, random: &mut fastrand::Rng) -> Result<(), String> {
        let late = self.is(Wrong::LateLock);
        if self.is_copied() || !self.may_copy(source) || (source.is_locked() && !late) {
            return Ok(());
        }
        let snapshot = source.snapshot();
        if !self.ring.prune(&snapshot) && !self.is(Wrong::NoR1) {
            self.counts.refused_snapshots += 1;
            return Ok(());
        }
        let (mut rows, places, truncations) =
            (source.visible.clone(), source.place.clone(), source.truncations);
        for _ in 0..random.usize(0..12) {
            source.step(random, !late);
        }
        let stamp = self.stamp(&snapshot, source.lsn);
        for _ in 0..random.usize(0..12) {
            source.step(random, !late);
        }
        if source.truncations > truncations {
            rows.clear();
        }
        if self.by_ranges {
            return self.land_ranges(&rows, &stamp, random);
        }
        let places = &places;
        let of_part = |part: u8| rows.iter().filter(move |(key, _)| places.get(*key) == Some(&part));
        if !self.part {
            self.land(of_part(0))?;
            if random.u8(0..3) == 0 {
                self.part = true;
                self.restart();
                return Ok(());
            }
        }
        self.land(of_part(1))?;
        self.part = false;
        self.add(Piece::Whole(stamp));
        Ok(())
    }

    fn stamp(&self, snapshot: &Snapshot, lsn: Lsn) -> Stamp {
        let snapshot =
            if self.is(Wrong::LsnWatermark) { "1000000:1000000:".parse().unwrap() } else { snapshot.clone() };
        Stamp { snapshot: Arc::new(snapshot), lsn }
    }

    fn land_ranges(&mut self, rows: &Rows, stamp: &Stamp, random: &mut fastrand::Rng) -> Result<(), String> {
        for _ in 0..random.usize(1..3) {
            let Some((lo, end)) = self.pieces.first_gap() else { break };
            let below = match lo {
                Some(Point::Integer(key)) => key,
                Some(Point::Uuid(_)) | None => -1,
            };
            let border = below + random.i64(2..8);
            let hi = if border < KEYS { Some(Point::Integer(border)) } else { end };
            self.land(rows.iter().filter(|(key, _)| **key > below && (hi.is_none() || **key <= border)))?;
            self.add(Piece::Range(RangePiece { lo, hi, stamp: stamp.clone() }));
        }
        Ok(())
    }

    fn land<'a>(&mut self, rows: impl Iterator<Item = (&'a i64, &'a Row)>) -> Result<(), String> {
        for (key, row) in rows {
            if self.target.insert(*key, row.clone()).is_some() {
                return Err(format!("key {key} is landed twice"));
            }
        }
        Ok(())
    }

    /// Applies the next transactions of the log in one target transaction.
    pub fn consume(
        &mut self,
        count: usize,
        source: &mut Source,
        random: &mut fastrand::Rng,
    ) -> Result<(), String> {
        let next: Vec<_> = source.log.iter().skip(self.consumed).take(count).cloned().collect();
        let Some(last) = next.last().map(|last| last.end) else { return Ok(()) };
        let mut operations = Vec::new();
        let mut wrote = random.u8(0..4) == 0;
        for transaction in &next {
            for (subxid, change) in &transaction.changes {
                let xid = if self.is(Wrong::SubtransactionXid) { *subxid } else { transaction.xid };
                let event = EventOrigin { xid, commit_lsn: transaction.lsn };
                if matches!(change, Change::Truncate) {
                    self.write(&std::mem::take(&mut operations))?;
                    self.truncate(&event);
                    wrote = true;
                } else {
                    operations.extend(self.decide(change, &event, transaction.xid, source, random));
                }
            }
            if self.trust != Trust::Unknown {
                self.ring.consume(transaction.xid);
            }
        }
        let refetched = self.stored.iter().any(|piece| matches!(piece, Piece::Key(..)));
        wrote |= refetched || !operations.is_empty();
        self.write(&operations)?;
        self.consumed += next.len();
        if wrote || count == usize::MAX {
            self.durable = self.consumed;
            self.passed = last;
        }
        if self.pieces.passed_at().is_some_and(|lsn| self.passed >= lsn) {
            self.pieces = TablePieces::live(KeyOrder::Integer);
            self.stored.clear();
        }
        Ok(())
    }

    fn standing(&self, key: i64, event: &EventOrigin) -> Standing {
        self.pieces.standing(&key_of(key), event).unwrap()
    }

    fn decide(
        &mut self,
        change: &Change,
        event: &EventOrigin,
        xid: u32,
        source: &mut Source,
        random: &mut fastrand::Rng,
    ) -> Option<RowOperation> {
        match change {
            Change::Truncate => None,
            Change::Insert { key, row } => (self.standing(*key, event) == Standing::Apply)
                .then(|| RowOperation::Insert { key: key_of(*key), row: tuple(*key, &row.0, Some(&row.1)) }),
            Change::Delete { key } => (self.standing(*key, event) == Standing::Apply)
                .then(|| RowOperation::Delete { key: key_of(*key) }),
            Change::Update { old, new, value, big } => {
                let (from, to) = (self.standing(*old, event), self.standing(*new, event));
                self.counts.mixed_key_changes += usize::from(old != new && from != to);
                let complete = big.is_some() || self.is(Wrong::NoRefetch);
                let row = tuple(*new, value, big.as_ref());
                let in_both = from != Standing::Absent && to != Standing::Absent;
                let verdict = if self.is(Wrong::OneUpdate) && old != new && in_both {
                    UpdateVerdict::Update
                } else {
                    decide_update(from, to, complete)
                };
                let (old, new_key) = (key_of(*old), key_of(*new));
                match verdict {
                    UpdateVerdict::Nothing => None,
                    UpdateVerdict::Update => Some(RowOperation::Update { old, new: new_key, row }),
                    UpdateVerdict::DeleteOld => Some(RowOperation::Delete { key: old }),
                    UpdateVerdict::InsertNew => Some(RowOperation::Insert { key: new_key, row }),
                    UpdateVerdict::Refetch => {
                        self.counts.refetched += 1;
                        source.show_xid(xid, random);
                        let snapshot = source.snapshot();
                        let row = source.visible.get(new).cloned();
                        for _ in 0..random.usize(0..6) {
                            source.step(random, true);
                        }
                        let stamp = Stamp { snapshot: Arc::new(snapshot), lsn: source.lsn };
                        self.stored.retain(|piece| !matches!(piece, Piece::Key(key, _) if *key == new_key));
                        self.add(Piece::Key(new_key.clone(), stamp));
                        let row = row.map(|row| tuple(*new, &row.0, Some(&row.1)));
                        row.map(|row| RowOperation::Insert { key: new_key, row })
                    }
                }
            }
        }
    }

    fn truncate(&mut self, event: &EventOrigin) {
        match self.pieces.truncation(event) {
            Truncation::All => self.target.clear(),
            Truncation::Some { whole, ranges, keys_gone, keys_kept } => {
                self.counts.kept_by_truncation += 1;
                let within = |key: i64, lo: &Option<Point>, hi: &Option<Point>| {
                    let point = Point::Integer(key);
                    lo.is_none_or(|lo| point > lo) && hi.is_none_or(|hi| point <= hi)
                };
                self.target.retain(|key, _| {
                    let goes = whole || ranges.iter().any(|(lo, hi)| within(*key, lo, hi));
                    keys_kept.contains(&key_of(*key)) || !(goes || keys_gone.contains(&key_of(*key)))
                });
            }
        }
    }

    /// As sets, else one by one in the source's order.
    fn write(&mut self, operations: &[RowOperation]) -> Result<(), String> {
        if let Ok(sets) = coalesce(operations, true) {
            let mut after = self.target.clone();
            if execute(&mut after, &sets).is_ok() {
                self.target = after;
                return Ok(());
            }
        }
        for operation in operations {
            let sets = match operation {
                RowOperation::Insert { row, .. } => Sets { inserts: vec![row.clone()], ..Sets::default() },
                RowOperation::Delete { key } => Sets { deletes: vec![key.clone()], ..Sets::default() },
                RowOperation::Update { .. } => coalesce(std::slice::from_ref(operation), false).unwrap(),
            };
            execute(&mut self.target, &sets).map_err(|fault| format!("alarm: {fault}"))?;
        }
        Ok(())
    }
}

fn execute(table: &mut Rows, sets: &Sets) -> Result<(), &'static str> {
    for key in &sets.deletes {
        table.remove(&number(key)).ok_or("no row to delete")?;
    }
    for update in &sets.updates {
        let before = table.remove(&number(&update.origin)).ok_or("no row to update")?;
        let row = (text(&update.row[1]).unwrap_or(before.0), text(&update.row[2]).unwrap_or(before.1));
        if table.insert(number(&update.key), row).is_some() {
            return Err("an updated row meets another");
        }
    }
    for row in &sets.inserts {
        let key = text(&row[0]).unwrap().parse().unwrap();
        let null = || "null".to_owned();
        let row = (text(&row[1]).unwrap_or_else(null), text(&row[2]).unwrap_or_else(null));
        if table.insert(key, row).is_some() {
            return Err("an inserted row meets another");
        }
    }
    Ok(())
}

fn tuple(key: i64, value: &str, big: Option<&String>) -> Tuple {
    let big = big.map_or(Value::Unchanged, |big| Value::text(big.as_str()));
    vec![Value::text(key.to_string()), Value::text(value), big]
}

fn key_of(key: i64) -> Key {
    Key::from_strings(vec![key.to_string()])
}

fn number(key: &Key) -> i64 {
    key.to_strings().concat().parse().unwrap()
}

fn text(value: &Value) -> Option<String> {
    value.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}
