//! What a catalog says of some tables, kept when these are dropped: mappings that name them, and references to them, go on to be
//! compiled as they were.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Catalog, ForeignKey, Sequence, Table};
use crate::name::TableName;

/// Tables with what belongs to them, by the names that the plan has for them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fragment {
    /// The tables, and their partitions and children.
    pub tables: Vec<Table>,
    /// Sequences that their columns own or draw from.
    pub sequences: Vec<Sequence>,
    /// Foreign keys with one of them at either end.
    pub foreign_keys: Vec<ForeignKey>,
}

impl Fragment {
    /// What a catalog says of these tables and whatever is below them.
    #[must_use]
    pub fn of(catalog: &Catalog, roots: &[TableName]) -> Self {
        let mut names: BTreeSet<&TableName> = roots.iter().collect();
        loop {
            let below = |table: &&Table| {
                !names.contains(&table.name)
                    && table.partition_of.iter().chain(&table.inherits).any(|above| names.contains(above))
            };
            let more: Vec<&TableName> =
                catalog.tables.values().filter(below).map(|table| &table.name).collect();
            if more.is_empty() {
                break;
            }
            names.extend(more);
        }
        let has = |name: &TableName| names.contains(name);
        let unmoved = catalog.unmoved();
        Self {
            tables: unmoved.tables.into_values().filter(|table| has(&table.name)).collect(),
            sequences: unmoved
                .sequences
                .into_values()
                .filter(|one| one.owned_by.iter().chain(&one.used_by).any(|(table, _)| has(table)))
                .collect(),
            foreign_keys: unmoved
                .foreign_keys
                .into_iter()
                .filter(|key| has(&key.table) || has(&key.references))
                .collect(),
        }
    }

    /// Names of the tables.
    pub fn names(&self) -> impl Iterator<Item = &TableName> {
        self.tables.iter().map(|table| &table.name)
    }
}

impl Catalog {
    /// The catalog with tables that are not there any more. What has come since under one of their names is left out: it is none of the
    /// plan's tables. More can be added later; what is there already stays.
    #[must_use]
    pub fn with_dropped(mut self, fragments: Vec<Fragment>) -> Self {
        let names: BTreeSet<TableName> = fragments
            .iter()
            .flat_map(Fragment::names)
            .filter(|name| !self.dropped.contains(name))
            .cloned()
            .collect();
        let touches = |tables: &BTreeSet<TableName>, key: &ForeignKey| {
            tables.contains(&key.table) || tables.contains(&key.references)
        };
        // A key of a table that was dropped before is known from what was kept of that one: what is kept of two tables says it twice, or only
        // once where the one was dropped while the other was not known.
        self.foreign_keys.retain(|key| touches(&self.dropped, key) || !touches(&names, key));
        self.dependents.retain(|one| !names.contains(&one.table));
        for fragment in fragments {
            for key in fragment.foreign_keys {
                let same = |known: &ForeignKey| {
                    (&known.table, &known.name, &known.references) == (&key.table, &key.name, &key.references)
                };
                if !self.foreign_keys.iter().any(same) {
                    self.foreign_keys.push(key);
                }
            }
            // Nobody has to be let do anything with them, and no row of them comes from anywhere any more.
            let free =
                |table: Table| Table { can_select: true, can_own: true, open_partitions: false, ..table };
            self.tables.extend(fragment.tables.into_iter().map(|table| (table.name.clone(), free(table))));
            for sequence in fragment.sequences {
                match self.sequences.get_mut(&sequence.name) {
                    Some(standing) => draw_also(standing, &sequence, &names),
                    None => drop(self.sequences.insert(sequence.name.clone(), sequence)),
                }
            }
        }
        self.dropped.extend(names);
        self.foreign_keys.sort_by(|a, b| (&a.table, &a.name).cmp(&(&b.table, &b.name)));
        self
    }
}

/// A sequence that belonged to none of the tables is still there, and is still known to be drawn from by them.
fn draw_also(standing: &mut Sequence, known: &Sequence, names: &BTreeSet<TableName>) {
    let missing: Vec<_> = known
        .used_by
        .iter()
        .filter(|(table, _)| names.contains(table))
        .filter(|used| !standing.used_by.contains(used))
        .cloned()
        .collect();
    standing.used_by.extend(missing);
    standing.used_by.sort();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fixture;

    #[test]
    fn a_catalog_with_its_dropped_tables_reads_as_before() {
        let whole = fixture::retail();
        let name = TableName::new("public", "Orders");
        let kept = Fragment::of(&whole, std::slice::from_ref(&name));
        assert!(kept.names().any(|one| *one == name));
        let text = serde_json::to_string(&kept).unwrap();
        let kept: Fragment = serde_json::from_str(&text).unwrap();
        let mut without = whole.clone();
        let names: BTreeSet<TableName> = kept.names().cloned().collect();
        without.tables.retain(|name, _| !names.contains(name));
        without.foreign_keys.retain(|key| !names.contains(&key.table) && !names.contains(&key.references));
        let again = without.with_dropped(vec![kept]);
        assert_eq!(again.dropped, names);
        let sorted = whole.with_dropped(Vec::new());
        let shown = |catalog: &Catalog| {
            format!("{:?} {:?} {:?}", catalog.tables, catalog.foreign_keys, catalog.sequences)
        };
        assert_eq!(shown(&again), shown(&sorted));
    }

    #[test]
    fn a_key_that_only_one_of_two_dropped_tables_was_known_with_stays_in_either_order() {
        let whole = fixture::retail();
        let key = whole.foreign_keys.iter().find(|key| key.table != key.references).unwrap().clone();
        let without = Catalog { foreign_keys: Vec::new(), ..whole.clone() };
        let parent = Fragment::of(&whole, std::slice::from_ref(&key.references));
        let child = Fragment::of(&without, std::slice::from_ref(&key.table));
        for fragments in [[parent.clone(), child.clone()], [child.clone(), parent.clone()]] {
            let at_once = without.clone().with_dropped(fragments.to_vec());
            let [first, second] = fragments.map(|one| vec![one]);
            let in_turn = without.clone().with_dropped(first).with_dropped(second);
            for catalog in [at_once, in_turn] {
                let found =
                    catalog.foreign_keys.iter().filter(|one| one.name == key.name && one.table == key.table);
                assert_eq!(found.count(), 1);
            }
        }
        // What stands there now under one of the names is somebody else's.
        let names = ForeignKey { name: "new".to_owned(), ..key };
        let now = Catalog { foreign_keys: vec![names], ..whole };
        assert!(now.with_dropped(vec![parent]).foreign_keys.iter().all(|one| one.name != "new"));
    }
}
