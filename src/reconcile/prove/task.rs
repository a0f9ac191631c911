//! What is known so far of the suspects of one table, and the words for what stays unknown.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::judge::{Held, compared, different_columns, judge};
use super::limits::Limits;
use super::lookup::{Equality, Lock, Lookup};
use super::spelled::Spelled;
use super::{
    APPLY_ROLE, BARRIER_PATIENCE, Failure, FindingKind, Locked, ProveError, RawKey, Redactor, Side, Sides,
    TableForm, WAITS_IN_A_ROUND, sqlstate,
};
use crate::name::{TableName, quote_ident};
use crate::reconcile::finding::{ColumnDiff, Finding, Shown};
use crate::reconcile::verdict::Counts;
use crate::snapshot::FullXid;

/// What is proven of the suspects of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// All findings by kind.
    pub counts: Counts,
    /// The first findings, with what they show of values.
    pub listed: Vec<Finding>,
    /// The key of every finding, for repair.
    pub keys: Vec<(RawKey, FindingKind)>,
    /// Suspects that are neither equal nor proven: a sentence for each reason, with their number, without values.
    /// Where there is one, the table's comparison is incomplete.
    pub unsettled: Vec<String>,
}

/// Why a suspect is still one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// It was another row at each look.
    Moving,
    /// Somebody holds it.
    Held,
    /// Somebody holds the whole table.
    TableHeld,
    /// Reading it takes longer than a row may be locked.
    Slow,
    /// The mirror did not come along while it was locked.
    Behind,
    /// It may not be locked.
    NoLock(String),
    /// Older transactions did not end.
    Barrier(String),
    /// The authority has several rows of this key.
    NotOneRow,
}

/// Versions of the copy's rows of a key that the authority does not have.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) versions: Vec<String>,
    /// A transaction id that was taken afterwards.
    pub(super) taken: FullXid,
}

/// The suspects of one table while they are looked at.
pub(super) struct Task<'a> {
    slice: &'a str,
    form: &'a TableForm,
    pub(super) authority: Side,
    pub(super) lookup: Lookup<'a>,
    pub(super) limits: Limits,
    redactor: Arc<Redactor>,
    list: usize,
    proof: Proof,
    /// Rows that were found under one of several spellings of their keys.
    spelled: Spelled,
    no_lock: Option<String>,
    waits_left: usize,
    last_round: bool,
    /// How long this round still waits for older transactions.
    pub(super) patience: Duration,
    /// Only of keys for which the barrier did not come.
    pub(super) seen: HashMap<RawKey, Seen>,
}

impl<'a> Task<'a> {
    pub(super) fn new(
        slice: &'a str,
        form: &'a TableForm,
        (authority, equality, spelled): (Side, Equality, Spelled),
        redactor: Arc<Redactor>,
        list: usize,
    ) -> Self {
        Self {
            slice,
            form,
            authority,
            lookup: Lookup::new(form, authority, equality),
            limits: Limits::of(form.mapping.columns.len()),
            redactor,
            list,
            proof: Proof::default(),
            spelled,
            no_lock: None,
            waits_left: 0,
            last_round: false,
            patience: Duration::ZERO,
            seen: HashMap::new(),
        }
    }

    pub(super) fn begin_round(&mut self, last: bool) {
        (self.last_round, self.waits_left, self.patience) = (last, WAITS_IN_A_ROUND, BARRIER_PATIENCE);
    }

    pub(super) fn last_round(&self) -> bool {
        self.last_round
    }

    /// One more row may be waited for in this round.
    pub(super) fn may_wait(&mut self) -> bool {
        let may = self.waits_left > 0;
        self.waits_left = self.waits_left.saturating_sub(1);
        may
    }

    /// Remembers since when a key's rows have been on the copy in these versions.
    pub(super) fn see(&mut self, key: &RawKey, versions: Vec<String>, taken: FullXid) {
        let known = self.seen.get(key).map(|seen| &seen.versions);
        if known != Some(&versions) {
            self.seen.insert(key.clone(), Seen { versions, taken });
        }
    }

