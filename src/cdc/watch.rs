//! The watch over what the stream does not carry: what was seen of the monolith's tables is written down in the service,
//! and whatever changed since without an event marks its table, before anything else is done.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::contents::{self, Contents, Heard, Judgement, TableContents, Unheard};
use super::error::{MirrorError, Refusal};
use super::identities::{self, Fault};
use super::publication::Publication;
use super::record::{Happened, Recorder};
use super::source;
use crate::failpoint;
use crate::journal::baselines::{self, Baseline};
use crate::journal::copies::{self, TableState};
use crate::journal::ledger;
use crate::journal::streams::{self, Direction, StreamOf, StreamState};
use crate::lsn::Lsn;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::partitions::TREES;

/// Where a watch looks, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The monolith.
    pub source: &'a Client,
    /// The service.
    pub target: &'a Client,
    /// Slice.
    pub slice: &'a str,
    /// Nonce of the engine that it belongs to.
    pub nonce: i64,
    /// Publication on the monolith.
    pub publication: &'a str,
    /// What is carried where.
    pub mapping: &'a SliceMapping,
    /// What the ledger is told.
    pub recorder: &'a Recorder,
}

/// What was seen, and what waits for the stream's word.
#[derive(Debug, Default)]
pub struct Watch {
    /// The measure, as it is written down.
    before: Contents,
    /// A later reading that only the stream can judge, and the position that it has to pass for that.
    held: Option<(Contents, Lsn)>,
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    unheard: Vec<Unheard>,
    /// The publication itself was altered.
    altered: bool,
    /// Another expression of a generated column.
    expression: Option<Unheard>,
    open: Contents,
}

impl Watch {
    /// Goes on from what was written down.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn restore(site: Site<'_>) -> Result<Self, MirrorError> {
        Ok(Self { before: measure(site).await?, held: None })
    }

    /// The position that the stream has to pass before everything seen can be judged.
    #[must_use]
    pub fn awaits(&self) -> Option<Lsn> {
        self.held.as_ref().map(|(_, lsn)| *lsn)
    }

    /// Looks at the catalogs, notes what happened unheard, and says why the mirror must not go on over it.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn look(&mut self, site: Site<'_>) -> Result<Option<Refusal>, MirrorError> {
        let mut now = contents::read(site.source, site.publication).await?;
        contents::look_into_attached(site.source, &self.before, &mut now).await?;
        // Whatever the readings hold was committed before this position.
        let position = source::insert_position(site.source).await?;
        let (applied, rows) = baselines::read(site.target, site.slice).await?;
        let mut found = Found::default();
        if let Some((held, at)) = self.held.take() {
            if applied >= at {
                self.judge_all(site, held, (&rows, true), &mut found).await?;
            } else {
                self.held = Some((held, at));
            }
        }
        self.judge_all(site, now, (&rows, false), &mut found).await?;
        found.unheard.extend(unlogged(site).await?);
        if self.held.is_none() && !found.open.is_empty() {
            self.held = Some((std::mem::take(&mut found.open), position));
        }
        found.note(site).await
    }

    async fn judge_all(
        &mut self,
        site: Site<'_>,
        now: Contents,
        (rows, passed): (&[Baseline], bool),
        found: &mut Found,
    ) -> Result<(), MirrorError> {
        for (table, contents) in now {
            let label = table.to_string();
            let row = rows.iter().find(|row| row.source_table == label);
            // Of a table that is not begun, or that stands still, the next start takes a new measure.
            if row.is_some_and(|row| matches!(row.state, TableState::Pending | TableState::Diverged)) {
                continue;
            }
            let emptied_by = row.map(|row| row.emptied_by.as_slice()).unwrap_or_default();
            let judgement = match self.before.get(&table) {
                None => Judgement::Heard,
                Some(before) => {
                    found.altered |= before.publication != contents.publication;
                    if let Some(what) = contents::other_expression(before, &contents) {
                        found.expression = Some(Unheard { table: table.clone(), what, first: None });
                    }
                    contents::judge(before, &contents, Heard { emptied_by, passed })
                }
            };
            let fault = self.before.get(&table).and_then(|before| {
                identities::judge_table(&site.mapping.tables, &table, (before, &contents))
            });
            if let Some(Fault { what, first }) = fault {
                found.unheard.push(Unheard { table, what, first });
                continue;
            }
            match judgement {
                Judgement::Heard => {
                    if let Some((held, _)) = &mut self.held {
                        held.remove(&table);
                    }
                    self.advance(site, table, contents).await?;
                }
                Judgement::Open => drop(found.open.insert(table, contents)),
                Judgement::Unheard(what) => found.unheard.push(Unheard { table, what, first: None }),
            }
        }
        Ok(())
    }

    async fn advance(
        &mut self,
        site: Site<'_>,
        table: TableName,
        contents: TableContents,
    ) -> Result<(), MirrorError> {
        let contents = contents.settled();
        if self.before.get(&table) != Some(&contents) {
            write_down(site, &table, &contents).await?;
            self.before.insert(table, contents);
        }
        Ok(())
    }
}

