//! Who holds the rows that a soft reference names.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::super::form::Side;
use super::super::sides::{APPLICATION, Sides};
use super::{Neighbour, OrphanError};
use crate::journal::slices::{self, GateRow};
use crate::mapping::input::value_sql;
use crate::mapping::{SliceMapping, SoftReference, TableMapping};
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::Session;
use crate::postgres::equality::{self, BUILT_IN};

/// One place where referenced rows are.
#[derive(Debug)]
pub(super) struct Owner {
    /// In words: `monolith`, `service orders`.
    pub(super) place: String,
    /// The service of the slice that took the table; `None` for the monolith.
    pub(super) service: Option<String>,
    pub(super) table: TableName,
    pub(super) columns: Vec<String>,
    /// By which operator each of them is looked up.
    equality: Vec<String>,
    partitioned: bool,
    pub(super) session: Session,
}

impl Owner {
    async fn new(
        (place, service): (String, Option<String>),
        table: TableName,
        columns: Vec<String>,
        session: Session,
    ) -> Result<Self, OrphanError> {
        let names = columns.iter().map(String::as_str).collect();
        let equality = equality::of_keys(&session, &[(table.sql(), names)]).await?;
        let equality = equality.into_iter().next().unwrap_or_default();
        let partitioned = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)";
        let row = session.query_opt(partitioned, &[&table.sql()]).await?;
        let partitioned = row.is_some_and(|row| row.get(0));
        Ok(Self { place, service, table, columns, equality, partitioned, session })
    }

    /// For a FROM clause. A table that stays may be partitioned, which the mapping does not know of it; rows of tables that inherit
    /// from another one are none that a foreign key could find.
    pub(super) fn from(&self) -> String {
        if self.partitioned { self.table.sql() } else { format!("ONLY {}", self.table.sql()) }
    }

    /// A condition that a row of the owner, as `r`, has the reference's values; `value` gives the expression of each.
    pub(super) fn matches(&self, value: impl Fn(usize) -> String) -> String {
        let terms = self.columns.iter().enumerate();
        let terms = terms.map(|(index, column)| {
            let equals = self.equality.get(index).map_or(BUILT_IN, String::as_str);
            format!("r.{} {equals} {}", quote_ident(column), value(index))
        });
        terms.collect::<Vec<_>>().join(" AND ")
    }

    /// Which of the values, by their places, no row here has.
    pub(super) async fn lacks(
        &self,
        values: &[Vec<String>],
        casts: &[&str],
    ) -> Result<Vec<bool>, tokio_postgres::Error> {
        let (names, arrays) = lists(casts.len());
        let matches =
            self.matches(|index| value_sql(casts.get(index).unwrap_or(&"text"), &format!("w.k{index}$")));
        let sql = format!(
            "SELECT w.o$ FROM unnest({arrays}) WITH ORDINALITY AS w ({names}, o$) \
             WHERE NOT EXISTS (SELECT FROM {} AS r WHERE {matches})",
            self.from()
        );
        let mut lacking = vec![false; values.len()];
        for row in ask(&self.session, &sql, values, casts.len()).await? {
            let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).ok();
            if let Some(place) = place.and_then(|place| lacking.get_mut(place)) {
                *place = true;
            }
        }
        Ok(lacking)
    }
}

/// Names and parameters of an `unnest` of so many lists.
pub(super) fn lists(count: usize) -> (String, String) {
    let names: Vec<String> = (0..count).map(|index| format!("k{index}$")).collect();
    let arrays: Vec<String> = (1..=count).map(|number| format!("${number}::text[]")).collect();
    (names.join(", "), arrays.join(", "))
}

/// Runs a statement over values, a list for each column.
pub(super) async fn ask(
    client: &Client,
    sql: &str,
    values: &[Vec<String>],
    count: usize,
) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
    let part = |index: usize| -> Vec<Option<&str>> {
        values.iter().map(|value| value.get(index).map(String::as_str)).collect()
    };
    let columns: Vec<_> = (0..count).map(part).collect();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        columns.iter().map(|column| (column as _, Type::TEXT_ARRAY)).collect();
    client.query_typed(sql, &parameters).await
}

