//! A catalog of a monolith whose old tables were moved away, as if they still had their names: everything that decides on it, the
//! mapping above all, goes on without knowing. Only the place in the names leads to where the tables stand.

use std::collections::{BTreeMap, BTreeSet};

use super::super::places::Places;
use crate::catalog::{Catalog, Column, Dependent, ForeignKey, Sequence, Table, UserType, UserTypeKind};
use crate::name::TableName;

/// Gives relations in quarantine schemas the names that they had. What has come since under one of these names is left out: it is none of
/// the plan's tables.
pub(super) fn known_by_their_names(catalog: Catalog, places: &Places) -> Catalog {
    let known = Known::new(&catalog, places);
    let Catalog { tables, types, sequences, foreign_keys, dependents, schemas, .. } = catalog;
    let newcomer = |name: &TableName| known.newcomers.contains(name);
    let tables = tables.into_values().filter(|table| !newcomer(&table.name)).map(|table| known.table(table));
    let types = types.into_values().filter(|one| !newcomer(&one.name)).map(|one| known.user_type(one));
    let sequences = sequences.into_values().filter(|one| !newcomer(&one.name));
    let sequences = sequences.map(|sequence| known.sequence(sequence));
    let keys = foreign_keys
        .into_iter()
        .filter(|key| key.cut || !(newcomer(&key.table) || newcomer(&key.references)));
    let mut foreign_keys: Vec<ForeignKey> = keys.map(|key| known.foreign_key(key)).collect();
    foreign_keys.sort_by(|a, b| (&a.table, &a.name).cmp(&(&b.table, &b.name)));
    let dependents = dependents.into_iter().filter(|one| !newcomer(&one.table));
    let mut dependents: Vec<Dependent> = dependents.map(|one| known.dependent(one)).collect();
    dependents.sort_by(|a, b| (&a.table, a.kind, &a.name).cmp(&(&b.table, b.kind, &b.name)));
    let is_quarantine = |schema: &String| places.0.iter().any(|place| place.quarantine == *schema);
    Catalog {
        tables: tables.map(|table| (table.name.clone(), table)).collect(),
        types: types.map(|one| (one.name.clone(), one)).collect(),
        sequences: sequences.map(|sequence| (sequence.name.clone(), sequence)).collect(),
        foreign_keys,
        dependents,
        schemas: schemas.into_iter().filter(|schema| !is_quarantine(schema)).collect(),
        ..catalog
    }
}

/// What the names in one catalog mean.
struct Known<'a> {
    places: &'a Places,
    /// Names of moved relations that others have by now.
    newcomers: BTreeSet<TableName>,
    /// How definitions begin the name of something that was moved, and how they did before.
    prefixes: BTreeMap<String, String>,
}

impl<'a> Known<'a> {
    fn new(catalog: &Catalog, places: &'a Places) -> Self {
        let all = catalog.tables.keys().chain(catalog.sequences.keys()).chain(catalog.types.keys());
        let moved = all.map(|name| places.translated(name.clone()));
        let newcomers = moved.filter(|name| name.place_schema() != name.schema).collect();
        let prefixes = places.0.iter().map(|place| {
            let [from, to] = [&place.quarantine, &place.schema].map(|schema| as_printed(schema) + ".");
            (from, to)
        });
        Self { places, newcomers, prefixes: prefixes.collect() }
    }

    fn name(&self, raw: TableName) -> TableName {
        self.places.translated(raw)
    }

    fn text(&self, text: String) -> String {
        self.prefixes.iter().fold(text, |text, (from, to)| replaced(text, from, to))
    }

    fn table(&self, table: Table) -> Table {
        let mut table = Table {
            name: self.name(table.name),
            partition_of: table.partition_of.map(|name| self.name(name)),
            inherits: table.inherits.into_iter().map(|name| self.name(name)).collect(),
            columns: table.columns.into_iter().map(|column| self.column(column)).collect(),
            ..table
        };
        for index in &mut table.indexes {
            index.definition_sql = self.text(std::mem::take(&mut index.definition_sql));
        }
        for constraint in &mut table.constraints {
            constraint.definition_sql = self.text(std::mem::take(&mut constraint.definition_sql));
        }
        table
    }

    fn column(&self, column: Column) -> Column {
        Column {
            type_sql: self.text(column.type_sql),
            cast_sql: self.text(column.cast_sql),
            user_type: column.user_type.map(|name| self.name(name)),
            default_sql: column.default_sql.map(|text| self.text(text)),
            sequence: column.sequence.map(|name| self.name(name)),
            generated_sql: column.generated_sql.map(|text| self.text(text)),
            ..column
        }
    }

    fn user_type(&self, one: UserType) -> UserType {
        let kind = match one.kind {
            UserTypeKind::Composite(columns) => UserTypeKind::Composite(
                columns.into_iter().map(|(name, sql)| (name, self.text(sql))).collect(),
            ),
            kind @ (UserTypeKind::Enum(_) | UserTypeKind::Domain { .. } | UserTypeKind::Other) => kind,
        };
        UserType { name: self.name(one.name), kind, ..one }
    }

    fn sequence(&self, sequence: Sequence) -> Sequence {
        let used_by = sequence.used_by.into_iter().filter(|(table, _)| !self.newcomers.contains(table));
        Sequence {
            name: self.name(sequence.name),
            owned_by: sequence.owned_by.map(|(table, column)| (self.name(table), column)),
            used_by: used_by.map(|(table, column)| (self.name(table), column)).collect(),
            ..sequence
        }
    }

    fn foreign_key(&self, key: ForeignKey) -> ForeignKey {
        ForeignKey {
            table: self.name(key.table),
            references: self.name(key.references),
            definition_sql: self.text(key.definition_sql),
            ..key
        }
    }

    fn dependent(&self, one: Dependent) -> Dependent {
        Dependent { table: self.name(one.table), name: self.text(one.name), ..one }
    }
}

/// A name as `quote_ident()` of the server prints it, but for key words, which no schema of ours is.
fn as_printed(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.chars().all(plain) { name.to_owned() } else { crate::name::quote_ident(name) }
}

/// `from` stands at the beginning of a name.
fn replaced(text: String, from: &str, to: &str) -> String {
    if !text.contains(from) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(from) {
        let inside = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"' || c == '.');
        out.push_str(before);
        out.push_str(if inside { from } else { to });
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_say_what_they_said_before_the_move() {
        let text = "CREATE INDEX i ON strangler_quarantine_a.\"Orders\" USING btree (x)".to_owned();
        let says = replaced(text, "strangler_quarantine_a.", "public.");
        assert_eq!(says, "CREATE INDEX i ON public.\"Orders\" USING btree (x)");
        let default = "nextval('strangler_quarantine_a.ids'::regclass)".to_owned();
        assert_eq!(replaced(default, "strangler_quarantine_a.", "\"S\"."), "nextval('\"S\".ids'::regclass)");
        let other = "my_strangler_quarantine_a.f(strangler_quarantine_a.g)".to_owned();
        assert_eq!(replaced(other, "strangler_quarantine_a.", "s."), "my_strangler_quarantine_a.f(s.g)");
        assert_eq!(
            (as_printed("a_1"), as_printed("Sales"), as_printed("1a")),
            ("a_1".into(), "\"Sales\"".into(), "\"1a\"".into())
        );
    }
}