impl Found {
    /// Marks what has to be copied again. It is noted first: the next start must know it too.
    async fn note(self, site: Site<'_>) -> Result<Option<Refusal>, MirrorError> {
        if self.altered {
            let what = altered(site.publication);
            return note_gap(site.target, (site.slice, site.nonce), &what, site.recorder).await.map(Some);
        }
        for unheard in &self.unheard {
            note_unheard(site, unheard).await?;
        }
        let refusal = contents::refusal_over(site.slice, &self.unheard);
        Ok(refusal.or_else(|| {
            let Unheard { table, what, .. } = self.expression?;
            Some(Refusal {
                what: format!("{table} changed in a way that is not in the stream: {what}"),
                next: format!(
                    "give the service's column the same expression, then strangler mirror PLAN --slice {}",
                    site.slice
                ),
                anew: false,
            })
        }))
    }
}

/// Takes the measure of tables that are about to be copied, and finds what happened to the others while nobody looked.
///
/// # Errors
/// [`MirrorError::Refused`] over what happened unheard, which is noted then.
pub async fn at_start(site: Site<'_>) -> Result<(), MirrorError> {
    let (_, rows) = baselines::read(site.target, site.slice).await?;
    let mut before = Contents::new();
    for row in rows.iter().filter(|row| matches!(row.state, TableState::Copying | TableState::Live)) {
        if let (Some(table), Some(contents)) = (name_of(row), stored(row)?) {
            before.insert(table, contents);
        }
    }
    let mut now = contents::read(site.source, site.publication).await?;
    contents::look_into_attached(site.source, &before, &mut now).await?;
    let mut found = Found::default();
    for (table, contents) in now {
        let label = table.to_string();
        let Some(row) = rows.iter().find(|row| row.source_table == label) else { continue };
        let Some(before) = before.get(&table) else {
            write_down(site, &table, &contents.settled()).await?;
            continue;
        };
        found.altered |= before.publication != contents.publication;
        if let Some(Fault { what, first }) =
            identities::judge_table(&site.mapping.tables, &table, (before, &contents))
        {
            found.unheard.push(Unheard { table, what, first });
            continue;
        }
        let heard = Heard { emptied_by: &row.emptied_by, passed: false };
        // What only the stream can judge waits for the pulse.
        if let Judgement::Unheard(what) = contents::judge(before, &contents, heard) {
            found.unheard.push(Unheard { table, what, first: None });
        }
    }
    found.unheard.extend(unlogged(site).await?);
    match found.note(site).await? {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// Tables of the service that a crash empties, which no event tells.
async fn unlogged(site: Site<'_>) -> Result<Vec<Unheard>, MirrorError> {
    let tables = &site.mapping.tables;
    let names: Vec<String> = tables.iter().map(|table| table.target.sql()).collect();
    let sql = format!(
        "SELECT t.n, r.oid::regclass::text FROM {TREES} JOIN pg_class c ON c.oid = r.oid \
         WHERE c.relpersistence <> 'p' AND c.relkind = 'r' ORDER BY 1, 2"
    );
    let rows = site.target.query_typed(&sql, &[(&names, Type::TEXT_ARRAY)]).await;
    let rows = rows.map_err(MirrorError::sql("looking for unlogged tables of the service"))?;
    let found = rows.iter().filter_map(|row| {
        let number = usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)?;
        let (table, there): (_, String) = (tables.get(number)?, row.get(1));
        Some(Unheard {
            table: table.source.clone(),
            what: format!("{there} of the service is UNLOGGED, and a crash of its server empties it"),
            first: Some(format!("in the service: ALTER TABLE {there} SET LOGGED")),
        })
    });
    Ok(found.collect())
}

/// Writes down that the publication leaves kinds of change out: once it carries them again, nothing else would tell.
/// What it leaves out of single tables is told by their entries in it.
///
/// # Errors
/// [`MirrorError`].
pub async fn note_what_is_left_out(
    target: &Client,
    of: (&str, i64),
    (name, publication): (&str, &Publication),
    recorder: &Recorder,
) -> Result<(), MirrorError> {
    if publication.whole {
        return Ok(());
    }
    let what = format!(
        "the publication {name} did not carry every kind of change for a while: changes are missing from the stream"
    );
    note_gap(target, of, &what, recorder).await.map(drop)
}

/// The measure, as it is written down.
pub(super) async fn measure(site: Site<'_>) -> Result<Contents, MirrorError> {
    let (_, rows) = baselines::read(site.target, site.slice).await?;
    let mut found = Contents::new();
    for row in &rows {
        if let (Some(table), Some(contents)) = (name_of(row), stored(row)?) {
            found.insert(table, contents);
        }
    }
    Ok(found)
}

pub(super) fn altered(publication: &str) -> String {
    format!(
        "somebody altered the publication {publication} or made it again: what it left out meanwhile is missing from the stream, and \
         nobody can tell what that was"
    )
}

/// Marks a table, and tells the ledger, once.
async fn note_unheard(site: Site<'_>, Unheard { table, what, .. }: &Unheard) -> Result<(), MirrorError> {
    let label = table.to_string();
    site.recorder.explained();
    let news = ledger::transaction(site.target, async || {
        let news = copies::set_unheard(site.target, site.slice, &label).await?;
        if news {
            let happened = Happened::Unheard { table: &label, what, side: Direction::Forward.source() };
            site.recorder.write(site.target, None, happened).await?;
        }
        Ok(news)
    })
    .await?;
    failpoint::hit("fault-recorded");
    if news {
        site.recorder.anchor();
    }
    Ok(())
}

/// Notes that a running stream lacks changes, in its row and in the ledger.
async fn note_gap(
    target: &Client,
    (slice, nonce): (&str, i64),
    what: &str,
    recorder: &Recorder,
) -> Result<Refusal, MirrorError> {
    let of = StreamOf::forward(slice);
    recorder.explained();
    ledger::transaction(target, async || {
        let slot = streams::set_state(target, of, nonce, StreamState::Gap, Some(what)).await?;
        let Some(slot) = slot else { return Ok(()) };
        let (direction, state) = (of.direction, StreamState::Gap);
        let happened = Happened::Broken { direction, state, detail: what, slot: &slot };
        recorder.write(target, None, happened).await
    })
    .await?;
    recorder.anchor();
    failpoint::hit("fault-recorded");
    Ok(Refusal {
        what: format!("slice {slice} can't go on: {what}"),
        next: format!("strangler mirror PLAN --slice {slice} --rebuild, which copies the slice again"),
        anew: false,
    })
}

pub(super) fn name_of(row: &Baseline) -> Option<TableName> {
    TableName::parse(&row.source_table, "public").ok()
}

fn stored(row: &Baseline) -> Result<Option<TableContents>, MirrorError> {
    let Some(text) = &row.contents else { return Ok(None) };
    let contents = serde_json::from_str(text)
        .map_err(|_| MirrorError::Unreadable { what: format!("what {} consisted of", row.source_table) })?;
    Ok(Some(contents))
}

pub(super) async fn write_down(
    site: Site<'_>,
    table: &TableName,
    contents: &TableContents,
) -> Result<(), MirrorError> {
    let text = serde_json::to_string(contents)
        .map_err(|_| MirrorError::Unreadable { what: format!("what {table} consists of") })?;
    baselines::write(site.target, (site.slice, site.nonce), &table.to_string(), &text).await?;
    failpoint::hit("baseline-written");
    Ok(())
}
