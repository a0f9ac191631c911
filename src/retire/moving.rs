//! What goes into quarantine with old tables, what would follow it there, and whether it could come back.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::rights::{Relation, oids};
use crate::journal::holdings::Holding;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;
use crate::words;

/// Longest definition in a problem, in characters: the beginning tells which it is.
const DEFINITION_CHARS: usize = 300;

/// Something that has a schema of its own to be moved out of; indexes, sequences that a column owns, and row types go with their table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    /// As the server calls it.
    pub(super) name: TableName,
    pub(super) oid: u32,
    pub(super) owner: String,
    /// Extended statistics; else a table or partition.
    pub(super) statistics: bool,
    /// The administrator can act as its owner.
    pub(super) ours: bool,
}

impl Object {
    /// `ALTER …` that moves it.
    pub(super) fn to(&self, schema: &str) -> String {
        let what = if self.statistics { "STATISTICS" } else { "TABLE" };
        format!("ALTER {what} {} SET SCHEMA {}", self.name.sql(), quote_ident(schema))
    }
}

const STATISTICS: &str = "SELECT n.nspname::text, s.stxname::text, s.oid, pg_get_userbyid(s.stxowner)::text, \
        pg_has_role(s.stxowner, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END) \
    FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY ($1) ORDER BY 1, 2";

/// The relations, and the extended statistics on them.
///
/// # Errors
/// The server's.
pub(super) async fn objects(monolith: &Client, relations: &[Relation]) -> Result<Vec<Object>, Error> {
    let of = |relation: &Relation| Object {
        name: relation.name.clone(),
        oid: relation.oid,
        owner: relation.owner.clone(),
        statistics: false,
        ours: relation.ours,
    };
    let mut found: Vec<Object> = relations.iter().map(of).collect();
    let oids = oids(relations);
    let rows = monolith.query_typed(STATISTICS, &[(&oids, Type::OID_ARRAY)]).await?;
    found.extend(rows.iter().map(|row| Object {
        name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        oid: row.get(2),
        owner: row.get(3),
        statistics: true,
        ours: row.get(4),
    }));
    Ok(found)
}

/// Extended statistics that a superuser, or whoever else may, has made on somebody's table belong to himself, and only who can act as
/// their owner can move them.
pub(super) fn not_owner(objects: &[Object], user: &str) -> Vec<Problem> {
    let problem = |object: &Object| {
        Problem::error("not-owner", format!("statistics {}", object.name))
            .fact(format!("they belong to {}, and {user} can't act as that role", object.owner))
            .consequence("they go with their table, and can't be moved")
            .next(format!(
                "as {} or a superuser: ALTER STATISTICS {} OWNER TO the role that owns their table; or drop them",
                quote_ident(&object.owner),
                object.name.sql()
            ))
    };
    objects.iter().filter(|object| object.statistics && !object.ours).map(problem).collect()
}

/// Publications other than ours ($2) that one of the relations ($1) is in, by name, or with all tables of its schema or database.
const PUBLISHED: &str = "SELECT p.pubname::text, c.oid, 'it holds the table' FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
        JOIN pg_class c ON c.oid = r.prrelid WHERE c.oid = ANY ($1) AND p.pubname <> $2 \
    UNION ALL SELECT p.pubname::text, NULL, 'it is FOR ALL TABLES' FROM pg_publication p WHERE p.puballtables AND p.pubname <> $2";
const SCHEMA_PUBLISHED: &str = "SELECT p.pubname::text, c.oid, 'it is FOR TABLES IN SCHEMA' FROM pg_publication p \
        JOIN pg_publication_namespace s ON s.pnpubid = p.oid JOIN pg_class c ON c.relnamespace = s.pnnspid \
    WHERE c.oid = ANY ($1) AND p.pubname <> $2";

