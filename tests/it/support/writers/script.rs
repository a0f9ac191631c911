//! What a writer does next: transactions decided from its seed and its book, before anything is sent.

use std::fmt::Write as _;
use std::time::Duration;

use super::Writer;
use super::book::{Fields, Key};
use super::tables::{BODY_REPEATS, Table};

/// Accounts that all writers share.
pub(crate) const ACCOUNTS: i32 = 64;
/// What each account holds at the start.
pub(crate) const OPENING_BALANCE: i64 = 1_000;
/// Rows of one bulk load.
const BULK: i64 = 500;

/// One transaction. Running it again after it was rolled back does the same.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) seq: i64,
    pub(crate) isolation: &'static str,
    pub(crate) steps: Vec<Step>,
    /// Ends with COMMIT, else with ROLLBACK.
    pub(crate) commit: bool,
    /// Operations in it that are not rolled back.
    pub(crate) kinds: Vec<&'static str>,
}

#[derive(Debug)]
pub(crate) enum Step {
    /// One statement, and how many rows it must affect where that is known.
    Sql(String, Option<u64>),
    /// A COPY into `events`, with its lines.
    Copy(String),
    /// The transaction stays open, idle.
    Hold(Duration),
}

/// Every operation that a script can hold; a run that is long enough makes all of them.
pub(crate) const KINDS: [&str; 28] = [
    "move insert",
    "move update",
    "move delete",
    "move reinsert",
    "move key change",
    "move key chain",
    "move key swap",
    "move ticket pass",
    "document insert",
    "document touch",
    "document rewrite",
    "document key change",
    "document delete",
    "document reinsert",
    "session insert",
    "session update",
    "session delete",
    "place insert",
    "place update",
    "place key change",
    "place delete",
    "transfer",
    "bulk insert",
    "bulk copy",
    "bulk delete",
    "scratch insert",
    "savepoint release",
    "savepoint rollback",
];

impl Writer {
    /// Decides the next transaction and enters it into the book as if it had happened.
    pub(crate) fn draft(&mut self) -> Script {
        self.seq += 1;
        let isolation =
            *self.random.choice(["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"].iter()).unwrap();
        let mut draft =
            Draft { writer: self, steps: Vec::new(), kinds: Vec::new(), shared: false, bulk: false };
        draft.done();
        for _ in 0..draft.writer.random.u32(1..=4) {
            draft.operations();
        }
        if draft.writer.random.u32(0..100) < 4 {
            draft.steps.push(Step::Hold(Duration::from_millis(draft.writer.random.u64(100..=300))));
        }
        let (steps, kinds) = (draft.steps, draft.kinds);
        Script { seq: self.seq, isolation, steps, commit: self.random.u32(0..100) >= 5, kinds }
    }

    /// The statements that put the writer's rows of the start in place.
    pub(crate) fn opening(&mut self, rows: i64) -> Vec<Step> {
        let mut draft =
            Draft { writer: self, steps: Vec::new(), kinds: Vec::new(), shared: false, bulk: false };
        for n in 0..rows {
            draft.insert_move();
            if n % 4 == 0 {
                draft.insert_session();
                draft.insert_place();
            }
            if n % 20 == 0 {
                draft.insert_document();
            }
        }
        draft.bulk_insert();
        draft.steps
    }
}

struct Draft<'a> {
    writer: &'a mut Writer,
    steps: Vec<Step>,
    kinds: Vec<&'static str>,
    /// Touched shared rows already: twice could deadlock with a writer that touched them in another order.
    shared: bool,
    /// Loaded a batch already: a batch is told by its transaction.
    bulk: bool,
}

