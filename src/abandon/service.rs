//! What of a slice stands in its service: tables that `provision` made, tables that it adopted, and what depends on them.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::asides::{self, Aside};
use super::lacking::Lacks;
use super::sources::Sources;
use super::{AbandonError, verdicts};
use crate::dualwrite::gate;
use crate::journal::granted::{self, Granted, ReliedOn};
use crate::journal::{abandonment, beginnings, built_on, set_aside};
use crate::name::{TableName, quote_ident};
use crate::provision::withdrawal;

/// What `provision` did about a table, as its journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It made it.
    Made,
    /// The service's migrations made it, and it adopted it.
    Adopted,
    /// The journal does not say.
    Unknown,
}

/// What becomes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes with its rows, which the mirror has put there.
    Drop,
    /// Its rows go, which the mirror has put there.
    Empty,
    /// It stays as it is: whose its rows are can't be proven.
    Stay,
}

/// One table of the slice that is there.
#[derive(Debug, Clone)]
pub(super) struct OwnTable {
    pub(super) name: TableName,
    pub(super) origin: Origin,
    /// Why its rows need not be the mirror's; none where they are.
    pub(super) doubts: Vec<String>,
    /// As `status` knows it.
    pub(super) rows_copied: i64,
    /// In the order of the table.
    pub(super) columns: Vec<String>,
    /// Triggers of the service's own.
    pub(super) triggers: Vec<String>,
    /// What others have built on it and what goes with it, where it goes: kind and name.
    pub(super) built: Vec<String>,
    partitioned: bool,
    /// What has its rows: itself, or the partitions that it had when it was adopted and still has.
    leaves: Vec<TableName>,
    oid: u32,
}

/// A trigger of the slice's gate.
#[derive(Debug, Clone)]
struct Hinge {
    table: TableName,
    oid: u32,
    trigger: String,
    /// The slice's table that it is, or a part of.
    of: Option<u32>,
    /// The slice's table of which it was a partition when that was adopted.
    part_of: Option<String>,
}

impl OwnTable {
    /// What becomes of it.
    pub(super) fn fate(&self) -> Fate {
        match (self.origin, self.doubts.is_empty()) {
            (Origin::Made, true) => Fate::Drop,
            (Origin::Adopted, true) => Fate::Empty,
            (Origin::Made | Origin::Adopted, false) | (Origin::Unknown, _) => Fate::Stay,
        }
    }
}

/// What is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    pub(super) tables: Vec<OwnTable>,
    /// What others have built on tables that would be dropped: kind and identity.
    pub(super) dependents: Vec<String>,
    /// What keeps tables from being emptied, with what to do about it.
    pub(super) in_the_way: Vec<InTheWay>,
    /// Indexes and constraints of adopted tables that are off, with what puts them back.
    pub(super) waiting: Vec<Aside>,
    /// Replica identities that `arm` changed, as they were before.
    pub(super) identities: Vec<Aside>,
    /// Foreign keys between adopted tables of two slices that are off.
    pub(super) keys_between: Vec<(String, Aside)>,
    pub(super) granted: Vec<Granted>,
    /// Rights that were granted for it and stay, since others rely on them.
    pub(super) relied_on: Vec<ReliedOn>,
    pub(super) own_tables: Vec<String>,
    /// Wherever the slice's gate hangs, but for triggers that partitions get from their root.
    gates: Vec<Hinge>,
}

impl Standing {
    /// Tables on which the slice's gate hangs, though none of the slice's tables has such a name, each with the table of which it was a
    /// partition.
    pub(super) fn strange(&self) -> BTreeSet<(&TableName, Option<&str>)> {
        self.gates
            .iter()
            .filter(|hinge| hinge.of.is_none())
            .map(|hinge| (&hinge.table, hinge.part_of.as_deref()))
            .collect()
    }

    /// Tables of one fate.
    pub(super) fn of(&self, fate: Fate) -> impl Iterator<Item = &OwnTable> {
        self.tables.iter().filter(move |table| table.fate() == fate)
    }

    /// The tables whose rows go; `true` beside one that goes as a whole.
    fn taken(&self) -> Vec<(TableName, bool)> {
        [Fate::Drop, Fate::Empty]
            .into_iter()
            .flat_map(|fate| self.of(fate).map(move |table| (table.name.clone(), fate == Fate::Drop)))
            .collect()
    }

