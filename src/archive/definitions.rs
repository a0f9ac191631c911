//! What it takes to make archived tables again, as statements: decided from the catalogs, without I/O.
//!
//! Partitions are made as tables of their own and attached, so that each has its columns in its own order, and its own indexes and
//! defaults under their own names. An index or key of a partitioned table comes behind those of its partitions, which it then takes for
//! its parts (PostgreSQL documentation, section 5.12, `CREATE INDEX`).

use std::collections::{BTreeMap, BTreeSet};

use super::details::{Details, Hanging};
use super::manifest::{Definition, Phase};
use crate::catalog::{
    Catalog, Column, Constraint, ConstraintKind, ForeignKey, INTEGERS, Index, ReplicaIdentity, Sequence,
    Table, TableKind,
};
use crate::journal::retirement::Right;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::provision::{create_type, sequence_options, validated};

/// What the definitions are made from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// The monolith's catalogs.
    pub(super) catalog: &'a Catalog,
    /// Beside them.
    pub(super) details: &'a Details,
    /// The tables that are archived, partitions behind what they are partitions of.
    pub(super) tables: Vec<&'a Table>,
    /// Types that they need, each behind those that it needs.
    pub(super) types: &'a [TableName],
    /// Sequences that they draw from, with their values.
    pub(super) sequences: BTreeMap<TableName, (i64, bool)>,
    /// Rights that retirement has taken away.
    pub(super) taken: Vec<Right>,
}

/// All of them, in the order in which they are made.
pub(super) fn definitions(source: &Source<'_>) -> Vec<Definition> {
    let mut making = Making { source, made: Vec::new() };
    making.schemas();
    making.types();
    making.sequences();
    source.tables.iter().for_each(|table| making.table(table));
    source.tables.iter().for_each(|table| making.checks(table));
    source.tables.iter().for_each(|table| making.attach(table));
    source.tables.iter().for_each(|table| making.columns(table));
    // Of partitions first: what their parents have then takes theirs for its parts.
    source.tables.iter().rev().for_each(|table| making.indexes(table));
    source.tables.iter().for_each(|table| making.after(table));
    making.values();
    source.tables.iter().for_each(|table| making.comments(table));
    making.optional();
    making.foreign_keys();
    making.left();
    let mut made = making.made;
    made.sort_by_key(|definition| definition.phase);
    made
}

/// The definitions as files.
pub(super) const TEXTS: &[(Phase, &str)] = &[
    (Phase::Before, "before.sql"),
    (Phase::After, "after.sql"),
    (Phase::Optional, "optional.sql"),
    (Phase::Left, "left.sql"),
];

/// The definitions of one phase as a text for `psql`.
pub(super) fn text(definitions: &[Definition], phase: Phase) -> String {
    let of = definitions.iter().filter(|definition| definition.phase == phase);
    // Expressions are printed for this path, and read with it.
    let head = "SET search_path = pg_catalog;\n".to_owned();
    of.fold(head, |text, one| format!("{text}-- {} {}\n{};\n", one.kind, comment(&one.object), one.sql))
}

/// A name must not end its comment.
fn comment(object: &str) -> String {
    object.replace(['\n', '\r'], " ")
}

struct Making<'a> {
    source: &'a Source<'a>,
    made: Vec<Definition>,
}

impl<'a> Making<'a> {
    fn add(&mut self, phase: Phase, kind: &str, object: impl ToString, sql: String) {
        self.made.push(Definition { phase, kind: kind.to_owned(), object: object.to_string(), sql });
    }

    fn is_archived(&self, name: &TableName) -> bool {
        self.source.tables.iter().any(|table| table.name == *name)
    }

    fn schemas(&mut self) {
        let source = self.source;
        let tables = source.tables.iter().map(|table| &table.name.schema);
        let types = source.types.iter().map(|name| &name.schema);
        let sequences = source.sequences.keys().map(|name| &name.schema);
        for schema in tables.chain(types).chain(sequences).collect::<BTreeSet<_>>() {
            let sql = format!("CREATE SCHEMA IF NOT EXISTS {}", quote_ident(schema));
            self.add(Phase::Before, "schema", schema, sql);
        }
    }

