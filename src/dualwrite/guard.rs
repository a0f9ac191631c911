//! Whether every moved table of the monolith is guarded by its gate: which triggers should be there, and which are.
//!
//! `arm` hangs what is missing, `status` raises an alarm over it, and a flip asks once more while it holds the gate's
//! lock: a partition that was attached later got the row trigger from its root, but nothing for TRUNCATE; a trigger may
//! have been disabled, a function replaced. What to expect is decided by [`judge`], without any I/O.

pub mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::gate::{self, TriggerKind};
use crate::authority::Side;
use crate::journal::{JournalError, arming};
use crate::mapping::{SliceMapping, TableMapping};
use crate::name::{TableName, quote_ident};
use crate::postgres::firing::{self, Firing};
use crate::postgres::inheritance::{self, Inherited};
use crate::problem::Problem;

/// What a place begins with that is in the service.
pub const IN_SERVICE: &str = "in the service, ";

/// A relation that rows of a moved table can be written through: the table itself, a partition, or a child by
/// inheritance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its name.
    pub table: TableName,
    /// The moved table that it belongs to.
    pub root: TableName,
    /// `pg_class.relkind`.
    pub kind: char,
    /// `pg_class.relispartition`.
    pub partition: bool,
    /// The triggers on it that carry a name of the gate's.
    pub triggers: Vec<FoundTrigger>,
}

/// A trigger as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTrigger {
    /// `tgname`.
    pub name: String,
    /// `tgtype`.
    pub catalog_type: i16,
    /// `tgenabled`: O origin, A always, R replica, D disabled.
    pub enabled: char,
    /// It calls the slice's gate, for every row and column.
    pub calls_gate: bool,
    /// The other slice whose gate it calls.
    pub of_slice: Option<String>,
}

/// What is wrong with one trigger, or with what they all call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// The moved table is not there.
    Table,
    /// The gate's trigger is not there.
    Missing(TriggerKind),
    /// It is there, and disabled or not enabled ALWAYS.
    Asleep(TriggerKind),
    /// It is there under its name, and is another trigger than the gate's.
    Altered(TriggerKind),
    /// The gate's function is not there, or is not what `provision` made.
    Function,
}

/// One place that is not guarded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The relation; for [`Lack::Function`] the gate.
    pub table: TableName,
    /// What it lacks.
    pub lack: Lack,
    /// Of a trigger that is altered: the other slice whose gate it asks. Nobody but that slice may take it off.
    pub of_slice: Option<String>,
}

/// As an operator reads it.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = &self.table;
        match self.lack {
            Lack::Table => write!(f, "table {table} is not there"),
            Lack::Missing(kind) => write!(f, "table {table} has no trigger {}", kind.name()),
            Lack::Asleep(kind) => {
                write!(f, "trigger {} of table {table} is disabled, or does not fire always", kind.name())
            }
            Lack::Altered(kind) if self.of_slice.is_some() => {
                let other = self.of_slice.as_deref().unwrap_or_default();
                write!(f, "trigger {} of table {table} is the gate of slice {other}", kind.name())
            }
            Lack::Altered(kind) => {
                write!(f, "trigger {} of table {table} is not the gate's", kind.name())
            }
            Lack::Function => write!(f, "the function {table} is not as provision made it"),
        }
    }
}

/// What was found about the moved tables of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Every relation that must be guarded.
    pub relations: Vec<Relation>,
    /// Every place that is not.
    pub faults: Vec<Fault>,
    /// Foreign keys between a moved table and one that stays or moves elsewhere: a fenced side can't have them.
    pub crossing: Vec<CrossingKey>,
    /// Subscriptions that write into one of them.
    pub subscribed: Vec<Subscribed>,
    /// Where one of them inherits or is inherited from: a write through the parent asks no gate of the child.
    pub inherited: Vec<Inherited>,
    /// Triggers and rules that fire on what the mirror writes there. Gates hold all the same.
    pub firing: Vec<Firing>,
}