/// Publications of others that a table would leave without a word when it is dropped. `own` is the slice's own one.
///
/// # Errors
/// The server's.
pub(super) async fn published(
    monolith: &Client,
    relations: &[Relation],
    own: &str,
) -> Result<Vec<Problem>, Error> {
    let oids = oids(relations);
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&oids, Type::OID_ARRAY), (&own, Type::NAME)];
    let mut rows = monolith.query_typed(PUBLISHED, &asked).await?;
    // From PostgreSQL 15 on.
    let there = "SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
    if monolith.query_typed_one(there, &[]).await?.try_get(0)? {
        rows.extend(monolith.query_typed(SCHEMA_PUBLISHED, &asked).await?);
    }
    let problem = |row: &Row| {
        let (publication, oid, why): (&str, Option<u32>, &str) = (row.get(0), row.get(1), row.get(2));
        let table = relations.iter().find(|relation| Some(relation.oid) == oid);
        let table = table.map_or_else(|| "the old tables".to_owned(), |table| table.name.to_string());
        Problem::error("retire-publication", publication)
            .fact(format!("the publication has {table}: {why}"))
            .consequence("its subscribers would silently get nothing more of the table")
            .next(format!(
                "move its subscribers to the service's database, then: ALTER PUBLICATION {publication} DROP TABLE …, or DROP PUBLICATION \
                 {publication}",
                publication = quote_ident(publication)
            ))
    };
    Ok(rows.iter().map(problem).collect())
}