impl Draft<'_> {
    fn sql(&mut self, sql: String, rows: u64) {
        self.steps.push(Step::Sql(sql, Some(rows)));
    }

    fn dice(&mut self, below: u32) -> u32 {
        self.writer.random.u32(0..below)
    }

    /// Columns that every row begins with: who wrote it last, and in which transaction.
    fn stamp(&self) -> Fields {
        vec![self.writer.number.to_string(), self.writer.seq.to_string()]
    }

    /// The same as SQL.
    fn stamp_sql(&self) -> String {
        format!("{}, {}", self.writer.number, self.writer.seq)
    }

    /// A number that no writer used before.
    fn number(&mut self) -> i64 {
        self.writer.numbers += 1;
        self.writer.numbers * self.writer.writers + i64::from(self.writer.number)
    }

    fn done(&mut self) {
        let (number, seq) = (self.writer.number, self.writer.seq);
        self.sql(format!("INSERT INTO done VALUES ({number}, {seq}, 'tx')"), 1);
        self.writer.book.put(Table::Done, &format!("{number}/{seq}"), vec!["tx".to_owned()]);
    }

    /// One operation, sometimes inside a savepoint together with a second one, and then sometimes rolled back.
    fn operations(&mut self) {
        if self.dice(4) > 0 {
            return self.operation();
        }
        let (mark, kinds) = (self.writer.book.mark(), self.kinds.len());
        self.sql("SAVEPOINT part".to_owned(), 0);
        self.operation();
        self.operation();
        if self.dice(2) == 0 {
            self.sql("RELEASE SAVEPOINT part".to_owned(), 0);
            self.kinds.push("savepoint release");
        } else {
            self.sql("ROLLBACK TO SAVEPOINT part".to_owned(), 0);
            self.writer.book.undo_to(mark);
            self.kinds.truncate(kinds);
            self.kinds.push("savepoint rollback");
        }
    }

    fn operation(&mut self) {
        let kind = match self.dice(110) {
            0..8 => self.insert_move(),
            8..20 => self.update_move(),
            20..26 => self.delete_move(),
            26..31 => self.reinsert_move(),
            31..41 => self.change_move_key(),
            41..46 => self.chain_move_keys(),
            46..50 => self.swap_move_keys(),
            50..55 => self.pass_ticket(),
            55..57 => self.insert_document(),
            57..64 => self.touch_document(),
            64..66 => self.rewrite_document(),
            66..70 => self.change_document_key(),
            70..72 => self.delete_document(),
            72..74 => self.reinsert_document(),
            74..78 => self.insert_session(),
            78..83 => self.update_session(),
            83..87 => self.delete_session(),
            87..90 => self.insert_place(),
            90..93 => self.update_place(),
            93..95 => self.change_place_key(),
            95..98 => self.delete_place(),
            98..104 => self.transfer(),
            104..106 => self.bulk_insert(),
            106..107 => self.bulk_copy(),
            107..109 => self.bulk_delete(),
            _ => self.scratch(),
        };
        self.kinds.extend(kind);
    }

    /// A key of this writer that no row of the table holds. The writers' keys lie between each other over the
    /// whole range, so that a key change goes up or down across any border of a copy.
    fn free_key(&mut self, table: Table, slots: i64) -> Option<i64> {
        (0..64).find_map(|_| {
            let slot = self.writer.random.i64(0..slots);
            let key = slot * self.writer.writers + i64::from(self.writer.number);
            self.writer.book.get(table, &key.to_string()).is_none().then_some(key)
        })
    }

    fn pick(&mut self, table: Table) -> Option<Key> {
        self.writer.book.pick(table, 1, &mut self.writer.random).pop()
    }

    /// Gives a row other columns from position `from` on, and the stamp of this transaction.
    fn rewrite(&mut self, table: Table, key: &str, to: &str, from: usize, changed: &[String]) {
        let mut fields = self.writer.book.remove(table, key);
        fields.splice(0..2, self.stamp());
        fields.splice(from..from + changed.len(), changed.iter().cloned());
        self.writer.book.put(table, to, fields);
    }

    // Moves: [writer, seq, ticket, tag]

    fn insert_move(&mut self) -> Option<&'static str> {
        let key = self.free_key(Table::Moves, self.writer.slots)?;
        self.insert_move_at(key);
        Some("move insert")
    }

    fn insert_move_at(&mut self, key: i64) {
        let (ticket, tag) = (self.number(), self.number());
        let stamp = self.stamp_sql();
        self.sql(format!(r#"INSERT INTO "Moves" VALUES ({key}, {stamp}, {ticket}, 't{tag}')"#), 1);
        let mut fields = self.stamp();
        fields.extend([ticket.to_string(), format!("t{tag}")]);
        self.writer.book.put(Table::Moves, &key.to_string(), fields);
    }

    fn update_move(&mut self) -> Option<&'static str> {
        let (key, tag) = (self.pick(Table::Moves)?, self.number());
        let seq = self.writer.seq;
        self.sql(format!(r#"UPDATE "Moves" SET "Tag" = 't{tag}', "Seq" = {seq} WHERE "Id" = {key}"#), 1);
        self.rewrite(Table::Moves, &key, &key, 3, &[format!("t{tag}")]);
        Some("move update")
    }

    fn delete_move(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Moves)?;
        self.sql(format!(r#"DELETE FROM "Moves" WHERE "Id" = {key}"#), 1);
        self.writer.book.remove(Table::Moves, &key);
        Some("move delete")
    }

    fn reinsert_move(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Moves)?;
        self.sql(format!(r#"DELETE FROM "Moves" WHERE "Id" = {key}"#), 1);
        self.writer.book.remove(Table::Moves, &key);
        self.insert_move_at(key.parse().expect("keys of Moves are numbers"));
        Some("move reinsert")
    }

    fn change_move_key(&mut self) -> Option<&'static str> {
        let (from, to) =
            (self.pick(Table::Moves)?, self.free_key(Table::Moves, self.writer.slots)?.to_string());
        self.rekey_move(&from, &to);
        Some("move key change")
    }

    /// k2 -> k3, then k1 -> k2: in this order no key is held twice, in another one it would be.
    fn chain_move_keys(&mut self) -> Option<&'static str> {
        let [first, second] =
            <[Key; 2]>::try_from(self.writer.book.pick(Table::Moves, 2, &mut self.writer.random)).ok()?;
        let free = self.free_key(Table::Moves, self.writer.slots)?.to_string();
        self.rekey_move(&second, &free);
        self.rekey_move(&first, &second);
        Some("move key chain")
    }

    fn swap_move_keys(&mut self) -> Option<&'static str> {
        let [first, second] =
            <[Key; 2]>::try_from(self.writer.book.pick(Table::Moves, 2, &mut self.writer.random)).ok()?;
        let free = self.free_key(Table::Moves, self.writer.slots)?.to_string();
        self.rekey_move(&first, &free);
        self.rekey_move(&second, &first);
        self.rekey_move(&free, &second);
        Some("move key swap")
    }

    fn rekey_move(&mut self, from: &str, to: &str) {
        let seq = self.writer.seq;
        self.sql(format!(r#"UPDATE "Moves" SET "Id" = {to}, "Seq" = {seq} WHERE "Id" = {from}"#), 1);
        self.rewrite(Table::Moves, from, to, 2, &[]);
    }

    /// The value of the second unique column goes from one row to another.
    fn pass_ticket(&mut self) -> Option<&'static str> {
        let [first, second] =
            <[Key; 2]>::try_from(self.writer.book.pick(Table::Moves, 2, &mut self.writer.random)).ok()?;
        let ticket = |key| self.writer.book.get(Table::Moves, key).and_then(|fields| fields.get(2).cloned());
        let (old, new) = (ticket(&first)?, self.number());
        for (key, ticket) in [(first, new.to_string()), (second, old)] {
            let seq = self.writer.seq;
            self.sql(
                format!(r#"UPDATE "Moves" SET "Ticket" = {ticket}, "Seq" = {seq} WHERE "Id" = {key}"#),
                1,
            );
            self.rewrite(Table::Moves, &key, &key, 2, &[ticket]);
        }
        Some("move ticket pass")
    }

    // Documents: [writer, seq, title, tag of the body, whole]

    fn body_tag(&mut self) -> String {
        let number = self.number();
        format!("{:.<40}", format!("w{} s{} {number}", self.writer.number, self.writer.seq))
    }

    fn insert_document(&mut self) -> Option<&'static str> {
        let key = self.free_key(Table::Documents, self.writer.slots / 20 + 8)?;
        self.insert_document_at(key);
        Some("document insert")
    }

    fn insert_document_at(&mut self, key: i64) {
        let (tag, title) = (self.body_tag(), format!("title {}", self.number()));
        let stamp = self.stamp_sql();
        let sql = format!(
            "INSERT INTO documents VALUES ({key}, {stamp}, '{title}', repeat('{tag}', {BODY_REPEATS}))"
        );
        self.sql(sql, 1);
        let mut fields = self.stamp();
        fields.extend([title, tag, "whole".to_owned()]);
        self.writer.book.put(Table::Documents, &key.to_string(), fields);
    }

    /// Leaves the body alone, which the stream then does not carry.
    fn touch_document(&mut self) -> Option<&'static str> {
        let (key, title) = (self.pick(Table::Documents)?, format!("title {}", self.number()));
        let seq = self.writer.seq;
        self.sql(format!("UPDATE documents SET title = '{title}', seq = {seq} WHERE id = {key}"), 1);
        self.rewrite(Table::Documents, &key, &key, 2, &[title]);
        Some("document touch")
    }

    fn rewrite_document(&mut self) -> Option<&'static str> {
        let (key, tag) = (self.pick(Table::Documents)?, self.body_tag());
        let seq = self.writer.seq;
        let sql = format!(
            "UPDATE documents SET body = repeat('{tag}', {BODY_REPEATS}), seq = {seq} WHERE id = {key}"
        );
        self.sql(sql, 1);
        self.rewrite(Table::Documents, &key, &key, 3, &[tag]);
        Some("document rewrite")
    }

    fn change_document_key(&mut self) -> Option<&'static str> {
        let from = self.pick(Table::Documents)?;
        let to = self.free_key(Table::Documents, self.writer.slots / 20 + 8)?.to_string();
        let seq = self.writer.seq;
        self.sql(format!("UPDATE documents SET id = {to}, seq = {seq} WHERE id = {from}"), 1);
        self.rewrite(Table::Documents, &from, &to, 2, &[]);
        Some("document key change")
    }

    fn delete_document(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Documents)?;
        self.sql(format!("DELETE FROM documents WHERE id = {key}"), 1);
        self.writer.book.remove(Table::Documents, &key);
        Some("document delete")
    }

    fn reinsert_document(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Documents)?;
        self.sql(format!("DELETE FROM documents WHERE id = {key}"), 1);
        self.writer.book.remove(Table::Documents, &key);
        self.insert_document_at(key.parse().expect("keys of documents are numbers"));
        Some("document reinsert")
    }

    // Sessions: [writer, seq, state]

    fn insert_session(&mut self) -> Option<&'static str> {
        let number = self.number();
        let (high, low) = (self.writer.random.u32(..), self.writer.random.u16(..));
        let key = format!("{high:08x}-{low:04x}-4000-8000-{number:012x}");
        self.sql(format!("INSERT INTO sessions VALUES ('{key}', {}, 's{number}')", self.stamp_sql()), 1);
        let mut fields = self.stamp();
        fields.push(format!("s{number}"));
        self.writer.book.put(Table::Sessions, &key, fields);
        Some("session insert")
    }

    fn update_session(&mut self) -> Option<&'static str> {
        let (key, number) = (self.pick(Table::Sessions)?, self.number());
        let seq = self.writer.seq;
        // NULL now and then: an absent value is not an unchanged one.
        let (sql, field) = if number % 5 == 0 {
            ("NULL".to_owned(), "null".to_owned())
        } else {
            (format!("'s{number}'"), format!("s{number}"))
        };
        self.sql(format!("UPDATE sessions SET state = {sql}, seq = {seq} WHERE id = '{key}'"), 1);
        self.rewrite(Table::Sessions, &key, &key, 2, &[field]);
        Some("session update")
    }

    fn delete_session(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Sessions)?;
        self.sql(format!("DELETE FROM sessions WHERE id = '{key}'"), 1);
        self.writer.book.remove(Table::Sessions, &key);
        Some("session delete")
    }

    // Places: [writer, seq, amount], key region/slot

    fn insert_place(&mut self) -> Option<&'static str> {
        let (region, slot, amount) = (self.dice(9), self.number(), self.dice(100_000));
        let amount = format!("{}.{:02}", amount / 100, amount % 100);
        self.sql(
            format!("INSERT INTO places VALUES ({region}, 's{slot}', {}, {amount})", self.stamp_sql()),
            1,
        );
        let mut fields = self.stamp();
        fields.push(amount);
        self.writer.book.put(Table::Places, &format!("{region}/s{slot}"), fields);
        Some("place insert")
    }

    fn update_place(&mut self) -> Option<&'static str> {
        let (key, amount) = (self.pick(Table::Places)?, self.dice(100_000));
        let amount = format!("{}.{:02}", amount / 100, amount % 100);
        let seq = self.writer.seq;
        self.sql(format!("UPDATE places SET amount = {amount}, seq = {seq} WHERE {}", place(&key)), 1);
        self.rewrite(Table::Places, &key, &key, 2, &[amount]);
        Some("place update")
    }

    fn change_place_key(&mut self) -> Option<&'static str> {
        let (key, region, slot) = (self.pick(Table::Places)?, self.dice(9), self.number());
        let seq = self.writer.seq;
        let sql = format!(
            "UPDATE places SET region = {region}, slot = 's{slot}', seq = {seq} WHERE {}",
            place(&key)
        );
        self.sql(sql, 1);
        self.rewrite(Table::Places, &key, &format!("{region}/s{slot}"), 2, &[]);
        Some("place key change")
    }

    fn delete_place(&mut self) -> Option<&'static str> {
        let key = self.pick(Table::Places)?;
        self.sql(format!("DELETE FROM places WHERE {}", place(&key)), 1);
        self.writer.book.remove(Table::Places, &key);
        Some("place delete")
    }

    // Shared and bulk

    fn transfer(&mut self) -> Option<&'static str> {
        if std::mem::replace(&mut self.shared, true) {
            return None;
        }
        let (from, to) = (self.writer.random.i32(1..=ACCOUNTS), self.writer.random.i32(1..ACCOUNTS));
        let (to, amount) = (if to >= from { to + 1 } else { to }, self.writer.random.i64(1..100));
        let mut halves = [(from, -amount), (to, amount)];
        // Mostly in one order, so that writers wait for each other; now and then not, so that they deadlock.
        if self.dice(20) > 0 {
            halves.sort_unstable();
        }
        for (account, delta) in halves {
            self.sql(format!("UPDATE accounts SET balance = balance + ({delta}) WHERE id = {account}"), 1);
            self.writer.book.transfer(account, delta);
        }
        Some("transfer")
    }

    fn bulk_insert(&mut self) -> Option<&'static str> {
        let payload = self.batch("insert")?;
        let (number, seq) = (self.writer.number, self.writer.seq);
        self.sql(
            format!(
                "INSERT INTO events (writer, seq, n, payload)
                 SELECT {number}, {seq}, n, '{payload}' FROM generate_series(1, {BULK}) n"
            ),
            BULK.unsigned_abs(),
        );
        Some("bulk insert")
    }

    fn bulk_copy(&mut self) -> Option<&'static str> {
        let payload = self.batch("copy")?;
        let (number, seq) = (self.writer.number, self.writer.seq);
        let mut lines = String::new();
        for n in 1..=BULK {
            writeln!(lines, "{number}\t{seq}\t{n}\t{payload}").expect("writing to a String works");
        }
        self.steps.push(Step::Copy(lines));
        Some("bulk copy")
    }

    fn batch(&mut self, payload: &str) -> Option<String> {
        if std::mem::replace(&mut self.bulk, true) {
            return None;
        }
        let payload = format!("{payload} {}", self.number());
        let sum = BULK * (BULK + 1) / 2;
        let fields = [BULK, BULK, sum, 1].iter().map(i64::to_string).chain([payload.clone()]).collect();
        self.writer.book.put(Table::Events, &format!("{}/{}", self.writer.number, self.writer.seq), fields);
        Some(payload)
    }

    fn bulk_delete(&mut self) -> Option<&'static str> {
        // The batches of the start stay, so that a copy has something to copy.
        let kept = format!("{}/0", self.writer.number);
        let key = self.pick(Table::Events).filter(|key| *key != kept)?;
        let (writer, seq) = key.split_once('/')?;
        self.sql(format!("DELETE FROM events WHERE writer = {writer} AND seq = {seq}"), BULK.unsigned_abs());
        self.writer.book.remove(Table::Events, &key);
        Some("bulk delete")
    }

    /// TRUNCATE removes everybody's rows, so only the first writer uses this table.
    fn scratch(&mut self) -> Option<&'static str> {
        if self.writer.number > 0 {
            return self.update_move();
        }
        if self.writer.truncate && self.dice(4) == 0 {
            self.steps.push(Step::Sql("TRUNCATE scratch".to_owned(), None));
            let keys: Vec<Key> = self.writer.book.keys(Table::Scratch).cloned().collect();
            for key in keys {
                self.writer.book.remove(Table::Scratch, &key);
            }
            return Some("scratch truncate");
        }
        let id = self.number();
        self.sql(format!("INSERT INTO scratch VALUES ({id}, {})", self.stamp_sql()), 1);
        let fields = self.stamp();
        self.writer.book.put(Table::Scratch, &id.to_string(), fields);
        Some("scratch insert")
    }
}

fn place(key: &str) -> String {
    let (region, slot) = key.split_once('/').expect("a place's key has two parts");
    format!("region = {region} AND slot = '{slot}'")
}