    /// Another finding would be listed, so its values are of use.
    pub(super) fn lists_more(&self) -> bool {
        self.proof.listed.len() < self.list
    }

    pub(super) fn no_lock(&self) -> Option<Reason> {
        self.no_lock.clone().map(Reason::NoLock)
    }

    pub(super) fn refuse_lock(&mut self, words: String) -> Reason {
        self.no_lock = Some(words.clone());
        Reason::NoLock(words)
    }

    /// What was being done when reading a side failed.
    pub(super) fn reading(&self, side: Side) -> String {
        format!("reading rows of {} on the {} by their keys", self.name(side), Sides::word(side))
    }

    /// The table, by the monolith's name.
    pub(super) fn table(&self) -> &TableName {
        &self.form.mapping.source
    }

    fn name(&self, side: Side) -> &TableName {
        self.form.name(side)
    }

    /// Rows, or why they are to be read again later.
    pub(super) fn rows(
        &self,
        read: Result<Vec<Vec<Held>>, tokio_postgres::Error>,
        side: Side,
    ) -> Result<Result<Vec<Vec<Held>>, Reason>, ProveError> {
        match read {
            Ok(rows) => Ok(Ok(rows)),
            Err(error) if Failure::of(&error) == Failure::Conflict => Ok(Err(Reason::TableHeld)),
            Err(error) => Err(ProveError::database(self.reading(side))(error)),
        }
    }

    /// What it means that rows could not be read under a lock.
    pub(super) fn not_locked(
        &mut self,
        error: tokio_postgres::Error,
        lock: Lock,
    ) -> Result<Locked, ProveError> {
        match (Failure::of(&error), lock) {
            // Rows that somebody holds are skipped then: it is the table that could not be had.
            (Failure::Conflict, Lock::SkipHeld | Lock::None) => Ok(Locked::Not(Reason::TableHeld)),
            (Failure::Conflict, Lock::Wait) => Ok(Locked::Not(Reason::Held)),
            (Failure::Cancelled, _) => Ok(Locked::Slow),
            (Failure::Privilege, _) => {
                let grant = self.grant();
                Ok(Locked::Not(self.refuse_lock(format!("{}; {grant}", sqlstate::words(&error)))))
            }
            _ => Err(ProveError::database(format!("locking rows of {}", self.name(self.authority)))(error)),
        }
    }

    /// FOR SHARE needs UPDATE beside SELECT (PostgreSQL documentation, SELECT, "Description").
    fn grant(&self) -> String {
        let table = self.name(self.authority);
        format!(
            "run on the {}: GRANT USAGE ON SCHEMA {} TO {APPLY_ROLE}; GRANT SELECT, UPDATE ON {} TO {APPLY_ROLE};",
            Sides::word(self.authority),
            quote_ident(table.place_schema()),
            table.sql()
        )
    }

    /// Takes what was read under locks. Returns the keys of which the authority's row was not among the locked ones.
    pub(super) fn judge_locked(
        &mut self,
        keys: Vec<RawKey>,
        here: &[Vec<Held>],
        there: &[Vec<Held>],
    ) -> impl Iterator<Item = RawKey> + use<> {
        let mut not_locked = Vec::new();
        for ((key, here), there) in keys.into_iter().zip(here).zip(there) {
            match here.first() {
                None => not_locked.push(key),
                Some(row) => self.found(key, Some(row), &compared(self.authority, there)),
            }
        }
        not_locked.into_iter()
    }

    /// Takes what is certain of a key: a finding, if anything is wrong with it. The sides may write equal keys
    /// differently, as 1.0 and 1.00, or in texts that a collation calls equal: then both texts are suspects, and name
    /// one row.
    pub(super) fn found(&mut self, key: RawKey, here: Option<&Held>, there: &[&Held]) {
        let Some(kind) = judge(self.authority, here, there) else { return };
        if !self.spelled.is_first(&key, here, there) {
            return;
        }
        *self.proof.counts.entry(kind).or_default() += 1;
        if self.lists_more() {
            let finding = self.finding(kind, &key, here, there);
            self.proof.listed.push(finding);
        }
        self.proof.keys.push((key, kind));
    }

