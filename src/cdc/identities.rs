//! What partitions log of old rows. Changes of a partition are published as its root's, and the stream describes the
//! root; but what an old row holds is decided by the replica identity of the partition, which new partitions do not take
//! over from the root and which anybody may change. An update that takes a row out of the filter then comes without an
//! old row, like one that never was in it. No event shows that, so the catalogs are watched for it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::contents::{Contents, Heap, TableContents};
use super::error::MirrorError;
use crate::mapping::TableMapping;
use crate::name::TableName;

/// Replica identity of a partition, with what tells that it was another one meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the partition as SQL.
    pub table_sql: String,
    /// `pg_class.relreplident`.
    pub setting: String,
    /// Its row of `pg_class` was written after it came to its table.
    pub late: bool,
    /// Indexes that could be one, by oid.
    pub indexes: BTreeMap<u32, Candidate>,
}

/// An index that could be a replica identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Name as SQL, without the schema.
    pub name_sql: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// The primary key's.
    pub primary: bool,
    /// `indisreplident`.
    pub chosen: bool,
    /// The transaction that wrote its row of `pg_index` last, which each choice of it and against it does.
    pub changed_by: String,
    /// That was after the partition came to its table.
    pub late: bool,
}

/// What is wrong with a partition's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In words.
    pub what: String,
    /// What to run on the monolith before the table is copied again.
    pub first: Option<String>,
}

const READ: &str = "SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relreplident::text, x.indexrelid, \
        quote_ident(i.relname), x.indisprimary, x.indisreplident, x.xmin::text, \
        coalesce(age(x.xmin) < age(h.xmin), false), coalesce(age(c.xmin) < age(h.xmin), false), \
        ARRAY(SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (attnum, n) \
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= x.indnkeyatts ORDER BY k.n) \
    FROM unnest($1::oid[]) AS w (oid) JOIN pg_class c ON c.oid = w.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_inherits h ON h.inhrelid = c.oid \
    LEFT JOIN (pg_index x JOIN pg_class i ON i.oid = x.indexrelid) ON x.indrelid = c.oid AND x.indisunique \
        AND x.indimmediate AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL";

/// Adds to what was read of tables the identities of their partitions.
///
/// # Errors
/// [`MirrorError::Sql`].
pub(super) async fn read(source: &Client, contents: &mut Contents) -> Result<(), MirrorError> {
    let partitions: Vec<u32> = contents
        .values()
        .flat_map(|table| table.heaps.iter().filter(|(_, heap)| heap.partition).map(|(oid, _)| *oid))
        .collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let mut found: BTreeMap<u32, Identity> = BTreeMap::new();
    let rows = source.query(READ, &[&partitions]).await;
    for row in rows.map_err(MirrorError::sql("reading the partitions' replica identities"))? {
        let identity = found.entry(row.get(0)).or_insert_with(|| Identity {
            table_sql: row.get(1),
            setting: row.get(2),
            late: row.get(9),
            indexes: BTreeMap::new(),
        });
        if let Some(oid) = row.get::<_, Option<u32>>(3) {
            let candidate = Candidate {
                name_sql: row.get(4),
                primary: row.get(5),
                chosen: row.get(6),
                changed_by: row.get(7),
                late: row.get(8),
                columns: row.get(10),
            };
            identity.indexes.insert(oid, candidate);
        }
    }
    for table in contents.values_mut() {
        for (oid, heap) in &mut table.heaps {
            heap.identity = found.remove(oid);
        }
    }
    Ok(())
}

/// What is wrong with the identity of a table's partitions, or was since an earlier reading. Pure.
#[must_use]
pub fn judge(mapping: &TableMapping, before: &TableContents, now: &TableContents) -> Option<Fault> {
    let needed = Needed::of(mapping);
    now.heaps.iter().find_map(|(oid, heap)| {
        let identity = heap.identity.as_ref().filter(|_| heap.partition)?;
        needed.lacking(heap, identity).or_else(|| {
            let what = match before.heaps.get(oid) {
                Some(before) => needed.was_another(before.identity.as_ref()?, identity),
                None => needed.came_late(identity),
            }?;
            Some(Fault { what: format!("its partition {} {what}", heap.name), first: None })
        })
    })
}

/// Columns that an old row has to hold.
struct Needed<'a> {
    key: Vec<&'a str>,
    all: BTreeSet<&'a str>,
}

impl<'a> Needed<'a> {
    fn of(mapping: &'a TableMapping) -> Self {
        let key: Vec<&str> = mapping.key_columns().map(|column| column.source.as_str()).collect();
        let filtered = mapping.filter.iter().filter_map(|term| mapping.columns.get(term.column));
        let all = key.iter().copied().chain(filtered.map(|column| column.source.as_str())).collect();
        Self { key, all }
    }

    fn covered_by(&self, index: Option<&Candidate>) -> bool {
        index.is_some_and(|index| self.all.iter().all(|name| index.columns.iter().any(|one| one == name)))
    }

    fn covered_by_primary_key(&self, identity: &Identity) -> bool {
        self.covered_by(identity.indexes.values().find(|index| index.primary))
    }

    fn lacking(&self, heap: &Heap, identity: &Identity) -> Option<Fault> {
        let covers = match identity.setting.as_str() {
            "f" => true,
            "d" => self.covered_by_primary_key(identity),
            "i" => self.covered_by(identity.indexes.values().find(|index| index.chosen)),
            // An update or delete of such a partition fails.
            _ => return None,
        };
        if covers {
            return None;
        }
        let columns: Vec<&str> = self.all.iter().copied().collect();
        Some(Fault {
            what: format!(
                "its partition {} has another replica identity, so that its old rows are not logged with ({})",
                heap.name,
                columns.join(", ")
            ),
            first: Some(format!("on the monolith: {}", self.remedy(identity))),
        })
    }

