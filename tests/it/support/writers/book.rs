//! What the rows must be when everything acknowledged is there and nothing else.

use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::Client;

use super::tables::{self, Side, Table};

/// A row's key as text; the parts of a composite one with a slash between.
pub(crate) type Key = String;
/// A row's other columns as text.
pub(crate) type Fields = Vec<String>;

/// What one writer expects of its own rows and of its share in the shared ones. Changes are entered while a
/// transaction is planned and taken back when it does not happen.
#[derive(Debug, Default)]
pub(crate) struct Book {
    rows: BTreeMap<Table, BTreeMap<Key, Fields>>,
    balances: BTreeMap<i32, i64>,
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    Row(Table, Key, Option<Fields>),
    Balance(i32, i64),
}

impl Book {
    /// The row will be there, with these columns.
    pub(crate) fn put(&mut self, table: Table, key: &str, fields: Fields) {
        let before = self.rows.entry(table).or_default().insert(key.to_owned(), fields);
        self.undo.push(Undo::Row(table, key.to_owned(), before));
    }

    /// The row will be gone. Gives what it was.
    pub(crate) fn remove(&mut self, table: Table, key: &str) -> Fields {
        let before = self.rows.entry(table).or_default().remove(key).expect("a writer removes its own rows");
        self.undo.push(Undo::Row(table, key.to_owned(), Some(before.clone())));
        before
    }

    /// An account's balance changes by `delta`.
    pub(crate) fn transfer(&mut self, account: i32, delta: i64) {
        *self.balances.entry(account).or_default() += delta;
        self.undo.push(Undo::Balance(account, delta));
    }

    pub(crate) fn get(&self, table: Table, key: &str) -> Option<&Fields> {
        self.rows.get(&table)?.get(key)
    }

    pub(crate) fn count(&self, table: Table) -> usize {
        self.rows.get(&table).map_or(0, BTreeMap::len)
    }

    pub(crate) fn keys(&self, table: Table) -> impl Iterator<Item = &Key> {
        self.rows.get(&table).into_iter().flat_map(BTreeMap::keys)
    }

    /// Up to `count` different rows of the table, chosen by `random`.
    pub(crate) fn pick(&self, table: Table, count: usize, random: &mut fastrand::Rng) -> Vec<Key> {
        let keys: Vec<&Key> = self.keys(table).collect();
        random.choose_multiple(&keys, count).into_iter().map(|key| (*key).clone()).collect()
    }

    /// Where the book stands now, for [`Book::undo_to`].
    pub(crate) fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Takes back everything since the mark: a savepoint was rolled back.
    pub(crate) fn undo_to(&mut self, mark: usize) {
        while self.undo.len() > mark {
            match self.undo.pop() {
                Some(Undo::Row(table, key, Some(fields))) => {
                    self.rows.entry(table).or_default().insert(key, fields);
                }
                Some(Undo::Row(table, key, None)) => {
                    self.rows.entry(table).or_default().remove(&key);
                }
                Some(Undo::Balance(account, delta)) => *self.balances.entry(account).or_default() -= delta,
                None => {}
            }
        }
    }

    /// The transaction is acknowledged: nothing can be taken back any more.
    pub(crate) fn settle(&mut self) {
        self.undo.clear();
    }
}

/// Everything that was acknowledged, by all writers.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(super) writers: Vec<super::Writer>,
    /// Transactions acknowledged by kind of operation; one with two operations counts in both.
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    /// What happened on the way.
    pub(crate) counts: super::Counts,
}

/// A row that is not as the ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) table: Table,
    pub(crate) key: Key,
    pub(crate) kind: FindingKind,
}

/// In which way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FindingKind {
    /// Acknowledged and not there.
    Missing,
    /// There without an acknowledgement.
    Extra,
    /// The same key more than once.
    Duplicate,
    /// Another content than the last acknowledged one.
    Differs { expected: Fields, found: Fields },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {:?}", self.table, self.key, self.kind)
    }
}

impl Ledger {
    /// Compares the tables with what was acknowledged: every row present exactly once, in its last state, and no
    /// other row. For a side that has caught up, while no writer runs.
    pub(crate) async fn verify(&self, client: &Client, side: Side, tables: &[Table]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for table in tables {
            let found = tables::read(client, *table, side).await;
            compare(*table, self.expected(*table), found, &mut findings);
        }
        findings
    }

    /// As [`Ledger::verify`], and stops the test when there is a finding.
    pub(crate) async fn assert_verified(&self, client: &Client, side: Side, tables: &[Table]) {
        let findings = self.verify(client, side, tables).await;
        let shown: Vec<String> = findings.iter().take(10).map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{} findings, the first of them:\n{}", findings.len(), shown.join("\n"));
    }

    /// Transactions that were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.writers.iter().map(|writer| writer.book.count(Table::Done)).sum()
    }

    fn expected(&self, table: Table) -> BTreeMap<Key, Fields> {
        if table == Table::Accounts {
            let mut balances: BTreeMap<i32, i64> =
                (1..=super::script::ACCOUNTS).map(|id| (id, super::script::OPENING_BALANCE)).collect();
            for (account, delta) in self.writers.iter().flat_map(|writer| &writer.book.balances) {
                *balances.entry(*account).or_default() += delta;
            }
            return balances
                .iter()
                .map(|(id, balance)| (id.to_string(), vec![balance.to_string()]))
                .collect();
        }
        let books = self.writers.iter().filter_map(|writer| writer.book.rows.get(&table));
        books.flatten().map(|(key, fields)| (key.clone(), fields.clone())).collect()
    }
}

fn compare(
    table: Table,
    mut expected: BTreeMap<Key, Fields>,
    found: Vec<(Key, Fields)>,
    findings: &mut Vec<Finding>,
) {
    let mut seen = std::collections::BTreeSet::new();
    for (key, fields) in found {
        let kind = match expected.remove(&key) {
            Some(wanted) if wanted == fields => None,
            Some(wanted) => Some(FindingKind::Differs { expected: wanted, found: fields }),
            None if seen.contains(&key) => Some(FindingKind::Duplicate),
            None => Some(FindingKind::Extra),
        };
        findings.extend(kind.map(|kind| Finding { table, key: key.clone(), kind }));
        seen.insert(key);
    }
    findings.extend(expected.into_keys().map(|key| Finding { table, key, kind: FindingKind::Missing }));
}
