//! Comparing one table: sums of parts on both sides, then of smaller parts where they differ, then the hashes of rows,
//! and what differs there is proven key by key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::chunks::{self, Chunk, Chunks};
use super::finding::RawKey;
use super::form::TableForm;
use super::hands::OnDemand;
use super::meet::{MeetError, Meeting};
use super::progress::Board;
use super::prove::{Proof, ProveError};
use super::reader::{ReadError, Reader, Sums};
use super::statements::{Buckets, KeyRange};
use super::stop::{self, Stopped};
use super::throttle::Throttle;
use super::walk::Walk;
use crate::journal::JournalError;
use crate::journal::runs::{self, Run};
use crate::lsn::Lsn;
use crate::postgres::connect::Session;

/// Buckets that a part of a chunk is narrowed down with.
const BUCKETS: u32 = 64;
/// Rows whose keys and hashes are held at once, on each side. A key with its hash is about a hundred bytes.
const ROWS_HELD: i64 = 50_000;
/// Suspects that are proven together: a proof takes a few round trips, however many rows it is about.
const SUSPECTS_HELD: usize = 2_000;
/// Keys that are looked at without a scan before progress is shown.
const KEYS_AT_ONCE: usize = 10_000;
/// Keys of findings of one table that are kept for repair, some 20 MB; what is more is for another run.
const KEYS_KEPT: usize = 100_000;
/// Keys of findings that one chunk may note for a resumed run; with more it is compared again.
const KEYS_NOTED: usize = 1_000;

/// The oldest meeting that a chunk is compared after. A mirror that keeps up is milliseconds behind whether it was asked or
/// not; one that stands still lets so much time's rows look different, and is noticed when they are proven.
const MEETING_AGE_MAX: Duration = Duration::from_secs(1);

/// Why a table could not be compared to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A side could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The copy could not be brought to a position.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// A difference could neither be proven nor dropped.
    #[error(transparent)]
    Prove(#[from] ProveError),
    /// What was compared could not be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The load of the authority could not be asked for.
    #[error("the authority's load could not be asked for: {0}")]
    Load(String),
    /// Another process goes on with this run.
    #[error("another process has gone on with this run")]
    Resumed,
    /// The run was stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What the comparison of a table needs beside the table.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Slice.
    pub slice: &'a str,
    /// Their meeting point.
    pub meeting: &'a Meeting,
    /// Proves what differs.
    pub prover: &'a Mutex<OnDemand>,
    /// On the service, where chunks are noted.
    pub journal: &'a Mutex<Session>,
    /// The run.
    pub run: &'a Run,
    /// Findings that may still be listed, over all tables of the run.
    pub list: &'a AtomicUsize,
    /// Waits for the authority.
    pub throttle: &'a Throttle,
    /// What the operator sees.
    pub board: &'a Board,
    /// The run is to end.
    pub stop: &'a CancellationToken,
}

/// The readers of one worker.
#[derive(Debug)]
pub struct Pair {
    /// Of the authority.
    pub authority: Reader,
    /// Of the copy.
    pub copy: Reader,
}

/// What is known of a table so far.
#[derive(Debug, Default)]
pub struct Compared {
    /// Rows of the authority.
    pub rows_authority: u64,
    /// Rows of the copy.
    pub rows_copy: u64,
    /// What was proven, and what could not be.
    pub proof: Proof,
    /// The first position that something was compared at: what the stream brought later was not all looked at.
    pub from: Option<Lsn>,
}

impl Compared {
    fn add(&mut self, other: Self) {
        self.rows_authority += other.rows_authority;
        self.rows_copy += other.rows_copy;
        self.compared_at(other.from);
        self.take(other.proof);
    }

    fn compared_at(&mut self, lsn: Option<Lsn>) {
        self.from = self.from.into_iter().chain(lsn).min();
    }

    fn take(&mut self, proof: Proof) {
        for (kind, count) in proof.counts {
            *self.proof.counts.entry(kind).or_default() += count;
        }
        self.proof.listed.extend(proof.listed);
        let room = KEYS_KEPT.saturating_sub(self.proof.keys.len());
        self.proof.keys.extend(proof.keys.into_iter().take(room));
        self.proof.unsettled.extend(proof.unsettled);
    }
}

