//! What others read of the monolith's old tables, as far as the server tells: its counters of scans, sessions that hold a lock on
//! a table, and statements that name it. All of it is kept on the monolith.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::JournalError;
use crate::clock::{Clock, SystemClock, time};
use crate::name::TableName;
use crate::postgres::partitions::TREES;

/// What of it was ours.
const OWN: &str = "SELECT t.n, \
         (coalesce((SELECT sum(scans) FROM strangler.own_scan o WHERE o.source_table = t.label), 0) \
             + coalesce((SELECT sum(own_scans) FROM strangler.table_use u WHERE u.source_table = t.label), 0))::bigint, \
         (coalesce((SELECT sum(rows) FROM strangler.own_scan o WHERE o.source_table = t.label), 0) \
             + coalesce((SELECT sum(own_rows) FROM strangler.table_use u WHERE u.source_table = t.label), 0))::bigint \
     FROM unnest($1::text[]) WITH ORDINALITY AS t (label, n) ORDER BY t.n";

/// Sessions hand their scans to the server's counters up to a minute late (PostgreSQL documentation, "The Cumulative Statistics
/// System"): as long as that, whatever the counters show may be older than a watch that begins. Microseconds.
pub const SETTLES_US: i64 = 60_000_000;

/// Longest statement that is kept, in characters: enough to find it in the application's code.
pub const STATEMENT_CHARS: usize = 200;

/// What is known of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableUse {
    /// Epoch of the authority that it was watched in.
    pub epoch: i64,
    /// Whatever others read from here on is counted. Microseconds since 1970, as all of these.
    pub since_us: i64,
    /// What the server's counters had when they were last read, without ours.
    pub counted: Count,
    /// What others have read.
    pub others: Count,
    /// The counters were lost: what was read between these two is not known.
    pub unseen_us: Option<(i64, i64)>,
    /// The last reading by others lies between these two.
    pub last_us: Option<(i64, i64)>,
    /// When the counter was last read.
    pub sampled_us: i64,
}

/// Scans, and rows that were read by them or without any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Sequential and index scans.
    pub scans: i64,
    /// Rows.
    pub rows: i64,
}

impl Count {
    fn of(row: &Row) -> Self {
        Self { scans: row.get(1), rows: row.get(2) }
    }

    /// Either is less than in the other.
    #[must_use]
    pub fn falls_below(self, other: Self) -> bool {
        self.scans < other.scans || self.rows < other.rows
    }
}

impl std::ops::Sub for Count {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { scans: self.scans - other.scans, rows: self.rows - other.rows }
    }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { scans: self.scans + other.scans, rows: self.rows + other.rows }
    }
}

/// A look at the counters of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What others have read since the counters began.
    pub others: Count,
    /// When, in microseconds since 1970: not before they were read.
    pub at_us: i64,
}

/// How somebody was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// A session held a lock on the table.
    Session,
    /// A statement that names the table has run.
    Statement,
}

impl How {
    /// The stored form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Statement => "statement",
        }
    }
}

/// Somebody who uses an old table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableUser {
    /// The table, by the monolith's name.
    pub source_table: String,
    /// How it was met.
    pub how: How,
    /// Role.
    pub role: String,
    /// `application_name`; of a statement empty.
    pub application: String,
    /// Address, or `local`; of a statement empty.
    pub client: String,
    /// `queryid` of a statement; of a session 0.
    pub statement_id: i64,
    /// The statement, without constants.
    pub statement: String,
    /// How often it has run, by `pg_stat_statements`; of a session how often it was met.
    pub calls: i64,
    /// When it was last met, in microseconds since 1970; `None` for a statement that has not run since the watch began.
    pub last_us: Option<i64>,
}

const MICROS: &str = "(extract(epoch FROM $) * 1000000)::bigint";

fn micros(column: &str) -> String {
    MICROS.replace('$', column)
}

/// What we have read of tables, in their order, as far as it is noted.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn own(monolith: &Client, tables: &[TableName]) -> Result<Vec<Count>, JournalError> {
    let labels: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let rows = monolith.query_typed(OWN, &[(&labels, Type::TEXT_ARRAY)]).await;
    let rows = rows.map_err(JournalError::database("counting our own scans of old tables"))?;
    Ok(rows.iter().map(Count::of).collect())
}

/// Whether the server's sessions can be made to hand their counts over when a transaction ends.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn hands_over(monolith: &Client) -> Result<bool, JournalError> {
    let sql = "SELECT to_regprocedure('pg_stat_force_next_flush()') IS NOT NULL";
    let row = monolith.query_typed_one(sql, &[]).await;
    Ok(row.map_err(JournalError::database("looking how the server counts"))?.get(0))
}