    /// The statement of [`Self::take_copies`] behind which its locks are there and nothing is taken yet.
    pub(super) fn proof(&self, slice: &str) -> String {
        beginnings::require_proof(slice, &self.taken())
    }

    /// What takes rights back, drops the tables that were made, empties those that were adopted, and writes down that it did: the copies
    /// go once, and what is under their names afterwards is somebody else's. Behind the locks it is looked once more whose the rows are.
    pub(super) fn take_copies(&self, slice: &str) -> Vec<String> {
        let list = |fate| self.of(fate).map(|table| table.name.sql()).collect::<Vec<_>>();
        let taken = self.taken();
        let labels: Vec<String> = taken.iter().map(|(name, _)| name.to_string()).collect();
        let mut statements = vec![abandonment::require_fenced(slice)];
        // Before the tables go on which the rights are.
        statements.extend(withdrawal::revoke(&self.granted));
        if !taken.is_empty() {
            let names: Vec<String> = taken.iter().map(|(name, _)| name.sql()).collect();
            statements.push(format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", names.join(", ")));
            statements.push(self.proof(slice));
        }
        let (made, emptied) = (list(Fate::Drop), self.truncated());
        statements.extend((!made.is_empty()).then(|| format!("DROP TABLE {}", made.join(", "))));
        if !emptied.is_empty() {
            // The gate refuses TRUNCATE as well, and guards the table again until the end.
            statements.extend(self.gates_of(Fate::Empty, "DISABLE"));
            statements.push(format!("TRUNCATE {}", emptied.join(", ")));
            statements.extend(self.gates_of(Fate::Empty, "ENABLE ALWAYS"));
        }
        statements.push(abandonment::decide(slice, &labels));
        statements
    }

    /// What lets the tables that are left go, and gives adopted ones back what was set aside: they are as their migrations left them.
    /// `alone`: no other slice is left in the service. What the rows of tables that stay do not allow is left away and written down.
    pub(super) fn statements(&self, slice: &str, alone: bool) -> Vec<String> {
        let mut statements = vec![abandonment::require_fenced(slice)];
        // Those of tables that are dropped went with them; and no other may be left, or the gate's function could not go.
        let left = self.gates.iter().filter(|hinge| self.of(Fate::Drop).all(|table| table.oid != hinge.oid));
        statements.extend(
            left.map(|hinge| {
                format!("DROP TRIGGER {} ON {}", quote_ident(&hinge.trigger), hinge.table.sql())
            }),
        );
        statements.extend(self.waiting.iter().chain(&self.identities).map(|aside| aside.put_back(slice)));
        if alone {
            statements.extend(self.keys_between.iter().flat_map(|(object, aside)| {
                [aside.put_back(slice), abandonment::note_put_back(slice, object)]
            }));
        }
        statements
    }

    /// What does something to the slice's gate on tables of one fate.
    fn gates_of(&self, fate: Fate, what: &'static str) -> impl Iterator<Item = String> {
        let hangs = move |hinge: &&Hinge| self.of(fate).any(|table| hinge.of == Some(table.oid));
        self.gates.iter().filter(hangs).map(move |hinge| {
            format!("ALTER TABLE {} {what} TRIGGER {}", hinge.table.sql(), quote_ident(&hinge.trigger))
        })
    }

    /// As they stand in TRUNCATE, which takes no table that inherits from another one.
    fn truncated(&self) -> Vec<String> {
        let one = |table: &OwnTable| match table.partitioned {
            true => table.name.sql(),
            false => format!("ONLY {}", table.name.sql()),
        };
        self.of(Fate::Empty).map(one).collect()
    }

    /// What an operator may run who knows that no row of adopted tables that stay is needed. Partitions that came later are not in it,
    /// nor tables that inherit.
    pub(super) fn emptied_by_hand(&self) -> Option<String> {
        let stays = |table: &&OwnTable| table.fate() == Fate::Stay && table.origin == Origin::Adopted;
        let names: Vec<String> = self
            .tables
            .iter()
            .filter(stays)
            .flat_map(|table| &table.leaves)
            .map(|name| format!("ONLY {}", name.sql()))
            .collect();
        (!names.is_empty()).then(|| format!("TRUNCATE {};", names.join(", ")))
    }

    /// Adds a doubt to tables by name.
    pub(super) fn doubt(&mut self, found: Vec<(String, String)>) {
        for (label, why) in found {
            let named = |table: &&mut OwnTable| table.name.to_string() == label;
            if let Some(table) = self.tables.iter_mut().find(named)
                && !table.doubts.contains(&why)
            {
                table.doubts.push(why);
            }
        }
    }

    /// Adds what is known of rows that are in no other place.
    fn lacks(&mut self, asked: Asked<'_>) {
        let outside = asked.outside.then(|| {
            "the service's application wrote rows that the slice's filter forbids, and they are in no other place"
                .to_owned()
        });
        for why in outside.iter().chain(&asked.lacks.all) {
            self.doubt(self.tables.iter().map(|table| (table.name.to_string(), why.clone())).collect());
        }
    }

    /// Finds out what is put back. Of a table that is not under its name any more, too: it was adopted all the same.
    async fn put_back(
        &mut self,
        service: &Client,
        slice: &str,
        origins: &[(String, String)],
    ) -> Result<(), AbandonError> {
        let noted = set_aside::all(service).await?;
        let adopted = |table: &str| origins.iter().any(|(name, action)| name == table && action == ADOPTED);
        let mut waiting = abandonment::waiting(service, slice).await?;
        waiting.retain(|(table, ..)| adopted(table));
        let there = self.tables.iter().filter(|table| table.origin == Origin::Adopted);
        let there: Vec<(TableName, u32)> = there.map(|table| (table.name.clone(), table.oid)).collect();
        self.waiting = asides::waiting(slice, waiting, (&noted, &there));
        let going: Vec<u32> = self.of(Fate::Drop).map(|table| table.oid).collect();
        self.identities = asides::identities(service, slice, &going).await?;
        self.keys_between = asides::between(service, slice, &noted).await?;
        Ok(())
    }

    /// The copies were taken: every table but those that were emptied then stays, also one that was made anew under the name of one that
    /// was dropped.
    fn is_over(&mut self, decided: &BTreeSet<String>, lacks: &Lacks) {
        for table in &mut self.tables {
            if table.origin == Origin::Adopted && decided.contains(&table.name.to_string()) {
                continue;
            }
            table.doubts.extend(lacks.all.iter().cloned());
            table.doubts.push("it was none of those whose rows went with the copies of the slice".to_owned());
        }
    }

    /// Adopted tables are emptied together or not at all, because foreign keys between them come back. Where an earlier run was confirmed
    /// to take certain tables, no others are taken.
    fn settle(&mut self, confirmed: Option<&BTreeSet<String>>) {
        let unconfirmed: Vec<(String, String)> = self
            .tables
            .iter()
            .map(|table| table.name.to_string())
            .filter(|label| confirmed.is_some_and(|confirmed| !confirmed.contains(label)))
            .map(|label| (label, "it was to stay when the abandonment was confirmed".to_owned()))
            .collect();
        self.doubt(unconfirmed);
        let adopted = || self.tables.iter().filter(|table| table.origin == Origin::Adopted);
        let Some(other) =
            adopted().find(|table| !table.doubts.is_empty()).map(|table| table.name.to_string())
        else {
            return;
        };
        let why = format!("adopted tables of a slice are emptied together, and {other} stays");
        let rest = adopted()
            .filter(|table| table.doubts.is_empty())
            .map(|table| (table.name.to_string(), why.clone()));
        let rest = rest.collect();
        self.doubt(rest);
    }
}

/// Whose slice it is that is looked at, and what was confirmed about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) slice: &'a str,
    /// No other slice is left in the service.
    pub(super) last: bool,
    /// The service's application wrote rows that its filter forbids, and the way back did not carry them.
    pub(super) outside: bool,
    /// What the monolith lacks of what was read from it.
    pub(super) lacks: &'a Lacks,
    /// What became of the monolith's tables that were read.
    pub(super) sources: &'a Sources,
    /// The tables that a run which has begun was to take; `None` where none has begun.
    pub(super) confirmed: Option<&'a BTreeSet<String>>,
    /// The tables whose rows a run which has begun has taken; `None` where none was.
    pub(super) decided: Option<&'a BTreeSet<String>>,
}