    fn types(&mut self) {
        let source = self.source;
        for of in source.types.iter().filter_map(|name| source.catalog.types.get(name)) {
            let mut statements = create_type(of).unwrap_or_default().into_iter();
            let Some(sql) = statements.next() else { continue };
            self.add(Phase::Before, "type", &of.name, sql);
            statements.for_each(|sql| self.add(Phase::Optional, "comment", &of.name, sql));
            if let Some(words) = &of.comment {
                let sql = format!("COMMENT ON TYPE {} IS {}", of.name.sql(), quote_literal(words));
                self.add(Phase::Optional, "comment", &of.name, sql);
            }
            let crate::catalog::UserTypeKind::Domain { checks, .. } = &of.kind else { continue };
            for (name, definition) in checks.iter().filter(|(_, definition)| !validated(definition)) {
                let sql = format!(
                    "ALTER DOMAIN {} ADD CONSTRAINT {} {definition}",
                    of.name.sql(),
                    quote_ident(name)
                );
                self.add(Phase::Optional, "constraint", format!("{name} of {}", of.name), sql);
            }
        }
    }

    /// Sequences of identities come with their columns.
    fn drawn(&self) -> impl Iterator<Item = (&'a Sequence, (i64, bool))> + use<'a> {
        let source = self.source;
        let of = source
            .sequences
            .iter()
            .filter_map(|(name, value)| Some((source.catalog.sequences.get(name)?, *value)));
        of.filter(|(sequence, _)| !is_of_identity(&source.tables, sequence))
    }

    fn sequences(&mut self) {
        for (sequence, _) in self.drawn() {
            // One that others draw from as well may be there where the tables are not any more.
            let shared = if self.owns(sequence) { "" } else { "IF NOT EXISTS " };
            let sql = format!(
                "CREATE SEQUENCE {shared}{} AS {} {}",
                sequence.name.sql(),
                sequence.type_sql,
                sequence_options(sequence)
            );
            self.add(Phase::Before, "sequence", &sequence.name, sql);
        }
    }

    fn owns(&self, sequence: &Sequence) -> bool {
        sequence.owned_by.as_ref().is_some_and(|(table, _)| self.is_archived(table))
    }

    fn table(&mut self, table: &Table) {
        let columns: Vec<String> = table.columns.iter().map(|column| self.column(table, column)).collect();
        let details = self.source.details.relations.get(&table.oid);
        let key = details.and_then(|details| details.partition_key.as_ref());
        let by = key.map(|key| format!(" PARTITION BY {key}")).unwrap_or_default();
        let sql = format!("CREATE TABLE {} ({}){by}", table.name.sql(), columns.join(", "));
        self.add(Phase::Before, "table", &table.name, sql);
        if !table.storage.is_empty() {
            let sql = format!("ALTER TABLE {} SET ({})", table.name.sql(), table.storage.join(", "));
            self.add(Phase::Optional, "storage", &table.name, sql);
        }
    }

    fn column(&self, table: &Table, column: &Column) -> String {
        let mut sql = format!("{} {}", quote_ident(&column.name), column.type_sql);
        if let Some(collation) = &column.collation_sql {
            sql.push_str(&format!(" COLLATE {collation}"));
        }
        if let Some(kind) = column.identity {
            // From 17 on a partition has its parent's.
            if table.partition_of.is_none() {
                sql.push_str(&self.identity(column, kind));
            }
        } else if let Some(expression) = &column.generated_sql {
            let kept = if column.generated_virtual { "VIRTUAL" } else { "STORED" };
            sql.push_str(&format!(" GENERATED ALWAYS AS ({expression}) {kept}"));
        } else if let Some(default) = &column.default_sql {
            sql.push_str(&format!(" DEFAULT {default}"));
        }
        if column.not_null {
            if let Some(constraint) = table.not_null(&column.name) {
                sql.push_str(&format!(" CONSTRAINT {}", quote_ident(&constraint.name)));
            }
            sql.push_str(" NOT NULL");
        }
        sql
    }

    fn identity(&self, column: &Column, kind: char) -> String {
        let when = if kind == 'a' { "ALWAYS" } else { "BY DEFAULT" };
        let sequence = column.sequence.as_ref().and_then(|name| self.source.catalog.sequences.get(name));
        let options = sequence.map(|sequence| {
            format!(" (SEQUENCE NAME {} {})", sequence.name.sql(), sequence_options(sequence))
        });
        format!(" GENERATED {when} AS IDENTITY{}", options.unwrap_or_default())
    }

    /// A constraint as the catalog prints it. Where the parent has it, it comes from there.
    fn constraint(&mut self, phase: Phase, table: &Table, constraint: &Constraint) {
        let (name, definition) = (quote_ident(&constraint.name), &constraint.definition_sql);
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {name} {definition}", table.name.sql());
        self.add(phase, "constraint", format!("{} of {}", constraint.name, table.name), sql);
    }

    /// Checks before the rows, as every row holds to them; and partitions must have their parents' to be attached.
    fn checks(&mut self, table: &Table) {
        let checks =
            table.constraints.iter().filter(|one| one.kind == ConstraintKind::Check && one.validated);
        checks.for_each(|check| self.constraint(Phase::Before, table, check));
    }

    fn attach(&mut self, table: &Table) {
        let bound = self.source.details.relations.get(&table.oid).and_then(|details| details.bound.clone());
        let Some((parent, bound)) = table.partition_of.as_ref().zip(bound) else { return };
        let sql = format!("ALTER TABLE {} ATTACH PARTITION {} {bound}", parent.sql(), table.name.sql());
        self.add(Phase::Before, "partition", &table.name, sql);
    }

    /// How columns are stored from now on, and measured.
    fn columns(&mut self, table: &Table) {
        let details = self.source.details;
        for of in details.columns.iter().filter(|column| column.table == table.oid) {
            let set = [
                of.storage.as_ref().map(|storage| format!("SET STORAGE {storage}")),
                of.compression.as_ref().map(|method| format!("SET COMPRESSION {method}")),
                of.statistics.map(|target| format!("SET STATISTICS {target}")),
                of.options.as_ref().map(|options| format!("SET ({options})")),
            ];
            for set in set.into_iter().flatten() {
                let sql = format!(
                    "ALTER TABLE {} ALTER COLUMN {} {set}",
                    table.name.sql(),
                    quote_ident(&of.column)
                );
                self.add(Phase::Optional, "storage", format!("{}.{}", table.name, of.column), sql);
            }
        }
    }

    fn indexes(&mut self, table: &Table) {
        let keys = table.constraints.iter().filter(|one| {
            matches!(
                one.kind,
                ConstraintKind::PrimaryKey | ConstraintKind::Unique | ConstraintKind::Exclusion
            )
        });
        keys.for_each(|key| self.constraint(Phase::After, table, key));
        for index in &table.indexes {
            if index.constraint.is_none() {
                let phase = if index.valid { Phase::After } else { Phase::Left };
                self.add(phase, "index", &index.name, on_whole(table, index));
            }
            self.index_settings(table, index);
        }
    }

    fn index_settings(&mut self, table: &Table, index: &Index) {
        let name = TableName::new(&table.name.schema, &index.name).sql();
        let owned = index.constraint.is_some();
        if let Some(storage) = index.settings.storage_sql.as_ref().filter(|_| owned) {
            self.add(Phase::Optional, "storage", &index.name, format!("ALTER INDEX {name} SET ({storage})"));
        }
        if index.settings.clustered {
            let sql = format!("ALTER TABLE {} CLUSTER ON {}", table.name.sql(), quote_ident(&index.name));
            self.add(Phase::Optional, "storage", &index.name, sql);
        }
        for (column, target) in &index.settings.statistics {
            let sql = format!("ALTER INDEX {name} ALTER COLUMN {column} SET STATISTICS {target}");
            self.add(Phase::Optional, "storage", &index.name, sql);
        }
        if let Some(words) = &index.comment {
            let sql = format!("COMMENT ON INDEX {name} IS {}", quote_literal(words));
            self.add(Phase::Optional, "comment", &index.name, sql);
        }
    }

    /// What rows that are there already need not hold to, and what is not asked before they are there.
    fn after(&mut self, table: &Table) {
        let parent = table.partition_of.as_ref().and_then(|name| self.source.catalog.table(name));
        let inherited =
            |name: &str| parent.is_some_and(|parent| parent.constraints.iter().any(|one| one.name == name));
        for constraint in table.constraints.iter().filter(|one| !one.validated && !inherited(&one.name)) {
            if matches!(constraint.kind, ConstraintKind::Check | ConstraintKind::NotNull) {
                self.constraint(Phase::Optional, table, constraint);
            }
        }
        let identity = match &table.replica_identity {
            ReplicaIdentity::Default => None,
            ReplicaIdentity::Nothing => Some("NOTHING".to_owned()),
            ReplicaIdentity::Full => Some("FULL".to_owned()),
            ReplicaIdentity::Index(index) => Some(format!("USING INDEX {}", quote_ident(index))),
        };
        if let Some(identity) = identity {
            let sql = format!("ALTER TABLE {} REPLICA IDENTITY {identity}", table.name.sql());
            self.add(Phase::After, "replica identity", &table.name, sql);
        }
    }

    fn values(&mut self) {
        let source = self.source;
        for (sequence, _) in self.drawn() {
            if let Some((table, column)) = sequence.owned_by.as_ref().filter(|_| self.owns(sequence)) {
                let of = format!("{}.{}", table.sql(), quote_ident(column));
                let sql = format!("ALTER SEQUENCE {} OWNED BY {of}", sequence.name.sql());
                self.add(Phase::After, "sequence", &sequence.name, sql);
            }
        }
        for (name, (value, called)) in &source.sequences {
            let Some(sequence) = source.catalog.sequences.get(name) else { continue };
            let sql = self.set_value(sequence, (*value, *called));
            self.add(Phase::After, "sequence value", name, sql);
            if let Some(words) = &sequence.comment {
                let sql = format!("COMMENT ON SEQUENCE {} IS {}", name.sql(), quote_literal(words));
                self.add(Phase::Optional, "comment", name, sql);
            }
        }
    }

    /// Sets a sequence to where it stood, or to the furthest value that its columns have: while a service has the authority, its rows come
    /// to the old tables with numbers that the monolith's sequence never gave out. One that others draw from may be there already, and
    /// stays where it is if it has gone on. A new one stands at its start, which may be behind where it stood.
    fn set_value(&self, sequence: &Sequence, (value, called): (i64, bool)) -> String {
        let columns = sequence.used_by.iter().chain(&sequence.owned_by);
        let drawn: BTreeSet<(String, String)> = columns
            .filter(|(table, column)| self.has_numbers(table, column))
            .map(|(table, column)| (table.sql(), quote_ident(column)))
            .collect();
        let (furthest, order, behind) =
            if sequence.increment > 0 { ("max", "DESC", "<=") } else { ("min", "ASC", ">=") };
        let (min, max, name) = (sequence.min, sequence.max, sequence.name.sql());
        let of = |(table, column): &(String, String)| {
            format!(
                " UNION ALL SELECT {furthest}({column}), true FROM {table} WHERE {column} BETWEEN {min} AND {max}"
            )
        };
        let looks: String = drawn.iter().map(of).collect();
        let only_forward = if self.owns(sequence) {
            String::new()
        } else {
            format!(", {name} WHERE last_value {behind} f.value")
        };
        format!(
            "SELECT setval({}, f.value, f.called) FROM (SELECT {value}::bigint AS value, {called} AS called{looks} \
             ORDER BY value {order} NULLS LAST, called DESC LIMIT 1) AS f{only_forward}",
            quote_literal(&name)
        )
    }

    fn has_numbers(&self, table: &TableName, column: &str) -> bool {
        let table = self.source.tables.iter().find(|one| one.name == *table);
        let mut columns = table.into_iter().flat_map(|table| &table.columns);
        columns.any(|one| one.name == column && INTEGERS.contains(&one.type_sql.as_str()))
    }

    fn comments(&mut self, table: &Table) {
        let name = table.name.sql();
        let own = table.comment.iter().map(|words| (format!("TABLE {name}"), words));
        let columns = table.columns.iter().filter_map(|column| {
            Some((format!("COLUMN {name}.{}", quote_ident(&column.name)), column.comment.as_ref()?))
        });
        let constraints = table.constraints.iter().filter_map(|constraint| {
            Some((
                format!("CONSTRAINT {} ON {name}", quote_ident(&constraint.name)),
                constraint.comment.as_ref()?,
            ))
        });
        for (on, words) in own.chain(columns).chain(constraints).collect::<Vec<_>>() {
            self.add(
                Phase::Optional,
                "comment",
                &table.name,
                format!("COMMENT ON {on} IS {}", quote_literal(words)),
            );
        }
    }

    fn named(&self, oid: u32) -> Option<&'a Table> {
        self.source.tables.iter().copied().find(|table| table.oid == oid)
    }

