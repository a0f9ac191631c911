//! Who may use old tables: the rights that can be taken away, and the roles that need none.

use std::collections::BTreeSet;

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
    /// Rights of others.
    pub rights: Vec<Right>,
}

/// A role that may log in and needs no right on a table to use it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unstoppable {
    /// The role.
    pub role: String,
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
         pg_get_userbyid(a.grantor)::text, a.privilege_type, a.is_grantable \
     FROM (SELECT c.oid, NULL::text AS attname, c.relacl AS acl, c.relowner FROM pg_class c WHERE c.oid = ANY ($1) \
         UNION ALL SELECT c.oid, t.attname::text, t.attacl, c.relowner FROM pg_class c \
             JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped WHERE c.oid = ANY ($1)) AS x, \
         LATERAL aclexplode(x.acl) AS a WHERE a.grantee <> x.relowner ORDER BY 1, 2 NULLS FIRST, 3, 4, 5";

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
        };
        let owner: String = row.get(4);
        let rights = given_in_order(&owner, of.map(right).collect());
        Relation { name: name.clone(), is_sequence, owner, ours: row.get(5), rights }
    };
    Ok(rows.iter().map(relation).collect())
}

/// What somebody gives whom it was given comes after it.
fn given_in_order(owner: &str, mut left: Vec<Right>) -> Vec<Right> {
    let mut ordered: Vec<Right> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let had = |right: &Right| {
            right.grantor == owner
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

/// Roles that may log in and use the tables without a right on them.
///
/// # Errors
/// The server's.
pub(super) async fn unstoppable(
    monolith: &Client,
    relations: &[Relation],
) -> Result<Vec<Unstoppable>, Error> {
    let owners: BTreeSet<&str> = relations.iter().map(|relation| relation.owner.as_str()).collect();
    let owners: Vec<&str> = owners.into_iter().collect();
    let sql = "SELECT r.rolname::text, r.rolsuper, \
                   (SELECT string_agg(o::text, ', ') FROM unnest($1::text[]) AS o WHERE pg_has_role(r.oid, o::name, 'MEMBER')), \
                   pg_has_role(r.oid, 'pg_read_all_data', 'MEMBER') OR pg_has_role(r.oid, 'pg_write_all_data', 'MEMBER') \
               FROM pg_roles r WHERE r.rolcanlogin ORDER BY 1";
    let rows = monolith.query(sql, &[&owners]).await?;
    let found = rows.iter().filter_map(|row| {
        let (role, owner): (String, Option<String>) = (row.get(0), row.get(2));
        let why = if row.get(1) {
            "is a superuser".to_owned()
        } else if let Some(owner) = owner {
            if owner == role {
                "owns tables of it".to_owned()
            } else {
                format!("is a member of their owner {owner}")
            }
        } else if row.get(3) {
            "is a member of pg_read_all_data or pg_write_all_data".to_owned()
        } else {
            return None;
        };
        Some(Unstoppable { role, why })
    });
    Ok(found.collect())
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
            privilege: "SELECT".into(),
            grantable,
        };
        let (first, second, third) =
            (right("a", "owner", true), right("b", "a", true), right("c", "b", false));
        let ordered = given_in_order("owner", vec![third.clone(), second.clone(), first.clone()]);
        assert_eq!(ordered, [first, second, third]);
    }
}