fn unsigned(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or(0)
}

impl Scan<'_> {
    /// Compares a table, with one worker for each pair of readers. `border` chooses the borders of ranges.
    ///
    /// # Errors
    /// [`ScanError`]; what was compared until then is in `into`.
    pub async fn table(
        &self,
        form: &TableForm,
        walk: &Walk,
        pairs: &mut [Pair],
        border: &mut Reader,
        into: &mut Compared,
    ) -> Result<(), ScanError> {
        for reader in pairs.iter_mut().flat_map(|pair| [&mut pair.authority, &mut pair.copy]) {
            reader.prepare_for(walk).await?;
        }
        border.prepare_for(walk).await?;
        let settled = {
            let journal = self.journal.lock().await;
            runs::chunks(&journal, self.run, &form.mapping.source.to_string()).await?
        };
        let number = settled.iter().map(|chunk| chunk.number + 1).max().unwrap_or(0);
        let settled = chunks::behind(walk, settled);
        self.take_over(form, &settled, into).await?;
        let mut chunks = Chunks::after(&settled, number);
        match walk {
            Walk::Ranges(types) => {
                chunks.prepare(border, form, types).await?;
                let state = Mutex::new((chunks, border));
                let into = Mutex::new(into);
                let workers = pairs.iter_mut().map(|pair| self.ranges(form, types, pair, &state, &into));
                try_join_all(workers).await.map(drop)
            }
            Walk::Buckets(of) if settled.is_empty() => {
                let Some(pair) = pairs.first_mut() else { return Ok(()) };
                self.whole(form, *of, number, pair, into).await
            }
            // What is settled reaches the end.
            Walk::Buckets(_) => Ok(()),
        }
    }

    /// Counts what an earlier process of this run compared, and proves its findings again.
    async fn take_over(
        &self,
        form: &TableForm,
        settled: &[runs::Chunk],
        into: &mut Compared,
    ) -> Result<(), ScanError> {
        let mut keys: Vec<RawKey> = Vec::new();
        for chunk in settled {
            into.rows_authority += unsigned(chunk.rows_authority);
            into.rows_copy += unsigned(chunk.rows_copy);
            into.compared_at(Some(chunk.lsn));
            let noted: Vec<Vec<String>> = serde_json::from_str(&chunk.findings).map_err(|error| {
                JournalError::Unreadable { what: "reconcile_chunk.findings", found: error.to_string() }
            })?;
            keys.extend(noted.into_iter().map(RawKey));
        }
        if !keys.is_empty() {
            into.take(self.prove(form, keys).await?);
        }
        Ok(())
    }

    /// Proves keys, and lists findings for as long as there is room for them.
    ///
    /// # Errors
    /// [`ScanError`].
    pub async fn prove(&self, form: &TableForm, keys: Vec<RawKey>) -> Result<Proof, ScanError> {
        let mut prover = self.prover.lock().await;
        let room = self.list.load(Ordering::Relaxed);
        let proof = prover.get().await?.prove(self.slice, form, keys, room).await?;
        // Only who holds the prover takes from the room.
        self.list.store(room.saturating_sub(proof.listed.len()), Ordering::Relaxed);
        Ok(proof)
    }

    /// Looks at these rows of a table, and at no others.
    ///
    /// # Errors
    /// [`ScanError`].
    pub async fn keys(
        &self,
        form: &TableForm,
        keys: Vec<RawKey>,
        into: &mut Compared,
    ) -> Result<(), ScanError> {
        let lsn = self.meet().await?;
        into.compared_at(Some(lsn));
        let name = form.mapping.source.to_string();
        for some in keys.chunks(KEYS_AT_ONCE) {
            stop::look(self.stop)?;
            self.throttle.wait(self.slice, self.board, self.stop).await.map_err(ScanError::Load)?;
            into.take(self.prove(form, some.to_vec()).await?);
            let rows = u64::try_from(some.len()).unwrap_or(u64::MAX);
            into.rows_authority += rows;
            into.rows_copy += rows;
            self.board.table(self.slice, &name, |shown| shown.rows += rows);
        }
        Ok(())
    }

    /// Brings the copy to the authority's position. A mirror that is hours behind takes hours, so a stop ends the wait.
    async fn meet(&self) -> Result<Lsn, ScanError> {
        Ok(stop::wait(self.stop, self.meeting.lately(MEETING_AGE_MAX)).await??)
    }

    async fn ranges(
        &self,
        form: &TableForm,
        types: &[String],
        pair: &mut Pair,
        state: &Mutex<(Chunks, &mut Reader)>,
        into: &Mutex<&mut Compared>,
    ) -> Result<(), ScanError> {
        loop {
            stop::look(self.stop)?;
            let chunk = {
                let mut state = state.lock().await;
                let (chunks, border) = &mut *state;
                chunks.next(border, form, types).await?
            };
            let Some(chunk) = chunk else { return Ok(()) };
            self.throttle.wait(self.slice, self.board, self.stop).await.map_err(ScanError::Load)?;
            let (compared, took) = self.chunk(form, types, pair, &chunk).await?;
            {
                let mut state = state.lock().await;
                match took {
                    Some(took) => state.0.took(took, &chunk, compared.rows_authority),
                    None => state.0.timed_out(),
                }
            }
            self.settle(form, chunk.number, chunk.range(), &compared).await?;
            into.lock().await.add(compared);
        }
    }

    /// Compares one chunk. The time is absent when a statement on all of it took too long.
    async fn chunk(
        &self,
        form: &TableForm,
        types: &[String],
        pair: &mut Pair,
        chunk: &Chunk,
    ) -> Result<(Compared, Option<Duration>), ScanError> {
        // From here on the copy has what the authority had before the chunk was looked at.
        let lsn = self.meet().await?;
        let (left, right, took) = match sums_of_parts(form, types, pair, chunk).await {
            Ok((left, right, took)) => (left, right, Some(took)),
            Err(error) if error.timed_out => {
                let (left, right) = sums_one_by_one(form, types, pair, chunk).await?;
                (left, right, None)
            }
            Err(error) => return Err(error.into()),
        };
        let mut compared = Compared { from: Some(lsn), ..Compared::default() };
        let mut suspects = Vec::new();
        for (part, (left, right)) in chunk.parts.iter().zip(left.iter().zip(&right)) {
            compared.rows_authority += unsigned(left.rows);
            compared.rows_copy += unsigned(right.rows);
            if left != right {
                self.narrow(form, types, pair, (part, BUCKETS), (&mut suspects, &mut compared)).await?;
            }
        }
        self.prove_all(form, &mut suspects, &mut compared).await?;
        Ok((compared, took))
    }

    /// Compares a whole table by buckets.
    async fn whole(
        &self,
        form: &TableForm,
        of: u32,
        number: i32,
        pair: &mut Pair,
        into: &mut Compared,
    ) -> Result<(), ScanError> {
        stop::look(self.stop)?;
        self.throttle.wait(self.slice, self.board, self.stop).await.map_err(ScanError::Load)?;
        let lsn = self.meet().await?;
        let mut compared = Compared { from: Some(lsn), ..Compared::default() };
        let everything = KeyRange::default();
        let mut suspects = Vec::new();
        let (left, right) =
            self.narrow(form, &[], pair, (&everything, of), (&mut suspects, &mut compared)).await?;
        self.prove_all(form, &mut suspects, &mut compared).await?;
        (compared.rows_authority, compared.rows_copy) = (left, right);
        self.settle(form, number, everything, &compared).await?;
        into.add(compared);
        Ok(())
    }

    /// Takes more suspects, and proves all of them once they are many.
    async fn suspect(
        &self,
        form: &TableForm,
        more: Vec<RawKey>,
        (suspects, into): (&mut Vec<RawKey>, &mut Compared),
    ) -> Result<(), ScanError> {
        suspects.extend(more);
        if suspects.len() >= SUSPECTS_HELD { self.prove_all(form, suspects, into).await } else { Ok(()) }
    }

    /// Proves what is suspect so far.
    async fn prove_all(
        &self,
        form: &TableForm,
        suspects: &mut Vec<RawKey>,
        into: &mut Compared,
    ) -> Result<(), ScanError> {
        if !suspects.is_empty() {
            into.take(self.prove(form, std::mem::take(suspects)).await?);
        }
        Ok(())
    }

    /// Narrows a range that may differ down to keys, which are suspects then; when there are many they are proven at
    /// once. Returns the rows of both sides.
    async fn narrow(
        &self,
        form: &TableForm,
        types: &[String],
        pair: &mut Pair,
        (range, of): (&KeyRange, u32),
        (suspects, into): (&mut Vec<RawKey>, &mut Compared),
    ) -> Result<(u64, u64), ScanError> {
        let both = async {
            tokio::try_join!(
                pair.authority.buckets(form, range, types, of),
                pair.copy.buckets(form, range, types, of),
            )
        };
        let (left, right) = stop::wait(self.stop, both).await??;
        let numbers = unequal_buckets(&left, &right);
        let held: i64 = numbers.iter().map(|number| rows_of(number, &left, &right)).sum();
        let buckets = Buckets { of, numbers };
        if held > ROWS_HELD {
            self.stream(form, types, pair, (range, &buckets), (suspects, into)).await?;
        } else if held > 0 {
            let both = async {
                tokio::try_join!(
                    pair.authority.rows(form, range, types, &buckets),
                    pair.copy.rows(form, range, types, &buckets),
                )
            };
            let (authority, copy) = stop::wait(self.stop, both).await??;
            self.suspect(form, unequal(authority, copy), (suspects, into)).await?;
        }
        let rows = |sums: &HashMap<i32, Sums>| sums.values().map(|sums| unsigned(sums.rows)).sum();
        Ok((rows(&left), rows(&right)))
    }

    /// Compares the rows of more buckets than may be held: both sides send them in the order of their buckets, in one
    /// scan each, and no more than one bucket is held at a time.
    async fn stream(
        &self,
        form: &TableForm,
        types: &[String],
        pair: &mut Pair,
        (range, buckets): (&KeyRange, &Buckets),
        (suspects, into): (&mut Vec<RawKey>, &mut Compared),
    ) -> Result<(), ScanError> {
        let both = async {
            tokio::try_join!(
                pair.authority.stream(form, range, types, buckets),
                pair.copy.stream(form, range, types, buckets),
            )
        };
        let (mut left, mut right) = stop::wait(self.stop, both).await??;
        for number in &buckets.numbers {
            let both = async { tokio::try_join!(left.bucket(*number), right.bucket(*number)) };
            let (authority, copy) = stop::wait(self.stop, both).await??;
            self.suspect(form, unequal(authority, copy), (suspects, into)).await?;
        }
        tokio::try_join!(pair.authority.end_stream(), pair.copy.end_stream())?;
        Ok(())
    }

    /// Notes a chunk about which nothing is open, so that a resumed run does not compare it again.
    async fn settle(
        &self,
        form: &TableForm,
        number: i32,
        range: KeyRange,
        compared: &Compared,
    ) -> Result<(), ScanError> {
        let name = form.mapping.source.to_string();
        let findings: u64 = compared.proof.counts.values().sum();
        self.board.table(self.slice, &name, |shown| {
            shown.rows += compared.rows_authority;
            shown.findings += findings;
        });
        let keys = &compared.proof.keys;
        let noted = keys.len() <= KEYS_NOTED && u64::try_from(keys.len()) == Ok(findings);
        if !compared.proof.unsettled.is_empty() || !noted {
            return Ok(());
        }
        let texts: Vec<&Vec<String>> = keys.iter().map(|(key, _)| &key.0).collect();
        let chunk = runs::Chunk {
            source_table: name,
            number,
            lo: range.lo,
            hi: range.hi,
            lsn: compared.from.unwrap_or_default(),
            rows_authority: i64::try_from(compared.rows_authority).unwrap_or(i64::MAX),
            rows_copy: i64::try_from(compared.rows_copy).unwrap_or(i64::MAX),
            findings: serde_json::to_string(&texts).unwrap_or_default(),
        };
        let journal = self.journal.lock().await;
        if runs::settle(&journal, self.run, &chunk).await? { Ok(()) } else { Err(ScanError::Resumed) }
    }
}

