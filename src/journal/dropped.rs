//! Slices whose old tables are dropped. The row in the service stands from the moment when that is decided, and for good: by it every
//! verb knows that the slice has no side on the monolith any more. A role that may not read it is told so by the server: whoever does not
//! know must not take a slice for one that has both its sides.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::archives::Archive;
use super::{JournalError, abandonment, slices};
use crate::catalog::Fragment;
use crate::lsn::Lsn;
use crate::name::{quote_ident, quote_literal};
use crate::problem::Problem;

/// Our tables in a service that only a mirror needs.
const OF_MIRRORS: &[&str] =
    &["canary", "lineage", "mirror_process", "operator", "part", "piece", "touched", "touched_floor"];

/// Code of a slice whose old tables are dropped; every verb says it.
const SLICE_DROPPED: &str = "slice-dropped";
/// Code of a slice whose service does not know that they are.
const DROP_FORGOTTEN: &str = "drop-forgotten";

/// A slice whose old tables are dropped, or are about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The slice.
    pub slice: String,
    /// Its plan.
    pub plan: String,
    /// Its service.
    pub service: String,
    /// Which database's note it is: `monolith` or `service`.
    pub side: String,
    /// The monolith.
    pub monolith: Monolith,
    /// Epoch of the authority at that time.
    pub epoch: i64,
    /// What was confirmed.
    pub token: String,
    /// The folder of the archive.
    pub place: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// When the archive was written down, RFC 3339 in UTC.
    pub archived_at: String,
    /// Position in the service's WAL up to which its rows have everything.
    pub reverse_lsn: Lsn,
    /// What goes behind the tables.
    pub leftover: Leftover,
    /// When it was decided, RFC 3339 in UTC.
    pub begun_at: String,
    /// When nothing was left to do; `None` while there is.
    pub ended_at: Option<String>,
    /// Our schema was about to go from the monolith with this slice, whose journal is kept here.
    pub last: bool,
}

/// Tells the monolith from any other database: one that has nothing of a slice may never have had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Monolith {
    /// System identifier of its cluster.
    pub system_identifier: String,
    /// Its oid.
    pub oid: u32,
    /// Its own name for itself; empty where our schema is not there.
    pub uuid: String,
}

/// What a monolith has of a slice whose service says that its old tables are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnMonolith {
    /// The slice's own side, with its tables.
    Side,
    /// It has noted that they are dropped, or our schema went with the last slice.
    Gone,
    /// Nothing, and nothing that says why: in words.
    Nobody(String),
}

/// Objects of a slice that are no part of the transaction that drops its tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Slot on the monolith.
    pub forward_slot: Option<String>,
    /// Slot on the service.
    pub reverse_slot: Option<String>,
    /// Publication on the service.
    pub reverse_publication: Option<String>,
}

/// What is noted when it is decided.
#[derive(Debug, Clone, Copy)]
pub struct Noting<'a> {
    /// The slice.
    pub slice: &'a str,
    /// Its plan.
    pub plan: &'a str,
    /// Its service.
    pub service: &'a str,
    /// The monolith.
    pub monolith: &'a Monolith,
    /// What was confirmed.
    pub token: &'a str,
    /// The archive that was read back.
    pub archive: &'a Archive,
    /// What goes behind the tables.
    pub leftover: &'a Leftover,
    /// What the catalogs say of the tables.
    pub fragment: &'a str,
}

const COLUMNS: &str = "slice, plan, service, epoch, token, place, manifest_sha256, \
    to_char(archived_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), reverse_lsn, leftover::text, \
    to_char(begun_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
    to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), monolith_system_identifier, monolith_oid, \
    monolith_uuid::text, monolith_journal IS NOT NULL, side";

