//! Tables without an index that keeps a key's rows apart.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use crate::mapping::TableMapping;

/// Numbers of the tables, of `$1` to `$4`, in which no index is unique, immediate, valid and whole over exactly the named columns, all of
/// them NOT NULL: what PostgreSQL asks of a replica identity (documentation of ALTER TABLE). A table or column that is not there is
/// another matter. A NOT NULL that was never validated (18 and later) does not hold for every row.
const SQL: &str = "
WITH k AS (
    SELECT w.number, c.oid AS relid, array_agg(a.attnum) AS key, count(*) = count(a.attnum) AS known,
        bool_and(a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid AND o.contype = 'n'
            AND o.conkey = ARRAY[a.attnum] AND NOT o.convalidated)) AS filled
    FROM unnest($1::int4[], $2::text[], $3::text[], $4::text[]) AS w (number, schema, name, col)
    JOIN pg_namespace n ON n.nspname = w.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY 1, 2)
SELECT k.number FROM k WHERE k.known AND NOT (k.filled AND EXISTS (
    SELECT FROM pg_index x CROSS JOIN LATERAL (
        SELECT (string_to_array(x.indkey::text, ' ')::int2[])[1:x.indnkeyatts] AS columns) AS i
    WHERE x.indrelid = k.relid AND x.indisunique AND x.indimmediate AND x.indisvalid AND x.indpred IS NULL
        AND i.columns @> k.key AND i.columns <@ k.key))
ORDER BY 1";

/// Those of a slice's tables in the service that have a key in the plan and no such index there.
///
/// # Errors
/// What the server said.
pub async fn keyless<'a>(
    service: &Client,
    tables: &'a [TableMapping],
) -> Result<Vec<&'a TableMapping>, Error> {
    let (mut numbers, mut schemas, mut names, mut columns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, table) in (0_i32..).zip(tables) {
        for column in table.key_columns() {
            numbers.push(number);
            schemas.push(table.target.place_schema());
            names.push(table.target.name.as_str());
            columns.push(column.target.as_str());
        }
    }
    let of: [&(dyn ToSql + Sync); 4] = [&numbers, &schemas, &names, &columns];
    let rows = service.query(SQL, &of).await?;
    let numbers = rows.iter().filter_map(|row| usize::try_from(row.get::<_, i32>(0)).ok());
    Ok(numbers.filter_map(|number| tables.get(number)).collect())
}