/// The sums of a chunk's parts on both sides at once.
async fn sums_of_parts(
    form: &TableForm,
    types: &[String],
    pair: &mut Pair,
    chunk: &Chunk,
) -> Result<(Vec<Sums>, Vec<Sums>, Duration), ReadError> {
    let ((left, left_took), (right, right_took)) = tokio::try_join!(
        sums_of_side(form, types, &mut pair.authority, chunk),
        sums_of_side(form, types, &mut pair.copy, chunk),
    )?;
    Ok((left, right, left_took.max(right_took)))
}

async fn sums_of_side(
    form: &TableForm,
    types: &[String],
    reader: &mut Reader,
    chunk: &Chunk,
) -> Result<(Vec<Sums>, Duration), ReadError> {
    let closed: Vec<&KeyRange> =
        chunk.parts.iter().filter(|part| part.lo.is_some() && part.hi.is_some()).collect();
    let (inner, took) = reader.ranges(form, &closed, types).await?;
    let mut inner = inner.into_iter();
    let mut sums = Vec::with_capacity(chunk.parts.len());
    for part in &chunk.parts {
        let closed = part.lo.is_some() && part.hi.is_some();
        match if closed { inner.next() } else { None } {
            Some(of) => sums.push(of),
            None => sums.push(reader.range(form, part, types).await?),
        }
    }
    Ok((sums, took))
}

