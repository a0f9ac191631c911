//! Who may use old tables: the rights that can be taken away, and the roles that need none.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use crate::journal::retirement::Right;
use crate::name::TableName;

/// A table, a partition or a sequence with the rights on it, the owner's left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its name.
    pub name: TableName,
    /// It is a sequence that a column of a table owns.
    pub is_sequence: bool,
    /// Its owner.
    pub owner: String,
    /// The session may take rights on it away: its role is a member of the owner's, or a superuser.
    pub ours: bool,
    /// Rights of others, and those that others gave the owner.
    pub rights: Vec<Right>,
}

impl Relation {
    /// The right is there, or one that is as good: with grant option in place of without, by whoever owns the relation now in place of
    /// who did.
    pub(super) fn has(&self, right: &Right) -> bool {
        self.rights.iter().any(|now| {
            now.relation == right.relation
                && now.column == right.column
                && now.grantee == right.grantee
                && now.privilege == right.privilege
                && (now.grantor == right.grantor || now.by_owner && right.by_owner)
                && (now.grantable || !right.grantable)
        })
    }
}

/// A role that may log in and needs no right on a table to use it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unstoppable {
    /// The role.
    pub role: String,
    /// The application uses it: it is one of `app_roles`, or a member of one.
    pub application: bool,
    /// Why, as a clause: `is a superuser`.
    pub why: String,
}

/// Partitions and owned sequences come with their tables.
const RELATIONS: &str = "WITH tables AS (SELECT DISTINCT r.oid FROM unnest($1::text[]) AS t (name), \
         LATERAL (SELECT to_regclass(t.name)::oid UNION SELECT relid FROM pg_partition_tree(to_regclass(t.name))) AS r (oid) \
         WHERE r.oid IS NOT NULL), \
     relations AS (SELECT oid FROM tables UNION SELECT d.objid FROM pg_depend d JOIN tables t ON t.oid = d.refobjid \
         JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')) \
     SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'S', pg_get_userbyid(c.relowner)::text, \
         pg_has_role(c.relowner, 'USAGE') FROM relations r \
     JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 2, 3";

/// Rights on relations, and on their columns.
const RIGHTS: &str = "SELECT x.oid, x.attname, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, \
         pg_get_userbyid(a.grantor)::text, a.privilege_type, a.is_grantable, a.grantor = x.relowner \
     FROM (SELECT c.oid, NULL::text AS attname, c.relacl AS acl, c.relowner FROM pg_class c WHERE c.oid = ANY ($1) \
         UNION ALL SELECT c.oid, t.attname::text, t.attacl, c.relowner FROM pg_class c \
             JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped WHERE c.oid = ANY ($1)) AS x, \
         LATERAL aclexplode(x.acl) AS a WHERE NOT (a.grantee = x.relowner AND a.grantor = x.relowner) ORDER BY 1, 2 NULLS FIRST, 3, 4, 5";

/// Reads relations and rights.
///
/// # Errors
/// The server's.
pub(super) async fn read(monolith: &Client, tables: &[TableName]) -> Result<Vec<Relation>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let rows = monolith.query(RELATIONS, &[&names]).await?;
    let oids: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let rights = monolith.query(RIGHTS, &[&oids]).await?;
    let relation = |row: &Row| {
        let (oid, is_sequence): (u32, bool) = (row.get(0), row.get(3));
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let of = rights.iter().filter(|right| right.get::<_, u32>(0) == oid);
        let right = |row: &Row| Right {
            relation: name.clone(),
            is_sequence,
            column: row.get(1),
            grantee: row.get(2),
            grantor: row.get(3),
            privilege: row.get(4),
            grantable: row.get(5),
            by_owner: row.get(6),
        };
        let owner: String = row.get(4);
        let rights = given_in_order(of.map(right).collect());
        Relation { name: name.clone(), is_sequence, owner, ours: row.get(5), rights }
    };
    Ok(rows.iter().map(relation).collect())
}

/// What somebody gives whom it was given comes after it.
fn given_in_order(mut left: Vec<Right>) -> Vec<Right> {
    let mut ordered: Vec<Right> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let had = |right: &Right| {
            right.by_owner
                || ordered.iter().any(|before| {
                    before.grantable
                        && before.grantee.as_ref() == Some(&right.grantor)
                        && before.privilege == right.privilege
                        && (before.column.is_none() || before.column == right.column)
                })
        };
        let (next, later): (Vec<Right>, Vec<Right>) = left.into_iter().partition(had);
        if next.is_empty() {
            ordered.extend(later);
            return ordered;
        }
        ordered.extend(next);
        left = later;
    }
    ordered
}

/// What is asked of the roles that nothing stops: owners of the tables, roles of links, roles of the application.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) owners: &'a [&'a str],
    pub(super) own: &'a [&'a str],
    pub(super) app_roles: &'a [String],
}