impl Dropped {
    /// Why no other verb touches the slice.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let Self { slice, place, .. } = self;
        let problem = Problem::error(SLICE_DROPPED, format!("slice {slice}"));
        match &self.ended_at {
            None => problem
                .fact(format!("its old tables are being dropped since {}, and that is not over", self.begun_at))
                .consequence("parts of what is between the two databases may be gone already, so no other verb touches it")
                .next(format!("strangler retire PLAN --slice {slice} --stage drop")),
            Some(at) => problem
                .fact(format!("its old tables were dropped at {at}; the service has the rows, and {place} an archive of the tables"))
                .consequence("the monolith has nothing of it any more, so there is nothing to be done there")
                .next(format!("strangler restore --from {} --to URL, for what they held", crate::words::shell_word(place))),
        }
    }

    /// The same where the service was asked: what the monolith alone has noted then, the service has forgotten. Who calls it: `abandon`.
    #[must_use]
    pub fn of_asked_service(&self) -> Problem {
        if self.side == "monolith" { forgotten(self) } else { self.problem() }
    }

    fn of(row: &Row) -> Result<Self, JournalError> {
        let leftover: &str = row.get(9);
        let unreadable =
            |_| JournalError::Unreadable { what: "dropped.leftover", found: leftover.to_owned() };
        Ok(Self {
            slice: row.get(0),
            plan: row.get(1),
            service: row.get(2),
            epoch: row.get(3),
            token: row.get(4),
            place: row.get(5),
            manifest_sha256: row.get(6),
            archived_at: row.get(7),
            reverse_lsn: row.get::<_, PgLsn>(8).into(),
            leftover: serde_json::from_str(leftover).map_err(unreadable)?,
            begun_at: row.get(10),
            ended_at: row.get(11),
            monolith: Monolith { system_identifier: row.get(12), oid: row.get(13), uuid: row.get(14) },
            last: row.get(15),
            side: row.get(16),
        })
    }
}

/// The slices that this database has such a row of: a service the slices that it has alone, the monolith those whose tables are gone
/// from it. None in a database that an earlier version provisioned, or none.
///
/// # Errors
/// [`JournalError`], also where the role may not read them.
pub async fn all(client: &Client) -> Result<Vec<Dropped>, JournalError> {
    let failed = || JournalError::database("reading which slices are retired");
    if !is_there(client, "dropped").await.map_err(failed())? {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {COLUMNS} FROM strangler.dropped ORDER BY slice");
    let rows = client.query_typed(&sql, &[]).await.map_err(failed())?;
    rows.iter().map(Dropped::of).collect()
}

/// The same of one slice.
///
/// # Errors
/// [`JournalError`].
pub async fn read(client: &Client, slice: &str) -> Result<Option<Dropped>, JournalError> {
    Ok(all(client).await?.into_iter().find(|dropped| dropped.slice == slice))
}

/// Slices that this monolith has a side of, or has written down as dropped, as far as the role may read it. Any other was never provisioned, or
/// our schema went with it: which of the two, its service knows.
///
/// # Errors
/// [`JournalError`].
pub async fn known_to(monolith: &Client) -> Result<Vec<String>, JournalError> {
    let failed = || JournalError::database("looking which slices the monolith knows");
    let open = open_of(monolith, &["slice", "dropped"]).await.map_err(failed())?;
    let part = |table: &String| {
        format!("SELECT slice FROM strangler.{} WHERE side = 'monolith'", quote_ident(table))
    };
    let sql = open.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ");
    if sql.is_empty() {
        return Ok(Vec::new());
    }
    let rows = monolith.query_typed(&sql, &[]).await.map_err(failed())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What the monolith's catalogs said of the tables of one slice, as JSON, from a database that has noted its drop.
///
/// # Errors
/// [`JournalError`], also where it has noted none.
pub async fn fragment(client: &Client, slice: &str) -> Result<String, JournalError> {
    let failed = || JournalError::database("reading what dropped tables were");
    let sql = "SELECT fragment::text FROM strangler.dropped WHERE slice = $1";
    Ok(client.query_typed_one(sql, &[(&slice, Type::TEXT)]).await.map_err(failed())?.get(0))
}

/// What the monolith's catalogs said of the tables of a plan's slices, as a service keeps it; also of slices that the plan has no more, and not
/// of those that the monolith knows.
///
/// # Errors
/// [`JournalError`], also where the role may not read it.
pub async fn fragments(
    service: &Client,
    (plan, known): (&str, &[String]),
) -> Result<Vec<Fragment>, JournalError> {
    let failed = || JournalError::database("reading what dropped tables were");
    if !is_there(service, "dropped").await.map_err(failed())? {
        return Ok(Vec::new());
    }
    let sql =
        "SELECT fragment::text FROM strangler.dropped WHERE plan = $1 AND slice <> ALL ($2) ORDER BY slice";
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&plan, Type::TEXT), (&known, Type::TEXT_ARRAY)];
    let rows = service.query_typed(sql, &asked).await.map_err(failed())?;
    let unreadable =
        |_| JournalError::Unreadable { what: "dropped.fragment", found: "no catalog".to_owned() };
    rows.iter().map(|row| serde_json::from_str(row.get(0)).map_err(unreadable)).collect()
}

