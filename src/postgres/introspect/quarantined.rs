//! A catalog of a monolith whose old tables were moved away, as if they still had their names: everything that decides on it, the
//! mapping above all, goes on without knowing. Only the place in the names leads to where the tables stand.

use std::collections::BTreeSet;

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
}

impl<'a> Known<'a> {
    fn new(catalog: &Catalog, places: &'a Places) -> Self {
        let all = catalog.tables.keys().chain(catalog.sequences.keys()).chain(catalog.types.keys());
        let moved = all.map(|name| places.translated(name.clone()));
        let newcomers = moved.filter(|name| name.place_schema() != name.schema).collect();
        Self { places, newcomers }
    }

    fn name(&self, raw: TableName) -> TableName {
        self.places.translated(raw)
    }

    fn text(&self, text: String) -> String {
        self.places.said(text)
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
