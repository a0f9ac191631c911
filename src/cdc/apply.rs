//! The target side of a slice: one transaction holds mapped rows, copy state and the position, or none of them.

pub mod replace;
mod singly;

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::{join, join_all, join4};
use futures_util::{SinkExt, pin_mut};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::batch::{Batch, Boundary};
use super::engine::hit;
use super::error::MirrorError;
use super::start::shut_out;
use super::statements::{self, UpdateForm, UpdateSql};
use super::table::TableRun;
use crate::change::{Tuple, Value};
use crate::journal::claims::{Claim, ClaimStatements};
use crate::journal::copies::{self, TableState};
use crate::journal::own_scans::OwnScans;
use crate::journal::streams::Direction;
use crate::journal::touched::Register;
use crate::journal::{self, JournalError};
use crate::landing::key::Key;
use crate::landing::sets::{RowOperation, SetUpdate, Sets, coalesce};
use crate::lsn::Lsn;
use crate::mapping::TableMapping;
use crate::name::quote_ident;
use crate::postgres::connect::{APPLY_ROLE, Session};
use crate::postgres::sqlstate::{self, Failure};

/// From this many rows on, COPY costs less than an insert from arrays.
const COPY_ROWS_MIN: usize = 200;
/// Statements sent before the first answer is awaited; also the most that `join_all` starts in their order.
const PIPELINE_MAX: usize = 30;
/// Bytes of COPY data per message.
const COPY_CHUNK_BYTES: usize = 64 * 1024;
/// What is done when the target refuses a statement.
const APPLYING: &str = "applying changes";

/// A table could not take its operations and stands still from this transaction on.
#[derive(Debug, Clone)]
pub struct Divergence {
    /// Number of the table in the slice.
    pub table: usize,
    /// What was met.
    pub trouble: Trouble,
}

/// What a table could not take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trouble {
    /// In words, without row values.
    pub detail: String,
    /// The relation that has no partition for a row, where that is it.
    pub lacks_partition: Option<String>,
    /// The target's table, a type or a trigger refuses the row whatever other rows there are.
    pub refuses: bool,
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self { detail, ..Self::default() }
    }
}

/// Why a table's operations did not go through; the savepoint before them is still there.
enum Refusal {
    /// The database's state contradicts the operations, or a constraint does.
    Table(Trouble),
    /// The link, the server, or a lost claim.
    Fatal(MirrorError),
}

/// One statement with its arrays and the row count that it must have.
struct Work<'a> {
    sql: String,
    arrays: Vec<Vec<Option<&'a str>>>,
    rows: usize,
}

/// The session that applies, and the claim that it applies under.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    claim: Claim,
    claim_statements: ClaimStatements,
    statements: HashMap<String, Statement>,
    touched: Register,
    /// On the way back: what applying reads of the old tables.
    own: Option<OwnScans>,
    open: bool,
}

