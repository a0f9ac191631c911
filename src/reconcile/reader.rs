//! A session that reads one side of a table.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, RowStream, Statement};

use super::finding::RawKey;
use super::form::{Side, TableForm};
use super::sides::Sides;
use super::statements::{self, Buckets, KeyRange, OverRange};
use super::walk::Walk;
use crate::journal::JournalError;
use crate::journal::own_scans::Metered;
use crate::postgres::connect::{ConnectError, Session};
use crate::postgres::sqlstate::{self, Failure};

/// A range of a table that takes longer than this is cut into smaller ones.
const RANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Has the server end a statement for which nobody waits any more. Not every platform can tell (PostgreSQL documentation,
/// "Connection Settings").
const CONNECTION_CHECK: &str = "SET client_connection_check_interval = '5s'";

/// Changes a setting of a session for the better, where the server can: one that refuses the value goes on without it.
///
/// # Errors
/// The server's, when it is about anything but the value.
pub async fn set_where_possible(
    client: &tokio_postgres::Client,
    set: &str,
) -> Result<(), tokio_postgres::Error> {
    match client.batch_execute(set).await {
        Err(error) if Failure::of(&error) != Failure::Data => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the sums say of some rows: equal on both sides when the rows are, up to a collision of 64-bit hashes, or of
/// 128-bit ones with two seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Number of rows.
    pub rows: i64,
    /// Sum of the hashes, as a decimal number: it does not fit 64 bits.
    sum: String,
    /// Exclusive or of the hashes.
    xor: i64,
    /// The same under the second seed.
    second: Option<(String, i64)>,
}

/// A row's key, and its hashes under both seeds; the second is 0 where there is only one.
pub type HashedRow = (RawKey, (i64, i64));

/// A statement on a side's rows failed. Holds no values.
#[derive(Debug, thiserror::Error)]
#[error("the {side} could not be read: {words}", side = Sides::word(*side))]
pub struct ReadError {
    /// Which side.
    pub side: Side,
    /// What the server said.
    pub words: String,
    /// It took longer than it may.
    pub timed_out: bool,
    /// A value could not be computed or printed.
    pub by_value: bool,
}

/// A session that reads could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What it reads can't be told from what others read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A reader of one side; it reads and writes nothing else.
#[derive(Debug)]
pub struct Reader {
    session: Session,
    side: Side,
    statements: HashMap<String, Statement>,
    /// Of the monolith's old tables: others' readings are told from ours.
    meter: Option<Metered>,
}

/// What tells our readings of a slice's old tables from others'. `None` where the tables of that side are nobody's old ones.
///
/// # Errors
/// The server's.
pub(super) async fn meter(
    (sides, side): (&Sides, Side),
    session: &Session,
    slice: &str,
) -> Result<Option<Metered>, JournalError> {
    if side == Side::Target || sides.authority == Side::Source {
        return Ok(None);
    }
    Metered::prepare(session, slice).await.map(Some)
}

impl Reader {
    /// Opens one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(sides: &Sides, side: Side, slice: &str) -> Result<Self, OpenError> {
        let session = sides.reader(side).await?;
        let meter = meter((sides, side), &session, slice).await?;
        Ok(Self { session, side, statements: HashMap::new(), meter })
    }

    /// Prepares the session for one way of walking. Ranges are only cheap through the index, whatever the planner takes
    /// them for; a scan of a whole table may take its time, and ends when nobody waits for it any more. One process per
    /// statement: the databases have other work.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn prepare_for(&mut self, walk: &Walk) -> Result<(), ReadError> {
        let (scans, timeout_ms) = match walk {
            Walk::Ranges(_) => ("off", RANGE_TIMEOUT.as_millis()),
            Walk::Buckets(_) => ("on", 0),
        };
        self.session.set_unhurried(timeout_ms == 0);
        let sql = format!(
            "SET default_transaction_read_only = on; SET max_parallel_workers_per_gather = 0; \
             SET enable_seqscan = {scans}; SET enable_sort = {scans}; SET statement_timeout = {timeout_ms}"
        );
        self.session.batch_execute(&sql).await.map_err(|error| self.failed(&error))?;
        set_where_possible(&self.session, CONNECTION_CHECK).await.map_err(|error| self.failed(&error))
    }

    /// The session, for questions about catalogs.
    #[must_use]
    pub fn client(&self) -> &tokio_postgres::Client {
        &self.session
    }

    fn failed(&self, error: &tokio_postgres::Error) -> ReadError {
        failed(self.side, error)
    }

    async fn query(
        &mut self,
        form: &TableForm,
        sql: String,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ReadError> {
        let statement = match self.statements.get(&sql) {
            Some(statement) => statement.clone(),
            None => {
                let made = self.session.prepare(&sql).await.map_err(|error| self.failed(&error))?;
                self.statements.insert(sql, made.clone());
                made
            }
        };
        let reading = self.session.query(&statement, parameters);
        let read = match &self.meter {
            Some(meter) => Box::pin(meter.read(&self.session, &form.mapping.source, reading)).await,
            None => reading.await,
        };
        read.map_err(|error| self.failed(&error))
    }

    async fn over(
        &mut self,
        form: &TableForm,
        over: OverRange<'_>,
        more: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ReadError> {
        let texts = over.parameters.into_iter().map(|text| -> &(dyn ToSql + Sync) { text });
        let parameters: Vec<&(dyn ToSql + Sync)> = texts.chain(more.iter().copied()).collect();
        self.query(form, over.sql, &parameters).await
    }

    fn sums(&self, row: &Row, first: usize, strict: bool) -> Result<Sums, ReadError> {
        let read = || -> Result<Sums, tokio_postgres::Error> {
            let second = if strict { Some((row.try_get(first + 3)?, row.try_get(first + 4)?)) } else { None };
            Ok(Sums {
                rows: row.try_get(first)?,
                sum: row.try_get(first + 1)?,
                xor: row.try_get(first + 2)?,
                second,
            })
        };
        read().map_err(|error| self.failed(&error))
    }

    /// Sums of closed ranges, in their order, and how long the server took.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn ranges(
        &mut self,
        form: &TableForm,
        ranges: &[&KeyRange],
        types: &[String],
    ) -> Result<(Vec<Sums>, Duration), ReadError> {
        if ranges.is_empty() {
            return Ok((Vec::new(), Duration::ZERO));
        }
        let column = |place: usize, of: fn(&KeyRange) -> Option<&Vec<String>>| -> Vec<&str> {
            ranges.iter().filter_map(|range| of(range)?.get(place)).map(String::as_str).collect()
        };
        let lower = (0..types.len()).map(|place| column(place, |range| range.lo.as_ref()));
        let upper = (0..types.len()).map(|place| column(place, |range| range.hi.as_ref()));
        let arrays: Vec<Vec<&str>> = lower.chain(upper).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| -> &(dyn ToSql + Sync) { array }).collect();
        let begun = Instant::now();
        let rows = self.query(form, statements::sums_of_ranges(form, self.side, types), &parameters).await?;
        let took = begun.elapsed();
        let mut found: Vec<Option<Sums>> = vec![None; ranges.len()];
        for row in &rows {
            let number: i32 = row.try_get(0).map_err(|error| self.failed(&error))?;
            if let Some(place) = usize::try_from(number).ok().and_then(|number| found.get_mut(number)) {
                *place = Some(self.sums(row, 1, form.strict)?);
            }
        }
        let all: Option<Vec<Sums>> = found.into_iter().collect();
        let lacking = || ReadError {
            side: self.side,
            words: "a range of keys has no sum".to_owned(),
            timed_out: false,
            by_value: false,
        };
        all.map(|sums| (sums, took)).ok_or_else(lacking)
    }

    /// Sums of one range, open or not.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn range(
        &mut self,
        form: &TableForm,
        range: &KeyRange,
        types: &[String],
    ) -> Result<Sums, ReadError> {
        let rows = self.over(form, statements::sums_of_range(form, self.side, range, types), &[]).await?;
        match rows.first() {
            Some(row) => self.sums(row, 0, form.strict),
            None => Err(ReadError {
                side: self.side,
                words: "no sum".to_owned(),
                timed_out: false,
                by_value: false,
            }),
        }
    }

    /// Sums of the buckets of one range, by their numbers; empty buckets are not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn buckets(
        &mut self,
        form: &TableForm,
        range: &KeyRange,
        types: &[String],
        of: u32,
    ) -> Result<HashMap<i32, Sums>, ReadError> {
        let rows =
            self.over(form, statements::sums_of_buckets(form, self.side, range, types, of), &[]).await?;
        let mut sums = HashMap::with_capacity(rows.len());
        for row in &rows {
            let number: i32 = row.try_get(0).map_err(|error| self.failed(&error))?;
            sums.insert(number, self.sums(row, 1, form.strict)?);
        }
        Ok(sums)
    }

    /// Keys and hashes of the rows of some buckets of one range.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn rows(
        &mut self,
        form: &TableForm,
        range: &KeyRange,
        types: &[String],
        buckets: &Buckets,
    ) -> Result<Vec<HashedRow>, ReadError> {
        let over = statements::rows_of_buckets(form, self.side, range, types, buckets, false);
        let rows = self.over(form, over, &[&buckets.numbers]).await?;
        let read = |row: &Row| hashed(row, form.mapping.key.len(), form.strict);
        let rows: Result<Vec<_>, _> = rows.iter().filter_map(|row| read(row).transpose()).collect();
        rows.map_err(|error| self.failed(&error))
    }

    /// The same in the order of the buckets, as it comes from the server. [`Self::end_stream`] is to follow its last row.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn stream(
        &mut self,
        form: &TableForm,
        range: &KeyRange,
        types: &[String],
        buckets: &Buckets,
    ) -> Result<InOrder, ReadError> {
        let over = statements::rows_of_buckets(form, self.side, range, types, buckets, true);
        let texts = over.parameters.into_iter().map(|text| -> &(dyn ToSql + Sync) { text });
        let parameters: Vec<&(dyn ToSql + Sync)> =
            texts.chain(std::iter::once::<&(dyn ToSql + Sync)>(&buckets.numbers)).collect();
        let made = self.session.prepare(&over.sql).await.map_err(|error| self.failed(&error))?;
        if let Some(meter) = &self.meter {
            let begun = Box::pin(meter.begin_stream(&self.session, &form.mapping.source)).await;
            begun.map_err(|error| self.failed(&error))?;
        }
        let rows = self.session.query_raw(&made, parameters).await.map_err(|error| self.failed(&error))?;
        let width = form.mapping.key.len();
        Ok(InOrder {
            rows: Box::pin(rows),
            side: self.side,
            width,
            strict: form.strict,
            next: None,
            ended: false,
        })
    }

    /// The stream's rows have all come.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn end_stream(&self) -> Result<(), ReadError> {
        match &self.meter {
            Some(meter) => {
                Box::pin(meter.end(&self.session, false)).await.map_err(|error| self.failed(&error))
            }
            None => Ok(()),
        }
    }

    /// The next borders of a range, every `step` rows, at most `count`; fewer when its end is near.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn borders(
        &mut self,
        form: &TableForm,
        range: &KeyRange,
        types: &[String],
        (step, count): (i64, i32),
    ) -> Result<Vec<Vec<String>>, ReadError> {
        let over = statements::borders(form, self.side, range, types);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&step, &count];
        parameters.extend(over.parameters.into_iter().map(|text| -> &(dyn ToSql + Sync) { text }));
        let rows = self.query(form, over.sql, &parameters).await?;
        let texts = |row: &Row| (0..types.len()).map(|place| row.try_get(place)).collect::<Result<_, _>>();
        rows.iter().map(texts).collect::<Result<_, _>>().map_err(|error| self.failed(&error))
    }

    /// The greatest value of a key of one column.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn last_key(&mut self, form: &TableForm) -> Result<Option<String>, ReadError> {
        let Some(column) = form.mapping.key_columns().next() else { return Ok(None) };
        let column = TableForm::column(column, self.side);
        let sql = format!("SELECT max({column})::text FROM {} AS t", form.from(self.side));
        let rows = self.query(form, sql, &[]).await?;
        let key = rows.first().map(|row| row.try_get(0)).transpose();
        key.map(Option::flatten).map_err(|error| self.failed(&error))
    }

    /// Rows of the slice whose key has a null in it: no range and no look-up meets them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn rows_without_key(&mut self, form: &TableForm) -> Result<i64, ReadError> {
        let nulls: Vec<String> = form
            .mapping
            .key_columns()
            .map(|column| format!("num_nulls({}) > 0", TableForm::column(column, self.side)))
            .collect();
        let of_slice = form.filter().filter(|_| self.side == Side::Source);
        let of_slice = of_slice.map_or_else(String::new, |filter| format!(" AND {filter}"));
        let (from, nulls) = (form.from(self.side), nulls.join(" OR "));
        let sql = format!("SELECT count(*) FROM {from} AS t WHERE ({nulls}){of_slice}");
        let rows = self.query(form, sql, &[]).await?;
        let count = rows.first().map(|row| row.try_get(0)).transpose();
        count.map(Option::unwrap_or_default).map_err(|error| self.failed(&error))
    }
}

