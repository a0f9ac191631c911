//! What definitions of the monolith stand on: types, functions and extensions, as far as `pg_depend` leads.

use std::collections::{BTreeMap, BTreeSet};

use super::anatomy::{Anatomy, Reference, Used};
use crate::catalog::{Catalog, Column, Table};
use crate::name::TableName;

/// What tables need, beside themselves.
#[derive(Debug)]
pub(crate) struct Needed<'a> {
    monolith: &'a Catalog,
    anatomy: &'a Anatomy,
    /// Extensions by name.
    pub(crate) extensions: BTreeSet<String>,
    /// Types in the order in which they can be created.
    pub(crate) types: Vec<TableName>,
    /// Those, and the ones that are being looked into.
    met: BTreeSet<TableName>,
    /// Who needs which function, operator or operator class: kind and identity, and the first definition that calls it.
    pub(crate) routines: BTreeMap<(String, String), String>,
}

impl<'a> Needed<'a> {
    pub(crate) fn new(monolith: &'a Catalog, anatomy: &'a Anatomy) -> Self {
        let (extensions, types, met, routines) = Default::default();
        Self { monolith, anatomy, extensions, types, met, routines }
    }

    /// Adds what a table needs, with those of its columns that are `kept`.
    pub(crate) fn table(&mut self, table: &Table, kept: impl Fn(&Column) -> bool) {
        let name = &table.name;
        for column in table.columns.iter().filter(|column| kept(column)) {
            if let Some(of) = &column.user_type {
                self.follow_type(of);
            }
            self.follow(&Used::Column(name.clone(), column.name.clone()));
        }
        for constraint in &table.constraints {
            self.follow(&Used::Constraint(name.clone(), constraint.name.clone()));
        }
        for index in &table.indexes {
            self.follow(&Used::Index(name.clone(), index.name.clone()));
        }
    }

    fn follow(&mut self, used: &Used) {
        let anatomy = self.anatomy;
        for reference in anatomy.needs_of(used) {
            match reference {
                Reference::Column(_) => {}
                Reference::Type(name) => self.follow_type(name),
                Reference::Routine { extension: Some(extension), .. } => {
                    self.extensions.insert(extension.clone());
                }
                Reference::Routine { kind, identity, extension: None } => {
                    let key = (kind.clone(), identity.clone());
                    self.routines.entry(key).or_insert_with(|| label(used));
                }
            }
        }
    }

    /// Adds a type behind those it needs itself. A domain with a CHECK needs itself, too.
    fn follow_type(&mut self, name: &TableName) {
        let Some(of) = self.monolith.types.get(name) else { return };
        if let Some(extension) = &of.extension {
            self.extensions.insert(extension.clone());
            return;
        }
        if self.met.insert(name.clone()) {
            self.follow(&Used::Type(name.clone()));
            self.types.push(name.clone());
        }
    }
}

fn label(used: &Used) -> String {
    match used {
        Used::Column(table, column) => format!("column {table}.{column}"),
        Used::Constraint(table, name) => format!("constraint {name} of {table}"),
        Used::Index(table, name) => format!("index {name} of {table}"),
        Used::Type(name) => format!("type {name}"),
    }
}