/// A foreign key across the cut, declared rather than made for a partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrossingKey {
    /// Referencing table.
    pub child: TableName,
    /// Constraint.
    pub name: String,
}

/// As an operator reads it.
impl fmt::Display for CrossingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the foreign key {} of {} crosses the cut", self.name, self.child)
    }
}

/// A native subscription that writes into a moved table: its worker fires no statement triggers, so no gate stops it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subscribed {
    /// The subscription.
    pub name: String,
    /// The table.
    pub table: TableName,
}

/// As an operator reads it.
impl fmt::Display for Subscribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the subscription {} writes into table {} past its gate", self.name, self.table)
    }
}

impl Subscribed {
    /// The problem, with what ends it. `database` is the one that has the subscription, in words.
    #[must_use]
    pub fn problem(&self, database: &str) -> Problem {
        Problem::error("subscription", format!("{database}, subscription {}", self.name))
            .fact(format!("it writes into table {}", self.table))
            .consequence(
                "its worker writes past the gate, so a fence would not hold there, and writes would be lost",
            )
            .next(format!("run on the {database}: DROP SUBSCRIPTION {};", quote_ident(&self.name)))
    }
}

impl Guard {
    /// Places that `arm` puts right, in words: what does not ask the gate, and foreign keys across the cut.
    #[must_use]
    pub fn holes(&self) -> Vec<String> {
        let faults = self.faults.iter().map(ToString::to_string);
        faults.chain(self.crossing.iter().map(ToString::to_string)).collect()
    }

    /// What keeps it from being whole, in words.
    #[must_use]
    pub fn lacks(&self) -> Vec<String> {
        let firing = self.firing.iter().map(ToString::to_string);
        self.holes().into_iter().chain(self.ways_past()).chain(firing).collect()
    }

    /// Ways to write past gates that are all there, in words.
    fn ways_past(&self) -> Vec<String> {
        let subscribed = self.subscribed.iter().map(ToString::to_string);
        subscribed.chain(self.inherited.iter().map(ToString::to_string)).collect()
    }

    /// The same as problems, with what ends each. `database` is the one that was looked at, in words.
    #[must_use]
    pub fn problems(&self, database: &str) -> Vec<Problem> {
        let subscribed = self.subscribed.iter().map(|one| one.problem(database));
        let inherited = self.inherited.iter().map(|one| inherits(one, database));
        subscribed.chain(inherited).chain(self.firing.iter().map(|one| one.problem(database))).collect()
    }

    /// Tables that ask another slice's gate, with that slice.
    pub fn claimed(&self) -> impl Iterator<Item = (TableName, String)> {
        self.faults.iter().filter_map(|fault| Some((fault.table.clone(), fault.of_slice.clone()?)))
    }

    /// No relation carries a trigger of the gate. One of another slice's gate is not it.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        let mut triggers = self.relations.iter().flat_map(|relation| &relation.triggers);
        triggers.all(|trigger| trigger.of_slice.is_some())
    }
}

fn inherits(one: &Inherited, database: &str) -> Problem {
    Problem::error("inheritance", format!("{database}, table {}", one.child))
        .fact(format!("it inherits from {}", one.parent))
        .consequence(
            "the child's rows are not mirrored with the parent, and what is written through the parent passes the child's gate",
        )
        .next(format!("run on the {database}: {}; or attach it as a partition", one.undo()))
}

/// The triggers that guard a relation. A partition has its row trigger from the root, and one for TRUNCATE of its own. A
/// foreign table that is a partition has no TRUNCATE trigger in every version, and the gate of a remote table is not
/// here anyway.
#[must_use]
pub fn expected(kind: char, partition: bool) -> &'static [TriggerKind] {
    match (kind, partition) {
        ('f', true) => &[TriggerKind::Rows],
        ('p', _) | (_, true) => &[TriggerKind::Rows, TriggerKind::Truncate],
        _ => &[TriggerKind::Whole],
    }
}