/// Whatever depends on the relations ($1), on sequences that their columns own or on their row types, and is neither moved with them nor a
/// publication's entry or statistics; and keys and parents outside. Only what PostgreSQL binds by number: it follows without a word.
const FOLLOWERS: &str = "WITH moved AS (SELECT unnest($1::oid[]) AS oid), \
    all_moved AS (SELECT oid FROM moved UNION SELECT d.objid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') \
            AND d.refobjid IN (SELECT oid FROM moved)), \
    types AS (SELECT t.oid FROM pg_type t WHERE t.typrelid IN (SELECT oid FROM moved) \
        UNION SELECT t.typarray FROM pg_type t WHERE t.typrelid IN (SELECT oid FROM moved)), \
    found AS (SELECT DISTINCT d.classid, d.objid FROM pg_depend d \
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM all_moved) \
            OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (SELECT oid FROM types WHERE oid <> 0) \
        UNION SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k WHERE k.contype = 'f' \
            AND k.conrelid IN (SELECT oid FROM moved) AND k.confrelid NOT IN (SELECT oid FROM moved)), \
    outside (kind, classid, objid, definition) AS ( \
        SELECT CASE WHEN r.rulename <> '_RETURN' THEN 'rewrite rule' WHEN v.relkind = 'm' THEN 'materialized view' ELSE 'view' END, \
            CASE WHEN r.rulename = '_RETURN' THEN 'pg_class'::regclass ELSE 'pg_rewrite'::regclass END, \
            CASE WHEN r.rulename = '_RETURN' THEN v.oid ELSE r.oid END, \
            CASE WHEN r.rulename = '_RETURN' THEN pg_get_viewdef(v.oid) ELSE pg_get_ruledef(r.oid) END \
        FROM found f JOIN pg_rewrite r ON f.classid = 'pg_rewrite'::regclass AND r.oid = f.objid JOIN pg_class v ON v.oid = r.ev_class \
        WHERE r.ev_class NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'function', f.classid, p.oid, CASE WHEN p.prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(p.oid) END \
        FROM found f JOIN pg_proc p ON f.classid = 'pg_proc'::regclass AND p.oid = f.objid \
        UNION ALL SELECT 'policy', f.classid, p.oid, concat_ws(' WITH CHECK ', pg_get_expr(p.polqual, p.polrelid), \
            pg_get_expr(p.polwithcheck, p.polrelid)) \
        FROM found f JOIN pg_policy p ON f.classid = 'pg_policy'::regclass AND p.oid = f.objid WHERE p.polrelid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT CASE k.contype WHEN 'f' THEN 'foreign key' ELSE 'constraint' END, f.classid, k.oid, pg_get_constraintdef(k.oid) \
        FROM found f JOIN pg_constraint k ON f.classid = 'pg_constraint'::regclass AND k.oid = f.objid \
        WHERE k.conparentid = 0 AND (k.conrelid NOT IN (SELECT oid FROM moved) \
            OR k.contype = 'f' AND k.confrelid NOT IN (SELECT oid FROM moved)) \
        UNION ALL SELECT 'default', f.classid, d.oid, pg_get_expr(d.adbin, d.adrelid) \
        FROM found f JOIN pg_attrdef d ON f.classid = 'pg_attrdef'::regclass AND d.oid = f.objid WHERE d.adrelid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'trigger', f.classid, t.oid, pg_get_triggerdef(t.oid) \
        FROM found f JOIN pg_trigger t ON f.classid = 'pg_trigger'::regclass AND t.oid = f.objid \
        WHERE NOT t.tgisinternal AND t.tgrelid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT CASE WHEN c.relkind = 'c' THEN 'type' ELSE 'table' END, f.classid, c.oid, NULL \
        FROM found f JOIN pg_class c ON f.classid = 'pg_class'::regclass AND c.oid = f.objid \
        WHERE c.relkind IN ('r', 'p', 'f', 'm', 'c') AND c.oid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'index', f.classid, x.indexrelid, pg_get_indexdef(x.indexrelid) \
        FROM found f JOIN pg_index x ON f.classid = 'pg_class'::regclass AND x.indexrelid = f.objid \
            JOIN pg_class c ON c.oid = x.indrelid AND c.relkind IN ('r', 'p', 'm') WHERE c.oid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'statistics object', f.classid, s.oid, pg_get_statisticsobjdef(s.oid) \
        FROM found f JOIN pg_statistic_ext s ON f.classid = 'pg_statistic_ext'::regclass AND s.oid = f.objid \
        WHERE s.stxrelid NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'type', f.classid, t.oid, NULL \
        FROM found f JOIN pg_type t ON f.classid = 'pg_type'::regclass AND t.oid = f.objid \
        WHERE t.typrelid = 0 AND t.oid NOT IN (SELECT oid FROM types) \
        UNION ALL SELECT 'table', 'pg_class'::regclass, i.inhparent, NULL FROM pg_inherits i \
        WHERE i.inhrelid IN (SELECT oid FROM moved) AND i.inhparent NOT IN (SELECT oid FROM moved) \
        UNION ALL SELECT 'object', f.classid, f.objid, NULL FROM found f WHERE f.classid NOT IN ('pg_rewrite'::regclass, 'pg_proc'::regclass, \
            'pg_policy'::regclass, 'pg_constraint'::regclass, 'pg_attrdef'::regclass, 'pg_trigger'::regclass, 'pg_class'::regclass, \
            'pg_type'::regclass, 'pg_publication_rel'::regclass, 'pg_statistic_ext'::regclass)) \
    SELECT DISTINCT o.kind, (pg_identify_object(o.classid, o.objid, 0)).identity, o.definition FROM outside o ORDER BY 1, 2";

/// What would follow the relations without a word. Those of these `kinds` are told elsewhere.
///
/// # Errors
/// The server's.
pub(super) async fn followers(
    monolith: &Client,
    relations: &[Relation],
    told: &[&str],
) -> Result<Vec<Problem>, Error> {
    let oids = oids(relations);
    let rows = monolith.query_typed(FOLLOWERS, &[(&oids, Type::OID_ARRAY)]).await?;
    let rows = rows.iter().filter(|row| !told.contains(&row.get::<_, &str>(0)));
    Ok(rows.map(follower).collect())
}

