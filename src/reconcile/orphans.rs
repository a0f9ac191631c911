//! Soft references that name a row which its owner does not have.
//!
//! The referring rows are read where this slice's authority is, the referenced ones where theirs is: on the monolith,
//! or in the service whose gate is open. Between two databases the key sets are first compared by buckets of
//! hashes: where both are equal nothing is pulled over the network, elsewhere only the referring side's values.
//!
//! A candidate is a finding only when a referring row was there, then its owner had no such row, and then the very same
//! referring row was still there. Whoever writes the referenced row first and deletes it last can't be mistaken; a commit
//! that is not visible yet is waited for ([`barrier`]).

mod owner;

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::types::Type;

use self::owner::{Owner, ask, lists, owners};
use super::barrier;
use super::finding::{ColumnDiff, Finding, FindingKind, RawKey, Shown};
use super::form::{Side, TableForm, key_text_sql};
use super::redact::Redactor;
use super::sides::Sides;
use crate::journal::JournalError;
use crate::mapping::input::is_users;
use crate::mapping::{ColumnMapping, SliceMapping, SoftReference};
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::{ConnectError, Server, Session};
use crate::postgres::sqlstate::{self, Failure};

/// Reference values that are asked for at once.
const VALUES_AT_ONCE: usize = 5_000;
/// Buckets of one comparison between two databases: with millions of values some hundred are in each.
const BUCKETS: u32 = 4_096;
/// Rounds for candidates that move, and the pause before each.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_secs(1)];
/// How long older transactions of an owner are waited for in a round.
const BARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// A slice of the plan, which may hold rows that another one refers to.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour<'a> {
    /// Its mapping.
    pub mapping: &'a SliceMapping,
    /// Its service, under the apply role.
    pub server: &'a Server,
}

/// What was found of one table's references.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Referring rows without a referenced one, over all references; a row is counted for each.
    pub count: u64,
    /// The first of them. Their columns are the reference: its value, and nothing on the owner's side.
    pub listed: Vec<Finding>,
    /// Why something is not known, a sentence each, without values.
    pub reasons: Vec<String>,
}

/// The search could not go on.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("looking for orphans: {0}")]
    Database(String),
    /// The service that took the referenced table does not have the column.
    #[error("the mapping of {table} does not carry {column}, which is referred to")]
    NotCarried {
        /// The referenced table.
        table: TableName,
        /// Its column.
        column: String,
    },
    /// Nobody knows where the referenced rows are.
    #[error(
        "the link of service {service} leads to a database that has nothing of slice {slice}, and the monolith has closed its gate"
    )]
    Astray {
        /// The slice that took the referenced table.
        slice: String,
        /// Its service.
        service: String,
    },
}

impl OrphanError {
    fn journal(error: JournalError) -> Self {
        Self::Database(crate::cdc::mirror::chain_of(&error))
    }
}

impl From<tokio_postgres::Error> for OrphanError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(sqlstate::words(&error))
    }
}

/// A table's referring side of one reference.
struct Referrer<'a> {
    slice: &'a str,
    form: &'a TableForm,
    side: Side,
    reference: &'a SoftReference,
    columns: Vec<&'a ColumnMapping>,
    session: &'a Session,
    redactor: &'a Redactor,
}

/// Referring rows of one value: how many, and the first of them as key and row version.
#[derive(Default, Clone)]
struct Rows {
    count: i64,
    first: Vec<(Vec<String>, String)>,
}