/// Reads it. The tables of ours must be there.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn standing(service: &Client, asked: Asked<'_>) -> Result<Standing, AbandonError> {
    let slice = asked.slice;
    let origins = abandonment::origins(service, slice).await?;
    let mut found = Standing {
        granted: granted::dispensable(service, slice, asked.last).await?,
        relied_on: granted::relied_on(service, slice, asked.last).await?,
        own_tables: abandonment::tables_of_slices(service).await?,
        ..Standing::default()
    };
    for (target, rows_copied) in abandonment::targets(service, slice).await? {
        let Ok(name) = TableName::parse(&target, "public") else { continue };
        let origin = origins.iter().find(|(table, _)| *table == target);
        let origin = match origin.map(|(_, action)| action.as_str()) {
            Some("create table") => Origin::Made,
            Some(ADOPTED) => Origin::Adopted,
            Some(_) | None => Origin::Unknown,
        };
        let read = table(service, slice, (name, origin, rows_copied)).await;
        found.tables.extend(read.map_err(AbandonError::database("the service's tables"))?);
    }
    let ours: Vec<u32> = found.tables.iter().map(|table| table.oid).collect();
    let gates = gates(service, slice, &ours).await;
    found.gates = gates.map_err(AbandonError::database("where the slice's gate hangs"))?;
    let parts = beginnings::partitions(service, slice).await?;
    for hinge in found.gates.iter_mut().filter(|hinge| hinge.of.is_none()) {
        hinge.part_of = parts.get(&hinge.oid).cloned();
    }
    for table in &mut found.tables {
        table.leaves = beginnings::leaves(service, slice, &table.name).await?;
    }
    let judged: Vec<(TableName, bool)> =
        found.tables.iter().map(|table| (table.name.clone(), table.origin == Origin::Made)).collect();
    match asked.decided {
        Some(decided) => found.is_over(decided, asked.lacks),
        None => {
            found.doubt(beginnings::doubts(service, slice, &judged).await?);
            found.doubt(verdicts::doubts(service, slice).await?);
            found.lacks(asked);
            found.doubt(asked.sources.doubts.clone());
            found.settle(asked.confirmed);
        }
    }
    for table in found.tables.iter_mut().filter(|table| table.fate() == Fate::Drop) {
        let label = table.name.to_string();
        table.built = built_on::read(service, slice, (table.oid, &label)).await?;
    }
    let to_go = |fate| found.of(fate).filter(|_| asked.decided.is_none());
    let oids = |fate| to_go(fate).map(|table| table.oid).collect::<Vec<_>>();
    let failed = || AbandonError::database("what depends on the service's tables");
    let (made, adopted) = (oids(Fate::Drop), oids(Fate::Empty));
    found.dependents = dependents(service, &made).await.map_err(failed())?;
    found.in_the_way = in_the_way(service, &adopted).await.map_err(failed())?;
    found.put_back(service, slice, &origins).await?;
    Ok(found)
}

