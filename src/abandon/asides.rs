//! What was set aside of adopted tables, as it is put back: on the tables that it was taken from, whatever they are called now.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::AbandonError;
use crate::journal::abandonment;
use crate::journal::set_aside::{self, Named, SetAside};
use crate::name::{TableName, quote_ident};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aside {
    /// What puts it back, with the names of now.
    pub(super) sql: String,
    /// The tables that it names, by their numbers.
    on: Vec<(u32, TableName)>,
    /// A table that it was taken from, or refers to, is gone.
    lost: bool,
}

impl Aside {
    /// As it was written down, where `known` says on which tables it was. Pure.
    fn new(sql: &str, names: &[Named]) -> Self {
        let mut text = sql.to_owned();
        for named in names {
            if let Some(now) = &named.now {
                text = renamed(&text, named, now);
            }
        }
        let on = names.iter().filter_map(|named| Some((named.relation, named.now.clone()?))).collect();
        Self { sql: text, on, lost: names.iter().any(|named| named.now.is_none()) }
    }

    /// What puts it back, or writes down why not.
    pub(super) fn put_back(&self, slice: &str) -> String {
        if self.lost {
            return abandonment::leave_away(slice, &self.sql);
        }
        abandonment::put_back(slice, &self.sql, &self.on)
    }
}

/// A definition under the name that a table has now. Names stand in it in two forms: quoted, where it is ours, and where the server wrote
/// it only as far as they need it, behind ON and REFERENCES.
fn renamed(sql: &str, named: &Named, now: &TableName) -> String {
    if named.then == *now {
        return sql.to_owned();
    }
    let mut text = sql.replace(&named.then.sql(), &now.sql());
    for (before, after) in
        [(" ON ", " USING "), (" ON ONLY ", " USING "), (" REFERENCES ", "("), (" REFERENCES ONLY ", "(")]
    {
        let (from, to) = (format!("{before}{}{after}", named.plain), format!("{before}{}{after}", now.sql()));
        text = text.replace(&from, &to);
    }
    // Its indexes are in its schema.
    let index = |name: &TableName| format!("INDEX {}.", quote_ident(&name.schema));
    text.replace(&index(&named.then), &index(now))
}

/// Those of the slice's adopted tables, in the order in which they are put back, as `waiting` has them: table, object and SQL. What nobody
/// has noted the table of is put back under its name, where `there` says that a table of the slice has that.
pub(super) fn waiting(
    slice: &str,
    waiting: Vec<(String, String, String)>,
    (noted, there): (&[SetAside], &[(TableName, u32)]),
) -> Vec<Aside> {
    let one = |(table, object, sql): (String, String, String)| {
        let object = object.strip_prefix("validate ").unwrap_or(&object);
        let known =
            noted.iter().find(|one| one.slice == slice && one.table == table && (one.object == object));
        match known {
            Some(known) => Aside::new(&sql, &known.names),
            None => by_name(&sql, &table, there),
        }
    };
    waiting.into_iter().map(one).collect()
}

fn by_name(sql: &str, table: &str, there: &[(TableName, u32)]) -> Aside {
    let found = there.iter().find(|(name, _)| name.to_string() == table);
    let on: Vec<(u32, TableName)> = found.map(|(name, oid)| (*oid, name.clone())).into_iter().collect();
    Aside { sql: sql.to_owned(), lost: on.is_empty(), on }
}

/// Foreign keys between slices that are off: how each is shown, and what puts it back.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn between(
    service: &Client,
    slice: &str,
    noted: &[SetAside],
) -> Result<Vec<(String, Aside)>, AbandonError> {
    let mut off = Vec::new();
    for (object, sql) in abandonment::keys_between(service, slice).await? {
        let Some(names) = object.strip_prefix("foreign key ") else { continue };
        let known = noted.iter().rev().find(|one| one.object == object);
        let there = match known {
            Some(known) => is_on(service, (names, &known.table), known).await,
            None => has_key(service, names).await,
        };
        if !there.map_err(AbandonError::database("which foreign keys are off"))? {
            let aside = match known {
                Some(known) => Aside::new(&sql, &known.names),
                None => Aside { sql, on: Vec::new(), lost: false },
            };
            off.push((object, aside));
        }
    }
    Ok(off)
}