    fn optional(&mut self) {
        let details = self.source.details;
        for one in &details.hanging {
            let Some(table) = self.named(one.table) else { continue };
            let object = format!("{} on {}", one.name, table.name);
            let sql = match one.kind.as_str() {
                "policy" => {
                    format!("CREATE POLICY {} ON {}{}", quote_ident(&one.name), table.name.sql(), one.sql)
                }
                _ => one.sql.clone(),
            };
            self.add(Phase::Optional, &one.kind, &object, sql);
            if let Some(sql) = enabling(table, one) {
                self.add(Phase::Optional, &one.kind, object, sql);
            }
        }
        for table in &self.source.tables {
            let name = table.name.sql();
            if table.row_security {
                let sql = format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY");
                self.add(Phase::Optional, "row security", &table.name, sql);
            }
            if details.relations.get(&table.oid).is_some_and(|details| details.row_security_forced) {
                let sql = format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY");
                self.add(Phase::Optional, "row security", &table.name, sql);
            }
        }
    }

    /// Those that come with a partition from its parent are its parent's.
    fn foreign_keys(&mut self) {
        let source = self.source;
        for key in source.catalog.foreign_keys.iter().filter(|key| !key.inherited) {
            if !self.is_archived(&key.table) {
                continue;
            }
            let inside = self.is_archived(&key.references) && !key.cut;
            let phase = if inside { Phase::Optional } else { Phase::Left };
            self.add(phase, "foreign key", format!("{} of {}", key.name, key.table), add_foreign_key(key));
            if let (Some(words), true) = (&key.comment, inside) {
                let on = format!("{} ON {}", quote_ident(&key.name), key.table.sql());
                let sql = format!("COMMENT ON CONSTRAINT {on} IS {}", quote_literal(words));
                self.add(Phase::Optional, "comment", &key.table, sql);
            }
        }
    }