/// What a service is to be told of a slice that the monolith alone knows to be dropped: it was set back to before.
#[must_use]
pub fn forgotten(known: &Dropped) -> Problem {
    let Dropped { slice, service, place, .. } = known;
    Problem::error(DROP_FORGOTTEN, format!("slice {slice}"))
        .fact(format!(
            "the monolith says that its old tables were dropped at {}, and service {service} knows nothing of that: it was set back to an \
             earlier state, or its link leads to another database",
            known.begun_at
        ))
        .consequence("what the service lacks since is in the archive and in its own backups alone, and nothing can be mirrored anew")
        .next(format!(
            "put the service forward to its last state, or bring what it lacks from the archive: strangler restore --from {} --to URL; then \
             strangler retire PLAN --slice {slice} --stage drop, which tells the service",
            crate::words::shell_word(place)
        ))
}

/// What these services keep of slices of a plan that the monolith does not know, for whoever reads the monolith's catalogs with
/// sessions on all of them at hand.
///
/// # Errors
/// [`JournalError`].
pub async fn elsewhere(
    monolith: &Client,
    services: impl IntoIterator<Item = &Client>,
    plan: &str,
) -> Result<Vec<Fragment>, JournalError> {
    let known = known_to(monolith).await?;
    let mut found = Vec::new();
    for service in services {
        found.extend(fragments(service, (plan, &known)).await?);
    }
    Ok(found)
}

