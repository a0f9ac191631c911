//! The way back of a table: from the service to the monolith.
//!
//! Renamed columns get their old names back. What the plan leaves behind is in no statement of the way back: an update
//! keeps it, an insert takes the monolith's default. A row that leaves the filter in the service leaves the
//! monolith's table, too.

use super::{ColumnMapping, FilterTerm, TableMapping};

/// A table of the service as its catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTable {
    /// Every column that the stream may carry, in catalog order, with its `pg_type.oid` there.
    pub columns: Vec<(String, u32)>,
    /// It is partitioned.
    pub partitioned: bool,
}

/// A column of the mapping that the service's table does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("table {table} of the service has no column {column}")]
pub struct NoWayBack {
    /// The service's table.
    pub table: String,
    /// The column.
    pub column: String,
}

/// Turns a table's mapping round. Columns come in the order of the service's table, because that is the order in which
/// its stream describes them; columns that only the service has are left behind.
///
/// # Errors
/// [`NoWayBack`] when the service's table lacks a column of the mapping.
pub fn inverse(table: &TableMapping, there: &ServiceTable) -> Result<TableMapping, NoWayBack> {
    if let Some(lost) =
        table.columns.iter().find(|column| there.columns.iter().all(|(name, _)| *name != column.target))
    {
        return Err(NoWayBack { table: table.target.to_string(), column: lost.target.clone() });
    }
    // For each column of the way back, its place in the way there.
    let mut places = Vec::with_capacity(table.columns.len());
    let mut columns = Vec::with_capacity(table.columns.len());
    let mut dropped = Vec::new();
    for (name, type_oid) in &there.columns {
        let place = table.columns.iter().position(|column| column.target == *name);
        match place.and_then(|place| Some((place, table.columns.get(place)?))) {
            None => dropped.push(name.clone()),
            Some((place, column)) => {
                places.push(place);
                columns.push(ColumnMapping {
                    source: column.target.clone(),
                    target: column.source.clone(),
                    source_type_oid: *type_oid,
                    ..column.clone()
                });
            }
        }
    }
    let moved = |place: usize| places.iter().position(|candidate| *candidate == place);
    Ok(TableMapping {
        source: table.target.clone(),
        target: table.source.clone(),
        columns,
        dropped,
        // The plan speaks of the monolith's columns. One that comes to the service has no place there, and what it holds is the
        // service's alone, so it must not hold up the others.
        others_dropped: true,
        key: table.key.iter().filter_map(|place| moved(*place)).collect(),
        filter: table
            .filter
            .iter()
            .filter_map(|term| Some(FilterTerm { column: moved(term.column)?, values: term.values.clone() }))
            .collect(),
        soft_references: Vec::new(),
        partitioned: there.partitioned,
        key_correlation: None,
        reversed: true,
        ..table.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::KeyOrder;
    use crate::name::TableName;

    fn column(source: &str, target: &str, oid: u32) -> ColumnMapping {
        ColumnMapping {
            source: source.into(),
            target: target.into(),
            type_sql: "integer".into(),
            cast_sql: "pg_catalog.int4".into(),
            binary: true,
            source_type_oid: oid,
            class: None,
            identity_always: false,
        }
    }

    fn forward() -> TableMapping {
        TableMapping {
            source: TableName::new("public", "Orders"),
            target: TableName::new("shop", "orders"),
            columns: vec![
                column("Id", "id", 23),
                column("Region", "region", 23),
                column("Mood", "mood", 900),
            ],
            generated: Vec::new(),
            dropped: vec!["Legacy".into()],
            others_dropped: false,
            key: vec![0, 1],
            key_order: KeyOrder::Opaque,
            filter: vec![FilterTerm { column: 1, values: vec!["1".into()] }],
            soft_references: Vec::new(),
            partitioned: true,
            key_correlation: Some(1.0),
            rows_estimate: 0.0,
            heap_bytes: 0,
            reversed: false,
        }
    }

    fn there(names: &[(&str, u32)]) -> ServiceTable {
        let columns = names.iter().map(|(name, oid)| ((*name).to_owned(), *oid)).collect();
        ServiceTable { columns, partitioned: false }
    }

    #[test]
    fn names_keys_and_filters_find_their_way_back_in_the_services_order_of_columns() {
        let service = there(&[("mood", 1234), ("note", 25), ("region", 23), ("id", 23)]);
        let back = inverse(&forward(), &service).unwrap();
        let names: Vec<(&str, &str)> =
            back.columns.iter().map(|column| (column.source.as_str(), column.target.as_str())).collect();
        assert_eq!(names, [("mood", "Mood"), ("region", "Region"), ("id", "Id")]);
        assert_eq!((back.key.as_slice(), back.filter[0].column), ([2, 1].as_slice(), 1));
        assert_eq!((back.columns[0].source_type_oid, back.partitioned), (1234, false));
        assert_eq!(back.dropped, ["note"], "what only the service has stays there");
        assert!(back.others_dropped, "and so does what comes to it later");
        assert_eq!((back.source.name.as_str(), back.target.name.as_str()), ("orders", "Orders"));
        assert_eq!(back.label(), forward().label(), "a table has one name, whichever way it is carried");
    }

    #[test]
    fn a_column_that_the_service_lost_has_no_way_back() {
        let lost = inverse(&forward(), &there(&[("id", 23), ("region", 23)])).unwrap_err();
        assert_eq!(lost.to_string(), "table shop.orders of the service has no column mood");
    }
}