/// Roles that can use the tables without a right on them: by themselves, or as another role that they are a member of. Only those
/// that may log in, and the application's.
const UNSTOPPABLE: &str = "SELECT r.rolname::text, r.rolsuper, \
       r.rolname = ANY ($3) OR NOT r.rolsuper AND EXISTS (SELECT FROM unnest($3) AS a \
           WHERE EXISTS (SELECT FROM pg_roles g WHERE g.rolname = a) AND pg_has_role(r.oid, a::name, 'MEMBER')), \
       r.rolname = ANY ($1), \
       (SELECT string_agg(x::text, ', ') FROM unnest($1 || $2) AS x WHERE NOT r.rolsuper AND x <> r.rolname \
           AND EXISTS (SELECT FROM pg_roles g WHERE g.rolname = x) AND pg_has_role(r.oid, x::name, 'MEMBER')), \
       (SELECT string_agg(s.rolname::text, ', ') FROM pg_roles s WHERE s.rolsuper AND NOT r.rolsuper \
           AND pg_has_role(r.oid, s.oid, 'MEMBER')), \
       NOT r.rolsuper AND (pg_has_role(r.oid, 'pg_read_all_data', 'MEMBER') OR pg_has_role(r.oid, 'pg_write_all_data', 'MEMBER')) \
   FROM pg_roles r WHERE (r.rolcanlogin OR r.rolname = ANY ($3)) AND r.rolname <> ALL ($2) ORDER BY 1";

/// Reads them.
///
/// # Errors
/// The server's.
pub(super) async fn unstoppable(monolith: &Client, asked: Asked<'_>) -> Result<Vec<Unstoppable>, Error> {
    let rows = monolith
        .query_typed(
            UNSTOPPABLE,
            &[
                (&asked.owners, Type::TEXT_ARRAY),
                (&asked.own, Type::TEXT_ARRAY),
                (&asked.app_roles, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let found = rows.iter().filter_map(|row| {
        let (member, superuser): (Option<String>, Option<String>) = (row.get(4), row.get(5));
        let why = match (row.get(1), row.get(3), member, superuser, row.get(6)) {
            (true, _, _, _, _) => "is a superuser".to_owned(),
            (_, true, _, _, _) => "owns tables of it".to_owned(),
            (_, _, Some(of), _, _) => format!("is a member of {of}, which may use them"),
            (_, _, _, Some(of), _) => format!("is a member of the superuser {of}"),
            (_, _, _, _, true) => "is a member of pg_read_all_data or pg_write_all_data".to_owned(),
            (_, _, _, _, false) => return None,
        };
        Some(Unstoppable { role: row.get(0), application: row.get(2), why })
    });
    Ok(found.collect())
}

/// Which of these roles the session may act as.
///
/// # Errors
/// The server's.
pub(super) async fn acts_as(monolith: &Client, roles: &[&str]) -> Result<BTreeSet<String>, Error> {
    // From 16 on a membership may come without the right to SET ROLE.
    let sql = "SELECT r.rolname::text FROM pg_roles r WHERE r.rolname = ANY ($1) AND pg_has_role(r.oid, \
               CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)";
    let rows = monolith.query_typed(sql, &[(&roles, Type::TEXT_ARRAY)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What the roles of the links may do with the relations, by whatever way, as `role privilege relation`.
///
/// # Errors
/// The server's.
pub(super) async fn of_links(
    monolith: &Client,
    relations: &[Relation],
    own: &BTreeSet<String>,
) -> Result<BTreeSet<(String, String, String)>, Error> {
    let names: Vec<String> =
        relations.iter().filter(|one| !one.is_sequence).map(|one| one.name.sql()).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let sql = "SELECT r.rolname::text, p, t FROM pg_roles r, unnest($1::text[]) AS t, \
                   unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p \
               WHERE r.rolname = ANY ($2) AND has_table_privilege(r.oid, to_regclass(t), p)";
    let rows = monolith.query_typed(sql, &[(&names, Type::TEXT_ARRAY), (&own, Type::TEXT_ARRAY)]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_comes_after_the_one_that_it_was_given_by() {
        let right = |grantee: &str, grantor: &str, grantable| Right {
            relation: TableName::new("public", "t"),
            is_sequence: false,
            column: None,
            grantee: Some(grantee.into()),
            grantor: grantor.into(),
            by_owner: grantor == "owner",
            privilege: "SELECT".into(),
            grantable,
        };
        let (first, second, third) =
            (right("a", "owner", true), right("b", "a", true), right("c", "b", false));
        let ordered = given_in_order(vec![third.clone(), second.clone(), first.clone()]);
        assert_eq!(ordered, [first, second, third]);
    }
}
