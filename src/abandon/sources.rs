//! Whether the monolith's tables are still those that the copies were read from, with their rows. One that is gone, was made anew, was
//! exchanged for another one or was emptied beside the stream may have left the copy as all there is.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::run::JUST_ENDED;
use super::{AbandonError, Job};
use crate::cdc::contents::{self, Contents, Heard, Judgement, TableContents};
use crate::cdc::error::MirrorError;
use crate::cdc::publication::{self, Publication};
use crate::journal::JournalError;
use crate::journal::abandonment;
use crate::journal::baselines::{self, Copied};
use crate::journal::copies::UNHEARD;
use crate::name::TableName;
use crate::postgres::sqlstate;
use crate::provision::Database;
use crate::words;

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// The service's tables as they are shown, each with why its copy may be all there is.
    pub(super) doubts: Vec<(String, String)>,
    /// The service's tables as they are shown, each with the monolith's table that it was copied from, under its name of now.
    pub(super) names: BTreeMap<String, TableName>,
    /// The publication, and what its tables consist of; none where nobody looked.
    seen: Option<(Option<Publication>, Contents)>,
}

/// Where a table is read.
#[derive(Clone, Copy)]
enum Side {
    Monolith,
    Service,
}

/// Both databases, and what is known of the slice.
#[derive(Clone, Copy)]
struct Site<'a> {
    monolith: &'a Client,
    service: &'a Client,
    job: Job<'a>,
    publication: &'a str,
    /// The plan maps the slice as it was provisioned.
    pinned: bool,
}

/// Looks at them. `plan_hash` is that of the mapping that the service was provisioned with.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn look(
    (monolith, service): (&Client, &Client),
    job: Job<'_>,
    (publication, plan_hash): (&str, &str),
) -> Result<Sources, AbandonError> {
    let pinned = job.mapping.is_some_and(|mapping| mapping.is_pinned_by(plan_hash));
    let site = Site { monolith, service, job, publication, pinned };
    let (published, mut now) = see(monolith, publication).await?;
    let tables = published.iter().flat_map(|found| &found.tables);
    let entries: BTreeMap<u32, TableName> = tables.map(|(name, entry)| (*entry, name.clone())).collect();
    let mut sources = Sources { seen: Some((published, now.clone())), ..Sources::default() };
    for copied in baselines::copied(service, job.slice).await? {
        if let Some(name) = copied.published_as.and_then(|entry| entries.get(&entry)) {
            sources.names.insert(copied.target_table.clone(), name.clone());
        }
        let name = sources.names.get(&copied.target_table);
        let why = site.doubt(&copied, name, &mut now).await?;
        // Asked last, and only then: whoever reads a table waits for whoever alters it.
        if let Some(why) = why
            && site.has_rows(&copied).await?
        {
            sources.doubts.push((copied.target_table, why));
        }
    }
    Ok(sources)
}

async fn see(monolith: &Client, publication: &str) -> Result<(Option<Publication>, Contents), AbandonError> {
    let published = publication::read(monolith, publication).await.map_err(unread)?;
    Ok((published, contents::read(monolith, publication).await.map_err(unread)?))
}

/// Whether the monolith's tables are as they were seen, by their numbers and files: asked behind locks that keep them so.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn are_as_seen(
    monolith: &Client,
    publication: &str,
    sources: &Sources,
) -> Result<bool, AbandonError> {
    match &sources.seen {
        Some(seen) => Ok(see(monolith, publication).await? == *seen),
        None => Ok(true),
    }
}

fn unread(error: MirrorError) -> AbandonError {
    AbandonError::Mirror(Box::new(error))
}