    /// Whose they were, and who might use them: of roles that need not be there, or must not have the rights, where they are restored.
    fn left(&mut self) {
        let source = self.source;
        for table in &source.tables {
            let sql = format!("ALTER TABLE {} OWNER TO {}", table.name.sql(), quote_ident(&table.owner));
            self.add(Phase::Left, "owner", &table.name, sql);
            for parent in table.inherits.iter().filter(|_| table.partition_of.is_none()) {
                let sql = format!("ALTER TABLE {} INHERIT {}", table.name.sql(), parent.sql());
                self.add(Phase::Left, "inheritance", &table.name, sql);
            }
        }
        let now = source.details.rights.iter().filter_map(|right| {
            let table = self.named(right.table)?;
            let of = (
                right.privilege.as_str(),
                right.column.as_deref(),
                right.grantee.as_deref(),
                right.grantable,
            );
            Some((table.name.clone(), grant(&table.name, of)))
        });
        let taken = source.taken.iter().map(|right| {
            let of = (
                right.privilege.as_str(),
                right.column.as_deref(),
                right.grantee.as_deref(),
                right.grantable,
            );
            (right.relation.clone(), grant(&right.relation, of))
        });
        for (table, sql) in now.chain(taken).collect::<BTreeSet<_>>() {
            self.add(Phase::Left, "right", table, sql);
        }
    }
}