/// Reads the counters of tables, in their order. Ours are read before and after the server's: where they are the same, and every
/// transaction of ours hands its counts over when it ends, the difference is exactly what others have read. `None` for a table
/// that we read meanwhile: another look may be luckier.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn count(monolith: &Client, tables: &[TableName]) -> Result<Vec<Option<Counted>>, JournalError> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let sql = format!(
        "SELECT t.n, coalesce(sum(pg_stat_get_numscans(r.oid) + coalesce((SELECT \
             sum(pg_stat_get_numscans(i.indexrelid)) FROM pg_index i WHERE i.indrelid = r.oid), 0)), 0)::bigint, \
             coalesce(sum(pg_stat_get_tuples_returned(r.oid) + pg_stat_get_tuples_fetched(r.oid)), 0)::bigint \
         FROM {TREES} GROUP BY t.n ORDER BY t.n"
    );
    let names: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    // Sent one behind the other, so that little time lies between them.
    let (before, read, after) =
        tokio::join!(own(monolith, tables), monolith.query_typed(&sql, &names), own(monolith, tables));
    let read = read.map_err(JournalError::database("counting scans of old tables"))?;
    let at_us = SystemClock.now_us();
    let counted = before?.into_iter().zip(&read).zip(after?);
    Ok(counted
        .map(|((before, row), after)| {
            (before == after).then(|| Counted { others: Count::of(row) - after, at_us })
        })
        .collect())
}

/// What is known of a slice's tables, by the monolith's names.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn tables(monolith: &Client, slice: &str) -> Result<Vec<(String, TableUse)>, JournalError> {
    let sql = format!(
        "SELECT source_table, epoch, {}, scans, rows, scans_by_others, rows_by_others, {}, {}, {}, {}, {} FROM strangler.table_use \
         WHERE slice = $1 ORDER BY source_table",
        micros("since"),
        micros("unseen_from"),
        micros("unseen_until"),
        micros("after_at"),
        micros("last_at"),
        micros("sampled_at")
    );
    let rows = monolith.query(&sql, &[&slice]).await;
    let rows = rows.map_err(JournalError::database("reading the use of old tables"))?;
    let pair = |row: &Row, first: usize| -> Option<(i64, i64)> {
        row.get::<_, Option<i64>>(first).zip(row.get::<_, Option<i64>>(first + 1))
    };
    let read = |row: &Row| {
        let table = TableUse {
            epoch: row.get(1),
            since_us: row.get(2),
            counted: Count { scans: row.get(3), rows: row.get(4) },
            others: Count { scans: row.get(5), rows: row.get(6) },
            unseen_us: pair(row, 7),
            last_us: pair(row, 9),
            sampled_us: row.get(11),
        };
        (row.get(0), table)
    };
    Ok(rows.iter().map(read).collect())
}

/// Writes down what is known of tables. Our own scans up to now are folded into one number with it.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn save(monolith: &Client, slice: &str, rows: &[(String, TableUse)]) -> Result<(), JournalError> {
    let sql = "WITH folded AS (DELETE FROM strangler.own_scan WHERE slice = $1 AND source_table = $2 RETURNING scans, rows), \
            mine AS (SELECT coalesce(sum(scans), 0)::bigint AS scans, coalesce(sum(rows), 0)::bigint AS rows FROM folded) \
        INSERT INTO strangler.table_use AS u (slice, source_table, epoch, since, own_scans, own_rows, scans, rows, \
            scans_by_others, rows_by_others, unseen_from, unseen_until, after_at, last_at, sampled_at) \
        SELECT $1, $2, $3, $4, mine.scans, mine.rows, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM mine \
        ON CONFLICT (slice, source_table) DO UPDATE SET epoch = excluded.epoch, since = excluded.since, \
            own_scans = u.own_scans + excluded.own_scans, own_rows = u.own_rows + excluded.own_rows, \
            scans = excluded.scans, rows = excluded.rows, scans_by_others = excluded.scans_by_others, \
            rows_by_others = excluded.rows_by_others, unseen_from = excluded.unseen_from, \
            unseen_until = excluded.unseen_until, after_at = excluded.after_at, last_at = excluded.last_at, \
            sampled_at = excluded.sampled_at";
    for (table, known) in rows {
        let unseen = known.unseen_us.map(|(from, until)| (time(from), time(until))).unzip();
        let last = known.last_us.map(|(after, last)| (time(after), time(last))).unzip();
        let (since, sampled) = (time(known.since_us), time(known.sampled_us));
        let (counted, others) = (known.counted, known.others);
        let parameters: [&(dyn ToSql + Sync); 13] = [
            &slice,
            table,
            &known.epoch,
            &since,
            &counted.scans,
            &counted.rows,
            &others.scans,
            &others.rows,
            &unseen.0,
            &unseen.1,
            &last.0,
            &last.1,
            &sampled,
        ];
        let saved = monolith.execute(sql, &parameters).await;
        saved.map_err(JournalError::database("writing the use of old tables"))?;
    }
    Ok(())
}