/// The same with one statement for each part.
async fn sums_one_by_one(
    form: &TableForm,
    types: &[String],
    pair: &mut Pair,
    chunk: &Chunk,
) -> Result<(Vec<Sums>, Vec<Sums>), ReadError> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for part in &chunk.parts {
        let (authority, copy) =
            tokio::try_join!(pair.authority.range(form, part, types), pair.copy.range(form, part, types))?;
        left.push(authority);
        right.push(copy);
    }
    Ok((left, right))
}

/// The buckets whose sums differ, in ascending order.
fn unequal_buckets(left: &HashMap<i32, Sums>, right: &HashMap<i32, Sums>) -> Vec<i32> {
    let all = left.keys().chain(right.keys());
    let mut differ: Vec<i32> = all.filter(|number| left.get(number) != right.get(number)).copied().collect();
    differ.sort_unstable();
    differ.dedup();
    differ
}

/// Rows of a bucket on the side that has more of them.
fn rows_of(number: &i32, left: &HashMap<i32, Sums>, right: &HashMap<i32, Sums>) -> i64 {
    let sides = [left, right].into_iter().filter_map(|side| side.get(number));
    sides.map(|sums| sums.rows).max().unwrap_or(0)
}

/// Hashes of a row under both seeds.
type Hashes = (i64, i64);