/// Those of the tables that are there, and that the role may read.
async fn open_of(client: &Client, tables: &[&str]) -> Result<Vec<String>, Error> {
    let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname::text = ANY ($1) \
                 AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')";
    let rows = client.query_typed(sql, &[(&tables, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn is_there(client: &Client, table: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'strangler' AND c.relname::text = $1)";
    client.query_typed_one(sql, &[(&table, Type::TEXT)]).await?.try_get(0)
}

/// SQL that notes it in the service: refused unless the service's gate is open in this epoch, which is held so until the end of the
/// transaction.
#[must_use]
pub fn begin(noting: Noting<'_>) -> [String; 2] {
    let gate = quote_ident(&format!("gate_{}", noting.slice));
    let message =
        quote_literal(&format!("the service does not have the authority over slice {}", noting.slice));
    let epoch = noting.archive.epoch;
    [
        format!(
            "DO $strangler$ BEGIN PERFORM FROM strangler.{gate} WHERE state = 'OPEN' AND epoch = {epoch} FOR SHARE; \
             IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = {message}; END IF; END $strangler$"
        ),
        insert(noting, "service")
            + " ON CONFLICT (slice) DO UPDATE SET token = excluded.token, place = excluded.place, \
             manifest_sha256 = excluded.manifest_sha256, archived_at = excluded.archived_at, reverse_lsn = excluded.reverse_lsn, \
             leftover = excluded.leftover, fragment = excluded.fragment, epoch = excluded.epoch, \
             monolith_system_identifier = excluded.monolith_system_identifier, monolith_oid = excluded.monolith_oid, \
             monolith_uuid = excluded.monolith_uuid, monolith_journal = NULL",
    ]
}

/// SQL that notes it on the monolith, in the transaction that drops the tables.
#[must_use]
pub fn note_on_monolith(noting: Noting<'_>) -> String {
    insert(noting, "monolith")
}

fn insert(noting: Noting<'_>, side: &str) -> String {
    let Noting { slice, plan, service, monolith, token, archive, leftover, fragment } = noting;
    let leftover = serde_json::to_string(leftover).unwrap_or_default();
    let lsn = archive.reverse_lsn.to_string();
    let texts = [
        slice,
        plan,
        service,
        side,
        token,
        &archive.place,
        &archive.manifest_sha256,
        &archive.at,
        &lsn,
        &leftover,
        fragment,
        &monolith.system_identifier,
        &monolith.uuid,
    ];
    format!(
        "INSERT INTO strangler.dropped (slice, plan, service, side, token, place, manifest_sha256, archived_at, reverse_lsn, leftover, \
         fragment, monolith_system_identifier, monolith_uuid, monolith_oid, epoch) VALUES ({}, {}, {})",
        texts.map(quote_literal).join(", "),
        monolith.oid,
        archive.epoch
    )
}

/// SQL that forgets that it was decided; it changes nothing once the tables are gone, which the monolith says.
#[must_use]
pub fn take_back(slice: &str) -> String {
    format!("DELETE FROM strangler.dropped WHERE slice = {} AND ended_at IS NULL", quote_literal(slice))
}

/// SQL after which no mirror of the slice writes in the service, nor one that begins.
#[must_use]
pub fn shut_out_mirrors(slice: &str) -> String {
    format!(
        "UPDATE strangler.stream SET nonce = nonce + 1, holder = NULL, mode = 'OFF' WHERE slice = {} AND mode <> 'OFF'",
        quote_literal(slice)
    )
}

/// SQL that forgets in the service what only mirrors need, and takes the gate's function away, which hangs on no table any more. The
/// gate's row stays, open: by it others know who has the rows.
#[must_use]
pub fn clear_service(slice: &str) -> Vec<String> {
    let name = quote_literal(slice);
    let gate = quote_ident(&format!("gate_{slice}"));
    let forget = |table: &&str| format!("DELETE FROM strangler.{} WHERE slice = {name}", quote_ident(table));
    let function = format!("DROP FUNCTION IF EXISTS strangler.{gate}()");
    std::iter::once(function).chain(OF_MIRRORS.iter().map(forget)).collect()
}

/// SQL that takes the gate off each table of the service on which it hangs. A partition's trigger goes with its root's.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn hinges(service: &Client, slice: &str) -> Result<Vec<String>, JournalError> {
    let function = format!("strangler.{}()", quote_ident(&format!("gate_{slice}")));
    let sql = "SELECT format('DROP TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname) FROM pg_trigger t \
                   JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE t.tgfoid = to_regprocedure($1) AND t.tgparentid = 0 ORDER BY n.nspname, c.relname, t.tgname";
    let rows = service.query_typed(sql, &[(&function, Type::TEXT)]).await;
    let rows = rows.map_err(JournalError::database("looking where the gate hangs"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// SQL that says that nothing is left to do.
#[must_use]
pub fn end(slice: &str) -> String {
    format!(
        "UPDATE strangler.dropped SET ended_at = now() WHERE slice = {} AND ended_at IS NULL",
        quote_literal(slice)
    )
}

/// Whether a slice still has a side on the monolith.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_side(monolith: &Client, slice: &str) -> Result<bool, JournalError> {
    let failed = || JournalError::database("looking for the slice");
    let there = "SELECT to_regclass('strangler.slice') IS NOT NULL";
    if !monolith.query_typed_one(there, &[]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM strangler.slice WHERE slice = $1)";
    Ok(monolith.query_typed_one(sql, &[(&slice, Type::TEXT)]).await.map_err(failed())?.get(0))
}

/// Which database a monolith's link leads to.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn identity(monolith: &Client) -> Result<Monolith, JournalError> {
    let failed = || JournalError::database("looking which database the monolith is");
    let sql = "SELECT c.system_identifier::text, b.oid, to_regclass('strangler.database') IS NOT NULL \
               FROM pg_control_system() c, pg_database b WHERE b.datname = current_database()";
    let row = monolith.query_typed_one(sql, &[]).await.map_err(failed())?;
    let uuid = if row.get(2) { slices::database_uuid(monolith).await? } else { None };
    Ok(Monolith { system_identifier: row.get(0), oid: row.get(1), uuid: uuid.unwrap_or_default() })
}

/// What a monolith has of a slice that its service has noted so. Another database, an empty one, and the monolith as it was before us have
/// nothing of it either.
///
/// # Errors
/// [`JournalError`].
pub async fn on_monolith(monolith: &Client, known: &Dropped) -> Result<OnMonolith, JournalError> {
    if has_side(monolith, &known.slice).await? {
        return Ok(OnMonolith::Side);
    }
    let (now, then) = (identity(monolith).await?, &known.monolith);
    if (&now.system_identifier, now.oid) != (&then.system_identifier, then.oid) {
        return Ok(OnMonolith::Nobody(format!(
            "its link leads to database {}/{}, and the old tables were in {}/{}",
            now.system_identifier, now.oid, then.system_identifier, then.oid
        )));
    }
    if now.uuid.is_empty() {
        let why = "it has nothing of ours, and our schema never went from it with the last slice: it is as it was before provision";
        return Ok(if known.last { OnMonolith::Gone } else { OnMonolith::Nobody(why.to_owned()) });
    }
    let noted = read(monolith, &known.slice)
        .await?
        .is_some_and(|row| row.side == "monolith" && row.token == known.token);
    if noted && now.uuid == then.uuid {
        return Ok(OnMonolith::Gone);
    }
    // Our schema may have gone with the last slice, and come again with another plan.
    if known.last && now.uuid != then.uuid {
        return Ok(OnMonolith::Gone);
    }
    Ok(OnMonolith::Nobody("it has neither the slice nor a note that its old tables are dropped".to_owned()))
}

/// SQL by which a service that was set back to before it was told learns it from the monolith's own note: its gate is open then, for
/// the monolith has no side of the slice that could have the authority. Refused unless its gate is still as it was `found`.
#[must_use]
pub fn tell_service(noting: Noting<'_>, found: &slices::GateRow) -> [String; 3] {
    let gate = quote_ident(&format!("gate_{}", noting.slice));
    let epoch = noting.archive.epoch;
    let message = quote_literal(&format!("the gate of slice {} is not as it was shown", noting.slice));
    [
        format!(
            "DO $strangler$ BEGIN PERFORM FROM strangler.{gate} WHERE state = {} AND epoch = {} FOR UPDATE; \
             IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = {message}; END IF; END $strangler$",
            quote_literal(&found.state),
            found.epoch
        ),
        format!(
            "UPDATE strangler.{gate} SET state = 'OPEN', owner = 'service', epoch = greatest(epoch, {epoch}), fence_lsn = NULL, move_group = NULL"
        ),
        insert(noting, "service"),
    ]
}

/// SQL that forgets on the monolith what these tables of ours hold of a slice, and keys that were cut at its tables, whichever slice was
/// armed then: there is nothing any more that they could be put back to. What says that it is dropped stays.
#[must_use]
pub fn forget(slice: &str, tables: &[String], names: &[String]) -> Vec<String> {
    let tables: Vec<String> = tables.iter().filter(|table| *table != "dropped").cloned().collect();
    let gone = names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
    let keys =
        format!("DELETE FROM strangler.cut_key WHERE child_table IN ({gone}) OR parent_table IN ({gone})");
    abandonment::forget(slice, &tables).into_iter().chain([keys]).collect()
}

/// Whether any slice, of whatever plan, is provisioned in this database.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn has_slices(client: &Client) -> Result<bool, JournalError> {
    let row = client.query_typed_one("SELECT EXISTS (SELECT FROM strangler.slice)", &[]).await;
    Ok(row.map_err(JournalError::database("looking who else is provisioned"))?.get(0))
}

/// SQL that forgets on the monolith which slices are dropped, in the transaction that drops our schema: their services have it for good.
#[must_use]
pub fn forget_on_monolith() -> String {
    "DELETE FROM strangler.dropped WHERE side = 'monolith'".to_owned()
}

/// The monolith's journal as one JSON text, for a service to keep.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn journal(monolith: &Client) -> Result<String, JournalError> {
    let sql = "SELECT coalesce(json_agg(j ORDER BY j.id), '[]')::text FROM strangler.journal j";
    let row = monolith.query_typed_one(sql, &[]).await;
    Ok(row.map_err(JournalError::database("reading the journal"))?.get(0))
}

/// Keeps the monolith's journal in the service, beside the slice that was the last one.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn keep_journal(service: &Client, slice: &str, journal: &str) -> Result<(), JournalError> {
    let sql = "UPDATE strangler.dropped SET monolith_journal = $2::text::json WHERE slice = $1";
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&slice, Type::TEXT), (&journal, Type::TEXT)];
    let kept = service.query_typed(sql, &asked).await;
    kept.map(drop).map_err(JournalError::database("keeping the monolith's journal"))
}