impl Applier {
    /// Takes over a session of the apply role.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn new(session: Session, claim: Claim) -> Result<Self, MirrorError> {
        session
            .batch_execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off")
            .await
            .map_err(MirrorError::sql("setting up the apply session"))?;
        let claim_statements = ClaimStatements::prepare(&session, &claim).await?;
        let touched = Register::prepare(&session, &claim.slice).await?;
        let own = match claim.direction {
            Direction::Reverse => Some(OwnScans::prepare(&session, &claim.slice).await?),
            Direction::Forward => None,
        };
        let statements = HashMap::new();
        Ok(Self { session, claim, claim_statements, statements, touched, own, open: false })
    }

    /// The claim, for landings beside this session.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The session, for what is done between transactions.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Everything up to here is applied.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.claim.applied
    }

    /// Opens the target transaction: locks the stream row as claimed and tags the transaction as ours, so that the
    /// other direction never sends it back.
    async fn open(&mut self) -> Result<(), MirrorError> {
        if self.open {
            return Ok(());
        }
        let (begun, locked) = join(
            // A deferrable constraint may be broken between two statements of one source transaction.
            self.session.batch_execute("BEGIN; SET CONSTRAINTS ALL DEFERRED"),
            self.claim.lock(&self.session, &self.claim_statements),
        )
        .await;
        begun.map_err(MirrorError::sql("opening an apply transaction"))?;
        self.open = true;
        if locked? { Ok(()) } else { Err(shut_out(&self.session, &self.claim).await) }
    }

    /// Writes a batch's operations into the open target transaction. Tables that can't take theirs stand still from
    /// this transaction on and are returned; all others have exactly what the source has.
    ///
    /// # Errors
    /// [`MirrorError`]; the transaction is then lost with the session.
    pub async fn flush(
        &mut self,
        batch: &mut Batch,
        tables: &[TableRun],
    ) -> Result<Vec<Divergence>, MirrorError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.open().await?;
        self.will_read(batch.operations.keys().filter_map(|index| tables.get(*index))).await?;
        let mut sets = Vec::new();
        let mut contradicted = false;
        for (index, operations) in &batch.operations {
            let whole = tables.get(*index).is_some_and(|table| table.rows_are_whole());
            match coalesce(operations, whole) {
                Ok(set) => sets.push((*index, set)),
                Err(_) => contradicted = true,
            }
        }
        let mut diverged = Vec::new();
        self.savepoint("SAVEPOINT batch").await?;
        let together = if contradicted {
            Err(Refusal::Table(Trouble::default()))
        } else {
            self.run_together(&sets, tables).await
        };
        match together {
            Ok(()) => {}
            Err(Refusal::Fatal(error)) => return Err(error),
            Err(Refusal::Table(_)) => {
                self.savepoint("ROLLBACK TO SAVEPOINT batch").await?;
                for (index, operations) in &batch.operations {
                    if let Some(table) = tables.get(*index)
                        && let Some(trouble) = self.run_alone(table, operations).await?
                    {
                        diverged.push(Divergence { table: *index, trouble });
                    }
                }
            }
        }
        self.savepoint("RELEASE SAVEPOINT batch").await?;
        for piece in &batch.key_pieces {
            copies::replace_key_piece(&self.session, &self.claim.slice, piece).await?;
        }
        self.record_divergences(&diverged, tables).await?;
        self.note_touched(batch, &diverged, tables);
        batch.clear_flushed();
        Ok(diverged)
    }

    /// The open transaction looks rows of these tables up, which the way back tells from what others read.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn will_read<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a TableRun>,
    ) -> Result<(), MirrorError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.begin(&self.session, tables.map(|table| &table.mapping.target)).await?;
        Ok(())
    }

    /// Notes whose rows the open transaction wrote, for tables whose events all apply.
    fn note_touched(&mut self, batch: &Batch, diverged: &[Divergence], tables: &[TableRun]) {
        for (index, operations) in &batch.operations {
            let Some(table) = tables.get(*index).filter(|table| table.state == TableState::Live) else {
                continue;
            };
            if diverged.iter().any(|divergence| divergence.table == *index) {
                self.touched.take_back(&table.label);
            } else {
                self.touched.add(&table.label, operations.iter().flat_map(RowOperation::keys));
            }
        }
    }

    /// What the open transaction writes, to be noted with it.
    pub fn touched(&mut self) -> &mut Register {
        &mut self.touched
    }

    async fn record_divergences(
        &self,
        diverged: &[Divergence],
        tables: &[TableRun],
    ) -> Result<(), MirrorError> {
        for divergence in diverged {
            let Some(table) = tables.get(divergence.table) else { continue };
            self.record_standstill(&table.label, &divergence.trouble.detail).await?;
        }
        Ok(())
    }

    /// Marks a table as standing still, in the open transaction.
    async fn record_standstill(&self, label: &str, detail: &str) -> Result<(), MirrorError> {
        let slice = &self.claim.slice;
        copies::set_without_pieces(&self.session, slice, label, TableState::Diverged, Some(detail)).await?;
        let entry = serde_json::json!({ "table": label, "detail": detail });
        journal::record(&self.session, Some(slice), "table-diverged", &entry).await?;
        Ok(())
    }

    /// Runs statements beside the sets inside the open target transaction, e.g. a TRUNCATE.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn open_session(&mut self) -> Result<&Session, MirrorError> {
        self.open().await?;
        Ok(&self.session)
    }

    /// Commits the open target transaction, or one that only moves the position.
    ///
    /// # Errors
    /// [`MirrorError`]. When the link breaks at the commit, only the stream row tells what happened; the caller
    /// starts over from it.
    pub async fn commit(&mut self, boundary: Boundary) -> Result<(), MirrorError> {
        self.commit_touching(boundary, boundary.end).await
    }

    /// As [`Applier::commit`], with the keys that it wrote noted under another position.
    ///
    /// # Errors
    /// As [`Applier::commit`].
    pub async fn commit_touching(&mut self, boundary: Boundary, at: Lsn) -> Result<(), MirrorError> {
        self.open().await?;
        self.touched.make_room(&self.session, self.claim.applied, at).await?;
        hit(self.claim.direction, "apply-before-commit", "reverse-before-commit");
        let (touched, noted, advanced, committed) = join4(
            self.touched.write(&self.session, at),
            note(self.own.as_mut(), &self.session),
            self.claim.advance(&self.session, &self.claim_statements, boundary.end, boundary.time_us),
            self.session.batch_execute("COMMIT"),
        )
        .await;
        touched.and(noted)?;
        let advanced = advanced?;
        committed.map_err(MirrorError::sql("committing an apply transaction"))?;
        self.open = false;
        if !advanced {
            return Err(shut_out(&self.session, &self.claim).await);
        }
        self.claim.applied = boundary.end;
        hit(self.claim.direction, "apply-committed", "reverse-committed");
        Ok(())
    }

    /// Commits the open target transaction without moving the position.
    ///
    /// # Errors
    /// As [`Applier::commit`].
    pub async fn commit_at(&mut self, applied: Lsn, time_us: i64) -> Result<(), MirrorError> {
        self.commit(Boundary { end: applied, time_us }).await
    }

    async fn savepoint(&self, sql: &str) -> Result<(), MirrorError> {
        self.session.batch_execute(sql).await.map_err(MirrorError::sql("setting a savepoint"))
    }

    /// Runs all tables' sets with as few round trips as possible.
    async fn run_together(&mut self, sets: &[(usize, Sets)], tables: &[TableRun]) -> Result<(), Refusal> {
        let mut works = Vec::new();
        let mut copied = Vec::new();
        for (index, set) in sets {
            let Some(table) = tables.get(*index) else { continue };
            works.extend(works_of(table, set)?);
            if set.inserts.len() >= COPY_ROWS_MIN {
                copied.push((table, set));
            }
        }
        for chunk in works.chunks(PIPELINE_MAX) {
            self.run_works(chunk).await?;
        }
        for (table, set) in copied {
            self.copy_in(&table.mapping, &set.inserts).await?;
        }
        Ok(())
    }

    /// Runs one table's operations behind a savepoint of its own: as sets, else one by one in source order.
    /// Returns why when even that fails.
    async fn run_alone(
        &mut self,
        table: &TableRun,
        operations: &[RowOperation],
    ) -> Result<Option<Trouble>, MirrorError> {
        self.savepoint("SAVEPOINT one").await?;
        if let Ok(set) = coalesce(operations, table.rows_are_whole()) {
            match self.run_set(table, &set).await {
                Ok(()) => return self.savepoint("RELEASE SAVEPOINT one").await.map(|()| None),
                Err(Refusal::Fatal(error)) => return Err(error),
                Err(Refusal::Table(_)) => self.savepoint("ROLLBACK TO SAVEPOINT one").await?,
            }
        }
        for operation in operations {
            match self.run_single(table, operation).await {
                Ok(()) => {}
                Err(Refusal::Fatal(error)) => return Err(error),
                Err(Refusal::Table(trouble)) => {
                    self.savepoint("ROLLBACK TO SAVEPOINT one").await?;
                    return Ok(Some(trouble));
                }
            }
        }
        self.savepoint("RELEASE SAVEPOINT one").await.map(|()| None)
    }

    /// Runs one operation. An update that can't be made in place, because an identity that is GENERATED ALWAYS took another
    /// value, replaces its row.
    async fn run_single(&mut self, table: &TableRun, operation: &RowOperation) -> Result<(), Refusal> {
        let single = single(operation);
        let Some(replacement) = replacement(table, &single)? else {
            return self.run_set(table, &single).await;
        };
        let savepoint = async |applier: &Self, sql| applier.savepoint(sql).await.map_err(Refusal::Fatal);
        savepoint(self, "SAVEPOINT row").await?;
        match self.run_set(table, &single).await {
            Err(Refusal::Table(_)) => {
                savepoint(self, "ROLLBACK TO SAVEPOINT row").await?;
                self.run_works(std::slice::from_ref(&replacement)).await?;
            }
            other => other?,
        }
        savepoint(self, "RELEASE SAVEPOINT row").await
    }

    async fn run_set(&mut self, table: &TableRun, set: &Sets) -> Result<(), Refusal> {
        for work in works_of(table, set)? {
            self.run_works(std::slice::from_ref(&work)).await?;
        }
        if set.inserts.len() >= COPY_ROWS_MIN {
            self.copy_in(&table.mapping, &set.inserts).await
        } else {
            Ok(())
        }
    }

    /// Sends statements without waiting in between, then checks every row count.
    async fn run_works(&mut self, works: &[Work<'_>]) -> Result<(), Refusal> {
        let mut prepared = Vec::with_capacity(works.len());
        for work in works {
            prepared.push(self.prepare(&work.sql).await?);
        }
        let session = &self.session;
        let running = works.iter().zip(&prepared).map(|(work, statement)| async move {
            let params: Vec<&(dyn ToSql + Sync)> =
                work.arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
            session.execute(statement, &params).await
        });
        let mut refused = None;
        for (result, work) in join_all(running).await.into_iter().zip(works) {
            let refusal = match result {
                Ok(rows) if usize::try_from(rows) == Ok(work.rows) => continue,
                Ok(rows) => {
                    Refusal::Table(format!("{rows} rows were met where {} had to be", work.rows).into())
                }
                // The first refusal is the cause; those after it only say that the transaction is aborted.
                Err(error) if refused.is_some() && sqlstate::code(&error) == Some("25P02") => continue,
                Err(error) => refusal(&self.claim, error),
            };
            if matches!(refusal, Refusal::Fatal(_)) {
                return Err(refusal);
            }
            refused.get_or_insert(refusal);
        }
        refused.map_or(Ok(()), Err)
    }

    async fn prepare(&mut self, sql: &str) -> Result<Statement, Refusal> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.session.prepare(sql).await.map_err(|error| refusal(&self.claim, error))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    async fn copy_in(&mut self, mapping: &TableMapping, rows: &[Tuple]) -> Result<(), Refusal> {
        let statement = self.prepare(&statements::copy_in_text(mapping)).await?;
        let sink = self
            .session
            .copy_in::<_, Bytes>(&statement)
            .await
            .map_err(|error| refusal(&self.claim, error))?;
        pin_mut!(sink);
        let mut buffer = BytesMut::with_capacity(COPY_CHUNK_BYTES * 2);
        for row in rows {
            encode_copy_row(row, &mut buffer);
            if buffer.len() >= COPY_CHUNK_BYTES {
                sink.send(buffer.split().freeze()).await.map_err(|error| refusal(&self.claim, error))?;
            }
        }
        sink.send(buffer.freeze()).await.map_err(|error| refusal(&self.claim, error))?;
        let landed = sink.finish().await.map_err(|error| refusal(&self.claim, error))?;
        if usize::try_from(landed) == Ok(rows.len()) {
            Ok(())
        } else {
            Err(Refusal::Table(format!("{landed} rows were inserted where {} had to be", rows.len()).into()))
        }
    }
}

