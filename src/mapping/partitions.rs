//! Partitioned tables of the monolith that have no partition for every row that the service may write.

use super::expand::Listed;
use crate::catalog::{Catalog, Table};
use crate::name::TableName;
use crate::problem::Problem;

/// Code of [`gaps`].
pub(crate) const OPEN_PARTITIONS: &str = "open-partitions";

/// The service's table takes every key; the monolith's takes those that some partition is for.
pub(super) fn gaps(monolith: &Catalog, one: &Listed<'_>) -> Option<Problem> {
    let mut open: Vec<&TableName> = Vec::new();
    let mut pending = vec![one.table];
    while let Some(table) = pending.pop() {
        if table.open_partitions {
            open.push(&table.name);
        }
        let of = |child: &&Table| child.partition_of.as_ref() == Some(&table.name);
        pending.extend(monolith.tables.values().filter(of));
    }
    let first = open.first()?.sql();
    let open: Vec<String> = open.iter().map(ToString::to_string).collect();
    Some(
        Problem::warning(OPEN_PARTITIONS, &one.table.name)
            .at(one.rule.place)
            .fact(format!("there may be keys that no partition takes, and there is no DEFAULT partition: {}", open.join(", ")))
            .consequence(
                "after the flip, a row of the service with such a key can't come back, and stops the way back of its slice",
            )
            .next(format!(
                "make partitions early enough on the monolith, also while the service has authority; or run there: CREATE \
                 TABLE … PARTITION OF {first} DEFAULT;"
            )),
    )
}