fn follower(row: &Row) -> Problem {
    let (kind, name, definition): (&str, &str, Option<&str>) = (row.get(0), row.get(1), row.get(2));
    let (code, next) = match kind {
        "view" => ("retire-view", "move its readers to the service, then: DROP VIEW …"),
        "materialized view" => {
            ("retire-view", "move its readers to the service, then: DROP MATERIALIZED VIEW …")
        }
        "rewrite rule" => ("retire-rule", "DROP RULE …"),
        "policy" => ("retire-policy", "write the policy without it, or: DROP POLICY …"),
        "foreign key" => {
            ("retire-foreign-key", "ALTER TABLE … DROP CONSTRAINT …, once the application checks it itself")
        }
        "function" => (
            "retire-body",
            "DROP FUNCTION …, or write its body as text, so that it looks names up when it is called",
        ),
        _ => ("retire-follower", "take the old table out of it, or drop it"),
    };
    let text = definition.map(|text| format!(": {}", words::one_line(text, DEFINITION_CHARS)));
    Problem::error(code, name)
        .fact(format!(
            "the {kind} is bound to old tables, to their sequences or rows{}",
            text.unwrap_or_default()
        ))
        .consequence("it would follow them unseen when they are moved away, and keep them from being dropped")
        .next(next)
}

/// Other slices that have one of the tables: they would lose it.
pub(super) fn shared(slice: &str, tables: &[TableName], holdings: &[Holding]) -> Vec<Problem> {
    let others = holdings.iter().filter(|one| one.slice != slice && tables.contains(&one.table));
    let of: BTreeSet<(&TableName, &str)> = others.map(|one| (&one.table, one.slice.as_str())).collect();
    let problem = |(table, other): (&TableName, &str)| {
        Problem::error("retire-shared", table)
            .fact(format!("slice {other} has it, too"))
            .consequence("its mirror, its gate and its comparisons look for the table where it is")
            .next(format!("retire slice {slice} when no other slice has its tables any more"))
    };
    of.into_iter().map(problem).collect()
}

/// Who moves an object out of quarantine: whoever owns it, or the administrator.
const MAY_CREATE: &str = "SELECT w.owner, w.schema, n.oid IS NOT NULL, \
        coalesce(has_schema_privilege(o.oid, n.oid, 'CREATE'), false), \
        coalesce(has_schema_privilege(n.oid, 'CREATE') AND pg_has_role(o.oid, 'USAGE'), false) \
    FROM unnest($1::text[], $2::text[]) AS w (owner, schema) LEFT JOIN pg_namespace n ON n.nspname = w.schema \
        LEFT JOIN pg_roles o ON o.rolname = w.owner";

/// Who puts objects of an owner into a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Puts {
    /// Their owner.
    Owner,
    /// The administrator.
    Admin,
}

/// For each owner and schema, who can put his objects there; and what stands in the way.
///
/// # Errors
/// The server's.
pub(super) async fn who_puts(
    monolith: &Client,
    wanted: &BTreeSet<(String, String)>,
) -> Result<(BTreeMap<(String, String), Puts>, Vec<Problem>), Error> {
    let (owners, schemas): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|(owner, schema)| (owner.as_str(), schema.as_str())).unzip();
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&owners, Type::TEXT_ARRAY), (&schemas, Type::TEXT_ARRAY)];
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    for row in monolith.query_typed(MAY_CREATE, &asked).await? {
        let (owner, schema): (String, String) = (row.get(0), row.get(1));
        let object = format!("schema {schema}");
        match (row.get(2), row.get(3), row.get(4)) {
            (true, true, _) => drop(found.insert((owner, schema), Puts::Owner)),
            (true, false, true) => drop(found.insert((owner, schema), Puts::Admin)),
            (false, _, _) => problems.push(
                Problem::error("schema-gone", object)
                    .fact("it is not there")
                    .consequence("tables that came from it can't be brought back")
                    .next(format!("CREATE SCHEMA {};", quote_ident(&schema))),
            ),
            (true, false, false) => problems.push(
                Problem::error("no-create", object)
                    .fact(format!(
                        "{owner} may not create anything in it, nor may the administrator's link in its stead"
                    ))
                    .consequence("tables of that owner could not be brought back into it")
                    .next(format!(
                        "as its owner, or a superuser: GRANT CREATE ON SCHEMA {} TO {};",
                        quote_ident(&schema),
                        quote_ident(&owner)
                    )),
            ),
        }
    }
    Ok((found, problems))
}

