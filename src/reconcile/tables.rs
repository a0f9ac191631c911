//! The tables of one run, one after the other: each gets a verdict, whatever happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::finding::{Finding, FindingKind, RawKey};
use super::form::{SAMPLE_PARTS, Sample, Side, TableForm};
use super::hands::{self, Hands, HandsError};
use super::meet::{self, MeetError, Meeting};
use super::orphans::{self, Neighbour};
use super::progress::Board;
use super::prove::{Proof, ProveError};
use super::reader::ReadError;
use super::redact::Redactor;
use super::run::{Look, Options, RunError, SliceJob};
use super::scan::{Compared, Scan, ScanError};
use super::sides::Sides;
use super::stop::{self, Stopped};
use super::verdict::{Coverage, NO_MIRROR, OTHER_WAY, Outcome, TableVerdict};
use super::walk::{self, KeyFacts};
use crate::cdc::mirror::chain_of;
use crate::journal::process::ProcessRow;
use crate::journal::runs::Run;
use crate::journal::streams::{Direction, StreamOf};
use crate::journal::touched::{self, Touched};
use crate::journal::{JournalError, process};
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::name::TableName;
use crate::postgres::connect::Session;

/// Keys of findings that are kept for repair, some 20 MB; what is more is for another run.
const KEYS_KEPT: usize = 100_000;
/// How long a database that went away is waited for before the tables that are left are given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all tables have in common.
#[derive(Debug)]
pub struct Tables<'a> {
    /// Slice and ways.
    pub job: &'a SliceJob,
    /// What is asked for.
    pub options: &'a Options,
    /// Who is right.
    pub sides: &'a Sides,
    /// The run.
    pub run: &'a Run,
    /// Only rows that the stream touched after this position.
    pub since: Option<Lsn>,
    /// On the service: our own tables.
    pub journal: &'a Mutex<Session>,
    /// Hides values of classified columns.
    pub redactor: Arc<Redactor>,
    /// What the operator sees.
    pub board: &'a Board,
    /// The run is to end.
    pub stop: &'a CancellationToken,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Worked {
    /// One verdict for each table that was asked for, in the plan's order.
    pub tables: Vec<TableVerdict>,
    /// Findings that are listed.
    pub listed: Vec<Finding>,
    /// Keys of all findings.
    pub keys: Vec<(TableName, RawKey, FindingKind)>,
    /// Why the run as a whole is incomplete.
    pub reasons: Vec<String>,
    /// Position on the authority that everything compared had reached.
    pub lsn: Lsn,
    /// Position on the authority before anything was compared.
    pub from: Option<Lsn>,
    /// Where the mirror stood still, and what is said of it.
    stood: Option<(Arc<Meeting>, String)>,
}

impl Worked {
    /// The reason why nothing more can be compared, while the mirror stands where it was given up.
    async fn given_up(&self) -> Option<String> {
        let (meeting, reason) = self.stood.as_ref()?;
        meeting.is_given_up().await.then(|| reason.clone())
    }

    /// Nothing is known of a table after all.
    fn forget(&mut self, table: &TableName, why: &str) {
        self.keys.retain(|(of, ..)| of != table);
        self.listed.retain(|finding| finding.source_table != *table);
        for verdict in self.tables.iter_mut().filter(|verdict| verdict.source_table == *table) {
            verdict.outcome = Outcome::Incomplete;
            verdict.findings.clear();
            if !verdict.reasons.iter().any(|reason| reason == why) {
                verdict.reasons.push(why.to_owned());
            }
        }
    }
}

/// A table with the form that it is compared in and what the sides say of its key.
struct Prepared {
    form: TableForm,
    /// Why it can't be compared.
    hopeless: Option<String>,
    /// Columns that it is compared without, and why.
    left_out: Vec<String>,
    authority: KeyFacts,
    copy: KeyFacts,
}

