//! The gate of a slice in one database: one row that says whether the application may write, and the trigger that
//! asks it before every statement. Only SQL text is made here; `provision` and `arm` run it.
//!
//! The trigger takes an advisory lock shared and then reads the row; a flip takes the same lock exclusively, so it
//! waits for the writers that passed and holds back those that come. Row and lock are per slice and database.

use crate::authority::{Cause, GateState};
use crate::name::{TableName, quote_ident, quote_literal};

/// First key of every advisory lock of ours, `STRR` in ASCII; the second is the slice's `lock_key`, from 1.
pub const LOCK_CLASS: i32 = 1_398_035_026;

/// The login that the trigger lets pass: the mirror is fenced by `strangler.stream` instead.
pub const APPLY_ROLE: &str = "strangler_apply";

/// Name of the trigger; triggers of one kind fire in the order of their names, so the gate is asked first.
pub const TRIGGER: &str = "aa_strangler_gate";

/// Name of the statement trigger for TRUNCATE on partitioned tables and their partitions.
pub const TRUNCATE_TRIGGER: &str = "aa_strangler_gate_truncate";

/// Longest slice name in bytes whose gate's name PostgreSQL does not cut.
pub const SLICE_NAME_BYTES_MAX: usize = 63 - "gate_".len();

/// How the gate hangs on a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hinge {
    /// One statement trigger for everything: ordinary tables.
    Statement,
    /// A row trigger that PostgreSQL clones to every partition, present and future, with a statement trigger for
    /// TRUNCATE. A statement trigger on the parent does not fire for writes into a partition.
    PartitionedRoot,
    /// Only the statement trigger for TRUNCATE, which a partition does not get from its parent.
    Partition,
}

/// Table and function of a slice's gate.
#[must_use]
pub fn name(slice: &str) -> TableName {
    TableName::new("strangler", format!("gate_{slice}"))
}

/// Creates the gate's table, empty.
#[must_use]
pub fn create_table(slice: &str) -> String {
    format!(
        "CREATE TABLE {} (\n    one bool PRIMARY KEY DEFAULT true CHECK (one),\n    \
         state text NOT NULL CHECK (state IN ('OPEN', 'FENCED')),\n    epoch bigint NOT NULL,\n    \
         cause text NOT NULL CHECK (cause IN ('open', 'fence', 'bump')),\n    owner text NOT NULL,\n    \
         fence_lsn pg_lsn,\n    cut_lsn pg_lsn,\n    seqs jsonb,\n    move_group bigint\n) WITH (autovacuum_enabled = false)",
        name(slice).sql()
    )
}

/// Epoch of a slice whose authority never moved.
pub const FIRST_EPOCH: i64 = 1;

/// Puts the first row in: epoch 1, the monolith owns the slice. Does nothing where there is a row.
#[must_use]
pub fn first_row(slice: &str, state: GateState) -> String {
    // A gate that is born closed counts as fenced.
    let first_cause = match state {
        GateState::Open => Cause::Open,
        GateState::Fenced => Cause::Fence,
    };
    format!(
        "INSERT INTO {} (state, epoch, cause, owner) VALUES ({}, {FIRST_EPOCH}, {}, 'monolith') ON CONFLICT DO NOTHING",
        name(slice).sql(),
        quote_literal(state.as_str()),
        quote_literal(first_cause.as_str()),
    )
}

/// Creates the trigger function. `lock_key` is the slice's row in `strangler.slice` of the same database.
///
/// SECURITY DEFINER lets writers read the row without a right on it, since whoever may lock it could hold back a
/// flip; `session_user` is the same inside.
#[must_use]
pub fn create_function(slice: &str, lock_key: i32) -> String {
    let body = body(slice, lock_key);
    let quote = dollar_quote(&body);
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql\n    \
         SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {quote}{body}{quote}",
        name(slice).sql()
    )
}