/// Whether the key is on the table that it was taken from.
async fn is_on(service: &Client, (names, table): (&str, &str), known: &SetAside) -> Result<bool, Error> {
    let key = names.strip_suffix(&format!(" of {table}")).unwrap_or(names);
    let of_table = known.names.iter().find(|named| named.then.to_string() == *table);
    let sql =
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND conname = $1 AND conrelid = $2)";
    let relation = of_table.map(|named| named.relation).unwrap_or_default();
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&key, Type::TEXT), (&relation, Type::OID)];
    service.query_typed_one(sql, &asked).await?.try_get(0)
}

/// By names: as they are written down, `NAME of TABLE`. Both may hold an ` of `, so each place is tried.
async fn has_key(service: &Client, names: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid \
                   JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE k.contype = 'f' AND k.conname = $1 AND n.nspname = $2 AND c.relname = $3)";
    let mut there = false;
    for (at, between) in names.match_indices(" of ") {
        let (Some(key), Some(table)) = (names.get(..at), names.get(at + between.len()..)) else { continue };
        let Ok(table) = TableName::parse(table, "public") else { continue };
        let asked: [(&(dyn ToSql + Sync), Type); 3] =
            [(&key, Type::TEXT), (&table.schema, Type::TEXT), (&table.name, Type::TEXT)];
        there |= service.query_typed_one(sql, &asked).await?.try_get::<_, bool>(0)?;
    }
    Ok(there)
}

/// Replica identities that `arm` changed, as they were before; of tables that do not go.
///
/// # Errors
/// [`AbandonError`].
pub(super) async fn identities(
    service: &Client,
    slice: &str,
    going: &[u32],
) -> Result<Vec<Aside>, AbandonError> {
    let found = set_aside::identities(service, slice).await?;
    let back = |one: set_aside::Identity| Aside {
        sql: format!("ALTER TABLE {} REPLICA IDENTITY {}", one.now.sql(), one.before),
        on: vec![(one.relation, one.now)],
        lost: false,
    };
    Ok(found.into_iter().filter(|one| !going.contains(&one.relation)).map(back).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(then: (&str, &str), plain: &str, now: Option<(&str, &str)>) -> Named {
        Named {
            then: TableName::new(then.0, then.1),
            plain: plain.into(),
            relation: 7,
            now: now.map(|(schema, name)| TableName::new(schema, name)),
        }
    }

    #[test]
    fn a_definition_follows_its_tables_and_no_other_of_a_like_name() {
        let orders = named(("sales", "orders"), "sales.orders", Some(("aside", "Orders")));
        for (sql, expected) in [
            (
                "ALTER TABLE \"sales\".\"orders\" ADD CONSTRAINT \"k\" UNIQUE (id); COMMENT ON INDEX \"sales\".\"k\" IS 'x'",
                "ALTER TABLE \"aside\".\"Orders\" ADD CONSTRAINT \"k\" UNIQUE (id); COMMENT ON INDEX \"aside\".\"k\" IS 'x'",
            ),
            (
                "CREATE UNIQUE INDEX k ON sales.orders USING btree (id)",
                "CREATE UNIQUE INDEX k ON \"aside\".\"Orders\" USING btree (id)",
            ),
            (
                "ALTER TABLE \"sales\".\"orders_2\" ADD CONSTRAINT \"k\" FOREIGN KEY (o) REFERENCES sales.orders(id)",
                "ALTER TABLE \"sales\".\"orders_2\" ADD CONSTRAINT \"k\" FOREIGN KEY (o) REFERENCES \"aside\".\"Orders\"(id)",
            ),
            (
                "CREATE UNIQUE INDEX k ON sales.orders_2 USING btree (id)",
                "CREATE UNIQUE INDEX k ON sales.orders_2 USING btree (id)",
            ),
        ] {
            assert_eq!(Aside::new(sql, std::slice::from_ref(&orders)).sql, expected);
        }
        assert!(Aside::new("", &[orders, named(("a", "b"), "a.b", None)]).lost);
    }
}
