//! Whoever holds a lock on a moved table that the flip itself waits for on the side that would be fenced, or the mirror on the other
//! one.

use tokio_postgres::{Client, Row};

use super::Asked;
use super::facts::{Facts, Holder, TableLock};
use super::writers::{HOPELESS_S, LISTED_MAX, LONG_S, described};
use crate::problem::{Problem, Severity};
use crate::words::statement;

/// Locks that conflict with those of writers, apart from our own sessions': the first table of each session is enough.
const SQL: &str = "
WITH wanted AS (SELECT n.name, to_regclass(n.name)::oid AS oid FROM unnest($1::text[]) AS n (name)),
    tree AS (SELECT oid FROM wanted UNION SELECT p.relid FROM wanted AS w, LATERAL pg_partition_tree(w.oid) AS p)
SELECT DISTINCT ON (a.xact_start, l.pid) l.pid, extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
    coalesce(nullif(a.application_name, ''), 'role ' || a.usename, ''), coalesce(a.state, 'state hidden'),
    coalesce(a.query, ''), l.mode, l.relation::regclass::text
FROM pg_locks AS l JOIN tree AS t ON t.oid = l.relation JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
        OR $2 AND l.mode = 'ShareUpdateExclusiveLock'
            AND (SELECT c.relkind FROM pg_class AS c WHERE c.oid = l.relation) = 'p')
    AND a.application_name NOT LIKE 'strangler%'
ORDER BY a.xact_start NULLS FIRST, l.pid, l.relation";

/// Sessions that hold such locks on tables, which are quoted for SQL; with `fenced` also those that keep a fence from locking
/// a partitioned table, which writers don't wait for. Who calls it: a flip before it begins, and `status` where the way back is late.
///
/// # Errors
/// The server's.
pub async fn find(
    client: &Client,
    tables: &[String],
    fenced: bool,
) -> Result<Vec<TableLock>, tokio_postgres::Error> {
    let rows = client.query(SQL, &[&tables, &fenced]).await?;
    let of = |row: &Row| TableLock {
        holder: Holder {
            pid: row.get(0),
            age_s: row.get::<_, Option<f64>>(1).unwrap_or_default(),
            hidden: row.get::<_, Option<f64>>(1).is_none(),
            application: row.get(2),
            state: row.get(3),
            query: statement::shown(row.get(4)),
        },
        mode: row.get(5),
        table: row.get(6),
    };
    Ok(rows.iter().map(of).collect())
}

impl TableLock {
    /// Who holds it, and since when.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{} on {}, by {}", self.mode, self.table, described(&self.holder))
    }

    /// Who holds it, in words that stay the same as time goes by.
    #[must_use]
    pub fn brief(&self) -> String {
        let Holder { pid, application, state, .. } = &self.holder;
        format!("process {pid} ({application}, {state}) holds {} on {}", self.mode, self.table)
    }

    fn is_long(&self) -> bool {
        self.holder.hidden || self.holder.age_s >= LONG_S
    }
}

pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let sides = [
        (asked.from(), &facts.locked_from, "the fence waits for them, and meanwhile nothing is moved"),
        (asked.to, &facts.locked_to, "the mirror waits for them, so nothing would drain"),
    ];
    let problem = |(side, locks, consequence): (_, &Vec<TableLock>, &str)| {
        let long: Vec<&TableLock> = locks.iter().filter(|lock| lock.is_long()).collect();
        let hopeless = |lock: &&TableLock| !lock.holder.hidden && lock.holder.age_s >= HOPELESS_S;
        let severity = if long.iter().any(hopeless) { Severity::Error } else { Severity::Warning };
        let listed: Vec<String> = long.iter().take(LISTED_MAX).map(|lock| lock.words()).collect();
        let more = long.len().saturating_sub(LISTED_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let pids: Vec<String> = long.iter().map(|lock| lock.holder.pid.to_string()).collect();
        (!long.is_empty()).then(|| {
            Problem::new(severity, "table-locked", asked.name(side))
                .fact(format!("locks on moved tables: {}{more}", listed.join("; ")))
                .consequence(consequence)
                .next(format!(
                    "wait until they end, or on the {side}: SELECT pg_terminate_backend(pid) for {}",
                    pids.join(", ")
                ))
        })
    };
    sides.into_iter().filter_map(problem).collect()
}