/// The trigger function's body, as `pg_proc.prosrc` has it. The branch on the isolation level decides about lost
/// writes: a transaction with an old snapshot would read OPEN after the fence, and FOR SHARE makes it fail with 40001.
#[must_use]
pub fn body(slice: &str, lock_key: i32) -> String {
    let gate = name(slice).sql();
    let hint = quote_literal(&format!("slice {slice}, epoch "));
    let apply = quote_literal(APPLY_ROLE);
    format!(
        r"
DECLARE
    g {gate};
BEGIN
    IF session_user <> {apply} THEN
        PERFORM pg_advisory_xact_lock_shared({LOCK_CLASS}, {lock_key});
        IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT * INTO g FROM {gate};
        ELSE
            SELECT * INTO g FROM {gate} FOR SHARE;
        END IF;
        IF g.state IS DISTINCT FROM 'OPEN' THEN
            RAISE EXCEPTION 'strangler: %.% is owned by %',
                TG_TABLE_SCHEMA, TG_TABLE_NAME, coalesce(g.owner, 'nobody')
                USING ERRCODE = '25006',
                HINT = {hint} || coalesce(g.epoch::text, 'unknown')
                    || ': retry the whole transaction on the owner, ' || coalesce(g.owner, 'nobody');
        END IF;
    END IF;
    IF TG_LEVEL = 'ROW' THEN
        IF TG_OP = 'DELETE' THEN
            RETURN OLD;
        END IF;
        RETURN NEW;
    END IF;
    RETURN NULL;
END
"
    )
}

/// Fails with 25006 unless the gate is open, and keeps it so until the transaction ends, as a write would: a flip waits
/// for it. `disarm` begins the transactions with it that take something away on which a flip rests.
#[must_use]
pub fn require_open(slice: &str, lock_key: i32) -> String {
    let gate = name(slice).sql();
    let message = quote_literal(&format!("slice {slice} is not the monolith's any more"));
    let body = format!(
        " BEGIN PERFORM pg_advisory_xact_lock_shared({LOCK_CLASS}, {lock_key}); \
         IF (SELECT state FROM {gate}) IS DISTINCT FROM 'OPEN' THEN \
         RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = {message}; END IF; END "
    );
    let quote = dollar_quote(&body);
    format!("DO {quote}{body}{quote}")
}

/// Lets everybody hang the function on a table. Whoever makes a partition needs that for the trigger that the partition gets from its
/// root; nobody can call a trigger function, and what it guards is the table that it hangs on.
#[must_use]
pub fn open_function(slice: &str) -> String {
    format!("GRANT EXECUTE ON FUNCTION {}() TO PUBLIC", name(slice).sql())
}

/// One trigger of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TriggerKind {
    /// The statement trigger for everything.
    Whole,
    /// The row trigger of partitioned tables, which every partition gets from its root.
    Rows,
    /// The statement trigger for TRUNCATE.
    Truncate,
}

impl TriggerKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole | Self::Rows => TRIGGER,
            Self::Truncate => TRUNCATE_TRIGGER,
        }
    }

    /// `pg_trigger.tgtype`: 1 for each row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate.
    #[must_use]
    pub fn catalog_type(self) -> i16 {
        match self {
            Self::Whole => 2 | 4 | 8 | 16 | 32,
            Self::Rows => 1 | 2 | 4 | 8 | 16,
            Self::Truncate => 2 | 32,
        }
    }

    fn events_and_level(self) -> (&'static str, &'static str) {
        match self {
            Self::Whole => ("INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT"),
            Self::Rows => ("INSERT OR UPDATE OR DELETE", "ROW"),
            Self::Truncate => ("TRUNCATE", "STATEMENT"),
        }
    }
}

impl Hinge {
    /// The triggers that hang the gate there.
    #[must_use]
    pub fn triggers(self) -> &'static [TriggerKind] {
        match self {
            Self::Statement => &[TriggerKind::Whole],
            Self::PartitionedRoot => &[TriggerKind::Rows, TriggerKind::Truncate],
            Self::Partition => &[TriggerKind::Truncate],
        }
    }
}

