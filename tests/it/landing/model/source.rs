//! A PostgreSQL server as far as the landing rule sees one: transactions enter the log in one order and become
//! visible in another, row locks are held until a transaction is visible, snapshots list top-level ids.

use std::collections::BTreeMap;

use strangler::lsn::Lsn;
use strangler::snapshot::Snapshot;

/// Value, and a value that an update may leave out of the stream.
pub type Row = (String, String);
pub type Rows = BTreeMap<i64, Row>;

/// Keys are drawn from 0 to this.
pub const KEYS: i64 = 24;

#[derive(Debug, Clone)]
pub enum Change {
    Insert {
        key: i64,
        row: Row,
    },
    /// Without `big` the stream leaves it out.
    Update {
        old: i64,
        new: i64,
        value: String,
        big: Option<String>,
    },
    Delete {
        key: i64,
    },
    Truncate,
}

/// What the stream delivers of one transaction.
#[derive(Debug, Clone)]
pub struct Committed {
    pub xid: u32,
    pub lsn: Lsn,
    pub end: Lsn,
    /// With the id of the subtransaction that made it.
    pub changes: Vec<(u32, Change)>,
}

#[derive(Debug, Clone, Default)]
struct Transaction {
    xid: u32,
    /// The latest subtransaction, or the transaction itself.
    subxid: u32,
    changes: Vec<(u32, Change)>,
    written: BTreeMap<i64, Option<Row>>,
    truncated: bool,
    in_the_log: bool,
}

pub struct Source {
    pub visible: Rows,
    /// Where a row stands on disk; every new version of it stands elsewhere.
    pub place: BTreeMap<i64, u8>,
    pub log: Vec<Committed>,
    pub lsn: Lsn,
    /// How often the table was truncated for all to see.
    pub truncations: usize,
    running: Vec<Transaction>,
    next_xid: u32,
    latest_completed: u32,
    values: u32,
}

impl Source {
    pub fn new(random: &mut fastrand::Rng) -> Self {
        let mut source = Self {
            visible: Rows::new(),
            place: BTreeMap::new(),
            log: Vec::new(),
            lsn: Lsn(1000),
            truncations: 0,
            running: Vec::new(),
            next_xid: 100,
            latest_completed: 99,
            values: 0,
        };
        for key in 0..KEYS {
            if random.bool() {
                let row = (source.value(), source.value());
                source.visible.insert(key, row);
                source.place.insert(key, random.u8(0..2));
            }
        }
        source
    }