/// Writes down what the open transaction read of old tables.
async fn note(own: Option<&mut OwnScans>, session: &Session) -> Result<(), JournalError> {
    match own {
        Some(own) => own.note(session).await,
        None => Ok(()),
    }
}

/// Tells a table's own trouble from trouble of the link, the server or the role's rights.
fn refusal(claim: &Claim, error: tokio_postgres::Error) -> Refusal {
    if sqlstate::is_about_the_table(&error) {
        let lacks_partition = sqlstate::lacks_partition(&error);
        let refuses = !sqlstate::is_about_other_rows(&error);
        return Refusal::Table(Trouble { detail: sqlstate::words(&error), lacks_partition, refuses });
    }
    if Failure::of(&error) == Failure::Privilege {
        return Refusal::Fatal(MirrorError::Denied {
            action: APPLYING,
            next: rights(claim, &error),
            source: error,
        });
    }
    if matches!(sqlstate::code(&error), Some("42703" | "42P01" | "42804")) {
        // No such column, no such table, another type: somebody has changed what the rows go into.
        let next = "strangler check PLAN, which compares the tables of both sides".to_owned();
        return Refusal::Fatal(MirrorError::Denied { action: APPLYING, next, source: error });
    }
    Refusal::Fatal(MirrorError::Sql { action: APPLYING, source: error })
}