    fn finding(&self, kind: FindingKind, key: &RawKey, here: Option<&Held>, there: &[&Held]) -> Finding {
        let mapping = &self.form.mapping;
        let named = mapping.key_columns().zip(&key.0);
        let columns = match (kind, here, there) {
            (FindingKind::Differs, Some(here), [there]) => self.columns(here, there),
            _ => Vec::new(),
        };
        Finding {
            slice: self.slice.to_owned(),
            source_table: mapping.source.clone(),
            target_table: mapping.target.clone(),
            kind,
            key: named
                .map(|(column, text)| (column.target.clone(), self.redactor.show(column, text)))
                .collect(),
            detail: match there.len() {
                0 | 1 => self.generated(&columns),
                times => Some(format!("the copy has the key {times} times")),
            },
            columns,
            raw_key: key.clone(),
        }
    }

    /// Which of these columns no mirror writes, in words.
    fn generated(&self, columns: &[ColumnDiff]) -> Option<String> {
        let copy = Sides::word(self.authority.other());
        let words = columns.iter().filter_map(|diff| match self.form.generated.get(&diff.column)? {
            true => Some(format!("{} is generated: the {copy} computes it by itself", diff.column)),
            false => {
                Some(format!("{} is generated, but not on the {copy}: nothing fills it there", diff.column))
            }
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    fn columns(&self, here: &Held, there: &Held) -> Vec<ColumnDiff> {
        let diff = |index: usize| {
            let column = self.form.mapping.columns.get(index)?;
            let shown = |held: &Held| -> Shown {
                self.redactor.shown(column, held.texts.get(index).and_then(Option::as_deref))
            };
            Some(ColumnDiff { column: column.target.clone(), authority: shown(here), copy: shown(there) })
        };
        different_columns(here, there).into_iter().filter_map(diff).collect()
    }

    /// What is proven, and what is not; and the rows that were found under one of several spellings.
    pub(super) fn end(mut self, open: Vec<(RawKey, Reason)>, rounds: usize) -> (Proof, Spelled) {
        let mut reasons: BTreeMap<Reason, u64> = BTreeMap::new();
        for (_, reason) in open {
            *reasons.entry(reason).or_default() += 1;
        }
        let table = self.name(Side::Source);
        let (side, limits) = (Sides::word(self.authority), self.limits);
        let sentence = |(reason, count): (Reason, u64)| {
            let rows = if count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
            format!("{rows} of {table} {}", Words { reason: &reason, side, rounds, limits })
        };
        self.proof.unsettled = reasons.into_iter().map(sentence).collect();
        (self.proof, self.spelled)
    }
}

struct Words<'a> {
    reason: &'a Reason,
    side: &'a str,
    rounds: usize,
    limits: Limits,
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, side, rounds, limits } = self;
        match reason {
            Reason::Moving => {
                write!(f, "changed at each of {rounds} looks, so that they could not be compared")
            }
            Reason::Held => write!(
                f,
                "could not be locked on the {side} within 50 ms in {rounds} attempts: other transactions hold them"
            ),
            Reason::TableHeld => {
                write!(f, "could not be read in {rounds} attempts: another session holds the whole table")
            }
            Reason::Slow => write!(
                f,
                "could not be read within the {} ms for which rows may be locked",
                limits.statement.as_millis()
            ),
            Reason::Behind => write!(
                f,
                "could not be compared while they were locked: the mirror did not come along within {} ms",
                limits.held.as_millis()
            ),
            Reason::NoLock(words) => write!(f, "could not be locked on the {side}: {words}"),
            Reason::Barrier(oldest) => write!(
                f,
                "are only on the copy, and older transactions of the {side}'s server have to end before that is proven: \
                 {oldest}"
            ),
            Reason::NotOneRow => {
                write!(
                    f,
                    "are not one row each on the {side}: nothing there keeps the key from being repeated"
                )
            }
        }
    }
}
