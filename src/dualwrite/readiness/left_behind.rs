//! Rows of a moved table that the slice's filter does not take, on the side that is to be closed. A table has one gate, which closes
//! for them as well, and the other side does not have them: whoever is sent there to write them would change nothing and be told
//! that all went well.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::Asked;
use super::facts::{Behind, Facts, Look};
use crate::authority::Side;
use crate::dualwrite::flip::FlipError;
use crate::mapping::{SliceMapping, TableMapping};
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;
use crate::problem::Problem;

/// Longest that one table is looked through before a flip, in milliseconds: less than a server may owe a flip an answer. Nobody is
/// held meanwhile.
const LOOK_MAX_MS: u32 = 10_000;

/// A look that takes less than this part of the budget is no matter: writers wait that long for the mirror, too.
const CALM_PART: u32 = 5;

/// What comes of those of the monolith.
pub const CONSEQUENCE: &str = "the gate closes for the whole table, and the service does not have such rows: an UPDATE of one would \
    be refused on the monolith and meet nothing on the service";

/// What to do about them.
pub const NEXT: &str = "move them to a table of their own on the monolith, or delete them; or leave `where` out of the plan, and \
    where the slice is provisioned already start it anew: docs/runbooks/start-anew.md";

/// What comes of those of a service.
const LOST: &str = "the way back does not carry such rows: the monolith would go on without what the service's application wrote \
    there, and no reason excuses that";

/// What to do about them.
const PUT_RIGHT: &str = "give them values that the filter takes, or move them to a table of their own in the service; none of them \
    is anywhere else";

/// A table that is moved in part, as it is on one side.
struct Filtered {
    name: String,
    /// The same, quoted for SQL.
    sql: String,
    filter: String,
    /// How an index is made that holds the rows outside the filter alone.
    index: String,
}

fn filtered(table: &TableMapping, side: Side) -> Option<Filtered> {
    // A service's table is partitioned by its own migrations only, of which the mapping knows nothing.
    let (name, filter, partitioned) = match side {
        Side::Monolith => (&table.source, table.filter_sql()?, table.partitioned),
        Side::Service => (&table.target, table.target_filter_sql()?, false),
    };
    let index = index(&name.sql(), &filter, partitioned);
    Some(Filtered { name: name.to_string(), sql: name.sql(), filter, index })
}

/// Asks the side that would be closed for them. A NULL in a filter's column matches no value. What takes longer than writers may be
/// held is asked once more, since a table that was read a moment ago is read more quickly.
///
/// # Errors
/// [`FlipError::Failed`].
pub(super) async fn find(
    from: &Client,
    mapping: &SliceMapping,
    (side, budget): (Side, Duration),
) -> Result<Vec<Behind>, FlipError> {
    let mut found = Vec::new();
    for table in mapping.tables.iter().filter_map(|table| filtered(table, side)) {
        let mut look = look(from, &table, budget).await?;
        if matches!(look, Some(Look::Slow { .. })) {
            look = self::look(from, &table, budget).await?;
        }
        let Filtered { name, filter, index, .. } = table;
        found.extend(look.map(|look| Behind { table: name, filter, index, look }));
    }
    Ok(found)
}

async fn look(from: &Client, table: &Filtered, budget: Duration) -> Result<Option<Look>, FlipError> {
    let begun = Instant::now();
    match is_any(from, (&table.sql, std::slice::from_ref(&table.filter)), LOOK_MAX_MS).await {
        Ok(true) => Ok(Some(Look::Found)),
        Ok(false) => {
            let took = begun.elapsed();
            Ok((took > budget / CALM_PART).then_some(Look::Slow { took, budget }))
        }
        Err(error) if sqlstate::code(&error) == Some("57014") => {
            Ok(Some(Look::Slow { took: Duration::from_millis(LOOK_MAX_MS.into()), budget }))
        }
        Err(error) => Err(FlipError::Failed {
            what: "looking for rows that no filter takes",
            words: sqlstate::words(&error),
        }),
    }
}

