//! Which slice needs what, and what is wrong with the rest. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::facts::{Facts, Place, Seen};
use crate::journal::inventory::{ArchiveEntry, Gate, RightsAway, SliceEntry, Slot, StreamEntry};
use crate::journal::retirement;
use crate::journal::whereabouts::CLONED;
use crate::name::{quote_ident, quote_literal};
use crate::problem::{Problem, START_ANEW};
use crate::words;

/// As much of a slot's name as both directions keep of `strangler_PLAN_SLICE`, in characters.
const SLOT_STEM: usize = 52;

/// Sorts of objects, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Our schema with our tables.
    Schema,
    /// A slice that was provisioned.
    Slice,
    /// A gate: its table, its function, its triggers.
    Gate,
    /// Rights on old tables that were taken away.
    Rights,
    /// A schema that old tables were moved into.
    Quarantine,
    /// An archive of old tables.
    Archive,
    /// A publication.
    Publication,
    /// A replication slot.
    Slot,
    /// A table whose copy is not over, or indexes that wait.
    Copy,
    /// The role that mirrors act as.
    Role,
}

impl Kind {
    /// As an operator names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Slice => "slice",
            Self::Gate => "gate",
            Self::Rights => "rights",
            Self::Quarantine => "quarantine",
            Self::Archive => "archive",
            Self::Publication => "publication",
            Self::Slot => "slot",
            Self::Copy => "copy",
            Self::Role => "role",
        }
    }
}

/// Whose an object is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Belongs {
    /// A slice of the plan.
    Slice(String),
    /// Everything of ours in this database.
    Database,
    /// Another plan.
    OtherPlan(String),
    /// Nobody.
    Nobody,
    /// Whoever could tell was not read.
    Unknown,
}

/// What `--clean` does about an object that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// Drops a slot that nobody reads.
    Slot(String),
    /// Drops a publication.
    Publication(String),
    /// Drops a gate on which no table hangs, by its slice.
    Gate(String),
}

impl Removal {
    /// The statement.
    #[must_use]
    pub fn sql(&self) -> String {
        match self {
            Self::Slot(name) => format!("SELECT pg_drop_replication_slot({})", quote_literal(name)),
            Self::Publication(name) => format!("DROP PUBLICATION {}", quote_ident(name)),
            Self::Gate(slice) => {
                let gate = quote_ident(&format!("gate_{slice}"));
                format!("DROP TABLE IF EXISTS strangler.{gate}; DROP FUNCTION IF EXISTS strangler.{gate}()")
            }
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Object {
    /// Its sort.
    pub kind: Kind,
    /// Its name in the database.
    pub name: String,
    /// Whose it is.
    pub belongs: Belongs,
    /// What it is like: `FENCED, on 3 tables`.
    pub detail: String,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// What `--clean` would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removal: Option<Removal>,
}

/// All objects of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseReport {
    /// `monolith`, or the service by its name.
    pub database: String,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// By sort, then by name.
    pub objects: Vec<Object>,
    #[serde(skip)]
    pub(super) place: Place,
}

/// Judges all of it; the monolith comes first.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<DatabaseReport> {
    let report = |(place, seen): (&Place, &Result<Seen, String>)| {
        let objects = seen.as_ref().map(|seen| Judge { facts, place, seen }.objects()).unwrap_or_default();
        let unread = seen.as_ref().err().cloned();
        DatabaseReport { database: place.to_string(), unread, objects, place: place.clone() }
    };
    facts.databases.iter().map(report).collect()
}

struct Judge<'a> {
    facts: &'a Facts,
    place: &'a Place,
    seen: &'a Seen,
}