/// Rows that come in the order of their buckets.
pub struct InOrder {
    rows: Pin<Box<RowStream>>,
    side: Side,
    /// Columns of the key.
    width: usize,
    strict: bool,
    /// The first row of a later bucket.
    next: Option<Row>,
    /// The last row has come. A stream that is asked for more after its end says that the connection is closed.
    ended: bool,
}

impl InOrder {
    /// The rows of one bucket; to be asked for in ascending order.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn bucket(&mut self, number: i32) -> Result<Vec<HashedRow>, ReadError> {
        let mut found = Vec::new();
        loop {
            let row = match self.next.take() {
                Some(row) => Some(row),
                None if self.ended => None,
                None => self.rows.try_next().await.map_err(|error| failed(self.side, &error))?,
            };
            let Some(row) = row else {
                self.ended = true;
                return Ok(found);
            };
            let place = self.width + if self.strict { 2 } else { 1 };
            let of: i32 = row.try_get(place).map_err(|error| failed(self.side, &error))?;
            if of > number {
                self.next = Some(row);
                return Ok(found);
            }
            let read = hashed(&row, self.width, self.strict).map_err(|error| failed(self.side, &error))?;
            found.extend(read.filter(|_| of == number));
        }
    }
}

/// Key and hashes of a row; nothing for a key with a null in it, which is counted elsewhere.
fn hashed(row: &Row, width: usize, strict: bool) -> Result<Option<HashedRow>, tokio_postgres::Error> {
    let key: Option<Vec<String>> =
        (0..width).map(|place| row.try_get::<_, Option<String>>(place)).collect::<Result<_, _>>()?;
    let second = if strict { row.try_get(width + 1)? } else { 0 };
    let hashes = (row.try_get(width)?, second);
    Ok(key.map(|key| (RawKey(key), hashes)))
}

fn failed(side: Side, error: &tokio_postgres::Error) -> ReadError {
    let failure = Failure::of(error);
    ReadError {
        side,
        words: sqlstate::words(error),
        timed_out: failure == Failure::Cancelled,
        by_value: failure == Failure::Data,
    }
}