impl Site<'_> {
    /// Whether the copy has a row, or may have.
    async fn has_rows(&self, copied: &Copied) -> Result<bool, AbandonError> {
        let Ok(target) = TableName::parse(&copied.target_table, "public") else { return Ok(true) };
        match readable(self.service, &target).await? {
            None => Ok(false),
            Some(false) => Ok(true),
            Some(true) => self.exists(Side::Service, (&target, "")).await,
        }
    }

    async fn doubt(
        &self,
        copied: &Copied,
        name: Option<&TableName>,
        now: &mut Contents,
    ) -> Result<Option<String>, AbandonError> {
        let source = &copied.source_table;
        if copied.published_as == Some(UNHEARD) {
            return Ok(Some(format!(
                "the monolith's {source} changed in a way that the stream did not tell, and may lack rows that are here"
            )));
        }
        let Some(name) = name else {
            return Ok(Some(format!(
                "the monolith's table {source}, from which it was copied, is not published by {} any more: it was dropped, made anew, exchanged for \
                 another one, or taken out, and these may be the only rows that are left",
                self.publication
            )));
        };
        if let Some(why) = self.changed(copied, name, now).await? {
            return Ok(Some(why));
        }
        self.fewer(copied, name, now).await
    }

    /// By what the mirror wrote down when it looked last.
    async fn changed(
        &self,
        copied: &Copied,
        name: &TableName,
        now: &mut Contents,
    ) -> Result<Option<String>, AbandonError> {
        let (Some(before), Some(is)) = (stored(copied)?, now.remove(name)) else { return Ok(None) };
        // They are compared under one name: a table that was renamed is the same one.
        let mut both = Contents::from([(name.clone(), is)]);
        let was = Contents::from([(name.clone(), before)]);
        contents::look_into_attached(self.monolith, &was, &mut both).await.map_err(unread)?;
        let (Some(before), Some(is)) = (was.get(name), both.remove(name)) else { return Ok(None) };
        let what = judged(before, &is, copied);
        now.insert(name.clone(), is);
        Ok(what.map(|what| {
            format!("the monolith's {name} changed in a way that is not in the stream, and may lack what is here: {what}")
        }))
    }

    /// By the rows themselves: whether there are none, and where it has another file than before, which TRUNCATE leaves as well as VACUUM
    /// FULL does, whether there are fewer than here.
    async fn fewer(
        &self,
        copied: &Copied,
        name: &TableName,
        now: &Contents,
    ) -> Result<Option<String>, AbandonError> {
        if readable(self.monolith, name).await? != Some(true) {
            return Ok(Some(format!(
                "nobody can tell whether the monolith's {name} still has its rows: the admin link's role may not read all of them"
            )));
        }
        let filter = self.filter(copied);
        if !self.exists(Side::Monolith, (name, &filter)).await? {
            return Ok(Some(format!(
                "the monolith's {name} has none of the rows that are here: it was emptied, and these may be the only ones that are left"
            )));
        }
        let same = stored(copied)?
            .zip(now.get(name))
            .is_none_or(|(before, now)| has_told_files(&before, now, copied));
        let Ok(target) = TableName::parse(&copied.target_table, "public") else { return Ok(None) };
        if same {
            return Ok(None);
        }
        let there = self.count(Side::Monolith, (name, &filter)).await?;
        let here = self.count(Side::Service, (&target, "")).await?;
        Ok((there < here).then(|| {
            format!(
                "the monolith's {name} was emptied by TRUNCATE, or rewritten: {} rows are here where it has {}",
                words::count(here),
                words::count(there)
            )
        }))
    }

    async fn exists(&self, side: Side, (table, filter): (&TableName, &str)) -> Result<bool, AbandonError> {
        let sql = format!("SELECT EXISTS (SELECT FROM {}{filter})", table.sql());
        Ok(self.one(side, table, &sql).await?.get(0))
    }

    async fn count(&self, side: Side, (table, filter): (&TableName, &str)) -> Result<u64, AbandonError> {
        let sql = format!("SELECT count(*) FROM {}{filter}", table.sql());
        Ok(u64::try_from(self.one(side, table, &sql).await?.get::<_, i64>(0)).unwrap_or_default())
    }

    /// Reads a table, and names whoever was waited for in vain.
    async fn one(&self, side: Side, table: &TableName, sql: &str) -> Result<Row, AbandonError> {
        let (client, database) = match side {
            Side::Monolith => (self.monolith, Database::Monolith),
            Side::Service => (self.service, Database::Service(self.job.service.to_owned())),
        };
        match client.query_typed_one(sql, &[]).await {
            Ok(row) => Ok(row),
            Err(source) if sqlstate::is_lock_timeout(&source) => {
                // Where a transaction is open there is nothing more to be asked in it.
                let holder = abandonment::holder(client, &[table.sql()]).await.ok().flatten();
                let who = holder.unwrap_or_else(|| JUST_ENDED.to_owned());
                Err(AbandonError::Waited {
                    database,
                    purpose: "look at",
                    object: table.to_string(),
                    who,
                    source,
                })
            }
            Err(source) => Err(failed()(source)),
        }
    }

    fn filter(&self, copied: &Copied) -> String {
        let mapping = self.job.mapping.filter(|_| self.pinned);
        let table = mapping.and_then(|mapping| {
            mapping.tables.iter().find(|table| table.target.to_string() == copied.target_table)
        });
        let filter = table.and_then(crate::mapping::TableMapping::filter_sql);
        filter.map_or_else(String::new, |filter| format!(" WHERE {filter}"))
    }
}

fn stored(copied: &Copied) -> Result<Option<TableContents>, AbandonError> {
    let Some(text) = &copied.contents else { return Ok(None) };
    let unreadable = |_| JournalError::Unreadable { what: "baseline.contents", found: text.clone() };
    Ok(Some(serde_json::from_str(text).map_err(unreadable)?))
}

/// What is certain. Pure.
fn judged(before: &TableContents, now: &TableContents, copied: &Copied) -> Option<String> {
    if before.publication != now.publication {
        return Some(
            "the publication was altered or made again, and nobody can tell what it left out meanwhile"
                .to_owned(),
        );
    }
    let heard = Heard { emptied_by: &copied.emptied_by, passed: false };
    if let Judgement::Unheard(what) = contents::judge(before, now, heard) {
        return Some(what);
    }
    before.heaps.iter().find_map(|(oid, heap)| {
        let now = now.heaps.get(oid)?;
        let stays = |number: i16| now.columns.values().any(|(other, _)| *other == number);
        let (column, _) = heap.columns.iter().find(|(_, (number, _))| !stays(*number))?;
        Some(format!("column {column} of {} was dropped", heap.name))
    })
}

/// Every heap has the file that it had, or one that a TRUNCATE gave it which the stream brought. Pure.
fn has_told_files(before: &TableContents, now: &TableContents, copied: &Copied) -> bool {
    before.heaps.iter().all(|(oid, heap)| {
        now.heaps
            .get(oid)
            .is_some_and(|now| now.file == heap.file || copied.emptied_by.contains(&now.changed_by))
    })
}

/// Whether the session sees every row of a table; `None` where there is no such table.
async fn readable(client: &Client, table: &TableName) -> Result<Option<bool>, AbandonError> {
    let sql = "SELECT has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid) FROM pg_class c \
               WHERE c.oid = to_regclass($1)";
    let row = client.query_typed_opt(sql, &[(&table.sql(), Type::TEXT)]).await;
    Ok(row.map_err(failed())?.map(|row| row.get(0)))
}

fn failed() -> impl FnOnce(tokio_postgres::Error) -> AbandonError {
    AbandonError::database("whether the monolith's tables have their rows")
}