impl Tables<'_> {
    /// Compares every table that is asked for.
    ///
    /// # Errors
    /// [`RunError`] when there is to be no verdict: the run was stopped, or another process has it.
    pub async fn work(&self) -> Result<Worked, RunError> {
        let lost = |table: &TableName| {
            format!("table {table} was asked for, and is not among the tables of the plan's slices")
        };
        let reasons = self.options.lost.iter().map(lost).collect();
        let mut worked = Worked { reasons, ..Worked::default() };
        let mut hands = None;
        let list = AtomicUsize::new(self.options.list);
        let prepared = match Box::pin(self.begin(&mut hands)).await {
            Ok(prepared) => prepared,
            Err(_) if stop::look(self.stop).is_err() => return Err(self.stopped()),
            Err(reason) => {
                worked.reasons.push(reason.clone());
                worked.tables = self.wanted().map(|table| self.left_out(table, reason.clone())).collect();
                return Ok(worked);
            }
        };
        for table in prepared {
            let verdict = match worked.given_up().await {
                Some(reason) => self.left_out(&table.form.mapping, reason),
                None => self.table(&table, &mut hands, &list, &mut worked).await?,
            };
            self.board.table(self.slice(), &table.form.mapping.source.to_string(), |shown| shown.done = true);
            worked.tables.push(verdict);
        }
        self.look_at_keys_again(&mut hands, &mut worked).await;
        worked.reasons.extend(self.looked_at_nothing(&worked.tables));
        if worked.given_up().await.is_some() {
            return Ok(worked);
        }
        match self.hands(&mut hands).await {
            Ok(ready) => {
                let met = stop::wait(self.stop, ready.meeting.meet()).await;
                match met.map_err(|Stopped| self.stopped())? {
                    Ok(lsn) => worked.lsn = lsn,
                    Err(error) => worked.reasons.push(format!("at the end {}", chain_of(&error))),
                }
            }
            Err(error) => worked.reasons.push(format!("at the end {}", chain_of(&error))),
        }
        Ok(worked)
    }

    /// Somebody may have given a key another collation while its rows were compared. What was found by looking them up proves nothing
    /// then, and nobody may repair by it.
    async fn look_at_keys_again(&self, hands: &mut Option<Hands>, worked: &mut Worked) {
        let found = match self.hands(hands).await {
            Ok(ready) => ready.collated(self.wanted(), self.sides.authority).await,
            Err(error) => Err(chain_of(&error)),
        };
        match found {
            Ok(found) => found.iter().for_each(|(table, why)| worked.forget(table, why)),
            Err(why) => {
                let why = format!("at the end the keys' collations could not be asked for: {why}");
                self.wanted().for_each(|table| worked.forget(&table.source, &why));
            }
        }
    }

    fn slice(&self) -> &str {
        &self.job.mapping.slice
    }

    fn stopped(&self) -> RunError {
        RunError::Stopped { slice: self.slice().to_owned(), fresh: self.options.is_fresh() }
    }

    /// A small share may take no row at all, and then says nothing of any.
    fn looked_at_nothing(&self, tables: &[TableVerdict]) -> Option<String> {
        let Look::Sample(percent) = self.options.look else { return None };
        let none = tables.iter().all(|table| table.rows_authority == 0 && table.rows_copy == 0);
        none.then(|| format!("a sample of {percent} % took no row of any table, so nothing was looked at"))
    }

    fn wanted(&self) -> impl Iterator<Item = &TableMapping> + Clone {
        self.job.mapping.tables.iter().filter(|table| self.options.wants(&table.source))
    }

    /// Makes sure that a mirror runs, and asks both sides about the keys. The error is the reason why nothing can be
    /// compared.
    async fn begin(&self, hands: &mut Option<Hands>) -> Result<Vec<Prepared>, String> {
        self.mirror_runs().await?;
        let ready = self.hands(hands).await.map_err(|error| chain_of(&error))?;
        let mut forms: Vec<TableForm> =
            self.wanted().map(|table| TableForm::new(table.clone(), self.options.strict)).collect();
        if let Look::Sample(percent) = self.options.look {
            let sample = sample(percent, &self.run.id);
            forms.iter_mut().for_each(|form| form.sample = Some(sample));
        }
        let (authority, copy) = (self.sides.authority, self.sides.copy());
        let asked = forms.clone();
        // None of them waits for another, and a run of a small table is mostly this.
        let beginning = async {
            tokio::try_join!(
                async { Box::pin(ready.meeting.meet()).await.map_err(|error| chain_of(&error)) },
                ready.facts(&asked, (authority, copy)),
                ready.trust(&mut forms, authority),
            )
        };
        let begun = stop::wait(self.stop, Box::pin(beginning)).await.map_err(|error| chain_of(&error))?;
        let (_, (of_authority, of_copy), mut distrusted) = begun?;
        let facts = of_authority.into_iter().zip(of_copy);
        let prepared = forms.into_iter().zip(facts).map(|(form, (authority, copy))| {
            let hopeless = distrusted.tables.remove(&form.mapping.source);
            let left_out = distrusted.left_out.remove(&form.mapping.source).unwrap_or_default();
            Prepared { form, hopeless, left_out, authority, copy }
        });
        Ok(prepared.collect())
    }

    /// A mirror that was stopped, or that nobody has seen, is told at once rather than after a long wait.
    async fn mirror_runs(&self) -> Result<(), String> {
        let wanted = self.sides.direction();
        let seen = self.mirror_of(wanted).await?;
        if seen.as_ref().is_some_and(ProcessRow::is_alive) {
            return Ok(());
        }
        // A process outlives the way back that it stopped over.
        let other = match wanted {
            Direction::Forward => None,
            Direction::Reverse => self.mirror_of(Direction::Forward).await?.filter(ProcessRow::is_alive),
        };
        let other = other.map_or_else(String::new, |other| {
            format!(" ({OTHER_WAY}: process {} on {})", other.pid, other.host)
        });
        let lacking = format!("{NO_MIRROR} for {}{other}", meet::way(wanted));
        Err(match seen {
            Some(ProcessRow { stopped: true, detail: Some(why), .. }) => {
                format!("{lacking}: the last one ended by itself: {why}")
            }
            Some(seen) if seen.stopped => format!("{lacking}: the last one was stopped"),
            Some(seen) => format!(
                "{lacking}: the last one, process {} on {}, was seen {:.0} s ago",
                seen.pid, seen.host, seen.seen_s
            ),
            None => format!("{lacking}, and none ever was"),
        })
    }

    /// The process that mirrors in a direction, as its row tells, which is where it writes.
    async fn mirror_of(&self, direction: Direction) -> Result<Option<ProcessRow>, String> {
        let of = StreamOf { slice: self.slice(), direction };
        let seen = match direction {
            Direction::Forward => process::read(&*self.journal.lock().await, of).await,
            Direction::Reverse => {
                let monolith = self.sides.locker(Side::Source).await.map_err(|error| chain_of(&error))?;
                process::read(&monolith, of).await
            }
        };
        seen.map_err(|error| chain_of(&error))
    }

    /// The sessions, made anew when there are none.
    async fn hands<'h>(&self, hands: &'h mut Option<Hands>) -> Result<&'h mut Hands, HandsError> {
        let made = match hands.take() {
            Some(made) => made,
            None => self.open().await?,
        };
        Ok(hands.insert(made))
    }

    async fn open(&self) -> Result<Hands, HandsError> {
        let begun = Instant::now();
        loop {
            let pace = (self.options.parallel, self.options.max_load);
            let opened =
                Box::pin(hands::open(self.slice(), self.sides, &self.redactor, pace, self.stop)).await;
            match opened {
                Err(_) if begun.elapsed() < PATIENCE && stop::look(self.stop).is_ok() => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                opened => return opened,
            }
        }
    }

    async fn table(
        &self,
        table: &Prepared,
        hands: &mut Option<Hands>,
        list: &AtomicUsize,
        worked: &mut Worked,
    ) -> Result<TableVerdict, RunError> {
        let begun = Instant::now();
        let mut compared = Compared::default();
        let blank = self.blank(&table.form.mapping);
        let mut coverage = blank.coverage;
        let mut reasons: Vec<String> = self.obstacle(table).into_iter().collect();
        if reasons.is_empty() {
            match self.compare(table, hands, list, (&mut compared, &mut coverage)).await {
                Ok(()) => {}
                Err(TableError::Scan(ScanError::Resumed)) => {
                    return Err(RunError::Resumed { slice: self.slice().to_owned() });
                }
                // Also when something else broke first: whoever stops a run wants no verdict of it.
                Err(_) if stop::look(self.stop).is_err() => return Err(self.stopped()),
                Err(error) => {
                    // Whatever broke, the next table gets sessions of its own.
                    let used = hands.take();
                    reasons.push(chain_of(&error));
                    if error.is_standstill()
                        && let Some(used) = used
                    {
                        worked.reasons.push(chain_of(&error));
                        worked.stood = Some((used.meeting, chain_of(&error)));
                    }
                    reasons.extend(computed_as_read(&error, &table.form));
                }
            }
        }
        reasons.extend(table.left_out.iter().cloned());
        // A table of which not all touched rows are known is compared as a whole, its references among it.
        if coverage == Coverage::Full {
            let looked = self.orphans(&table.form, list, &mut compared.proof).await;
            if !looked || !reasons.is_empty() {
                coverage = Coverage::CutShort;
            }
        }
        let Compared { rows_authority, rows_copy, proof, from } = compared;
        worked.from = worked.from.into_iter().chain(from).min();
        reasons.extend(proof.unsettled);
        let found: u64 = proof.counts.values().sum();
        let parts = [
            if found > 0 { Outcome::Differs } else { Outcome::Clean },
            if reasons.is_empty() { Outcome::Clean } else { Outcome::Incomplete },
        ];
        let source = &table.form.mapping.source;
        worked.listed.extend(proof.listed);
        let room = KEYS_KEPT.saturating_sub(worked.keys.len());
        worked.keys.extend(proof.keys.into_iter().take(room).map(|(key, kind)| (source.clone(), key, kind)));
        Ok(TableVerdict {
            outcome: Outcome::of(parts),
            rows_authority,
            rows_copy,
            duration: begun.elapsed(),
            findings: proof.counts,
            reasons,
            coverage,
            ..blank
        })
    }

    /// Adds rows whose soft references name rows that their owner does not have. Returns whether all of them could be
    /// looked at.
    async fn orphans(&self, form: &TableForm, list: &AtomicUsize, proof: &mut Proof) -> bool {
        let neighbours: Vec<Neighbour<'_>> =
            self.job.neighbours.iter().map(|(mapping, server)| Neighbour { mapping, server }).collect();
        let room = list.load(Ordering::Relaxed);
        let found =
            Box::pin(orphans::orphans(self.sides, self.slice(), form, &neighbours, &self.redactor, room))
                .await;
        match found {
            Ok(found) => {
                if found.count > 0 {
                    *proof.counts.entry(FindingKind::Orphan).or_default() += found.count;
                }
                list.store(room.saturating_sub(found.listed.len()), Ordering::Relaxed);
                proof.listed.extend(found.listed);
                let looked = found.reasons.is_empty();
                proof.unsettled.extend(found.reasons);
                looked
            }
            Err(error) => {
                proof.unsettled.push(chain_of(&error));
                false
            }
        }
    }

    /// The keys that the stream touched; `None` when they are not all known, so that the whole table must be compared.
    /// They are listed where the stream writes.
    async fn touched(&self, table: &TableMapping, since: Lsn) -> Result<Option<Vec<RawKey>>, JournalError> {
        let label = table.source.to_string();
        let found = match self.sides.direction() {
            Direction::Forward => {
                touched::since(&*self.journal.lock().await, self.slice(), &label, since).await?
            }
            Direction::Reverse => match self.sides.locker(Side::Source).await {
                Ok(monolith) => touched::since(&monolith, self.slice(), &label, since).await?,
                Err(_) => return Ok(None),
            },
        };
        match found {
            Touched::Keys(keys) => Ok(Some(keys.into_iter().map(RawKey).collect())),
            Touched::All | Touched::Forgotten { .. } => Ok(None),
        }
    }

    async fn compare(
        &self,
        table: &Prepared,
        hands: &mut Option<Hands>,
        list: &AtomicUsize,
        (compared, coverage): (&mut Compared, &mut Coverage),
    ) -> Result<(), TableError> {
        let form = &table.form;
        let ready = self.hands(hands).await?;
        let Hands { pairs, border, meeting, prover, throttle } = ready;
        let scan = Scan {
            slice: self.slice(),
            meeting,
            prover,
            journal: self.journal,
            run: self.run,
            list,
            throttle,
            board: self.board,
            stop: self.stop,
        };
        if let Some(since) = self.since
            && let Some(keys) = self.touched(&form.mapping, since).await.map_err(ScanError::Journal)?
        {
            *coverage = Coverage::ChangedSince { lsn: since };
            return Ok(scan.keys(form, keys, compared).await?);
        }
        let walk = walk::choose(form, &table.authority, &table.copy);
        scan.table(form, &walk, pairs, border, compared).await?;
        let Some(pair) = pairs.first_mut() else { return Ok(()) };
        if !table.authority.not_null {
            let rows = pair.authority.rows_without_key(form).await.map_err(ScanError::Read)?;
            if rows > 0 {
                let side = Sides::word(self.sides.authority);
                let name = form.name(self.sides.authority);
                compared.proof.unsettled.push(format!(
                    "rows of {name} on the {side} have a null in their key and could not be compared: {rows}; give them \
                     one, or delete them"
                ));
                return Ok(());
            }
        }
        if !table.copy.not_null {
            let rows = pair.copy.rows_without_key(form).await.map_err(ScanError::Read)?;
            if let Ok(rows @ 1..) = u64::try_from(rows) {
                *compared.proof.counts.entry(FindingKind::Extra).or_default() += rows;
                compared.proof.listed.push(self.without_key(form, rows));
            }
        }
        Ok(())
    }

    /// Why a table can't be compared at all.
    fn obstacle(&self, table: &Prepared) -> Option<String> {
        let mapping = &table.form.mapping;
        let ground = self.run.ground.tables.get(&mapping.source.to_string());
        let state = ground.map_or("not among the mirrored tables", |ground| ground.state.as_str());
        if state != "live" {
            return Some(format!("the table is {state}"));
        }
        for (side, facts) in [(self.sides.authority, &table.authority), (self.sides.copy(), &table.copy)] {
            if facts.types.len() < mapping.key.len() {
                let side = Sides::word(side);
                return Some(format!("the table, or a column of its key, is not there on the {side}"));
            }
        }
        table.hopeless.clone()
    }

    /// Rows of the copy whose key has a null in it: the authority's has none, so they are too much.
    fn without_key(&self, form: &TableForm, rows: u64) -> Finding {
        Finding {
            slice: self.slice().to_owned(),
            source_table: form.mapping.source.clone(),
            target_table: form.mapping.target.clone(),
            kind: FindingKind::Extra,
            key: Vec::new(),
            columns: Vec::new(),
            detail: Some(format!("{rows} rows have a null in their key, which no row of the authority has")),
            raw_key: RawKey(Vec::new()),
        }
    }

    fn left_out(&self, table: &TableMapping, reason: String) -> TableVerdict {
        let blank = self.blank(table);
        let coverage = if blank.coverage == Coverage::Full { Coverage::CutShort } else { blank.coverage };
        TableVerdict { outcome: Outcome::Incomplete, reasons: vec![reason], coverage, ..blank }
    }

    fn blank(&self, table: &TableMapping) -> TableVerdict {
        TableVerdict {
            source_table: table.source.clone(),
            target_table: table.target.clone(),
            outcome: Outcome::Clean,
            coverage: match self.options.look {
                // Of which rows the stream touched some are known, or all are compared.
                Look::Full | Look::ChangedSince(_) => Coverage::Full,
                Look::Sample(percent) => Coverage::Sample { percent },
            },
            rows_authority: 0,
            rows_copy: 0,
            bytes: table.heap_bytes,
            duration: Duration::ZERO,
            findings: super::verdict::Counts::new(),
            reasons: Vec::new(),
        }
    }
}

