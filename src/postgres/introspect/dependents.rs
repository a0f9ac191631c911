//! What depends on tables: views, functions, triggers, rules, policies, publications, subscriptions.

use tokio_postgres::{Client, Error, Row};

use super::tables::Tables;
use super::{Places, USER_SCHEMA, name_at};
use crate::catalog::{Dependent, DependentKind};
use crate::name::{TableName, identifiers_in, is_named};

/// Reads them all, in the order of table, kind and name. A text that names a table means the name that it had before it was moved away.
pub(super) async fn read(client: &Client, tables: &Tables, places: &Places) -> Result<Vec<Dependent>, Error> {
    let mut found = Vec::new();
    let parts = QUERIES.iter().enumerate();
    let parts =
        parts.map(|(number, (sql, _))| format!("SELECT {number} AS number, part.* FROM ({sql}) AS part"));
    let sql = parts.collect::<Vec<_>>().join(" UNION ALL ");
    for row in client.query_typed(&sql, &[]).await? {
        let table = name_at(&row, "schema", "table")?;
        let number = usize::try_from(row.try_get::<_, i32>("number")?).ok();
        let Some((_, kind)) = number.and_then(|number| QUERIES.get(number)) else { continue };
        if tables.contains_key(&table) {
            found.push(dependent(&row, table, *kind, places)?);
        }
    }
    found.extend(read_bodies(client, tables, places).await?);
    found.sort_by(|a, b| (&a.table, a.kind, &a.name).cmp(&(&b.table, b.kind, &b.name)));
    found.dedup_by(|a, b| (&a.table, a.kind, &a.name) == (&b.table, b.kind, &b.name));
    Ok(found)
}

fn dependent(
    row: &Row,
    table: TableName,
    kind: Option<DependentKind>,
    places: &Places,
) -> Result<Dependent, Error> {
    let detail: String = row.try_get("detail")?;
    let view = if detail == "m" { DependentKind::MaterializedView } else { DependentKind::View };
    let name = places.translated(name_at(row, "of_schema", "of_name")?).to_string();
    let own_word: Option<String> = row.try_get("own")?;
    let name = own_word.map_or(name.clone(), |own| format!("{own} on {name}"));
    let fires = matches!(kind, Some(DependentKind::Trigger | DependentKind::Rule));
    let detail = if fires { detail } else { String::new() };
    Ok(Dependent { kind: kind.unwrap_or(view), table, name, detail })
}

/// What is asked, in one statement, and what it finds; a view's row says which kind of view.
const QUERIES: [(&str, Option<DependentKind>); 7] = [
    (VIEWS, None),
    (TRIGGERS, Some(DependentKind::Trigger)),
    (RULES, Some(DependentKind::Rule)),
    (POLICIES, Some(DependentKind::Policy)),
    (PUBLICATIONS, Some(DependentKind::Publication)),
    (SUBSCRIPTIONS, Some(DependentKind::Subscription)),
    (SIGNATURES, Some(DependentKind::Function)),
];

// Every query gives: schema and table (what is depended on), own (a name that lives on a table, else null),
// of_schema and of_name (the object, or the table that `own` stands on), detail.

/// Views see a table also through other views.
const VIEWS: &str = "WITH RECURSIVE sees AS ( \
      SELECT r.ev_class AS view, d.refobjid AS relation FROM pg_rewrite r \
      JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid \
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class \
      WHERE r.rulename = '_RETURN' \
      UNION SELECT s.view, d.refobjid FROM sees s \
      JOIN pg_rewrite r ON r.ev_class = s.relation AND r.rulename = '_RETURN' \
      JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid \
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class) \
    SELECT n.nspname::text AS schema, c.relname::text AS table, NULL::text AS own, \
           vn.nspname::text AS of_schema, v.relname::text AS of_name, v.relkind::text AS detail \
    FROM sees s JOIN pg_class c ON c.oid = s.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_class v ON v.oid = s.view AND v.relkind IN ('v', 'm') \
    JOIN pg_namespace vn ON vn.oid = v.relnamespace AND vn.nspname NOT IN ('information_schema', 'strangler') \
      AND vn.nspname !~ '^pg_'";

/// Copies that partitions inherit, and our own gate, are left out.
const TRIGGERS: &str = "SELECT n.nspname::text AS schema, c.relname::text AS table, t.tgname::text AS own, \
           n.nspname::text AS of_schema, c.relname::text AS of_name, t.tgenabled::text AS detail \
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace \
    WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND pn.nspname <> 'strangler'";