impl Judge<'_> {
    fn objects(&self) -> Vec<Object> {
        let found = &self.seen.objects;
        let mut objects: Vec<Object> = self.schema().into_iter().collect();
        objects.extend(self.seen.entries.slices.iter().map(|entry| self.slice(&entry.slice)));
        objects.extend(found.gates.iter().map(|gate| self.gate(gate)));
        objects.extend(self.seen.entries.rights.iter().map(|of| self.rights(of)));
        objects.extend(found.quarantines.iter().map(|(schema, tables)| self.quarantine(schema, *tables)));
        objects.extend(self.seen.entries.archives.iter().map(|archive| self.archive(archive)));
        objects.extend(found.publications.iter().map(|of| self.publication(&of.name, of.tables)));
        objects.extend(found.slots.iter().map(|slot| self.slot(slot)));
        objects.extend(self.seen.entries.streams.iter().filter_map(|stream| self.lost_slot(stream)));
        objects.extend(self.copies());
        objects.extend(self.role());
        objects.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        objects
    }

    /// Whose a slice that is written down here is.
    fn owner(&self, slice: &str) -> Belongs {
        match self.seen.entries.slices.iter().find(|entry| entry.slice == slice) {
            Some(entry) if entry.plan == self.facts.plan => Belongs::Slice(slice.to_owned()),
            Some(entry) => Belongs::OtherPlan(entry.plan.clone()),
            None => Belongs::Nobody,
        }
    }

    fn schema(&self) -> Option<Object> {
        if !self.seen.objects.schema {
            return None;
        }
        let slices = self.seen.entries.slices.len();
        let object = Object::new(Kind::Schema, "strangler", Belongs::Database)
            .like(format!("{} provisioned", words::plural(slices, "slice")));
        if self.seen.entries.itself == Some(false) {
            let problem = Problem::error("database-cloned", self.place)
                .fact(CLONED)
                .consequence(
                    "its slices, gates and streams are the other one's; no slot is judged by what it says",
                )
                .next("correct the link, if it should lead to the other one");
            return Some(object.wrong(problem));
        }
        if slices > 0 {
            return Some(object);
        }
        let problem = Problem::warning("schema-left", self.place)
            .fact("the schema strangler is there, and no slice is provisioned")
            .consequence("it is in nobody's way; in a service it holds the ledger")
            .next("if neither is wanted any longer: DROP SCHEMA strangler CASCADE;");
        Some(object.of(Belongs::Nobody).wrong(problem))
    }

    fn slice(&self, slice: &str) -> Object {
        let belongs = self.owner(slice);
        let object = Object::new(Kind::Slice, slice, belongs.clone());
        if !matches!(belongs, Belongs::Slice(_)) {
            return object.like("provisioned by that plan");
        }
        let Some(service) = self.facts.slices.get(slice) else {
            let problem = Problem::warning("slice-not-in-plan", slice)
                .fact(format!(
                    "the plan does not name it, and the {} has its gate and its publication",
                    self.place
                ))
                .consequence("no verb speaks of it, and its slot keeps WAL")
                .next(format!("name it in the plan as it was; or take it back: {START_ANEW}"));
            return object.like("not in the plan").wrong(problem);
        };
        let home = self.facts.seen(&Place::Service(service.clone()));
        if home.is_some_and(|seen| seen.entries.abandoned.iter().any(|one| one == slice)) {
            let problem = Problem::error("slice-abandoned", slice)
                .fact("it is being taken back: strangler abandon has begun, and has not ended")
                .consequence("no other verb touches it")
                .next(format!("strangler abandon PLAN --slice {slice}"));
            return object.like("is being abandoned").wrong(problem);
        }
        if let Some((_, over)) = self.seen.entries.dropped.iter().find(|(dropped, _)| dropped == slice) {
            if *over {
                return object.like("retired: its old tables are dropped");
            }
            let problem = Problem::warning("slice-dropped", slice)
                .fact("its old tables are being dropped, and that is not over")
                .consequence("no other verb touches it meanwhile")
                .next(format!("strangler retire PLAN --slice {slice} --stage drop"));
            return object.like("being retired").wrong(problem);
        }
        let other = match self.place {
            Place::Monolith => Place::Service(service.clone()),
            Place::Service(_) => Place::Monolith,
        };
        let there = self.facts.seen(&other);
        if there.is_some_and(|seen| seen.entries.slices.iter().all(|entry| entry.slice != slice)) {
            let problem = Problem::warning("half-provisioned", slice)
                .fact(format!("it is provisioned in the {}, and not in the {other}", self.place))
                .consequence("nothing can be mirrored")
                .next(format!(
                    "strangler provision PLAN --slice {slice} finishes it; or take it back: {START_ANEW}"
                ));
            return object.like(format!("not in the {other}")).wrong(problem);
        }
        object.like("provisioned")
    }

    fn gate(&self, gate: &Gate) -> Object {
        let belongs = self.owner(&gate.slice);
        let tables = gate.hangs_on.len();
        let state = gate.state.as_deref().unwrap_or("without a state");
        let object = Object::new(Kind::Gate, format!("gate_{}", gate.slice), belongs.clone())
            .like(format!("{state}, on {}", words::plural(tables, "table")));
        if belongs != Belongs::Nobody {
            return object;
        }
        if tables == 0 {
            let problem = Problem::warning("gate-left", &object.name)
                .fact("it guards no table, and its slice is not provisioned here")
                .consequence("it is in nobody's way")
                .next("strangler doctor PLAN --clean");
            return object.wrong(problem).removed_by(Removal::Gate(gate.slice.clone()));
        }
        let on = gate.hangs_on.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let refuses = if gate.state.as_deref() == Some("OPEN") {
            "lets writes through today"
        } else {
            "refuses every write"
        };
        let problem = Problem::error("gate-without-slice", &object.name)
            .fact(format!("it hangs on {on} and {refuses}, and its slice is not provisioned here"))
            .consequence("nothing of ours will ever open or close it; to take it off is to say that these tables may be written here")
            .next(format!(
                "once you know that: DROP FUNCTION strangler.{}() CASCADE; then strangler doctor PLAN --clean",
                quote_ident(&object.name)
            ));
        object.wrong(problem)
    }

    /// Whose they were is written down here alone, so what is said of them ends with the command that gives them back.
    fn rights(&self, of: &RightsAway) -> Object {
        let (slice, belongs) = (&of.slice, self.owner(&of.slice));
        let count = words::plural(usize::try_from(of.count).unwrap_or(0), "right");
        let since = of.since.as_ref().map(|since| format!("taken away since {since}"));
        let detail = format!("{count} {}", since.as_deref().unwrap_or("could not be given back"));
        let object = Object::new(Kind::Rights, slice, belongs.clone()).like(&detail);
        let undo = format!("strangler unretire PLAN --slice {slice}");
        let fact = |about: &str| format!("on its old tables {detail}{about}");
        match belongs {
            Belongs::OtherPlan(_) => return object,
            Belongs::Slice(_) if self.facts.slices.contains_key(slice) => {}
            Belongs::Slice(_) | Belongs::Database | Belongs::Nobody | Belongs::Unknown => {
                let problem = Problem::error("rights-without-slice", slice)
                    .fact(fact(", and the plan has no such slice here"))
                    .consequence(format!(
                        "whoever had them can't use the tables, and nothing but {} knows who that was",
                        retirement::RIGHTS
                    ))
                    .next(format!("name the slice in the plan as it was; then {undo}"));
                return object.wrong(problem);
            }
        }
        let gate = self.seen.objects.gates.iter().find(|gate| gate.slice == *slice);
        let open = gate.is_some_and(|gate| gate.state.as_deref() == Some("OPEN"));
        let problem = match (&of.since, open) {
            (None, _) => Problem::warning("rights-left", slice)
                .fact(fact(""))
                .consequence("their tables, columns or roles are not there any more")
                .next(format!("{undo} names them and tries again, and with --give-up forgets them")),
            (Some(_), true) => Problem::error("retired", slice)
                .fact(fact(", and the monolith has the authority"))
                .consequence("its application can't use its tables")
                .next(undo),
            (Some(_), false) => Problem::note("rights-away", slice)
                .fact(fact(""))
                .consequence("nobody but the tool, their owners and superusers may use the old tables")
                .next(format!("{undo} gives them back, should anybody miss them")),
        };
        object.wrong(problem)
    }

    /// A schema that old tables were moved into, or one that only is called so.
    fn quarantine(&self, schema: &str, tables: i64) -> Object {
        let place = self.seen.entries.quarantines.iter().find(|place| place.quarantine == schema);
        let belongs = place.map_or(Belongs::Nobody, |place| self.owner(&place.slice));
        let count = words::plural(usize::try_from(tables).unwrap_or(0), "table");
        let object = Object::new(Kind::Quarantine, schema, belongs.clone()).like(&count);
        let Some(place) = place else {
            let problem = Problem::warning("quarantine-left", schema)
                .fact(format!("it holds {count}, and no slice has its old tables in it"))
                .consequence("it is in nobody's way")
                .next("whoever made what it holds may have it, or drops it");
            return object.wrong(problem);
        };
        if matches!(belongs, Belongs::OtherPlan(_)) {
            return object;
        }
        let undo = format!("strangler unretire PLAN --slice {}", place.slice);
        let problem = Problem::note("tables-away", schema)
            .fact(format!(
                "it holds the old tables of slice {} that came from schema {}",
                place.slice, place.schema
            ))
            .consequence("whatever names them by that schema does not find them")
            .next(format!("{undo} brings them back, should anybody miss them"));
        object.wrong(problem)
    }

    /// What is written down of an archive. Whether its files are there, and whole, only `restore --verify` tells.
    fn archive(&self, archive: &ArchiveEntry) -> Object {
        let ArchiveEntry { slice, place, manifest_sha256, at, rows, stands } = archive;
        let belongs = self.owner(slice);
        let rows = words::count(u64::try_from(*rows).unwrap_or(0));
        let object = Object::new(Kind::Archive, slice, belongs.clone())
            .like(format!("{rows} rows at {place} since {at}, manifest {manifest_sha256}"));
        if *stands || matches!(belongs, Belongs::OtherPlan(_)) {
            return object;
        }
        let problem = Problem::warning("archive-outdated", slice)
            .fact("its old tables have come back, or their authority has moved, since it was written down")
            .consequence("it is as whole as it was, and nothing rests on it")
            .next(format!("strangler restore --from {} --verify proves it", words::shell_word(place)));
        object.wrong(problem)
    }

    fn publication(&self, name: &str, tables: i64) -> Object {
        let entry = self.seen.entries.slices.iter().find(|entry| entry.publication == name);
        let belongs = entry.map_or(Belongs::Nobody, |entry| self.owner(&entry.slice));
        let object = Object::new(Kind::Publication, name, belongs.clone())
            .like(words::plural(usize::try_from(tables).unwrap_or(0), "table"));
        if belongs != Belongs::Nobody {
            return object;
        }
        let problem = Problem::warning("publication-left", name)
            .fact("it carries our name, and no slice that is provisioned here has it")
            .consequence("it is in nobody's way, but provision would meet it")
            .next("strangler doctor PLAN --clean");
        // Whoever reads a slot that we know nothing about may read it through this publication.
        let read =
            |slot: &Slot| slot.reader.is_some() && !matches!(self.slot(slot).belongs, Belongs::Slice(_));
        if self.seen.objects.slots.iter().any(read) {
            let problem =
                problem.next("see first who reads the slots of this database that no slice of the plan has");
            return object.wrong(problem);
        }
        object.wrong(problem).removed_by(Removal::Publication(name.to_owned()))
    }

    /// The databases in which a slot of this one is written down.
    fn ends(&self) -> Vec<&Result<Seen, String>> {
        let other = |place: &&Place| (**place == Place::Monolith) != (*self.place == Place::Monolith);
        self.facts.databases.iter().filter(|(place, _)| other(place)).map(|(_, seen)| seen).collect()
    }

    fn slot(&self, slot: &Slot) -> Object {
        let reverse = *self.place != Place::Monolith;
        let ends = self.ends();
        let streams =
            ends.iter().filter_map(|seen| seen.as_ref().ok()).flat_map(|seen| &seen.entries.streams);
        let stream = streams.into_iter().find(|stream| stream.slot == slot.name && stream.reverse == reverse);
        let object = Object::new(Kind::Slot, &slot.name, Belongs::Unknown).like(slot_words(slot));
        match stream {
            Some(stream) => self.read_slot(slot, stream, object),
            None => self.unknown_slot(slot, object),
        }
    }

    fn read_slot(&self, slot: &Slot, stream: &StreamEntry, object: Object) -> Object {
        let slice = &stream.slice;
        let object = object.of(Belongs::Slice(slice.clone()));
        let status = format!("strangler status PLAN --slice {slice}");
        if slot.wal_status.as_deref() == Some("lost") {
            let problem = Problem::error("slot-lost", &slot.name)
                .fact("the server has removed WAL that it needed")
                .consequence(format!("slice {slice} has a gap"))
                .next(status);
            return object.wrong(problem);
        }
        if slot.reader.is_some() || stream.alive || self.is_abandoned(slice) {
            return object;
        }
        let problem = Problem::warning("slot-without-reader", &slot.name)
            .fact(format!("nobody reads it, and it holds {} of WAL", words::bytes(slot.held_bytes)))
            .consequence(
                "the server keeps WAL until somebody reads it, or until max_slot_wal_keep_size takes it away",
            )
            .next(format!("strangler mirror PLAN --slice {slice}; {status} says more"));
        object.wrong(problem)
    }

    fn unknown_slot(&self, slot: &Slot, object: Object) -> Object {
        // Names of slots are cut, so this may find a slice that has nothing to do with it, and never misses the one that has.
        let stem = |entry: &SliceEntry| {
            format!("strangler_{}_{}", entry.plan, entry.slice).chars().take(SLOT_STEM).collect::<String>()
        };
        let entry = self.seen.entries.slices.iter().find(|entry| slot.name.starts_with(&stem(entry)));
        if let Some(entry) = entry.filter(|entry| entry.plan != self.facts.plan) {
            return object.of(Belongs::OtherPlan(entry.plan.clone()));
        }
        let speaks =
            |seen: &&Result<Seen, String>| seen.as_ref().is_ok_and(|seen| seen.entries.itself != Some(false));
        if !self.ends().iter().all(speaks) {
            return object;
        }
        let object = object.of(Belongs::Nobody);
        if let Some(pid) = slot.reader {
            let problem = Problem::error("slot-of-nobody", &slot.name)
                .fact(format!(
                    "process {pid} reads it, and no stream of the plan's databases is written down with it"
                ))
                .consequence(
                    "a mirror of another copy of these databases, or somebody else, takes changes from here",
                )
                .next(format!("SELECT * FROM pg_stat_activity WHERE pid = {pid};"));
            return object.wrong(problem);
        }
        let held = words::bytes(slot.held_bytes);
        let problem = Problem::warning("slot-left", &slot.name)
            .fact(format!("nobody reads it, no stream is written down with it, and it holds {held} of WAL"))
            .consequence("the server keeps WAL that nobody will read");
        let removal = Removal::Slot(slot.name.clone());
        // A slice of that name which is provisioned here streams from another slot, or it is not known from which.
        if entry.is_some_and(|entry| !self.streams(&entry.slice)) {
            let fact = "if no mirror of another copy of the service's database needs it";
            return object.wrong(problem.next(format!("{fact}: {};", removal.sql())));
        }
        object.wrong(problem.next("strangler doctor PLAN --clean")).removed_by(removal)
    }

    /// What is left of a slice that is being taken back, and what is gone of it already, is a matter of `abandon` alone.
    fn is_abandoned(&self, slice: &str) -> bool {
        let mut seen = self.facts.databases.values().filter_map(|seen| seen.as_ref().ok());
        seen.any(|seen| seen.entries.abandoned.iter().any(|one| one == slice))
    }

    /// A stream of the slice that begins here is written down where it ends.
    fn streams(&self, slice: &str) -> bool {
        let reverse = *self.place != Place::Monolith;
        let ends = self.ends();
        let mut streams =
            ends.iter().filter_map(|seen| seen.as_ref().ok()).flat_map(|seen| &seen.entries.streams);
        streams.any(|stream| stream.slice == slice && stream.reverse == reverse)
    }

    /// A stream that ends here and whose slot is gone.
    fn lost_slot(&self, stream: &StreamEntry) -> Option<Object> {
        let slice = &stream.slice;
        if self.seen.entries.dropped.iter().any(|(dropped, _)| dropped == slice) || self.is_abandoned(slice) {
            return None;
        }
        let source = match stream.reverse {
            true => Place::Service(self.facts.slices.get(slice)?.clone()),
            false => Place::Monolith,
        };
        let there = &self.facts.seen(&source)?.objects.slots;
        if stream.state == "creating" || there.iter().any(|slot| slot.name == stream.slot) {
            return None;
        }
        let problem = Problem::error("slot-gone", &stream.slot)
            .fact(format!("slice {slice} streams from it, and the {source} has no such slot"))
            .consequence("changes since then are lost to this stream")
            .next(format!("strangler status PLAN --slice {slice}"));
        let belongs = Belongs::Slice(slice.clone());
        Some(
            Object::new(Kind::Slot, &stream.slot, belongs)
                .like(format!("gone from the {source}"))
                .wrong(problem),
        )
    }

    fn copies(&self) -> Vec<Object> {
        let entries = &self.seen.entries;
        let alive: BTreeSet<&str> = entries
            .streams
            .iter()
            .filter(|stream| !stream.reverse && stream.alive)
            .map(|stream| stream.slice.as_str())
            .collect();
        let mut objects = Vec::new();
        for table in entries.unfinished.iter().filter(|table| !self.is_abandoned(&table.slice)) {
            let object = Object::new(Kind::Copy, &table.table, self.owner(&table.slice)).like(&table.state);
            let status = format!("strangler status PLAN --slice {}", table.slice);
            let problem = match table.state.as_str() {
                "diverged" => Problem::error("table-diverged", &table.table)
                    .fact("its copy in this service is not the monolith's table any longer")
                    .consequence("nobody may trust its rows")
                    .next(status),
                _ if alive.contains(table.slice.as_str()) => {
                    objects.push(object);
                    continue;
                }
                _ => Problem::warning("copy-unfinished", &table.table)
                    .fact("its copy is not over, and no mirror runs")
                    .consequence("the service lacks rows of it")
                    .next(format!("strangler mirror PLAN --slice {}", table.slice)),
            };
            objects.push(object.wrong(problem));
        }
        let idle = entries
            .deferred
            .iter()
            .filter(|(slice, _)| !alive.contains(slice.as_str()) && !self.is_abandoned(slice));
        objects.extend(idle.map(|(slice, count)| {
            let waiting = format!(
                "{} of its indexes and constraints",
                words::count(u64::try_from(*count).unwrap_or(0))
            );
            let problem = Problem::warning("indexes-wait", slice)
                .fact(format!("{waiting} are not built yet, and no mirror runs"))
                .consequence("the service's tables are slower, and less guarded, than the monolith's")
                .next(format!("strangler mirror PLAN --slice {slice}"));
            Object::new(Kind::Copy, slice, self.owner(slice))
                .like("indexes and constraints wait")
                .wrong(problem)
        }));
        objects
    }

    fn role(&self) -> Option<Object> {
        let needed = &self.seen.objects.role.as_ref()?.needed_in;
        let role = Object::new(Kind::Role, "strangler_apply", Belongs::Database);
        if self.seen.objects.schema {
            return Some(role.like("mirrors act as it"));
        }
        let (fact, next) = if needed.is_empty() {
            (
                "nothing of the server depends on it".to_owned(),
                "if nobody logs in as it: DROP ROLE strangler_apply;".to_owned(),
            )
        } else {
            let databases = needed.iter().map(|name| if name.is_empty() { "the whole server" } else { name });
            let databases = databases.collect::<Vec<_>>().join(", ");
            (format!("nothing of ours is in this database; it has rights in: {databases}"),
             "where no database of the server is split any longer: DROP OWNED BY strangler_apply; in each, then DROP ROLE \
              strangler_apply;".to_owned())
        };
        let problem = Problem::note("role-left", "strangler_apply")
            .fact(fact)
            .consequence("it is in nobody's way; who can log in as it can do what it was granted")
            .next(next);
        Some(role.of(Belongs::Nobody).like("nothing of ours is in this database").wrong(problem))
    }
}

fn slot_words(slot: &Slot) -> String {
    let reader =
        slot.reader.map_or_else(|| "nobody reads it".to_owned(), |pid| format!("read by process {pid}"));
    let status = slot.wal_status.as_deref().unwrap_or("no WAL");
    format!("{reader}, {status}, holds {}", words::bytes(slot.held_bytes))
}

impl Object {
    fn new(kind: Kind, name: impl Into<String>, belongs: Belongs) -> Self {
        Self { kind, name: name.into(), belongs, detail: String::new(), problem: None, removal: None }
    }

    fn like(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn of(mut self, belongs: Belongs) -> Self {
        self.belongs = belongs;
        self
    }

    fn wrong(mut self, problem: Problem) -> Self {
        self.problem = Some(problem);
        self
    }

    fn removed_by(mut self, removal: Removal) -> Self {
        self.removal = Some(removal);
        self
    }
}