/// Which places are not guarded. `body` is the function's as found, `None` when there is none that runs as it should.
#[must_use]
pub fn judge(
    slice: &str,
    lock_key: Option<i32>,
    body: Option<&str>,
    tables: &[TableName],
    relations: &[Relation],
) -> Vec<Fault> {
    let mut faults = BTreeSet::new();
    let wanted = lock_key.map(|key| gate::body(slice, key));
    if wanted.is_none() || body != wanted.as_deref() {
        faults.insert(Fault { table: gate::name(slice), lack: Lack::Function, of_slice: None });
    }
    for table in tables {
        if !relations.iter().any(|relation| relation.table == *table) {
            faults.insert(Fault { table: table.clone(), lack: Lack::Table, of_slice: None });
        }
    }
    for relation in relations {
        for kind in expected(relation.kind, relation.partition) {
            let found = relation.triggers.iter().find(|trigger| trigger.name == kind.name());
            let lack = match found {
                None => Lack::Missing(*kind),
                Some(trigger) if !trigger.calls_gate || trigger.catalog_type != kind.catalog_type() => {
                    Lack::Altered(*kind)
                }
                Some(trigger) if trigger.enabled != 'A' => Lack::Asleep(*kind),
                Some(_) => continue,
            };
            let of_slice = found.and_then(|trigger| trigger.of_slice.clone());
            faults.insert(Fault { table: relation.table.clone(), lack, of_slice });
        }
    }
    faults.into_iter().collect()
}

const RELATIONS: &str = "
WITH RECURSIVE tree AS (
    SELECT c.oid, w.number, c.relispartition AS partition FROM unnest($1::text[]) WITH ORDINALITY AS w (name, number)
        JOIN pg_class c ON c.oid = to_regclass(w.name)
    UNION SELECT i.inhrelid, t.number, c.relispartition FROM tree t
        JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid)
SELECT t.number, n.nspname::text, c.relname::text, c.relkind::text, t.partition, g.tgname::text, g.tgtype,
    g.tgenabled::text, coalesce(g.tgfoid = to_regprocedure($2)::oid AND g.tgqual IS NULL AND g.tgattr::text = '', false),
    (SELECT substr(p.proname::text, 6) FROM pg_proc p JOIN pg_namespace pn ON pn.oid = p.pronamespace
     WHERE p.oid = g.tgfoid AND p.oid <> coalesce(to_regprocedure($2)::oid, 0) AND pn.nspname = 'strangler'
         AND left(p.proname::text, 5) = 'gate_')
FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_trigger g ON g.tgrelid = c.oid AND g.tgname IN ($3, $4)
ORDER BY t.number, n.nspname, c.relname, g.tgname";

const CROSSING: &str = "
WITH RECURSIVE tree AS (
    SELECT to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) AS w (name)
    UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT n.nspname::text, c.relname::text, k.conname::text FROM pg_constraint k
    JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
    AND (k.conrelid IN (SELECT oid FROM tree)) <> (k.confrelid IN (SELECT oid FROM tree))
ORDER BY 1, 2, 3";