/// Sessions of others that read or write a table now: that hold a lock which queries take, and neither maintenance nor DDL
/// (PostgreSQL documentation, "Explicit Locking"). A parallel worker is its leader's. Address and statement stay empty where the
/// session's role may not see them.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn sessions(monolith: &Client, tables: &[TableName]) -> Result<Vec<TableUser>, JournalError> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let sql = format!(
        "WITH watched AS MATERIALIZED (SELECT t.n, r.oid FROM {TREES}) \
         SELECT DISTINCT ON (w.n, a.pid) w.n, coalesce(a.usename, ''), coalesce(a.application_name, ''), \
             coalesce(host(a.client_addr), CASE WHEN a.query = '<insufficient privilege>' THEN '' ELSE 'local' END), \
             CASE WHEN a.query = '<insufficient privilege>' THEN '' ELSE coalesce(a.query, '') END \
         FROM pg_locks l JOIN watched w ON w.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.granted \
           AND l.mode IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock') \
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND coalesce(a.backend_type, '') NOT IN ('autovacuum worker', 'parallel worker') AND a.usesysid IS NOT NULL \
           AND a.pid <> pg_backend_pid() AND a.application_name !~ '^strangler( |$)'"
    );
    let rows = monolith.query(&sql, &[&names]).await;
    let rows = rows.map_err(JournalError::database("looking for sessions that use old tables"))?;
    let at_us = SystemClock.now_us();
    let read = |row: &Row| {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).ok();
        let table = place.and_then(|place| tables.get(place))?;
        Some(TableUser {
            source_table: table.to_string(),
            how: How::Session,
            role: row.get(1),
            application: row.get(2),
            client: row.get(3),
            statement_id: 0,
            statement: row.get(4),
            calls: 1,
            last_us: Some(at_us),
        })
    };
    Ok(rows.iter().filter_map(read).collect())
}

/// Writes down sessions that were met: once each, with the last time and statement.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn met(monolith: &Client, slice: &str, users: &[TableUser]) -> Result<(), JournalError> {
    let sql = "INSERT INTO strangler.table_user AS u (slice, source_table, how, role, application, client, statement_id, \
            statement, calls, first_at, last_at) \
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce($10, $11::timestamptz), $10 \
        ON CONFLICT (slice, source_table, how, role, application, client, statement_id) DO UPDATE SET \
            statement = excluded.statement, last_at = coalesce(excluded.last_at, u.last_at), \
            calls = CASE WHEN u.how = 'session' THEN u.calls + 1 ELSE excluded.calls END";
    let now = SystemClock.now();
    for user in users {
        let at = user.last_us.map(time);
        let how = user.how.as_str();
        let parameters: [&(dyn ToSql + Sync); 11] = [
            &slice,
            &user.source_table,
            &how,
            &user.role,
            &user.application,
            &user.client,
            &user.statement_id,
            &user.statement,
            &user.calls,
            &at,
            &now,
        ];
        let met = monolith.execute(sql, &parameters).await;
        met.map_err(JournalError::database("writing down who uses old tables"))?;
    }
    Ok(())
}

/// Everybody who was met at a slice's old tables, and statements that were there before, whoever was met last first.
///
/// # Errors
/// [`JournalError`].
pub async fn users(monolith: &Client, slice: &str) -> Result<Vec<TableUser>, JournalError> {
    let sql = format!(
        "SELECT source_table, how, role, application, client, statement_id, statement, calls, {} \
         FROM strangler.table_user WHERE slice = $1 ORDER BY source_table, last_at DESC NULLS LAST, how, role, statement",
        micros("last_at")
    );
    let rows = monolith.query(&sql, &[&slice]).await;
    let rows = rows.map_err(JournalError::database("reading who uses old tables"))?;
    let read = |row: &Row| {
        let how = match row.get::<_, &str>(1) {
            "session" => How::Session,
            "statement" => How::Statement,
            other => {
                return Err(JournalError::Unreadable { what: "table_user.how", found: other.to_owned() });
            }
        };
        Ok(TableUser {
            source_table: row.get(0),
            how,
            role: row.get(2),
            application: row.get(3),
            client: row.get(4),
            statement_id: row.get(5),
            statement: row.get(6),
            calls: row.get(7),
            last_us: row.get(8),
        })
    };
    rows.iter().map(read).collect()
}