/// What gives the mirror's role the right that it lacks. A row is found by its key's values, which are cast to their types, and
/// that takes USAGE of the schema of each. Which schema it was stands in the server's words alone, where these are English.
fn rights(claim: &Claim, error: &tokio_postgres::Error) -> String {
    let words = error.as_db_error().map(tokio_postgres::error::DbError::message).unwrap_or_default();
    let Some(schema) = words.strip_prefix("permission denied for schema ") else {
        return "strangler check PLAN, which names the right that is missing".to_owned();
    };
    let side = match claim.direction {
        Direction::Forward => "service",
        Direction::Reverse => "monolith",
    };
    format!(
        "run on the {side}: GRANT USAGE ON SCHEMA {} TO {APPLY_ROLE}; then strangler mirror PLAN --slice {}",
        quote_ident(schema),
        claim.slice
    )
}

fn single(operation: &RowOperation) -> Sets {
    let mut sets = Sets::default();
    match operation {
        RowOperation::Insert { row, .. } => sets.inserts.push(row.clone()),
        RowOperation::Delete { key } => sets.deletes.push(key.clone()),
        RowOperation::Update { old, new, row } => {
            sets.updates.push(SetUpdate { origin: old.clone(), key: new.clone(), row: row.clone() })
        }
    }
    sets
}

