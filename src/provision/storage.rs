//! Storage parameters of tables: fillfactor, autovacuum, those of TOAST.

use crate::catalog::Table;
use crate::mapping::TableMapping;

/// What a server of PostgreSQL 14 takes. A later one is set only in a service that is at least as new as the monolith.
const OLD: &[&str] = &[
    "autovacuum_analyze_scale_factor",
    "autovacuum_analyze_threshold",
    "autovacuum_enabled",
    "autovacuum_freeze_max_age",
    "autovacuum_freeze_min_age",
    "autovacuum_freeze_table_age",
    "autovacuum_multixact_freeze_max_age",
    "autovacuum_multixact_freeze_min_age",
    "autovacuum_multixact_freeze_table_age",
    "autovacuum_vacuum_cost_delay",
    "autovacuum_vacuum_cost_limit",
    "autovacuum_vacuum_insert_scale_factor",
    "autovacuum_vacuum_insert_threshold",
    "autovacuum_vacuum_scale_factor",
    "autovacuum_vacuum_threshold",
    "fillfactor",
    "log_autovacuum_min_duration",
    "parallel_workers",
    "toast_tuple_target",
    "user_catalog_table",
    "vacuum_index_cleanup",
    "vacuum_truncate",
];

/// Parameters, as `name=value`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split<'a> {
    /// The service takes them.
    pub(super) taken: Vec<&'a str>,
    /// It is too old for these, as far as is known.
    pub(super) left: Vec<&'a str>,
}

/// Which parameters of a table the service takes. `majors` are the monolith's and the service's versions. Pure.
pub(super) fn split<'a>(table: &'a Table, majors: (u32, u32)) -> Split<'a> {
    let known = |parameter: &str| {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        majors.1 >= majors.0 || OLD.contains(&name.strip_prefix("toast.").unwrap_or(name))
    };
    let (taken, left) = table.storage.iter().map(String::as_str).partition(|parameter| known(parameter));
    Split { taken, left }
}

/// Sets them on a table that was just made.
pub(super) fn set(mapping: &TableMapping, parameters: &[&str]) -> Option<String> {
    (!parameters.is_empty())
        .then(|| format!("ALTER TABLE {} SET ({})", mapping.target.sql(), parameters.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fixture::table;

    #[test]
    fn a_parameter_that_an_older_service_may_not_know_is_left_out() {
        let mut orders = table("Orders", Vec::new());
        orders.storage =
            ["fillfactor=70", "toast.autovacuum_enabled=false", "autovacuum_vacuum_max_threshold=5"]
                .map(str::to_owned)
                .to_vec();
        let found = split(&orders, (18, 14));
        assert_eq!(found.taken, ["fillfactor=70", "toast.autovacuum_enabled=false"]);
        assert_eq!(found.left, ["autovacuum_vacuum_max_threshold=5"]);
        assert_eq!(split(&orders, (18, 18)).left, [""; 0]);
    }
}
