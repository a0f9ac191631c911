//! Whether the service that is asked is the one that the way back reads, and still has everything that came to the monolith from it. What
//! it lacks, because it was set back to an earlier state, or because a link leads to a clone of it, is in the old tables alone.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use super::gather::RetireError;
use super::run::Job;
use crate::cdc::source::{MARKER_PREFIX, marker_content};
use crate::journal::archives::Archive;
use crate::journal::streams::{self, Mode, StreamOf, StreamRow};
use crate::journal::{beginnings, lineage, slices, whereabouts};
use crate::lsn::Lsn;
use crate::problem::Problem;

/// How long the way back, and the way there, may take to pass a position: either notes at once that it has met a marker, and marks come
/// every two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long that may take behind the locks, where others wait.
const LOCKED_PATIENCE: Duration = Duration::from_secs(4);

/// Pause between two looks. A session that holds locks is asked in each, so that its server does not take it for idle.
const LOOK: Duration = Duration::from_millis(100);

/// What is asked about, and whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    job: &'a Job<'a>,
    service: &'a Client,
    archive: &'a Archive,
}

/// A database, and where its log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Database {
    system_identifier: String,
    oid: u32,
    uuid: Option<String>,
    timeline: i32,
    end: Lsn,
}

/// A replication slot in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    is_read: bool,
    confirmed: Option<Lsn>,
}

/// What both sides say of the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// The database that the slice was provisioned in, by its own name for itself.
    home: Option<String>,
    row: StreamRow,
    /// Its mark that has come down the way back.
    noted: Option<i64>,
    /// The mark in the service that is asked.
    mark: Option<i64>,
    service: Database,
    slot: Option<Slot>,
    /// The plan's links lead to more than one database.
    apart: bool,
}

impl<'a> Asked<'a> {
    pub(super) fn new(job: &'a Job<'a>, service: &'a Client, archive: &'a Archive) -> Self {
        Self { job, service, archive }
    }