/// What the journal calls it.
const ADOPTED: &str = "adopt table";

const TABLE: &str = "SELECT c.oid, c.relkind = 'p', \
        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            ORDER BY a.attnum), \
        ARRAY(SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal \
            AND t.tgfoid IS DISTINCT FROM to_regprocedure($2)::oid ORDER BY 1) \
    FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p')";

/// By the function, not by the names of tables: those may have changed.
const GATES: &str = "WITH RECURSIVE ours (root, oid) AS (SELECT o, o FROM unnest($2::oid[]) AS o \
        UNION SELECT o.root, i.inhrelid FROM ours o JOIN pg_inherits i ON i.inhparent = o.oid) \
    SELECT n.nspname::text, r.relname::text, t.tgrelid, t.tgname::text, (SELECT min(o.root) FROM ours o WHERE o.oid = t.tgrelid) \
    FROM pg_trigger t JOIN pg_class r ON r.oid = t.tgrelid JOIN pg_namespace n ON n.oid = r.relnamespace \
    WHERE t.tgfoid = to_regprocedure($1) AND t.tgparentid = 0 ORDER BY 1, 2, 4";

async fn gates(service: &Client, slice: &str, ours: &[u32]) -> Result<Vec<Hinge>, Error> {
    let function = format!("{}()", gate::name(slice).sql());
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&function, Type::TEXT), (&ours, Type::OID_ARRAY)];
    let rows = service.query_typed(GATES, &asked).await?;
    let hinge = |row: &Row| Hinge {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        oid: row.get(2),
        trigger: row.get(3),
        of: row.get(4),
        part_of: None,
    };
    Ok(rows.iter().map(hinge).collect())
}

