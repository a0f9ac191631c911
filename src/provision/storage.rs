//! Storage parameters of tables: fillfactor, autovacuum, those of TOAST.

use super::preflight::leaves;
use crate::catalog::{Catalog, Table, TableKind};
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
    /// The service gets them.
    pub(super) taken: Vec<&'a str>,
    /// It does not get these.
    pub(super) left: Vec<Left<'a>>,
}

/// A parameter that stays behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left<'a> {
    /// As `name=value`.
    pub(super) parameter: &'a str,
    /// What has it on the monolith.
    pub(super) of: String,
    /// Why it stays behind.
    pub(super) why: String,
}

/// Which parameters of a table the service takes. A partitioned table has none itself: the service's one table gets those that all
/// its partitions have. `majors` are the monolith's and the service's versions. Pure.
pub(super) fn split<'a>(catalog: &'a Catalog, table: &'a Table, majors: (u32, u32)) -> Split<'a> {
    let parts = if table.kind == TableKind::Partitioned { leaves(catalog, &table.name) } else { vec![table] };
    let mut having: Vec<(&str, Vec<&Table>)> = Vec::new();
    for (part, parameter) in parts.iter().flat_map(|part| part.storage.iter().map(move |one| (*part, one))) {
        match having.iter_mut().find(|(known, _)| *known == parameter.as_str()) {
            Some((_, tables)) => tables.push(part),
            None => having.push((parameter, vec![part])),
        }
    }
    let mut split = Split::default();
    for (parameter, tables) in having {
        if tables.len() < parts.len() {
            let of = format!("partitions of {}", table.name);
            split.left.push(Left { parameter, of, why: of_some(&tables, parts.len()) });
        } else if is_known(parameter, majors) {
            split.taken.push(parameter);
        } else {
            let why = format!(
                "the service's server, {}, is older than the monolith's and may not know it",
                majors.1
            );
            split.left.push(Left { parameter, of: table.name.to_string(), why });
        }
    }
    split
}

fn is_known(parameter: &str, majors: (u32, u32)) -> bool {
    let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
    majors.1 >= majors.0 || OLD.contains(&name.strip_prefix("toast.").unwrap_or(name))
}

fn of_some(tables: &[&Table], all: usize) -> String {
    let first = tables.first().map(|table| table.name.to_string()).unwrap_or_default();
    match tables.len().saturating_sub(1) {
        0 => format!("of {all} partitions only {first} has it, and the service has one table for all"),
        others => format!(
            "of {all} partitions only {first} and {others} more have it, and the service has one table for all"
        ),
    }
}

/// Sets them on a table that was just made.
pub(super) fn set(mapping: &TableMapping, parameters: &[&str]) -> Option<String> {
    (!parameters.is_empty())
        .then(|| format!("ALTER TABLE {} SET ({})", mapping.target.sql(), parameters.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fixture::{catalog, name, table};

    fn with(text: &str, storage: &[&str]) -> Table {
        let mut table = table(text, Vec::new());
        table.storage = storage.iter().map(|&one| one.to_owned()).collect();
        table
    }

    #[test]
    fn a_parameter_that_an_older_service_may_not_know_is_left_out() {
        let parameters =
            ["fillfactor=70", "toast.autovacuum_enabled=false", "autovacuum_vacuum_max_threshold=5"];
        let orders = with("Orders", &parameters);
        let nothing = catalog(Vec::new());
        let found = split(&nothing, &orders, (18, 14));
        assert_eq!(found.taken, parameters[..2]);
        let left: Vec<(&str, &str)> =
            found.left.iter().map(|left| (left.parameter, left.of.as_str())).collect();
        assert_eq!(left, [(parameters[2], "Orders")]);
        assert_eq!(split(&nothing, &orders, (18, 18)).left, []);
    }

    #[test]
    fn what_all_partitions_have_is_the_tables_and_the_rest_is_told() {
        let mut events = with("Events", &[]);
        events.kind = TableKind::Partitioned;
        let part = |text: &str, storage: &[&str]| Table {
            partition_of: Some(name("Events")),
            ..with(text, storage)
        };
        let monolith = catalog(vec![
            events.clone(),
            part("E1", &["fillfactor=70", "autovacuum_enabled=false"]),
            part("E2", &["autovacuum_enabled=true", "fillfactor=70"]),
            part("E3", &["autovacuum_enabled=true", "fillfactor=70"]),
        ]);
        let found = split(&monolith, &events, (18, 18));
        assert_eq!(found.taken, ["fillfactor=70"]);
        let left: Vec<(&str, &str)> =
            found.left.iter().map(|left| (left.parameter, left.why.as_str())).collect();
        let why = |who: &str| format!("of 3 partitions only {who} it, and the service has one table for all");
        assert_eq!(
            left,
            [
                ("autovacuum_enabled=false", why("E1 has").as_str()),
                ("autovacuum_enabled=true", why("E2 and 1 more have").as_str())
            ]
        );
        assert_eq!(found.left[0].of, "partitions of Events");
    }
}