/// The statements of a set, deletes first, then updates by form, then inserts unless they go through COPY.
fn works_of<'a>(table: &TableRun, set: &'a Sets) -> Result<Vec<Work<'a>>, Refusal> {
    let (mapping, equality) = (table.written.as_ref(), table.equality.as_slice());
    let mut works = Vec::new();
    if !set.deletes.is_empty() {
        let arrays = key_arrays(mapping, set.deletes.iter())?;
        works.push(Work { sql: statements::delete(mapping, equality), arrays, rows: set.deletes.len() });
    }
    let mut forms: BTreeMap<UpdateForm, Vec<&SetUpdate>> = BTreeMap::new();
    let respelled = set.respell_keys && !mapping.key_columns().any(|column| column.identity_always);
    for update in &set.updates {
        let form = UpdateForm {
            key_changes: respelled || update.origin != update.key,
            carried: update.row.iter().map(|value| *value != Value::Unchanged).collect(),
        };
        forms.entry(form).or_default().push(update);
    }
    for (form, updates) in forms {
        let sql = match statements::update(mapping, equality, &form) {
            UpdateSql::Statement(sql) => sql,
            UpdateSql::Nothing => continue,
            UpdateSql::FixedKey => {
                return Err(Refusal::Table(
                    "a key that is GENERATED ALWAYS changed in place".to_owned().into(),
                ));
            }
        };
        let mut arrays = key_arrays(mapping, updates.iter().map(|update| &update.origin))?;
        for (column, carried) in form.carried.iter().enumerate() {
            if *carried {
                arrays.push(
                    updates
                        .iter()
                        .map(|update| value_text(update.row.get(column)))
                        .collect::<Result<_, _>>()?,
                );
            }
        }
        works.push(Work { sql, arrays, rows: updates.len() });
    }
    if !set.inserts.is_empty() && set.inserts.len() < COPY_ROWS_MIN {
        let arrays = (0..mapping.columns.len())
            .map(|column| set.inserts.iter().map(|row| value_text(row.get(column))).collect())
            .collect::<Result<_, _>>()?;
        works.push(Work { sql: statements::insert(mapping), arrays, rows: set.inserts.len() });
    }
    Ok(works)
}

