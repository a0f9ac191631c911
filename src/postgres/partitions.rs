//! Which relations a table's rows lie in, for statements that ask about them by name.
//!
//! Who calls it: whatever asks about locks, counters, triggers or places of partitioned tables. The function locks each partition
//! for the statement; what must not wait for those locks walks `pg_inherits` instead.

/// For a FROM clause: the tables `t` whose names are the first parameter, by their places `n`, each with every relation `r` of its
/// tree: itself and its partitions. A name that nothing has comes with a null.
pub(crate) const TREES: &str = "unnest($1::text[]) WITH ORDINALITY AS t (name, n), LATERAL (SELECT to_regclass(t.name)::oid \
     UNION SELECT relid FROM pg_partition_tree(to_regclass(t.name))) AS r (oid)";

/// For a FROM clause: every relation `part` of the tree of the table `c` before it.
pub(crate) const TREE_OF_C: &str =
    "LATERAL (SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS part (oid)";