/// Names in quarantine schemas ($1) that others have by now in the schemas that they came from ($2): of relations, of types, which
/// every table has under its own name, and of extended statistics. The type of a newcomer's arrays is told with the newcomer.
const TAKEN: &str = "WITH w AS (SELECT q.oid AS quarantine, b.oid AS back, u.back_to \
        FROM unnest($1::text[], $2::text[]) AS u (quarantine, back_to) \
        JOIN pg_namespace q ON q.nspname = u.quarantine JOIN pg_namespace b ON b.nspname = u.back_to) \
    SELECT o.relname::text, w.back_to FROM w JOIN pg_class c ON c.relnamespace = w.quarantine AND c.relkind NOT IN ('t') \
        JOIN pg_class o ON o.relnamespace = w.back AND o.relname = c.relname \
    UNION SELECT o.typname::text, w.back_to FROM w JOIN pg_type t ON t.typnamespace = w.quarantine \
        JOIN pg_type o ON o.typnamespace = w.back AND o.typname = t.typname \
        WHERE NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = o.oid) \
    UNION SELECT o.stxname::text, w.back_to FROM w JOIN pg_statistic_ext s ON s.stxnamespace = w.quarantine \
        JOIN pg_statistic_ext o ON o.stxnamespace = w.back AND o.stxname = s.stxname ORDER BY 2, 1";

/// What has come under the names of what is in quarantine.
///
/// # Errors
/// The server's.
pub(super) async fn taken_names(
    monolith: &Client,
    schemas: &[(String, String)],
) -> Result<Vec<Problem>, Error> {
    let (from, to): (Vec<&str>, Vec<&str>) =
        schemas.iter().map(|(from, to)| (from.as_str(), to.as_str())).unzip();
    let asked: [(&(dyn ToSql + Sync), Type); 2] = [(&from, Type::TEXT_ARRAY), (&to, Type::TEXT_ARRAY)];
    let rows = monolith.query_typed(TAKEN, &asked).await?;
    let problem = |row: &Row| {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(0));
        Problem::error("name-taken", &name)
            .fact("another relation, type or statistics object has come under the name of one that is in quarantine")
            .consequence("what is in quarantine can't come back under its name")
            .next(format!("rename or drop {}", name.sql()))
    };
    Ok(rows.iter().map(problem).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_two_slices_is_nobodys_alone() {
        let table = |name: &str| TableName::new("public", name);
        let holding = |name: &str, slice: &str, gated: bool| Holding {
            table: table(name),
            slice: slice.into(),
            plan: None,
            gated,
        };
        let holdings = [
            holding("a", "one", true),
            holding("a", "two", true),
            holding("a", "two", false),
            holding("b", "two", true),
        ];
        let found = shared("one", &[table("a")], &holdings);
        let said: Vec<_> = found.iter().map(|problem| (problem.code, problem.fact.as_str())).collect();
        assert_eq!(said, [("retire-shared", "slice two has it, too")]);
        assert_eq!(shared("two", &[table("b")], &holdings), Vec::new());
    }

    #[test]
    fn what_is_moved_is_named_where_it_stands() {
        let object = |statistics| Object {
            name: TableName::new("sales", "O\"s"),
            oid: 7,
            owner: "owner".into(),
            statistics,
            ours: true,
        };
        assert_eq!(object(false).to("q"), "ALTER TABLE \"sales\".\"O\"\"s\" SET SCHEMA \"q\"");
        assert_eq!(object(true).to("q"), "ALTER STATISTICS \"sales\".\"O\"\"s\" SET SCHEMA \"q\"");
    }
}