    fn value(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    fn take_xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// A transaction that only takes an id and ends.
    pub fn barrier(&mut self) -> u64 {
        let xid = self.take_xid();
        self.latest_completed = self.latest_completed.max(xid);
        xid.into()
    }

    pub fn snapshot(&self) -> Snapshot {
        let end = self.latest_completed + 1;
        let mut listed: Vec<u32> = self.running.iter().map(|t| t.xid).filter(|xid| *xid < end).collect();
        listed.sort_unstable();
        let begin = listed.first().copied().unwrap_or(end);
        let list: Vec<String> = listed.iter().map(ToString::to_string).collect();
        format!("{begin}:{end}:{}", list.join(",")).parse().unwrap()
    }

    /// A transaction that truncated the table holds it against everybody.
    pub fn is_locked(&self) -> bool {
        self.running.iter().any(|transaction| transaction.truncated)
    }

    /// One random thing happens. `readers` hold the table against TRUNCATE.
    pub fn step(&mut self, random: &mut fastrand::Rng, readers: bool) {
        let open: Vec<usize> = (0..self.running.len()).filter(|at| !self.running[*at].in_the_log).collect();
        let hidden: Vec<usize> = (0..self.running.len()).filter(|at| self.running[*at].in_the_log).collect();
        match random.u8(0..20) {
            0..=2 if open.len() < 3 => {
                let xid = self.take_xid();
                self.running.push(Transaction { xid, subxid: xid, ..Transaction::default() });
            }
            3..=4 if !open.is_empty() => self.commit(open[random.usize(..open.len())]),
            5..=6 if !hidden.is_empty() => {
                let at = hidden[random.usize(..hidden.len())];
                self.show(at, random);
            }
            7 if !open.is_empty() && random.bool() => {
                let gone = self.running.swap_remove(open[random.usize(..open.len())]);
                self.latest_completed = self.latest_completed.max(gone.subxid);
            }
            8 if !open.is_empty() => {
                let subxid = self.take_xid();
                self.running[open[random.usize(..open.len())]].subxid = subxid;
            }
            _ if !open.is_empty() => self.change(open[random.usize(..open.len())], random, readers),
            _ => {}
        }
    }

    /// Everything commits and becomes visible; a heartbeat brings the stream to the end.
    pub fn finish(&mut self, random: &mut fastrand::Rng) {
        for at in 0..self.running.len() {
            if !self.running[at].in_the_log {
                self.commit(at);
            }
        }
        while !self.running.is_empty() {
            self.show(random.usize(..self.running.len()), random);
        }
        let xid = self.take_xid();
        self.running.push(Transaction { xid, subxid: xid, ..Transaction::default() });
        self.commit(0);
        self.show(0, random);
    }

    fn commit(&mut self, at: usize) {
        let lsn = self.lsn;
        self.lsn = Lsn(lsn.0 + 10);
        let transaction = &mut self.running[at];
        transaction.in_the_log = true;
        let (xid, changes) = (transaction.xid, transaction.changes.clone());
        self.log.push(Committed { xid, lsn, end: self.lsn, changes });
    }

    /// Waits until a transaction of the log is visible.
    pub fn show_xid(&mut self, xid: u32, random: &mut fastrand::Rng) {
        if let Some(at) = self.running.iter().position(|transaction| transaction.xid == xid) {
            self.show(at, random);
        }
    }

    fn show(&mut self, at: usize, random: &mut fastrand::Rng) {
        let shown = self.running.swap_remove(at);
        self.latest_completed = self.latest_completed.max(shown.subxid);
        if shown.truncated {
            self.visible.clear();
            self.place.clear();
            self.truncations += 1;
        }
        for (key, row) in shown.written {
            match row {
                Some(row) => {
                    self.visible.insert(key, row);
                    self.place.insert(key, random.u8(0..2));
                }
                None => {
                    self.visible.remove(&key);
                    self.place.remove(&key);
                }
            }
        }
    }

    fn change(&mut self, at: usize, random: &mut fastrand::Rng, readers: bool) {
        let others = || self.running.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, t)| t);
        if others().any(|other| other.truncated) {
            return;
        }
        if random.u8(0..40) == 0 && !readers && others().all(|other| other.written.is_empty()) {
            let own = &mut self.running[at];
            own.changes.push((own.subxid, Change::Truncate));
            own.truncated = true;
            own.written.clear();
            return;
        }
        let (old, new) = (random.i64(0..KEYS), random.i64(0..KEYS));
        if others().any(|other| other.written.contains_key(&old) || other.written.contains_key(&new)) {
            return;
        }
        let seen = |key: i64| match self.running[at].written.get(&key) {
            Some(row) => row.clone(),
            None if self.running[at].truncated => None,
            None => self.visible.get(&key).cloned(),
        };
        let (before, taken) = (seen(old), seen(new).is_some());
        let (value, big) = (self.value(), self.value());
        let own = &mut self.running[at];
        let change = match before {
            None => {
                own.written.insert(old, Some((value.clone(), big.clone())));
                Change::Insert { key: old, row: (value, big) }
            }
            Some(_) if random.u8(0..6) == 0 => {
                own.written.insert(old, None);
                Change::Delete { key: old }
            }
            Some((_, kept)) => {
                let new = if taken || random.u8(0..4) == 0 { old } else { new };
                let big = (random.u8(0..4) == 0).then_some(big);
                own.written.insert(old, None);
                own.written.insert(new, Some((value.clone(), big.clone().unwrap_or(kept))));
                Change::Update { old, new, value, big }
            }
        };
        own.changes.push((own.subxid, change));
    }
}
