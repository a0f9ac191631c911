//! What tells one row from another on both sides.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;

use super::expand::Listed;
use super::{ColumnMapping, KeyOrder};
use crate::catalog::{Catalog, Index, ReplicaIdentity, Table, TableKind};
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// The key as indexes into the carried columns, empty when there is a problem, and how its order can be used.
pub(super) fn key(
    monolith: &Catalog,
    one: &Listed<'_>,
    columns: &[ColumnMapping],
    problems: &mut Vec<Problem>,
) -> (Vec<usize>, KeyOrder) {
    partitions(monolith, one, problems);
    let names = one.table.key_columns().filter(|names| !names.is_empty());
    let Some(names) = names else {
        problems.push(no_key(one));
        return (Vec::new(), KeyOrder::Opaque);
    };
    let mut key = Vec::new();
    let mut missing = Vec::new();
    for name in &names {
        match columns.iter().position(|column| column.source == *name) {
            Some(index) => key.push(index),
            None => missing.push(*name),
        }
    }
    if !missing.is_empty() {
        problems.push(not_carried(one, &names, &missing));
        return (Vec::new(), KeyOrder::Opaque);
    }
    (key, order(one.table, &names))
}

fn not_carried(one: &Listed<'_>, names: &[&str], missing: &[&str]) -> Problem {
    let table = one.table;
    let generated = |name: &&&str| table.column(name).is_some_and(|column| column.generated_sql.is_some());
    let computed: Vec<&str> = missing.iter().filter(generated).copied().collect();
    let key = format!("its key is ({}) and", names.join(", "));
    let (fact, next) = if computed.is_empty() {
        let missing = missing.join(", ");
        (format!("{key} the plan does not carry {missing}"), format!("keep {missing}"))
    } else {
        let fact = format!("{key} generated columns are not in the logical stream: {}", computed.join(", "));
        let alter = format!("ALTER TABLE {}", table.name.sql());
        (
            fact,
            format!(
                "give it a key of other columns: a unique index over NOT NULL columns, then {alter} REPLICA IDENTITY USING INDEX …"
            ),
        )
    };
    Problem::error("key-not-carried", &table.name)
        .at(one.rule.place)
        .fact(fact)
        .consequence("rows could not be told apart in the service")
        .next(next)
}

/// Only a single builtin column of these types has an order that both servers and this process share.
fn order(table: &Table, names: &[&str]) -> KeyOrder {
    let [name] = names else { return KeyOrder::Opaque };
    let column = table.column(name).filter(|column| column.type_builtin);
    match column.and_then(|column| Type::from_oid(column.type_oid)) {
        Some(Type::INT2 | Type::INT4 | Type::INT8) => KeyOrder::Integer,
        Some(Type::UUID) => KeyOrder::Uuid,
        _ => KeyOrder::Opaque,
    }
}

fn no_key(one: &Listed<'_>) -> Problem {
    let table = one.table;
    let fact = match &table.replica_identity {
        ReplicaIdentity::Nothing => "its replica identity is NOTHING".to_owned(),
        ReplicaIdentity::Default => "it has no primary key that could be its replica identity".to_owned(),
        ReplicaIdentity::Full => {
            "its replica identity is FULL, and no unique index over NOT NULL columns tells its rows apart"
                .to_owned()
        }
        ReplicaIdentity::Index(name) => {
            format!("its replica identity is the index {name}, which is not over plain columns")
        }
    };
    Problem::error("no-key", &table.name)
        .at(one.rule.place)
        .fact(fact)
        .consequence(match &table.replica_identity {
            ReplicaIdentity::Full => "rows can't be told apart",
            ReplicaIdentity::Nothing | ReplicaIdentity::Default | ReplicaIdentity::Index(_) => {
                "rows can't be told apart; and once such a table is published, the application's own UPDATE and DELETE fail"
            }
        })
        .next(format!("run on the monolith: {}", remedy(table)))
}