/// Of this database only: `pg_subscription_rel` is local, `pg_subscription` shared. One that is disabled counts, because
/// whoever may enable it asks nobody.
const SUBSCRIBED: &str = "
WITH RECURSIVE tree AS (
    SELECT to_regclass(w.name)::oid AS oid FROM unnest($1::text[]) AS w (name)
    UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT s.subname::text, n.nspname::text, c.relname::text FROM pg_subscription_rel r
    JOIN pg_subscription s ON s.oid = r.srsubid
    JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.srrelid IN (SELECT oid FROM tree) ORDER BY 1, 2, 3";

const FUNCTION: &str = "SELECT p.prosrc FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
     WHERE p.oid = to_regprocedure($1) AND l.lanname = 'plpgsql' AND p.prosecdef \
       AND p.proconfig = ARRAY['search_path=pg_catalog, pg_temp']";

/// Looks at the moved `tables` of a slice on the monolith, with all their partitions and children. Runs in the caller's
/// transaction where there is one; takes no lock on the tables. All questions are sent at once.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client, slice: &str, tables: &[TableName]) -> Result<Guard, JournalError> {
    let failed = || JournalError::database("looking at the gates");
    let function = format!("{}()", gate::name(slice).sql());
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let of_relations: [(&(dyn ToSql + Sync), Type); 4] = [
        (&names, Type::TEXT_ARRAY),
        (&function, Type::TEXT),
        (&gate::TRIGGER, Type::TEXT),
        (&gate::TRUNCATE_TRIGGER, Type::TEXT),
    ];
    let of_function: [(&(dyn ToSql + Sync), Type); 1] = [(&function, Type::TEXT)];
    let of_keys: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
    let (lock_key, body, rows, keys) = tokio::join!(
        biased;
        arming::lock_key(client, slice),
        client.query_typed_opt(FUNCTION, &of_function),
        client.query_typed(RELATIONS, &of_relations),
        client.query_typed(CROSSING, &of_keys)
    );
    let body: Option<String> = body.map_err(failed())?.map(|row| row.get(0));
    let relations = gather(tables, &rows.map_err(failed())?);
    let faults = judge(slice, lock_key?, body.as_deref(), tables, &relations);
    let crossing = keys.map_err(failed())?;
    let crossing = crossing.iter().map(|row| CrossingKey {
        child: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        name: row.get(2),
    });
    let crossing = crossing.collect();
    let (subscribed, inherited, firing) = tokio::join!(
        biased;
        subscribed(client, tables),
        inheritance::read(client, tables),
        firing::read(client, tables)
    );
    Ok(Guard {
        relations,
        faults,
        crossing,
        subscribed: subscribed?,
        inherited: inherited.map_err(failed())?,
        firing: firing.map_err(failed())?,
    })
}

/// Subscriptions of a database that write into `tables`, their partitions or children.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn subscribed(client: &Client, tables: &[TableName]) -> Result<Vec<Subscribed>, JournalError> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let rows = client.query(SUBSCRIBED, &[&names]).await;
    let rows = rows.map_err(JournalError::database("looking for subscriptions"))?;
    let subscribed = rows.iter().map(|row| Subscribed {
        name: row.get(0),
        table: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
    });
    Ok(subscribed.collect())
}

/// Places on one side where rows can be written without asking the gate, in words; on the monolith also foreign keys across
/// the cut. Keys between slices of one service are its own affair.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn unguarded(
    client: &Client,
    mapping: &SliceMapping,
    side: Side,
) -> Result<Vec<String>, JournalError> {
    let guard = read(client, &mapping.slice, &tables(mapping, side)).await?;
    Ok(match side {
        Side::Monolith => guard.holes().into_iter().chain(guard.ways_past()).collect(),
        Side::Service => {
            let faults = guard.faults.iter().map(ToString::to_string);
            faults.chain(guard.ways_past()).map(|place| format!("{IN_SERVICE}{place}")).collect()
        }
    })
}

/// The moved tables by the names that they have on a side.
#[must_use]
pub fn tables(mapping: &SliceMapping, side: Side) -> Vec<TableName> {
    let of = |table: &TableMapping| match side {
        Side::Monolith => table.source.clone(),
        Side::Service => table.target.clone(),
    };
    mapping.tables.iter().map(of).collect()
}