/// Keys that the two sides do not hold once each with the same hashes.
fn unequal(authority: Vec<(RawKey, Hashes)>, copy: Vec<(RawKey, Hashes)>) -> Vec<RawKey> {
    let mut sides: HashMap<RawKey, (Vec<Hashes>, Vec<Hashes>)> = HashMap::with_capacity(authority.len());
    for (key, hashes) in authority {
        sides.entry(key).or_default().0.push(hashes);
    }
    for (key, hashes) in copy {
        sides.entry(key).or_default().1.push(hashes);
    }
    let equal = |(left, right): &(Vec<Hashes>, Vec<Hashes>)| left.len() == 1 && left == right;
    let mut found: Vec<RawKey> =
        sides.into_iter().filter(|(_, hashes)| !equal(hashes)).map(|(key, _)| key).collect();
    // In key order rows are locked in the same order by everybody who does it this way.
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_suspect_unless_both_sides_have_it_once_and_alike() {
        let key = |text: &str| RawKey(vec![text.to_owned()]);
        let side = |rows: &[(&str, i64)]| rows.iter().map(|(text, hash)| (key(text), (*hash, 0))).collect();
        let authority = side(&[("same", 1), ("changed", 2), ("missing", 3), ("twice", 4)]);
        let copy = side(&[("same", 1), ("changed", 5), ("extra", 6), ("twice", 4), ("twice", 4)]);
        let expected = ["changed", "extra", "missing", "twice"].map(key);
        assert_eq!(unequal(authority, copy), expected);
    }
}