async fn table(
    service: &Client,
    slice: &str,
    (name, origin, rows_copied): (TableName, Origin, i64),
) -> Result<Option<OwnTable>, Error> {
    let function = format!("{}()", gate::name(slice).sql());
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&name.sql(), Type::TEXT), (&function, Type::TEXT)];
    let Some(row) = service.query_typed_opt(TABLE, &asked).await? else { return Ok(None) };
    let oid: u32 = row.try_get(0)?;
    Ok(Some(OwnTable {
        origin,
        doubts: Vec::new(),
        name,
        rows_copied,
        partitioned: row.try_get(1)?,
        leaves: Vec::new(),
        columns: row.try_get(2)?,
        triggers: row.try_get(3)?,
        built: Vec::new(),
        oid,
    }))
}

/// What is not a part of the tables and would keep them from being dropped. What goes with a table, its indexes, keys, triggers and
/// owned sequences, is followed to see what depends on that.
const DEPENDENTS: &str = "WITH RECURSIVE going (class, oid) AS (SELECT 'pg_class'::regclass::oid, unnest($1::oid[]) \
        UNION SELECT d.classid, d.objid FROM going g JOIN pg_depend d ON d.refclassid = g.class AND d.refobjid = g.oid \
            WHERE d.deptype IN ('a', 'i')), \
    leaning AS (SELECT DISTINCT d.classid, d.objid FROM going g \
        JOIN pg_depend d ON d.refclassid = g.class AND d.refobjid = g.oid AND d.deptype = 'n' \
        WHERE NOT EXISTS (SELECT FROM going x WHERE x.class = d.classid AND x.oid = d.objid)) \
    SELECT DISTINCT i.type || ' ' || i.identity FROM leaning l \
        LEFT JOIN pg_rewrite r ON l.classid = 'pg_rewrite'::regclass AND r.oid = l.objid AND r.rulename = '_RETURN' \
        CROSS JOIN LATERAL pg_identify_object(CASE WHEN r.oid IS NULL THEN l.classid ELSE 'pg_class'::regclass END, \
            CASE WHEN r.oid IS NULL THEN l.objid ELSE r.ev_class END, 0) i ORDER BY 1";

async fn dependents(service: &Client, tables: &[u32]) -> Result<Vec<String>, Error> {
    let rows = service.query_typed(DEPENDENTS, &[(&tables, Type::OID_ARRAY)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A foreign key of another table forbids TRUNCATE, and a trigger of the service's own would fire on it.
const IN_THE_WAY: &str = "WITH emptied AS (SELECT unnest($1::oid[]) AS oid \
        UNION SELECT p.relid FROM unnest($1::oid[]) AS t (oid) CROSS JOIN LATERAL pg_partition_tree(t.oid) p) \
    SELECT format('foreign key %I of %s refers to %s', k.conname, k.conrelid::regclass, k.confrelid::regclass), \
        format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname), \
        format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) \
    FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confrelid IN (SELECT oid FROM emptied) \
        AND k.conrelid NOT IN (SELECT oid FROM emptied) \
    UNION ALL SELECT format('trigger %I of %s fires on TRUNCATE', t.tgname, t.tgrelid::regclass), \
        format('ALTER TABLE %s DISABLE TRIGGER %I', t.tgrelid::regclass, t.tgname), \
        format('ALTER TABLE %s ENABLE %sTRIGGER %I', t.tgrelid::regclass, CASE t.tgenabled WHEN 'A' THEN 'ALWAYS ' ELSE '' END, t.tgname) \
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE t.tgrelid IN (SELECT oid FROM emptied) AND t.tgtype & 32 <> 0 AND t.tgenabled IN ('O', 'A') AND NOT t.tgisinternal \
        AND NOT (n.nspname = 'strangler' AND left(p.proname::text, 5) = 'gate_') ORDER BY 1";

/// Something that keeps a table from being emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InTheWay {
    /// What it is.
    pub(super) object: String,
    /// What takes it out of the way.
    pub(super) sql: String,
    /// What puts it back once the slice is taken back.
    pub(super) back: String,
}

async fn in_the_way(service: &Client, tables: &[u32]) -> Result<Vec<InTheWay>, Error> {
    let rows = service.query_typed(IN_THE_WAY, &[(&tables, Type::OID_ARRAY)]).await?;
    let found = |row: &Row| InTheWay { object: row.get(0), sql: row.get(1), back: row.get(2) };
    Ok(rows.iter().map(found).collect())
}