/// Keeps every trigger of the moved tables as it is until the caller's transaction ends: DROP, DISABLE and CREATE TRIGGER and
/// foreign keys need a lock that conflicts with this one, which every writer takes, so it holds no writer back. What
/// [`read`] finds behind it is still so at the commit, as far as no other relation comes to the table: see [`trees`]. Bounded by
/// the session's `lock_timeout`.
#[must_use]
pub fn keep(mapping: &SliceMapping, side: Side) -> Option<String> {
    let names: Vec<String> = tables(mapping, side).iter().map(TableName::sql).collect();
    (!names.is_empty()).then(|| format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", names.join(", ")))
}

fn gather(tables: &[TableName], rows: &[Row]) -> Vec<Relation> {
    let first = |text: &str| text.chars().next().unwrap_or(' ');
    let mut found: BTreeMap<TableName, Relation> = BTreeMap::new();
    for row in rows {
        let number = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        let Some(root) = tables.get(number) else { continue };
        let (schema, name): (String, String) = (row.get(1), row.get(2));
        // What was moved away with its root goes by the name that it had.
        let table = if schema == root.place_schema() {
            TableName::new(&root.schema, name).standing_in(&schema)
        } else {
            TableName::new(schema, name)
        };
        let relation = found.entry(table.clone()).or_insert_with(|| Relation {
            table,
            root: root.clone(),
            kind: first(row.get(3)),
            partition: row.get(4),
            triggers: Vec::new(),
        });
        let Some(name) = row.get::<_, Option<String>>(5) else { continue };
        let trigger = FoundTrigger {
            name,
            catalog_type: row.get(6),
            enabled: first(row.get(7)),
            calls_gate: row.get(8),
            of_slice: row.get(9),
        };
        if !relation.triggers.contains(&trigger) {
            relation.triggers.push(trigger);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(kind: TriggerKind) -> FoundTrigger {
        FoundTrigger {
            name: kind.name().to_owned(),
            catalog_type: kind.catalog_type(),
            enabled: 'A',
            calls_gate: true,
            of_slice: None,
        }
    }

    fn relation(name: &str, kind: char, partition: bool) -> Relation {
        let table = TableName::new("public", name);
        let triggers = expected(kind, partition).iter().map(|kind| trigger(*kind)).collect();
        Relation { root: TableName::new("public", "t"), table, kind, partition, triggers }
    }

    fn lacks(change: impl FnOnce(&mut Vec<Relation>)) -> Vec<String> {
        let mut relations =
            vec![relation("t", 'p', false), relation("t_1", 'r', true), relation("c", 'r', false)];
        change(&mut relations);
        let body = gate::body("one", 7);
        let faults = judge("one", Some(7), Some(&body), &[TableName::new("public", "t")], &relations);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn guarded_relations_have_no_fault_and_every_way_to_miss_a_write_is_one() {
        assert_eq!(lacks(|_| {}), [""; 0]);
        assert_eq!(
            lacks(|all| all[1].triggers.truncate(1)),
            ["table t_1 has no trigger aa_strangler_gate_truncate"]
        );
        assert_eq!(lacks(|all| all[2].triggers.clear()), ["table c has no trigger aa_strangler_gate"]);
        for enabled in ['O', 'R', 'D'] {
            assert_eq!(
                lacks(|all| all[0].triggers[0].enabled = enabled),
                ["trigger aa_strangler_gate of table t is disabled, or does not fire always"]
            );
        }
        for change in
            [(|trigger: &mut FoundTrigger| trigger.calls_gate = false) as fn(&mut FoundTrigger), |trigger| {
                trigger.catalog_type &= !8
            }]
        {
            assert_eq!(
                lacks(|all| change(&mut all[2].triggers[0])),
                ["trigger aa_strangler_gate of table c is not the gate's"]
            );
        }
        assert_eq!(lacks(|all| drop(all.remove(0))), ["table t is not there"]);
    }

    #[test]
    fn a_replaced_function_guards_nothing() {
        let function = |body: Option<&str>, key| judge("one", key, body, &[], &[]).len();
        let body = gate::body("one", 7);
        assert_eq!(function(Some(&body), Some(7)), 0);
        assert_eq!(function(Some(&body), Some(8)), 1, "another lock than a flip takes");
        assert_eq!(function(Some("BEGIN RETURN NULL; END"), Some(7)), 1);
        assert_eq!(function(None, Some(7)), 1);
        assert_eq!(function(Some(&body), None), 1, "not provisioned");
    }
}