    /// The statement that gives a partition the identity of its table.
    fn remedy(&self, identity: &Identity) -> String {
        let fits = |index: &&Candidate| self.covered_by(Some(index)) && index.columns == self.key;
        let how = if identity.indexes.values().filter(fits).any(|index| index.primary) {
            "DEFAULT".to_owned()
        } else if let Some(index) = identity.indexes.values().find(fits) {
            format!("USING INDEX {}", index.name_sql)
        } else {
            "FULL".to_owned()
        };
        format!("ALTER TABLE {} REPLICA IDENTITY {how}", identity.table_sql)
    }

    /// Each choice of an index, and each against it, writes the index's row anew. One of them shows in the row; a row that
    /// was written and says the same was written twice. What passes through DEFAULT is harmless where the primary key
    /// holds all that is needed.
    fn was_another(&self, before: &Identity, now: &Identity) -> Option<&'static str> {
        let by_key = self.covered_by_primary_key(now);
        let rewritten = now.indexes.iter().any(|(oid, index)| {
            let says = |of: &Candidate| (of.chosen, of.primary);
            let then = before.indexes.get(oid).filter(|then| says(then) == says(index));
            then.is_some_and(|then| then.changed_by != index.changed_by)
                && !(by_key && self.covered_by(Some(index)))
        });
        let chosen = |of: &Identity| of.indexes.iter().find(|(_, index)| index.chosen).map(|(oid, _)| *oid);
        let changed = before.setting != now.setting || chosen(before) != chosen(now);
        if rewritten {
            Some("had another replica identity for a while, or an index of it was altered")
        } else if changed && !by_key {
            Some("was given another replica identity")
        } else {
            None
        }
    }

    /// One that was made, and given its identity later, may have been written in between.
    fn came_late(&self, identity: &Identity) -> Option<&'static str> {
        let late = match identity.setting.as_str() {
            "f" => identity.late,
            "i" => identity.indexes.values().any(|index| index.chosen && index.late),
            _ => false,
        };
        (late && !self.covered_by_primary_key(identity))
            .then_some("was given its replica identity after it had come")
    }
}

/// The same for a name, where a table is in the slice at all.
#[must_use]
pub fn judge_table(
    tables: &[TableMapping],
    name: &TableName,
    (before, now): (&TableContents, &TableContents),
) -> Option<Fault> {
    tables.iter().find(|table| table.source == *name).and_then(|table| judge(table, before, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = "d";

    fn needed() -> Needed<'static> {
        Needed { key: vec!["id", "region"], all: ["id", "region"].into() }
    }

    /// A partition with the primary key `(id)` and the unique index `(id, region)`, or the other way round.
    fn identity(setting: &str, primary_is_wide: bool) -> Identity {
        let candidate = |name: &str, primary: bool| Candidate {
            name_sql: name.to_owned(),
            columns: if primary == primary_is_wide {
                vec!["id".to_owned(), "region".to_owned()]
            } else {
                vec!["id".to_owned()]
            },
            primary,
            chosen: setting == "i" && !primary,
            changed_by: "700".to_owned(),
            late: false,
        };
        Identity {
            table_sql: "public.p1".to_owned(),
            setting: setting.to_owned(),
            late: false,
            indexes: [(1, candidate("p1_pkey", true)), (2, candidate("p1_u", false))].into(),
        }
    }

    fn rewritten(mut identity: Identity, oid: u32) -> Identity {
        identity.indexes.entry(oid).and_modify(|index| index.changed_by = "800".to_owned());
        identity
    }

    #[test]
    fn an_index_that_was_rewritten_and_says_the_same_was_chosen_or_left_for_a_while() {
        let needed = needed();
        let by_index = identity("i", false);
        assert_eq!(needed.was_another(&by_index, &by_index), None);
        assert!(needed.was_another(&by_index, &rewritten(by_index.clone(), 2)).is_some(), "away and back");
        let by_key = identity(DEFAULT, true);
        assert!(
            needed.was_another(&by_key, &rewritten(by_key.clone(), 2)).is_some(),
            "an index that lacks one"
        );
        assert_eq!(needed.was_another(&by_key, &rewritten(by_key.clone(), 1)), None, "one that holds all");
    }

    #[test]
    fn a_change_between_identities_counts_unless_the_key_holds_all_that_is_needed() {
        let needed = needed();
        assert!(needed.was_another(&identity("i", false), &identity("f", false)).is_some());
        assert_eq!(needed.was_another(&identity(DEFAULT, true), &identity("f", true)), None);
    }

    #[test]
    fn a_new_partition_has_its_identity_from_the_beginning() {
        let needed = needed();
        let mut late = identity("i", false);
        assert_eq!(needed.came_late(&late), None);
        late.indexes.entry(2).and_modify(|index| index.late = true);
        assert!(needed.came_late(&late).is_some());
        assert_eq!(needed.came_late(&identity(DEFAULT, true)), None);
    }

    #[test]
    fn the_remedy_names_the_partitions_own_index() {
        let needed = needed();
        assert_eq!(
            needed.remedy(&identity(DEFAULT, false)),
            "ALTER TABLE public.p1 REPLICA IDENTITY USING INDEX p1_u"
        );
        assert_eq!(needed.remedy(&identity("i", true)), "ALTER TABLE public.p1 REPLICA IDENTITY DEFAULT");
    }
}