/// Who holds the rows of both ends of a reference, as the gates say.
pub(super) struct Owners {
    /// Everybody who may hold referenced rows.
    pub(super) places: Vec<Owner>,
    /// Gates by which these are known, and by which the referring rows are the authority's: those of the services.
    gates: Vec<(Session, String, Option<GateRow>)>,
}

impl Owners {
    /// In words, the slice whose authority has moved since they were asked: what was not found then may be with somebody
    /// else. The referring slice is `own`, with the side that its rows were read on.
    pub(super) async fn moved(&self, own: (&str, Side)) -> Result<Option<String>, OrphanError> {
        for (session, slice, then) in &self.gates {
            let now = slices::gate_if_any(session, slice).await.map_err(OrphanError::journal)?;
            let side = if is_open(now.as_ref()) { Side::Target } else { Side::Source };
            if now != *then || own.0 == slice && own.1 != side {
                return Ok(Some(format!("the authority of slice {slice} moved meanwhile")));
            }
        }
        Ok(None)
    }
}

/// Asks who holds the rows that a reference of `slice` names. A table that open slices took in part is held by several;
/// where one took all of it, the monolith's rows are only a copy.
pub(super) async fn owners(
    sides: &Sides,
    (slice, reference): (&str, &SoftReference),
    neighbours: &[Neighbour<'_>],
) -> Result<Owners, OrphanError> {
    let (mut places, mut gates) = (Vec::new(), Vec::new());
    let mut taken_whole = false;
    for Neighbour { mapping, server } in neighbours {
        let table = mapping.tables.iter().find(|table| table.source == reference.references);
        if table.is_none() && mapping.slice != slice {
            continue;
        }
        let session = server.connect(APPLICATION).await?;
        let gate = slices::gate_if_any(&session, &mapping.slice).await.map_err(OrphanError::journal)?;
        if gate.is_none() {
            is_still_the_monoliths(sides, mapping).await?;
        }
        let open = is_open(gate.as_ref());
        gates.push((session, mapping.slice.clone(), gate));
        if let Some(table) = table.filter(|_| open) {
            taken_whole |= table.filter.is_empty();
            let service = mapping.service.clone();
            let at = (format!("service {service}"), Some(service));
            let session = server.connect(APPLICATION).await?;
            session.set_unhurried(true);
            places.push(Owner::new(at, table.target.clone(), targets(table, reference)?, session).await?);
        }
    }
    if !taken_whole {
        let (table, columns) = (reference.references.clone(), reference.referenced_columns.clone());
        let session = sides.monolith_read.connect(APPLICATION).await?;
        session.set_unhurried(true);
        places.push(Owner::new(("monolith".to_owned(), None), table, columns, session).await?);
    }
    Ok(Owners { places, gates })
}

/// A slice whose service has nothing of it was not provisioned yet; or its link leads to another database, which the monolith tells.
async fn is_still_the_monoliths(sides: &Sides, mapping: &SliceMapping) -> Result<(), OrphanError> {
    let session = sides.monolith_read.connect(APPLICATION).await?;
    let gate = slices::gate_if_any(&session, &mapping.slice).await.map_err(OrphanError::journal)?;
    if gate.is_none() || is_open(gate.as_ref()) {
        return Ok(());
    }
    Err(OrphanError::Astray { slice: mapping.slice.clone(), service: mapping.service.clone() })
}

fn is_open(gate: Option<&GateRow>) -> bool {
    gate.is_some_and(|gate| gate.state == "OPEN")
}

/// The referenced columns by their names in the service.
fn targets(table: &TableMapping, reference: &SoftReference) -> Result<Vec<String>, OrphanError> {
    let target = |name: &String| {
        let column = table.column(name).map(|column| column.target.clone());
        column.ok_or_else(|| OrphanError::NotCarried { table: table.source.clone(), column: name.clone() })
    };
    reference.referenced_columns.iter().map(target).collect()
}