/// Why a table was not compared to its end.
#[derive(Debug, thiserror::Error)]
enum TableError {
    #[error(transparent)]
    Hands(#[from] HandsError),
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl TableError {
    /// The mirror did not move, so the next table need not wait for it anew.
    fn is_standstill(&self) -> bool {
        let (Self::Scan(ScanError::Meet(error) | ScanError::Prove(ProveError::Meet(error)))
        | Self::Hands(HandsError::Meet(error))) = self
        else {
            return false;
        };
        matches!(error, MeetError::Standstill { .. })
    }
}

/// What a value that could not be computed may come from: whoever writes a row does not compute its virtual columns.
fn computed_as_read(error: &TableError, form: &TableForm) -> Option<String> {
    let TableError::Scan(ScanError::Read(ReadError { by_value: true, .. })) = error else { return None };
    let names: Vec<&str> = form.generated.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "generated columns of it: {}. Virtual ones are computed as they are read: where that fails for some row, \
             mend the row, or write `drop: true` for the column in the plan",
            names.join(", ")
        )
    })
}

/// Which rows a sample takes: another share in every run, the same in all of one run.
fn sample(percent: f64, run: &str) -> Sample {
    let seed = run.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 65,536, and `as` saturates"
    )]
    let parts = (percent / 100.0 * f64::from(SAMPLE_PARTS)).round() as u32;
    Sample { first: fastrand::Rng::with_seed(seed).u16(..), parts: parts.clamp(1, SAMPLE_PARTS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_same_in_one_run_and_has_its_share() {
        let (one, same, other) = (sample(5.0, "a"), sample(5.0, "a"), sample(5.0, "b"));
        assert_eq!(one, same);
        assert_ne!(one.first, other.first);
        assert_eq!(one.parts, 3_277);
        assert_eq!(sample(0.000_1, "a").parts, 1, "never nothing");
    }
}
