//! Defaults that draw numbers in a way that no catalog knows: a flip sets sequences, and has to know which.

use tokio_postgres::{Client, Error};

use crate::authority::Side;
use crate::catalog::Column;
use crate::mapping::SliceMapping;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// A column's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefault {
    /// The table, by the name that it has there.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// The expression.
    pub sql: String,
    /// The catalog knows a sequence that it draws from.
    pub draws: bool,
    /// Functions that it calls and that may do anything: volatile, neither built in nor an extension's.
    pub calls: Vec<String>,
}

impl ColumnDefault {
    /// The default of a column, as a catalog has it.
    #[must_use]
    pub fn of(table: &TableName, column: &Column) -> Option<Self> {
        Some(Self {
            table: table.clone(),
            column: column.name.clone(),
            sql: column.default_sql.clone()?,
            draws: column.sequence.is_some(),
            calls: column.default_calls.clone(),
        })
    }

    /// What is wrong with it. `database` is where it is, as an operator calls it.
    #[must_use]
    pub fn problem(&self, database: &str) -> Option<Problem> {
        let object = format!("{database}, column {}.{}", self.table, self.column);
        if !self.draws && nextval(&self.sql).is_some() {
            return Some(
                Problem::error("late-sequence", object)
                    .fact(format!("its default {} looks its sequence up by name for each row", self.sql))
                    .consequence(
                        "nothing else knows which one it is: the service does not get it, and no flip sets it",
                    )
                    .next(format!(
                        "run on the {database}: ALTER TABLE {} ALTER COLUMN {} SET DEFAULT nextval({}::regclass);",
                        self.table.sql(),
                        quote_ident(&self.column),
                        literal(&self.sql).unwrap_or("'…'")
                    )),
            );
        }
        (!self.calls.is_empty()).then(|| {
            Problem::warning("default-function", object)
                .fact(format!("its default calls {}, which may draw from a sequence", self.calls.join(", ")))
                .consequence("no flip sets a sequence that it does not know: a number could be given out twice")
                .next(
                    "where it draws from one, set that one in the service ahead of the monolith's before the flip (setval), or make \
                     the sequence the column's own (ALTER SEQUENCE … OWNED BY …)",
                )
        })
    }
}

/// From the call of nextval on: a name that only ends like it is another function's.
fn nextval(sql: &str) -> Option<&str> {
    let (at, _) = sql.match_indices("nextval(").find(|(at, _)| {
        let before = sql.get(..*at).and_then(|before| before.chars().next_back());
        !before.is_some_and(|one| one.is_alphanumeric() || "_$".contains(one))
    })?;
    sql.get(at..)
}

/// The text that is looked up, in its quotes: `'ids'` of `nextval(('ids'::text)::regclass)`.
fn literal(sql: &str) -> Option<&str> {
    let from = nextval(sql)?;
    let from = from.get(from.find('\'')?..)?;
    let end = from.find("'::text")?;
    from.get(..=end)
}

const SQL: &str = "
SELECT w.place, pg_get_expr(f.adbin, f.adrelid),
    EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
        WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass),
    ARRAY(SELECT DISTINCT format('%I.%I', n.nspname, p.proname) FROM pg_depend d
        JOIN pg_proc p ON p.oid = d.refobjid AND p.provolatile = 'v' JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_proc'::regclass
            AND n.nspname <> 'pg_catalog' AND NOT EXISTS (
                SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
        ORDER BY 1)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (rel, col, place)
JOIN pg_attribute a ON a.attrelid = to_regclass(w.rel) AND a.attname = w.col AND NOT a.attisdropped AND a.attgenerated = ''
JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
ORDER BY w.place";

/// The defaults of a slice's mapped columns on a side.
///
/// # Errors
/// What the server said.
pub(super) async fn read(
    client: &Client,
    mapping: &SliceMapping,
    side: Side,
) -> Result<Vec<ColumnDefault>, Error> {
    let columns: Vec<(&TableName, &str)> = mapping
        .tables
        .iter()
        .flat_map(|table| {
            table.columns.iter().map(move |column| match side {
                Side::Monolith => (&table.source, column.source.as_str()),
                Side::Service => (&table.target, column.target.as_str()),
            })
        })
        .collect();
    let (tables, names): (Vec<String>, Vec<&str>) =
        columns.iter().map(|(table, column)| (table.sql(), *column)).unzip();
    let rows = client.query(SQL, &[&tables, &names]).await?;
    let found = rows.iter().filter_map(|row| {
        let (table, column) = columns.get(usize::try_from(row.get::<_, i64>(0) - 1).ok()?)?;
        Some(ColumnDefault {
            table: (*table).clone(),
            column: (*column).to_owned(),
            sql: row.get(1),
            draws: row.get(2),
            calls: row.get(3),
        })
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_defaults_whose_numbers_nobody_knows_are_told_with_the_statement_that_makes_them_known() {
        let default = |sql: &str, draws: bool, calls: &[&str]| ColumnDefault {
            table: TableName::new("public", "t"),
            column: "id".to_owned(),
            sql: sql.to_owned(),
            draws,
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        };
        let told = |default: ColumnDefault| default.problem("monolith").map(|one| (one.code, one.next));
        assert_eq!(told(default("nextval('ids'::regclass)", true, &[])), None);
        assert_eq!(told(default("now()", false, &[])), None);
        assert_eq!(told(default("my_nextval('a'::text)", false, &[])), None);
        let (code, next) = told(default("nextval(('s.\"I''d\"'::text)::regclass)", false, &[])).unwrap();
        let cure = "run on the monolith: ALTER TABLE \"public\".\"t\" ALTER COLUMN \"id\" SET DEFAULT \
                    nextval('s.\"I''d\"'::regclass);";
        assert_eq!((code, next.as_str()), ("late-sequence", cure));
        let (code, _) = told(default("public.next_id()", false, &["public.next_id"])).unwrap();
        assert_eq!(code, "default-function");
    }
}
