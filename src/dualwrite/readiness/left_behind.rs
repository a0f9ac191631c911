//! Rows of a moved table that no filter takes. A table has one gate, which would close for them as well, and the service does
//! not have them: whoever is sent there to write them would change nothing and be told that all went well.

use tokio_postgres::Client;

use super::Asked;
use super::facts::{Behind, Facts};
use crate::authority::Side;
use crate::dualwrite::flip::FlipError;
use crate::mapping::SliceMapping;
use crate::postgres::sqlstate;
use crate::problem::Problem;

/// Longest that one table is looked through, in milliseconds: less than a server may owe a flip an answer. Nobody is held
/// meanwhile.
const LOOK_MAX_MS: u32 = 10_000;

/// What comes of them.
pub const CONSEQUENCE: &str = "the gate closes for the whole table, and the service does not have such rows: an UPDATE of one would \
    be refused on the monolith and meet nothing on the service";

/// What to do about them.
pub const NEXT: &str = "move them to a table of their own on the monolith, or delete them; or leave `where` out of the plan, and \
    where the slice is provisioned already start it anew: docs/runbooks/start-anew.md";

/// Asks the monolith for them. A NULL in a filter's column matches no value.
///
/// # Errors
/// [`FlipError::Failed`].
pub(super) async fn find(monolith: &Client, mapping: &SliceMapping) -> Result<Vec<Behind>, FlipError> {
    let mut found = Vec::new();
    for table in &mapping.tables {
        let Some(filter) = table.filter_sql() else { continue };
        let of = |known| Behind {
            table: table.source.to_string(),
            sql: table.source.sql(),
            filter: filter.clone(),
            known,
        };
        match is_any(monolith, (&table.source.sql(), std::slice::from_ref(&filter)), LOOK_MAX_MS).await {
            Ok(false) => {}
            Ok(true) => found.push(of(true)),
            Err(error) if sqlstate::code(&error) == Some("57014") => found.push(of(false)),
            Err(error) => {
                let what = "looking for rows that no filter takes";
                return Err(FlipError::Failed { what, words: sqlstate::words(&error) });
            }
        }
    }
    Ok(found)
}

/// Whether a table, which is quoted for SQL, has rows that none of these filters takes, where that is found out in so many
/// milliseconds. Who calls it: a flip before it begins, and `check`.
///
/// # Errors
/// The server's; 57014 when time was up.
pub async fn is_any(
    monolith: &Client,
    (table, filters): (&str, &[String]),
    limit_ms: u32,
) -> Result<bool, tokio_postgres::Error> {
    let outside: Vec<String> = filters.iter().map(|filter| outside(filter)).collect();
    let sql = format!("SELECT EXISTS (SELECT FROM {table} WHERE {})", outside.join(" AND "));
    monolith.batch_execute(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {limit_ms}")).await?;
    let found = monolith.query_one(&sql, &[]).await.map(|row| row.get(0));
    // When the connection broke there is nothing to end; the first error tells the story.
    let ended = monolith.batch_execute("ROLLBACK").await;
    let found = found?;
    ended.map(|()| found)
}

/// The rows that a filter does not take, as a condition.
#[must_use]
pub fn outside(filter: &str) -> String {
    format!("({filter}) IS NOT TRUE")
}

/// No reason excuses them.
pub(super) fn judge(facts: &Facts, asked: &Asked<'_>) -> Vec<Problem> {
    let moved = facts.behind.iter().filter(|_| asked.to == Side::Service);
    moved.map(|one| problem(one, asked)).collect()
}

fn problem(behind: &Behind, asked: &Asked<'_>) -> Problem {
    let Behind { table, sql, filter, known } = behind;
    let problem = Problem::error("rows-stay-behind", format!("table {table}"));
    let problem = if *known {
        problem
            .fact(format!("it has rows that the slice's filter does not take: {}", outside(filter)))
            .next(NEXT)
    } else {
        problem
            .fact(format!(
                "{} s were not enough to look for rows that the slice's filter does not take",
                LOOK_MAX_MS / 1000
            ))
            .next(format!(
                "on the monolith: CREATE INDEX CONCURRENTLY ON {sql} ((1)) WHERE {}; which answers that at once; then {}",
                outside(filter),
                asked.flip()
            ))
    };
    problem.consequence(CONSEQUENCE)
}