/// The statement that gives a table a key, the cheapest that is possible first.
pub(super) fn remedy(table: &Table) -> String {
    let alter = format!("ALTER TABLE {}", table.name.sql());
    if table.primary_key().is_some_and(|index| index.immediate) {
        return format!("{alter} REPLICA IDENTITY DEFAULT;");
    }
    if let Some(index) = table.indexes.iter().find(|index| table.can_identify(index)) {
        return format!("{alter} REPLICA IDENTITY USING INDEX {};", quote_ident(&index.name));
    }
    let near = table.indexes.iter().find(|index| {
        index.unique
            && index.immediate
            && index.valid
            && !index.partial
            && index.columns.iter().all(Option::is_some)
    });
    if let Some(index) = near {
        let nullable =
            index.columns.iter().flatten().filter(|name| table.column(name).is_some_and(|c| !c.not_null));
        let steps: Vec<String> =
            nullable.map(|name| format!("ALTER COLUMN {} SET NOT NULL", quote_ident(name))).collect();
        let identity = format!("{alter} REPLICA IDENTITY USING INDEX {};", quote_ident(&index.name));
        return if steps.is_empty() { identity } else { format!("{alter} {}; {identity}", steps.join(", ")) };
    }
    if table.primary_key().is_some() {
        return format!(
            "CREATE UNIQUE INDEX CONCURRENTLY … on the columns of the primary key, which is deferrable; \
             {alter} REPLICA IDENTITY USING INDEX …;"
        );
    }
    let fresh = if table.column("id").is_some() { "strangler_id" } else { "id" };
    format!(
        "{alter} ADD COLUMN {fresh} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY; (rewrites the table)"
    )
}

/// Changes of a partitioned table are logged with each leaf's own replica identity, even when they are published
/// through the root (PostgreSQL documentation, CREATE PUBLICATION, `publish_via_partition_root`).
fn partitions(monolith: &Catalog, one: &Listed<'_>, problems: &mut Vec<Problem>) {
    if one.table.kind != TableKind::Partitioned {
        return;
    }
    let Some(key) = one.table.key_columns() else { return };
    let outside = one.rule.filter.keys().any(|name| !key.contains(&name.as_str()));
    for leaf in leaves(monolith, &one.table.name) {
        // A filter outside the key needs all of the old row.
        let less = outside && leaf.replica_identity != ReplicaIdentity::Full;
        if leaf.key_columns().as_ref() != Some(&key) || less {
            problems.push(
                Problem::error("partition-key-differs", &leaf.name)
                    .at(one.rule.place)
                    .fact(format!("it is a partition of {} with another replica identity", one.table.name))
                    .consequence("its updates and deletes would arrive without the key of the whole table, or without what its filter tests")
                    .next(format!("run on the monolith: {}", as_of_root(one.table, leaf))),
            );
        }
    }
}

/// The statement that gives a leaf the identity of its root.
fn as_of_root(root: &Table, leaf: &Table) -> String {
    let alter = format!("ALTER TABLE {} REPLICA IDENTITY", leaf.name.sql());
    let key = root.key_columns();
    let same =
        |index: &&Index| index.columns.iter().map(Option::as_deref).collect::<Option<Vec<&str>>>() == key;
    if root.replica_identity == ReplicaIdentity::Full {
        return format!("{alter} FULL;");
    }
    if leaf.primary_key().filter(same).is_some_and(|index| index.immediate) {
        return format!("{alter} DEFAULT;");
    }
    match leaf.indexes.iter().filter(|index| leaf.can_identify(index)).find(same) {
        Some(index) => format!("{alter} USING INDEX {};", quote_ident(&index.name)),
        None => remedy(leaf),
    }
}

fn leaves<'a>(monolith: &'a Catalog, root: &TableName) -> Vec<&'a Table> {
    let mut met: BTreeSet<&TableName> = BTreeSet::new();
    let mut found = Vec::new();
    let mut above = vec![root];
    while let Some(parent) = above.pop() {
        for table in monolith.tables.values().filter(|table| table.partition_of.as_ref() == Some(parent)) {
            if !met.insert(&table.name) {
                continue;
            }
            match table.kind {
                TableKind::Partitioned => above.push(&table.name),
                TableKind::Ordinary => found.push(table),
                TableKind::View | TableKind::MaterializedView | TableKind::Foreign => {}
            }
        }
    }
    found
}