/// Looks at all soft references of one table of `slice`. `neighbours` are all slices of the plan, this one among them. `list` findings are listed, all are counted.
///
/// # Errors
/// [`OrphanError`]; what a role may not read is a reason instead.
pub async fn orphans(
    sides: &Sides,
    slice: &str,
    form: &TableForm,
    neighbours: &[Neighbour<'_>],
    redactor: &Redactor,
    list: usize,
) -> Result<Orphans, OrphanError> {
    let mut found = Orphans { reasons: unknown(slice, form, neighbours), ..Orphans::default() };
    if form.mapping.soft_references.is_empty() {
        return Ok(found);
    }
    let session = sides.reader(sides.authority).await?;
    session.set_unhurried(true);
    let own = neighbours.iter().find(|other| other.mapping.slice == slice);
    let service = own.map(|own| &own.mapping.service);
    for reference in &form.mapping.soft_references {
        let not_looked_at = |why: &str| {
            format!(
                "references of {} to {} could not be looked at: {why}",
                form.mapping.source, reference.references
            )
        };
        let column = |name: &String| form.mapping.columns.iter().find(|column| column.target == *name);
        let Some(columns) = reference.columns.iter().map(column).collect::<Option<Vec<_>>>() else {
            found.reasons.push(not_looked_at("the mapping does not carry all their columns"));
            continue;
        };
        if let Some(why) = nobody_has((own, neighbours), &reference.references) {
            found.reasons.push(not_looked_at(&why));
            continue;
        }
        let referrer =
            Referrer { slice, form, side: sides.authority, reference, columns, session: &session, redactor };
        let asked = owners(sides, (slice, reference), neighbours).await?;
        let owners = asked.places.as_slice();
        let here = match (sides.authority, owners) {
            (Side::Source, [only]) => only.service.is_none(),
            (Side::Target, [only]) => only.service.is_some() && only.service.as_ref() == service,
            (_, _) => false,
        };
        let mut of_reference = found.clone();
        match Box::pin(referrer.search(owners, here, list, &mut of_reference)).await {
            Ok(()) => match asked.moved((slice, sides.authority)).await? {
                None => found = of_reference,
                Some(why) => found.reasons.push(not_looked_at(&why)),
            },
            Err(error) if Failure::of(&error) == Failure::Privilege => {
                found.reasons.push(unreadable(form, reference, (owners, &error)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Why there may be references of a table that nobody knows of: a foreign key to a table that was dropped is written down in one service alone.
fn unknown(slice: &str, form: &TableForm, neighbours: &[Neighbour<'_>]) -> Vec<String> {
    let others = neighbours.iter().filter(|other| other.mapping.slice != slice);
    let why =
        others.filter_map(|other| other.mapping.unknown.as_ref().map(|why| (&other.mapping.slice, why)));
    why.map(|(other, why)| {
        format!("whether {} refers to tables of slice {other} is not known: {why}", form.mapping.source)
    })
    .collect()
}

/// Why it can't be said who has the rows of a table that is referred to.
fn nobody_has((own, all): (Option<&Neighbour<'_>>, &[Neighbour<'_>]), table: &TableName) -> Option<String> {
    if let Some(taker) = all.iter().find(|other| other.mapping.unmapped.contains(table)) {
        return Some(format!(
            "slice {} takes it, and does not fit the monolith's tables; solve what strangler check says about that slice, or, where \
             it is retired, bring its entries in the plan back to what they were",
            taker.mapping.slice
        ));
    }
    let is_unheld = own.is_some_and(|own| own.mapping.unheld.contains(table));
    is_unheld.then(|| {
        "it is dropped from the monolith, and no slice of the plan takes it, so nobody knows who has its rows; put its slice \
         back into the plan"
            .to_owned()
    })
}

/// Why references could not be looked at where a role may not read one of their ends.
fn unreadable(
    form: &TableForm,
    reference: &SoftReference,
    (owners, error): (&[Owner], &tokio_postgres::Error),
) -> String {
    let places: Vec<&str> = owners.iter().map(|owner| owner.place.as_str()).collect();
    let words = sqlstate::words(error);
    let right = if words.contains("row-level security") {
        "give the role of that link BYPASSRLS: rows that are hidden from it would look like orphans"
    } else {
        "grant SELECT on it to the role of that link"
    };
    format!(
        "references of {} to {} could not be looked at ({}): {words}; {right}",
        form.mapping.source,
        reference.references,
        places.join(", "),
    )
}

impl Referrer<'_> {
    async fn search(
        &self,
        owners: &[Owner],
        same_database: bool,
        list: usize,
        found: &mut Orphans,
    ) -> Result<(), tokio_postgres::Error> {
        let narrowed = match owners {
            [owner] if same_database => format!(
                " AND NOT EXISTS (SELECT FROM {} AS r WHERE {})",
                owner.from(),
                owner.matches(|index| self.column(index))
            ),
            [owner] => match self.unequal_buckets(owner).await? {
                buckets if buckets.is_empty() => return Ok(()),
                buckets => format!(" AND {} IN ({})", bucket(&self.texts()), buckets.join(", ")),
            },
            _ => String::new(),
        };
        let distinct =
            format!("SELECT DISTINCT {} FROM {}{narrowed}", self.texts().join(", "), self.rows_sql());
        // One cursor, so that any number of values takes the memory of one batch.
        self.session.batch_execute("CLOSE ALL").await?;
        self.session.batch_execute(&format!("DECLARE referred CURSOR WITH HOLD FOR {distinct}")).await?;
        loop {
            let rows =
                self.session.query_typed(&format!("FETCH {VALUES_AT_ONCE} FROM referred"), &[]).await?;
            if rows.is_empty() {
                break;
            }
            let mut values = Vec::with_capacity(rows.len());
            for row in &rows {
                let parts = (0..self.columns.len()).map(|index| row.try_get(index));
                values.push(parts.collect::<Result<Vec<String>, _>>()?);
            }
            Box::pin(self.prove(owners, values, list, found)).await?;
        }
        self.session.batch_execute("CLOSE referred").await
    }

    /// Takes values that are absent from every owner for what they are.
    async fn prove(
        &self,
        owners: &[Owner],
        values: Vec<Vec<String>>,
        list: usize,
        found: &mut Orphans,
    ) -> Result<(), tokio_postgres::Error> {
        let mut open = self.absent(owners, values).await?;
        let mut waiting = None;
        for pause in PAUSES {
            if open.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            let before = self.rows(&open, list).await?;
            waiting = not_passed(owners).await?;
            if waiting.is_some() {
                continue;
            }
            open = self.absent(owners, open).await?;
            let mut after = self.rows(&open, list).await?;
            open.retain(|value| {
                let Some(after) = after.remove(value) else { return false };
                self.take(value, before.get(value), after, list, found)
            });
        }
        if !open.is_empty() {
            let table = &self.form.mapping.source;
            let why = waiting.unwrap_or_else(|| "its rows changed at each look".to_owned());
            found.reasons.push(format!(
                "{} values of {table} that refer to {} may be orphans: {why}",
                open.len(),
                self.reference.references
            ));
        }
        Ok(())
    }

    /// Counts and lists the rows of a value that were there before and after; true when none of them was the same.
    fn take(
        &self,
        value: &[String],
        before: Option<&Rows>,
        after: Rows,
        list: usize,
        found: &mut Orphans,
    ) -> bool {
        let Some(before) = before else { return true };
        let same: Vec<_> = after.first.into_iter().filter(|row| before.first.contains(row)).collect();
        if same.is_empty() {
            return true;
        }
        found.count += u64::try_from(before.count.min(after.count)).unwrap_or(0);
        let free = list.saturating_sub(found.listed.len());
        found.listed.extend(same.into_iter().take(free).map(|(key, _)| self.finding(value, key)));
        false
    }

    fn finding(&self, value: &[String], key: Vec<String>) -> Finding {
        let mapping = &self.form.mapping;
        let shown = |(column, text): (&ColumnMapping, &String)| {
            (column.target.clone(), self.redactor.show(column, text))
        };
        let columns = self.columns.iter().zip(value).map(|(column, text)| ColumnDiff {
            column: column.target.clone(),
            authority: self.redactor.show(column, text),
            copy: Shown::Null,
        });
        Finding {
            slice: self.slice.to_owned(),
            source_table: mapping.source.clone(),
            target_table: mapping.target.clone(),
            kind: FindingKind::Orphan,
            key: mapping.key_columns().zip(&key).map(shown).collect(),
            columns: columns.collect(),
            detail: Some(format!("there is no such row in {}", self.reference.references)),
            raw_key: RawKey(key),
        }
    }

    /// Keeps the values that no owner has.
    async fn absent(
        &self,
        owners: &[Owner],
        mut values: Vec<Vec<String>>,
    ) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let casts: Vec<&str> = self.columns.iter().map(|column| column.cast_sql.as_str()).collect();
        for owner in owners {
            let mut lacking = owner.lacks(&values, &casts).await?.into_iter();
            values.retain(|_| lacking.next().unwrap_or(false));
        }
        Ok(values)
    }

    /// The referring rows of values. One more than is listed is remembered, so that there is something to compare.
    async fn rows(
        &self,
        values: &[Vec<String>],
        list: usize,
    ) -> Result<HashMap<Vec<String>, Rows>, tokio_postgres::Error> {
        let (names, arrays) = lists(self.columns.len());
        // Values of a user's type are told apart by their spelling here, as they were when they were read: which of them
        // an owner calls equal is the owner's to say.
        let terms = self.columns.iter().zip(self.texts()).enumerate().map(|(index, (column, text))| {
            if is_users(&column.cast_sql) {
                format!("{text} = w.k{index}$")
            } else {
                format!("{} = w.k{index}$::{}", self.column(index), column.cast_sql)
            }
        });
        let sql = format!(
            "SELECT * FROM (SELECT w.o$, ARRAY[{keys}]::text[], concat_ws('/', t.tableoid, t.ctid, t.xmin), \
                 count(*) OVER (PARTITION BY w.o$), row_number() OVER (PARTITION BY w.o$ ORDER BY t.tableoid, t.ctid) AS n \
             FROM unnest({arrays}) WITH ORDINALITY AS w ({names}, o$), {rows} AND {terms}) AS s WHERE s.n <= {kept}",
            keys = self.form.key_texts(self.side).join(", "),
            rows = self.rows_sql(),
            terms = terms.collect::<Vec<_>>().join(" AND "),
            kept = list.saturating_add(1),
        );
        let mut found: HashMap<Vec<String>, Rows> = HashMap::new();
        for row in ask(self.session, &sql, values, self.columns.len()).await? {
            let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).ok();
            let Some(value) = place.and_then(|place| values.get(place)) else { continue };
            let rows = found.entry(value.clone()).or_default();
            rows.count = row.try_get(3)?;
            rows.first.push((row.try_get(1)?, row.try_get(2)?));
        }
        Ok(found)
    }

    /// A column of the reference on this side.
    fn column(&self, index: usize) -> String {
        self.columns.get(index).map(|column| TableForm::column(column, self.side)).unwrap_or_default()
    }

    fn texts(&self) -> Vec<String> {
        let columns = self.columns.iter().enumerate();
        columns.map(|(index, column)| key_text_sql(&column.cast_sql, &self.column(index))).collect()
    }

    /// FROM clause and conditions of the slice's rows that refer to anything: a reference with a NULL in it does not
    /// (MATCH SIMPLE).
    fn rows_sql(&self) -> String {
        let nulls = (0..self.columns.len()).map(|index| format!("num_nulls({}) = 0", self.column(index)));
        let conditions: Vec<String> = nulls.chain(self.form.conditions(self.side)).collect();
        format!("{} AS t WHERE {}", self.form.from(self.side), conditions.join(" AND "))
    }

    /// Buckets whose values are not the same on both sides.
    async fn unequal_buckets(&self, owner: &Owner) -> Result<Vec<String>, tokio_postgres::Error> {
        let referred: Vec<String> = owner
            .columns
            .iter()
            .zip(&self.columns)
            .map(|(name, column)| key_text_sql(&column.cast_sql, &format!("t.{}", quote_ident(name))))
            .collect();
        let rows = format!("{} AS t", owner.from());
        let (texts, own_rows) = (self.texts(), self.rows_sql());
        let (here, there) = tokio::try_join!(
            buckets(self.session, &texts, &own_rows),
            buckets(&owner.session, &referred, &rows)
        )?;
        let unequal = here.iter().filter(|(bucket, sums)| there.get(*bucket) != Some(*sums));
        Ok(unequal.map(|(bucket, _)| bucket.to_string()).collect())
    }
}

/// Waits, on each owner, for what is in its log and not visible; in words, who is in the way.
async fn not_passed(owners: &[Owner]) -> Result<Option<String>, tokio_postgres::Error> {
    for owner in owners {
        let (taken, mut patience) = (barrier::take(&owner.session).await?, BARRIER_PATIENCE);
        if !barrier::wait(&owner.session, taken, &mut patience).await? {
            let oldest = barrier::oldest(&owner.session).await?;
            return Ok(Some(format!(
                "older transactions of the {} have to end first: {oldest}",
                owner.place
            )));
        }
    }
    Ok(None)
}

fn hash(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text} COLLATE \"C\"")).collect();
    format!("hash_record_extended(ROW({}), 0)", texts.join(", "))
}

fn bucket(texts: &[String]) -> String {
    format!("({} & {})", hash(texts), BUCKETS - 1)
}

/// Count, sum and exclusive or of the distinct values' hashes, by bucket.
async fn buckets(
    session: &Session,
    texts: &[String],
    rows: &str,
) -> Result<HashMap<i64, (i64, String, i64)>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT s.h & {}, count(*), sum(s.h)::text, bit_xor(s.h) FROM (SELECT DISTINCT {} AS h FROM {rows}) AS s GROUP BY 1",
        BUCKETS - 1,
        hash(texts)
    );
    let mut found = HashMap::new();
    for row in session.query_typed(&sql, &[] as &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)]).await?
    {
        found.insert(row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
    }
    Ok(found)
}