/// A rule depends on the table it stands on and on those that its action names.
const RULES: &str = "SELECT n.nspname::text AS schema, c.relname::text AS table, r.rulename::text AS own, \
           sn.nspname::text AS of_schema, s.relname::text AS of_name, r.ev_enabled::text AS detail \
    FROM pg_rewrite r JOIN pg_class s ON s.oid = r.ev_class JOIN pg_namespace sn ON sn.oid = s.relnamespace \
    JOIN LATERAL (SELECT r.ev_class AS oid UNION SELECT d.refobjid FROM pg_depend d \
      WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass) on_ ON true \
    JOIN pg_class c ON c.oid = on_.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE r.rulename <> '_RETURN'";

/// A policy depends on the table it stands on and on those that its conditions name.
const POLICIES: &str = "SELECT n.nspname::text AS schema, c.relname::text AS table, p.polname::text AS own, \
           sn.nspname::text AS of_schema, s.relname::text AS of_name, '' AS detail \
    FROM pg_policy p JOIN pg_class s ON s.oid = p.polrelid JOIN pg_namespace sn ON sn.oid = s.relnamespace \
    JOIN LATERAL (SELECT p.polrelid AS oid UNION SELECT d.refobjid FROM pg_depend d \
      WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass) on_ ON true \
    JOIN pg_class c ON c.oid = on_.oid JOIN pg_namespace n ON n.oid = c.relnamespace";

/// The view expands FOR ALL TABLES and FOR TABLES IN SCHEMA.
const PUBLICATIONS: &str = "SELECT schemaname::text AS schema, tablename::text AS table, NULL::text AS own, \
           'public' AS of_schema, pubname::text AS of_name, '' AS detail FROM pg_publication_tables";

/// Only those of this database: `pg_subscription_rel` is local, `pg_subscription` shared.
const SUBSCRIPTIONS: &str = "SELECT n.nspname::text AS schema, c.relname::text AS table, NULL::text AS own, \
           'public' AS of_schema, s.subname::text AS of_name, '' AS detail \
    FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid \
    JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace";

/// Functions whose parameters or result are rows of a table, and those with an SQL-standard body, whose tables
/// PostgreSQL records.
const SIGNATURES: &str = "SELECT n.nspname::text AS schema, c.relname::text AS table, NULL::text AS own, \
           pn.nspname::text AS of_schema, p.proname::text AS of_name, '' AS detail \
    FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace pn ON pn.oid = p.pronamespace \
      AND pn.nspname NOT IN ('information_schema', 'strangler') AND pn.nspname !~ '^pg_' \
    LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid \
    LEFT JOIN pg_type e ON e.oid = t.typelem \
    JOIN pg_class c ON c.oid = CASE WHEN d.refclassid = 'pg_class'::regclass THEN d.refobjid \
      WHEN t.typrelid <> 0 THEN t.typrelid ELSE e.typrelid END \
    JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE d.classid = 'pg_proc'::regclass AND d.refclassid IN ('pg_class'::regclass, 'pg_type'::regclass)";

/// Functions whose text names a table. PostgreSQL does not look into such bodies, so neither does `pg_depend`.
async fn read_bodies(client: &Client, tables: &Tables, places: &Places) -> Result<Vec<Dependent>, Error> {
    let sql = format!(
        "SELECT n.nspname::text AS schema, p.proname::text AS name, p.prosrc AS body \
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND {USER_SCHEMA} \
         JOIN pg_language l ON l.oid = p.prolang AND l.lanname NOT IN ('internal', 'c') \
         WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid \
           AND e.deptype = 'e')"
    );
    let mut found = Vec::new();
    for row in client.query_typed(&sql, &[]).await? {
        let function = name_at(&row, "schema", "name")?.to_string();
        let body: String = row.try_get("body")?;
        let named = identifiers_in(&body);
        let names = tables.keys().map(|table| (table, places.translated(table.clone())));
        let names = names.filter(|(table, known)| is_named(known, &named) || is_named(table, &named));
        for (table, _) in names {
            found.push(Dependent {
                kind: DependentKind::Function,
                table: table.clone(),
                name: function.clone(),
                detail: String::new(),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_name_tables_as_postgresql_reads_them() {
        let named =
            identifiers_in("BEGIN INSERT INTO Audit SELECT * FROM sales.\"Orders\" o WHERE o.id=1; END");
        assert!(is_named(&TableName::new("public", "audit"), &named), "unquoted names fold to lower case");
        assert!(is_named(&TableName::new("sales", "Orders"), &named));
        assert!(!is_named(&TableName::new("public", "Orders"), &named), "another schema's table");
        assert!(!is_named(&TableName::new("public", "Audit"), &named), "the case matters");
        assert!(!is_named(&TableName::new("public", "order"), &named), "whole words only");
    }

    #[test]
    fn names_inside_strings_are_seen() {
        let named = identifiers_in("EXECUTE format('DELETE FROM %I.x; UPDATE \"Car\"\"ts\" SET a=1', s)");
        assert!(is_named(&TableName::new("public", "Car\"ts"), &named));
    }
}