fn is_of_identity(tables: &[&Table], sequence: &Sequence) -> bool {
    let Some((of, column)) = &sequence.owned_by else { return false };
    let table = tables.iter().find(|table| table.name == *of);
    table.and_then(|table| table.column(column)).is_some_and(|column| column.identity.is_some())
}

/// An index of a partitioned table is printed as one of the table alone, which would stay without its parts.
fn on_whole(table: &Table, index: &Index) -> String {
    if table.kind != TableKind::Partitioned {
        return index.definition_sql.clone();
    }
    // The name stands before it, and may hold the same words.
    let from = index.definition_sql.find(&index.name).map_or(0, |at| at + index.name.len());
    let (head, tail) = index.definition_sql.split_at_checked(from).unwrap_or((&index.definition_sql, ""));
    format!("{head}{}", tail.replacen(" ON ONLY ", " ON ", 1))
}

fn enabling(table: &Table, one: &Hanging) -> Option<String> {
    let how = match one.enabled {
        'A' => "ENABLE ALWAYS",
        'R' => "ENABLE REPLICA",
        'D' => "DISABLE",
        _ => return None,
    };
    let (name, kind) = (quote_ident(&one.name), one.kind.to_uppercase());
    Some(format!("ALTER TABLE {} {how} {kind} {name}", table.name.sql()))
}

fn add_foreign_key(key: &ForeignKey) -> String {
    format!(
        "ALTER TABLE {} ADD CONSTRAINT {} {}",
        key.table.sql(),
        quote_ident(&key.name),
        key.definition_sql
    )
}

fn grant(
    table: &TableName,
    (privilege, column, grantee, grantable): (&str, Option<&str>, Option<&str>, bool),
) -> String {
    let column = column.map(|column| format!(" ({})", quote_ident(column))).unwrap_or_default();
    let grantee = grantee.map_or_else(|| "PUBLIC".to_owned(), quote_ident);
    let option = if grantable { " WITH GRANT OPTION" } else { "" };
    format!("GRANT {privilege}{column} ON TABLE {} TO {grantee}{option}", table.sql())
}