/// Asks for them once more while the writers are held: all tables by one statement that the session has planned, in what is `left` of
/// the budget. What was found, in words; nothing where no table is moved in part, and `None` when time was up before a look of usual
/// length could end: that says nothing of the tables. Who calls it: a flip under the gate's lock, and before, for the plan.
///
/// # Errors
/// The server's.
pub async fn again(
    session: &Session,
    mapping: &SliceMapping,
    (side, left, budget): (Side, Duration, Duration),
) -> Result<Option<Vec<String>>, tokio_postgres::Error> {
    let tables: Vec<_> = mapping.tables.iter().filter_map(|table| filtered(table, side)).collect();
    if tables.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let asked: Vec<String> = tables.iter().map(|table| exists(&table.sql, &outside(&table.filter))).collect();
    let planned = session.planned(&format!("SELECT ARRAY[{}]", asked.join(", "))).await?;
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", left.as_millis().max(1));
    // Sent together, since writers may wait.
    let (begun, row, ended) = tokio::join!(
        biased;
        session.batch_execute(&begin),
        session.query_one(&planned, &[]),
        session.batch_execute("ROLLBACK")
    );
    begun?;
    let found: Vec<bool> = match row {
        Ok(row) => row.try_get(0)?,
        Err(error) if sqlstate::code(&error) == Some("57014") => {
            return Ok((left >= budget / CALM_PART).then(|| vec![too_long(&tables, side)]));
        }
        Err(error) => return Err(error),
    };
    ended?;
    let there = tables.iter().zip(found).filter_map(|(table, found)| found.then_some(table));
    let words = there.map(|Filtered { name, filter, .. }| {
        format!(
            "table {name} of the {side} has rows that the slice's filter does not take: {}",
            outside(filter)
        )
    });
    Ok(Some(words.collect()))
}

fn too_long(tables: &[Filtered], side: Side) -> String {
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let indexes: Vec<&str> = tables.iter().map(|table| table.index.as_str()).collect();
    format!(
        "whether {} has rows that the slice's filter does not take could not be told within write_pause_budget, and these \
         indexes on the {side} answer that at once: {}",
        names.join(" or "),
        indexes.join("; ")
    )
}

fn exists(table: &str, condition: &str) -> String {
    format!("EXISTS (SELECT FROM {table} WHERE {condition})")
}

/// An index that holds such rows alone. A partitioned table has none that is made concurrently (PostgreSQL documentation, CREATE INDEX),
/// and needs none where its partitions have it.
fn index(table: &str, filter: &str, partitioned: bool) -> String {
    let condition = outside(filter);
    if partitioned {
        return format!(
            "CREATE INDEX CONCURRENTLY ON P ((1)) WHERE {condition}, on each P of the partitions of {table} that have rows"
        );
    }
    format!("CREATE INDEX CONCURRENTLY ON {table} ((1)) WHERE {condition}")
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
    let sql = format!("SELECT {}", exists(table, &outside.join(" AND ")));
    monolith.batch_execute(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {limit_ms}")).await?;
    let found = monolith.query_typed_one(&sql, &[]).await.map(|row| row.get(0));
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
    facts.behind.iter().map(|one| problem(one, asked)).collect()
}

fn problem(behind: &Behind, asked: &Asked<'_>) -> Problem {
    let Behind { table, filter, index, look } = behind;
    let (code, object, consequence, next) = match asked.from() {
        Side::Monolith => ("rows-stay-behind", format!("table {table}"), CONSEQUENCE, NEXT.to_owned()),
        Side::Service => (
            "rows-not-back",
            format!("{}, table {table}", asked.name(Side::Service)),
            LOST,
            format!("{PUT_RIGHT}; then {}", asked.flip()),
        ),
    };
    let Look::Slow { took, budget } = *look else {
        return Problem::error(code, object)
            .fact(format!("it has rows that the slice's filter does not take: {}", outside(filter)))
            .consequence(consequence)
            .next(next);
    };
    let (took_ms, budget_ms) = (took.as_millis(), budget.as_millis());
    let index = format!("on the {}: {index}; which answers that at once", asked.from());
    if took <= budget {
        return Problem::warning("slow-look", object)
            .fact(format!(
                "whether it has rows that the slice's filter does not take is asked while writers are held, and took {took_ms} ms \
                 of write_pause_budget ({budget_ms} ms)"
            ))
            .consequence("every writer waits that long")
            .next(index);
    }
    Problem::error(code, object)
        .fact(format!(
            "{took_ms} ms were not enough to look for rows that the slice's filter does not take, or are more than \
             write_pause_budget ({budget_ms} ms), and that is asked once more while writers are held"
        ))
        .consequence(consequence)
        .next(format!("{index}; then {}", asked.flip()))
}

#[cfg(test)]
mod tests {
    use super::index;

    #[test]
    fn an_index_is_advised_where_it_can_be_made_without_stopping_writers() {
        let one = index("\"a\"", "k = 1", false);
        assert_eq!(one, "CREATE INDEX CONCURRENTLY ON \"a\" ((1)) WHERE (k = 1) IS NOT TRUE");
        let parts = index("\"a\"", "k = 1", true);
        assert!(
            !parts.contains("CONCURRENTLY ON \"a\"") && parts.contains("each P of the partitions of \"a\""),
            "{parts}"
        );
    }
}