/// The statement that replaces the row of a single update; none where the table has no column that can't be set.
fn replacement<'a>(table: &TableRun, set: &'a Sets) -> Result<Option<Work<'a>>, Refusal> {
    let mapping = &table.written;
    let [update] = set.updates.as_slice() else { return Ok(None) };
    if !mapping.columns.iter().any(|column| column.identity_always) {
        return Ok(None);
    }
    let carried: Vec<bool> = update.row.iter().map(|value| *value != Value::Unchanged).collect();
    replaced(table, &[update], &carried).map(Some)
}

/// The statement by which the rows of updates go and come again. All of them carry the same columns.
fn replaced<'a>(table: &TableRun, updates: &[&'a SetUpdate], carried: &[bool]) -> Result<Work<'a>, Refusal> {
    let mut arrays = key_arrays(&table.written, updates.iter().map(|update| &update.origin))?;
    for (column, _) in carried.iter().enumerate().filter(|(_, carried)| **carried) {
        let values = updates.iter().map(|update| value_text(update.row.get(column)));
        arrays.push(values.collect::<Result<_, _>>()?);
    }
    let sql = statements::replace((&table.written, &table.left_behind), &table.equality, carried);
    Ok(Work { sql, arrays, rows: updates.len() })
}

fn key_arrays<'a>(
    mapping: &TableMapping,
    keys: impl Iterator<Item = &'a Key> + Clone,
) -> Result<Vec<Vec<Option<&'a str>>>, Refusal> {
    (0..mapping.key.len())
        .map(|part| {
            keys.clone().map(|key| key.parts().get(part).map(|bytes| text(bytes)).transpose()).collect()
        })
        .collect()
}

fn value_text(value: Option<&Value>) -> Result<Option<&str>, Refusal> {
    value.and_then(Value::as_bytes).map(text).transpose()
}

/// Sessions of ours set `client_encoding` to UTF8, but a server in SQL_ASCII sends what it has.
fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| Refusal::Table("a value is not valid UTF-8".to_owned().into()))
}

/// One line of COPY text format (PostgreSQL documentation, COPY, "Text Format").
fn encode_copy_row(row: &Tuple, buffer: &mut BytesMut) {
    for (index, value) in row.iter().enumerate() {
        if index > 0 {
            buffer.put_u8(b'\t');
        }
        match value.as_bytes() {
            None => buffer.put_slice(b"\\N"),
            Some(text) => {
                for byte in text {
                    match byte {
                        b'\\' => buffer.put_slice(b"\\\\"),
                        b'\n' => buffer.put_slice(b"\\n"),
                        b'\r' => buffer.put_slice(b"\\r"),
                        b'\t' => buffer.put_slice(b"\\t"),
                        other => buffer.put_u8(*other),
                    }
                }
            }
        }
    }
    buffer.put_u8(b'\n');
}