    fn monolith(&self) -> &'a Client {
        &self.job.work.databases.monolith
    }

    fn slice(&self) -> &'a str {
        self.job.work.slice
    }

    /// Refuses a service that is not the slice's, or lacks what the monolith has from it.
    ///
    /// # Errors
    /// [`RetireError::Refused`].
    pub(super) async fn has_everything(&self) -> Result<(), RetireError> {
        let seen = self.look().await?;
        let mut problems = lacks(&seen, self.archive, &self.named());
        problems.extend(unread(&seen, &self.named()));
        if problems.is_empty() { Ok(()) } else { Err(RetireError::Refused { problems }) }
    }

    /// Waits until the way back has brought everything that was committed in this service before: a mark that was counted in it since, and a
    /// marker, have come down to the monolith. Holds nobody up.
    ///
    /// # Errors
    /// [`RetireError::Refused`], also where that does not come in time.
    pub(super) async fn has_come_back(&self) -> Result<(), RetireError> {
        let of = StreamOf::reverse(self.slice());
        let slot = self.row().await?.slot;
        let before = lineage::read(self.service, of, &slot).await?;
        let passed = emit(self.service, self.slice()).await?;
        let begun = Instant::now();
        loop {
            let seen = self.look().await?;
            let problems = lacks(&seen, self.archive, &self.named());
            if !problems.is_empty() {
                return Err(RetireError::Refused { problems });
            }
            let unread = unread(&seen, &self.named());
            let is_marked = before.is_none() || seen.noted > before;
            if unread.is_none() && is_marked && seen.row.applied >= passed {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let problem = unread.unwrap_or_else(|| behind(&seen, passed, &self.named()));
                return Err(RetireError::Refused { problems: vec![problem] });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the way there has looked through everything that was committed on the monolith before its tables were locked: a write past
    /// the gate that it has not met yet would go with them unseen. `locked` is whether others wait meanwhile.
    ///
    /// # Errors
    /// [`RetireError::Refused`] where it does not in time.
    pub(super) async fn has_been_looked_through(&self, locked: bool) -> Result<(), RetireError> {
        let of = StreamOf::forward(self.slice());
        let Some(row) = streams::read(self.service, of).await?.filter(|row| row.mode != Mode::Off) else {
            return Ok(());
        };
        // The monolith's own session may hold the transaction that is to come behind it.
        let passed = emit(self.job.work.watch, self.slice()).await?;
        let (begun, patience) = (Instant::now(), if locked { LOCKED_PATIENCE } else { PATIENCE });
        loop {
            let now = streams::read(self.service, of).await?;
            let confirmed = slot(self.monolith(), &row.slot).await?.and_then(|slot| slot.confirmed);
            if now.is_some_and(|now| now.applied >= passed) && confirmed >= Some(passed) {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let problem = Problem::error("forward-behind", format!("slice {}", self.slice()))
                    .fact(format!(
                        "the way there has not looked through what was written on the monolith up to {passed}: its slot {} stands at {}",
                        row.slot,
                        confirmed.map_or_else(|| "no position".to_owned(), |lsn| lsn.to_string())
                    ))
                    .consequence("what somebody wrote into the old tables past their gate would go with them unseen")
                    .next(format!("strangler status PLAN --slice {}, which says what holds the mirror up; then the same command", self.slice()));
                return Err(RetireError::Refused { problems: vec![problem] });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn named(&self) -> Named<'a> {
        Named { slice: self.slice(), service: &self.job.mapping.service }
    }

    async fn row(&self) -> Result<StreamRow, RetireError> {
        let row = streams::read(self.monolith(), StreamOf::reverse(self.slice())).await?;
        row.ok_or_else(|| RetireError::Changed { slice: self.slice().to_owned() })
    }

    /// First what the monolith has, then the service: its log and its marks may only grow meanwhile.
    async fn look(&self) -> Result<Seen, RetireError> {
        let (monolith, of) = (self.monolith(), StreamOf::reverse(self.slice()));
        let row = self.row().await?;
        let noted = lineage::read(monolith, of, &row.slot).await?;
        let places = (whereabouts::place(self.service).await?, whereabouts::place(self.job.service).await?);
        Ok(Seen {
            home: beginnings::home(monolith, self.slice()).await?.map(|home| home.uuid),
            noted,
            mark: lineage::read(self.service, of, &row.slot).await?,
            service: database(self.service).await?,
            slot: slot(self.service, &row.slot).await?,
            apart: places.0 != places.1,
            row,
        })
    }
}

/// How things are called in what is said.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    slice: &'a str,
    service: &'a str,
}

/// What speaks for it that this service is another one, or was set back. Pure.
fn lacks(seen: &Seen, archive: &Archive, named: &Named<'_>) -> Vec<Problem> {
    if let Some(fact) = elsewhere(seen) {
        let problem = Problem::error("other-home", format!("service {}", named.service))
            .fact(fact)
            .consequence("it need not have the rows that the old tables have, which would be dropped")
            .next(format!(
                "correct the link of service {} in the plan, or the variable that holds it; then the same command",
                named.service
            ));
        return vec![problem];
    }
    if let Some(way_back) = archive.way_back.as_ref().filter(|slot| **slot != seen.row.slot) {
        let problem = Problem::error("way-back-anew", format!("slice {}", named.slice))
            .fact(format!(
                "the archive of {} is of the way back by slot {way_back}, and that was begun anew since, by slot {}",
                archive.at, seen.row.slot
            ))
            .consequence("nothing says that the service still has everything that the archive and the old tables have")
            .next(format!(
                "strangler reconcile PLAN --slice {slice}, then strangler retire PLAN --slice {slice} --stage archive --to WHERE, an empty folder",
                slice = named.slice
            ));
        return vec![problem];
    }
    let problem = |fact: String| {
        Problem::error("service-set-back", format!("service {}", named.service))
            .fact(fact)
            .consequence("what it has lost is in the old tables, and they would be dropped")
            .next(format!(
                "put it forward to its last state; or bring the rows back: strangler unretire PLAN --slice {slice}, then strangler arm PLAN \
                 --slice {slice} and strangler reconcile PLAN --slice {slice}, which names them",
                slice = named.slice
            ))
    };
    set_back(seen, archive).map(problem).into_iter().collect()
}

fn elsewhere(seen: &Seen) -> Option<String> {
    let (here, source) = (&seen.service, &seen.row.source);
    if seen.apart {
        return Some("its links lead to two databases".to_owned());
    }
    if here.uuid.as_ref() != Some(&source.uuid)
        || seen.home.as_ref().is_some_and(|home| here.uuid.as_ref() != Some(home))
    {
        return Some(
            "its link leads to another database than the one that the slice was provisioned in".to_owned(),
        );
    }
    if (&here.system_identifier, here.oid) != (&source.system_identifier, source.database_oid) {
        return Some(format!(
            "its link leads to database {}/{}, and the way back reads {}/{}: it is a clone or a restored copy",
            here.system_identifier, here.oid, source.system_identifier, source.database_oid
        ));
    }
    None
}

fn set_back(seen: &Seen, archive: &Archive) -> Option<String> {
    let (here, row) = (&seen.service, &seen.row);
    if here.timeline != row.source.timeline {
        return Some(format!(
            "it is on timeline {}, and the way back has read timeline {}: it was promoted, or restored to an earlier point, and no mirror \
             has looked which",
            here.timeline, row.source.timeline
        ));
    }
    for (what, position) in
        [("the old tables have everything", row.applied), ("the archive has everything", archive.reverse_lsn)]
    {
        if here.end < position {
            return Some(format!(
                "its log ends at {}, and {what} up to {position}: it was set back to an earlier state",
                here.end
            ));
        }
    }
    let noted = seen.noted?;
    if seen.mark.is_some_and(|mark| mark >= noted) {
        return None;
    }
    Some(format!(
        "it was set back to an earlier state: mark {noted} has come from it down the way back, and it has {}",
        seen.mark.map_or_else(|| "none".to_owned(), |mark| format!("mark {mark}"))
    ))
}

/// Why nobody brings back what this service writes. Pure.
fn unread(seen: &Seen, named: &Named<'_>) -> Option<Problem> {
    let slot = &seen.row.slot;
    let fact = match &seen.slot {
        None => format!("the service that is asked has no slot {slot}, by which the way back reads"),
        Some(found) if !found.is_read => {
            format!(
                "nobody reads slot {slot} in the service that is asked: the mirror is away, or reads another one"
            )
        }
        Some(found) if found.confirmed > Some(seen.row.applied) => {
            format!(
                "slot {slot} stands past {}, up to which the old tables have everything",
                seen.row.applied
            )
        }
        Some(_) => return None,
    };
    Some(
        Problem::error("no-way-back", format!("slice {}", named.slice))
            .fact(fact)
            .consequence("the old tables may lack what the service has written, or have what it lacks")
            .next(format!(
                "strangler mirror PLAN --slice {}, and leave it running; then the same command",
                named.slice
            )),
    )
}

fn behind(seen: &Seen, passed: Lsn, named: &Named<'_>) -> Problem {
    Problem::error("no-way-back", format!("slice {}", named.slice))
        .fact(format!(
            "the way back has not brought what the service wrote up to {passed} within {} s: it stands at {}",
            PATIENCE.as_secs(),
            seen.row.applied
        ))
        .consequence("nothing says that the service which is asked is the one whose rows the old tables have")
        .next(format!(
            "strangler status PLAN --slice {}, which says what holds it up; then the same command",
            named.slice
        ))
}

async fn database(service: &Client) -> Result<Database, RetireError> {
    // The name of a file of the log begins with its timeline in hexadecimal digits.
    let sql = "SELECT c.system_identifier::text, b.oid, \
                   ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int4, pg_current_wal_flush_lsn() \
               FROM pg_control_system() c, pg_database b WHERE b.datname = current_database()";
    let row = service.query_typed_one(sql, &[]).await;
    let row = row.map_err(RetireError::database("which database the service is"))?;
    Ok(Database {
        system_identifier: row.get(0),
        oid: row.get(1),
        uuid: slices::database_uuid(service).await?,
        timeline: row.get(2),
        end: row.get::<_, PgLsn>(3).into(),
    })
}

async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, RetireError> {
    let sql = "SELECT active, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()";
    let row = client.query_typed_opt(sql, &[(&name, Type::NAME)]).await;
    let row = row.map_err(RetireError::database("the replication slots"))?;
    let slot = |row: tokio_postgres::Row| Slot {
        is_read: row.get(0),
        confirmed: row.get::<_, Option<PgLsn>>(1).map(Lsn::from),
    };
    Ok(row.map(slot))
}

/// Sends a marker down the slice's streams that read this database; whoever meets it makes its position durable at once.
async fn emit(client: &Client, slice: &str) -> Result<Lsn, RetireError> {
    let content = marker_content(slice, "drop");
    let asked: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&MARKER_PREFIX, Type::TEXT), (&content, Type::TEXT)];
    let row = client.query_typed_one("SELECT pg_logical_emit_message(true, $1, $2)", &asked).await;
    Ok(row.map_err(RetireError::database("how far the mirror is"))?.get::<_, PgLsn>(0).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::streams::{Source, StreamState};

    const NAMED: Named<'_> = Named { slice: "one", service: "orders" };

    fn seen() -> Seen {
        let source = Source { system_identifier: "7".into(), database_oid: 5, uuid: "u".into(), timeline: 1 };
        let row = StreamRow {
            epoch: 2,
            mode: Mode::Apply,
            state: StreamState::Running,
            detail: None,
            slot: "s".into(),
            publication: "p".into(),
            source,
            applied: Lsn(200),
            nonce: 1,
        };
        let service = Database {
            system_identifier: "7".into(),
            oid: 5,
            uuid: Some("u".into()),
            timeline: 1,
            end: Lsn(300),
        };
        let slot = Some(Slot { is_read: true, confirmed: Some(Lsn(200)) });
        let home = Some("u".into());
        Seen { home, row, noted: Some(4), mark: Some(5), service, slot, apart: false }
    }

    fn archive() -> Archive {
        Archive {
            epoch: 2,
            place: "/a".into(),
            manifest_sha256: String::new(),
            reverse_lsn: Lsn(100),
            way_back: Some("s".into()),
            rows: 1,
            bytes: 1,
            at: "t".into(),
        }
    }

    fn codes(seen: &Seen) -> Vec<&'static str> {
        let problems = lacks(seen, &archive(), &NAMED).into_iter().chain(unread(seen, &NAMED));
        problems.map(|problem| problem.code).collect()
    }

    #[test]
    fn a_service_that_is_the_home_and_has_everything_is_no_problem() {
        assert_eq!(codes(&seen()), Vec::<&str>::new());
        assert_eq!(
            codes(&Seen { noted: None, mark: None, ..seen() }),
            Vec::<&str>::new(),
            "nobody may mark it"
        );
    }

    #[test]
    fn a_service_that_lacks_what_was_read_from_it_was_set_back() {
        let of = |change: fn(&mut Seen)| {
            let mut seen = seen();
            change(&mut seen);
            codes(&seen)
        };
        assert_eq!(of(|seen| seen.service.timeline = 2), ["service-set-back"]);
        assert_eq!(of(|seen| seen.service.end = Lsn(199)), ["service-set-back"]);
        assert_eq!(of(|seen| (seen.service.end, seen.row.applied) = (Lsn(99), Lsn(98))), {
            ["service-set-back", "no-way-back"]
        });
        assert_eq!(of(|seen| seen.mark = Some(3)), ["service-set-back"]);
        assert_eq!(of(|seen| seen.mark = None), ["service-set-back"]);
        assert_eq!(of(|seen| seen.row.slot = "t".into()), ["way-back-anew"]);
    }

    #[test]
    fn a_clone_of_the_service_is_not_the_service() {
        let of = |change: fn(&mut Seen)| {
            let mut seen = seen();
            change(&mut seen);
            codes(&seen)
        };
        assert_eq!(of(|seen| seen.service.oid = 6), ["other-home"]);
        assert_eq!(of(|seen| seen.service.system_identifier = "8".into()), ["other-home"]);
        assert_eq!(of(|seen| seen.service.uuid = Some("v".into())), ["other-home"]);
        assert_eq!(of(|seen| seen.home = Some("v".into())), ["other-home"]);
        assert_eq!(of(|seen| seen.apart = true), ["other-home"]);
        assert_eq!(of(|seen| seen.slot = None), ["no-way-back"]);
        assert_eq!(of(|seen| seen.slot = Some(Slot { is_read: false, confirmed: None })), ["no-way-back"]);
    }
}