/// Hangs the gate on a table, so that it also fires in sessions with `session_replication_role = replica`.
#[must_use]
pub fn create_triggers(slice: &str, table: &TableName, hinge: Hinge) -> Vec<String> {
    hinge.triggers().iter().flat_map(|kind| create_trigger(slice, table, *kind)).collect()
}

/// Makes one trigger of the gate and wakes it for every session.
#[must_use]
pub fn create_trigger(slice: &str, table: &TableName, kind: TriggerKind) -> [String; 2] {
    let (events, level) = kind.events_and_level();
    [
        format!(
            "CREATE TRIGGER {} BEFORE {events} ON {} FOR EACH {level} EXECUTE FUNCTION {}()",
            quote_ident(kind.name()),
            table.sql(),
            name(slice).sql()
        ),
        wake_trigger(table, kind),
    ]
}

/// Makes a trigger of the gate fire in every session.
#[must_use]
pub fn wake_trigger(table: &TableName, kind: TriggerKind) -> String {
    format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}", table.sql(), quote_ident(kind.name()))
}

/// Takes a trigger of the gate off.
#[must_use]
pub fn drop_trigger(table: &TableName, kind: TriggerKind) -> String {
    format!("DROP TRIGGER {} ON {}", quote_ident(kind.name()), table.sql())
}

/// A dollar quote that the text does not hold: names may hold anything.
#[must_use]
pub fn dollar_quote(text: &str) -> String {
    let mut quote = "$gate$".to_owned();
    while text.contains(&quote) {
        quote.insert(quote.len() - 1, '_');
    }
    quote
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_is_born_open_on_the_monolith_and_fenced_on_the_service() {
        assert_eq!(
            first_row("orders", GateState::Open),
            "INSERT INTO \"strangler\".\"gate_orders\" (state, epoch, cause, owner) \
             VALUES ('OPEN', 1, 'open', 'monolith') ON CONFLICT DO NOTHING"
        );
        assert!(first_row("orders", GateState::Fenced).contains("('FENCED', 1, 'fence', 'monolith')"));
    }

    #[test]
    fn function_locks_before_it_reads_and_locks_the_row_for_old_snapshots() {
        let sql = create_function("orders", 7);
        let lock = sql.find("pg_advisory_xact_lock_shared(1398035026, 7)").unwrap();
        let plain = sql.find("SELECT * INTO g FROM \"strangler\".\"gate_orders\";").unwrap();
        let share = sql.find("SELECT * INTO g FROM \"strangler\".\"gate_orders\" FOR SHARE;").unwrap();
        assert!(lock < plain && plain < share);
        assert!(sql.contains("IF session_user <> 'strangler_apply' THEN"));
        assert!(sql.contains("ERRCODE = '25006'"));
    }

    #[test]
    fn odd_slice_names_stay_inside_their_quotes() {
        let sql = create_function("it's \"$gate$\"", 1);
        assert!(sql.contains("AS $gate_$\n"));
        assert!(sql.ends_with("$gate_$"));
        assert!(sql.contains("'slice it''s \"$gate$\", epoch '"));
        assert!(sql.contains("\"strangler\".\"gate_it's \"\"$gate$\"\"\"()"));
    }

    #[test]
    fn every_trigger_is_always_enabled() {
        let table = TableName::new("public", "Orders");
        for (hinge, triggers) in [(Hinge::Statement, 1), (Hinge::PartitionedRoot, 2), (Hinge::Partition, 1)] {
            let sql = create_triggers("ordering", &table, hinge);
            assert_eq!(sql.iter().filter(|text| text.starts_with("CREATE TRIGGER")).count(), triggers);
            assert_eq!(sql.iter().filter(|text| text.contains("ENABLE ALWAYS")).count(), triggers);
        }
    }
}
