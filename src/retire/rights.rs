//! The rights on old tables, as the catalog has them, and what keeps them from being taken away and given back exactly.
//!
//! Only rights that a relation's owner gave are taken. Whoever acts as the owner is the grantor of what he grants and revokes
//! (PostgreSQL documentation, GRANT), so a GRANT gives back exactly what the REVOKE took. Rights that somebody has passed on are
//! refused, with the statements that take them away.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use crate::journal::retirement::Right;
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::APPLY_ROLE;
use crate::problem::Problem;

/// A table or a partition, with the rights on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) name: TableName,
    pub(super) owner: String,
    /// The session may act as the owner.
    pub(super) ours: bool,
    /// The open transaction holds its rights and those on its columns: nobody can change them before its end.
    pub(super) held: bool,
    /// Columns that the open transaction has written.
    pub(super) columns_written: i64,
    /// Rights on it and its columns, but for those that the owner has from himself.
    pub(super) rights: Vec<Right>,
}

/// Everything below the tables that are named, and the tables. A row of a catalog that this transaction wrote can't be changed by
/// another one before its end. Rights stand in the row of the relation, or of a column; a column without any has nothing to hold.
const RELATIONS: &str = "WITH RECURSIVE tree (oid) AS (SELECT to_regclass(t.name)::oid FROM unnest($1) AS t (name) \
         UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid), \
     ours (xid) AS (SELECT pg_current_xact_id_if_assigned()::xid) \
     SELECT c.oid, n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, \
         pg_has_role(c.relowner, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END), \
         coalesce(c.xmin = ours.xid AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL \
             AND a.xmin <> ours.xid), false), \
         (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.xmin = ours.xid) \
     FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace, ours \
     WHERE c.relkind IN ('r', 'p', 'f') ORDER BY 2, 3";

/// The rights on them.
const RIGHTS: &str = "SELECT x.oid, x.attname, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, \
         a.privilege_type, a.is_grantable, pg_get_userbyid(a.grantor)::text \
     FROM (SELECT c.oid, NULL::text AS attname, coalesce(c.relacl, acldefault('r', c.relowner)) AS acl, c.relowner \
             FROM pg_class c WHERE c.oid = ANY ($1) \
         UNION ALL SELECT c.oid, t.attname::text, t.attacl, c.relowner FROM pg_class c \
             JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped WHERE c.oid = ANY ($1)) AS x, \
         LATERAL aclexplode(x.acl) AS a WHERE NOT (a.grantee = x.relowner AND a.grantor = x.relowner) \
     ORDER BY 1, 3 NULLS FIRST, 5, 4, 2 NULLS FIRST, 6";

/// Reads them.
///
/// # Errors
/// The server's.
pub(super) async fn read(monolith: &Client, tables: &[TableName]) -> Result<Vec<Relation>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let rows = monolith.query_typed(RELATIONS, &[(&names, Type::TEXT_ARRAY)]).await?;
    let oids: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let rights = monolith.query_typed(RIGHTS, &[(&oids, Type::OID_ARRAY)]).await?;
    let relation = |row: &Row| {
        let oid: u32 = row.get(0);
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let right = |row: &Row| Right {
            relation: name.clone(),
            column: row.get(1),
            grantee: row.get(2),
            privilege: row.get(3),
            grantable: row.get(4),
            grantor: row.get(5),
        };
        let of = rights.iter().filter(|right| right.get::<_, u32>(0) == oid);
        Relation {
            owner: row.get(3),
            ours: row.get(4),
            held: row.get(5),
            columns_written: row.get(6),
            rights: of.map(right).collect(),
            name: name.clone(),
        }
    };
    Ok(rows.iter().map(relation).collect())
}

impl Relation {
    /// Rights that go: those that the owner gave to others than the roles of the plan's links.
    pub(super) fn taken<'a>(&'a self, own: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Right> {
        self.rights.iter().filter(move |right| right.grantor == self.owner && !self.keeps(right, own))
    }

    fn keeps(&self, right: &Right, own: &BTreeSet<String>) -> bool {
        right.grantee.as_ref().is_some_and(|grantee| *grantee == self.owner || own.contains(grantee))
    }

    /// The right is there, given by whoever owns the relation now; one with grant option is as good as one without.
    pub(super) fn has(&self, right: &Right) -> bool {
        right.grantee.as_ref() == Some(&self.owner)
            || self.rights.iter().any(|now| {
                now.grantor == self.owner
                    && (now.column == right.column && now.grantee == right.grantee)
                    && now.privilege == right.privilege
                    && (now.grantable || !right.grantable)
            })
    }
}

/// What keeps rights from being taken away: an owner as which the administrator can't act, and rights that others have passed on.
/// `user` is whom the administrator's link logs in as.
pub(super) fn problems(relations: &[Relation], own: &BTreeSet<String>, user: &str) -> Vec<Problem> {
    let passed = relations.iter().filter_map(|relation| passed_on(relation, own));
    not_owner(relations, user).into_iter().chain(passed).collect()
}

/// Relations whose owner the administrator can't act as.
pub(super) fn not_owner(relations: &[Relation], user: &str) -> Vec<Problem> {
    let problem = |relation: &Relation| {
        Problem::error("not-owner", &relation.name)
            .fact(format!("it belongs to {}, and {user} can't act as that role", relation.owner))
            .consequence("rights on it can neither be taken away nor given back")
            .next(format!("GRANT {} TO {};", quote_ident(&relation.owner), quote_ident(user)))
    };
    relations.iter().filter(|relation| !relation.ours).map(problem).collect()
}

/// Rights that somebody else than the owner gave. Those among the links' roles stay as they are.
fn passed_on(relation: &Relation, own: &BTreeSet<String>) -> Option<Problem> {
    let stays = |right: &Right| relation.keeps(right, own) && own.contains(&right.grantor);
    let passed: Vec<&Right> =
        relation.rights.iter().filter(|right| right.grantor != relation.owner && !stays(right)).collect();
    if passed.is_empty() {
        return None;
    }
    let said: Vec<String> = passed
        .iter()
        .map(|right| {
            format!(
                "{} has {} from {}",
                role_words(right.grantee.as_deref()),
                privilege(right),
                right.grantor
            )
        })
        .collect();
    // What a link needs comes from the owner, before what it had is ended.
    let links = passed.iter().filter(|right| relation.keeps(right, own));
    let given = links.map(|right| {
        let (table, who) =
            (relation.name.sql(), right.grantee.as_deref().map(quote_ident).unwrap_or_default());
        format!("GRANT {} ON TABLE {table} TO {who};", privilege_sql(right))
    });
    let ended = passed.iter().flat_map(|right| ending(relation, right, &passed, own));
    let mut sql: Vec<String> = Vec::new();
    for statement in given.chain(ended) {
        if !sql.contains(&statement) {
            sql.push(statement);
        }
    }
    Some(
        Problem::error("right-passed-on", &relation.name)
            .fact(format!("{}, and not from {}, who owns it", said.join("; "), relation.owner))
            .consequence("only what the owner gave can be given back as it was")
            .next(format!("as {}, or a superuser: {}", relation.owner, sql.join(" "))),
    )
}

/// Statements of the owner that end what whoever gave `right` has passed on of it. What he has from somebody who has it from the owner
/// ends with that. Rights on a column don't end with the grant option on the table, so they get one of their own for the moment. What
/// a link's role has passed on to other links stays, so it ends what it gave itself.
fn ending(relation: &Relation, right: &Right, passed: &[&Right], own: &BTreeSet<String>) -> Vec<String> {
    let same = |of: &Right| {
        of.column == right.column
            && of.privilege == right.privilege
            && of.grantee.as_ref() == Some(&right.grantor)
    };
    if passed.iter().any(|of| of.grantable && same(of)) {
        return Vec::new();
    }
    let had = relation.rights.iter().find(|of| of.grantor == relation.owner && same(of));
    let (what, table, who) = (privilege_sql(right), relation.name.sql(), quote_ident(&right.grantor));
    if own.contains(&right.grantor) {
        let from = role_sql(right.grantee.as_deref());
        return vec![format!(
            "SET ROLE {who}; REVOKE {what} ON TABLE {table} FROM {from} CASCADE; RESET ROLE;"
        )];
    }
    let mut sql = Vec::new();
    if !had.is_some_and(|had| had.grantable) {
        sql.push(format!("GRANT {what} ON TABLE {table} TO {who} WITH GRANT OPTION;"));
    }
    let only_option = if had.is_some() { "GRANT OPTION FOR " } else { "" };
    sql.push(format!("REVOKE {only_option}{what} ON TABLE {table} FROM {who} CASCADE;"));
    sql
}

/// A right, as an operator names it.
#[must_use]
pub fn words(right: &Right) -> String {
    format!("{} on {} of {}", privilege(right), right.relation, role_words(right.grantee.as_deref()))
}

/// `SELECT`, or `SELECT (column)`.
pub(super) fn privilege(right: &Right) -> String {
    let column = right.column.as_deref().map(|column| format!(" ({column})")).unwrap_or_default();
    format!("{}{column}", right.privilege)
}

pub(super) fn privilege_sql(right: &Right) -> String {
    let column =
        right.column.as_deref().map(|column| format!(" ({})", quote_ident(column))).unwrap_or_default();
    format!("{}{column}", right.privilege)
}

pub(super) fn role_sql(role: Option<&str>) -> String {
    role.map_or_else(|| "PUBLIC".to_owned(), quote_ident)
}

/// A role, or everybody.
pub(super) fn role_words(role: Option<&str>) -> &str {
    role.unwrap_or("PUBLIC")
}

/// What the roles of the links may do of what the tool does with the tables, by whatever way, as role, privilege and table: all of
/// them read, and the way back writes. A partition is used through its table, with the rights on that.
///
/// # Errors
/// The server's.
pub(super) async fn of_links(
    monolith: &Client,
    tables: &[TableName],
    own: &BTreeSet<String>,
) -> Result<BTreeSet<(String, String, String)>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let sql = "SELECT r.rolname::text, p || coalesce(' (' || quote_ident(a.attname) || ')', ''), t \
               FROM pg_roles r, unnest($1) AS t, \
                   unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p \
                   LEFT JOIN LATERAL (SELECT attname, attnum FROM pg_attribute WHERE attrelid = to_regclass(t) AND attnum > 0 \
                       AND NOT attisdropped) AS a ON p IN ('SELECT', 'INSERT', 'UPDATE') \
               WHERE r.rolname = ANY ($2) AND (p = 'SELECT' OR r.rolname = $3) \
                   AND CASE WHEN a.attnum IS NULL THEN has_table_privilege(r.oid, to_regclass(t), p) \
                   ELSE has_column_privilege(r.oid, to_regclass(t), a.attnum, p) END";
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&names, Type::TEXT_ARRAY), (&own, Type::TEXT_ARRAY), (&APPLY_ROLE, Type::TEXT)];
    let rows = monolith.query_typed(sql, &parameters).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(grantee: &str, grantor: &str, column: Option<&str>, grantable: bool) -> Right {
        Right {
            relation: TableName::new("public", "t"),
            column: column.map(str::to_owned),
            grantee: Some(grantee.into()),
            privilege: "SELECT".into(),
            grantable,
            grantor: grantor.into(),
        }
    }

    fn relation(rights: Vec<Right>) -> Relation {
        let name = TableName::new("public", "t");
        Relation { name, owner: "owner".into(), ours: true, held: true, columns_written: 0, rights }
    }

    #[test]
    fn what_was_passed_on_is_named_with_the_statements_that_end_it_from_its_root() {
        let own = BTreeSet::from(["reader".to_owned(), "admin".to_owned()]);
        let kept = vec![
            right("admin", "owner", None, true),
            right("reader", "admin", None, false),
            right("shop", "owner", None, true),
        ];
        assert_eq!(problems(&relation(kept.clone()), &own), Vec::new());
        let links = [right("bi", "admin", None, false), right("reader", "shop", None, false)];
        let found = problems(&relation([kept.clone(), links.to_vec()].concat()), &own);
        assert_eq!(
            found[0].next,
            "as owner, or a superuser: GRANT SELECT ON TABLE \"public\".\"t\" TO \"reader\"; \
             SET ROLE \"admin\"; REVOKE SELECT ON TABLE \"public\".\"t\" FROM \"bi\" CASCADE; RESET ROLE; \
             REVOKE GRANT OPTION FOR SELECT ON TABLE \"public\".\"t\" FROM \"shop\" CASCADE;"
        );
        let passed = [
            right("clerk", "shop", None, true),
            right("steward", "clerk", None, false),
            right("clerk", "shop", Some("a"), false),
        ];
        let found = problems(&relation([kept, passed.to_vec()].concat()), &own);
        let [problem] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            problem.fact,
            "clerk has SELECT from shop; steward has SELECT from clerk; clerk has SELECT (a) from shop, and not from owner, who \
             owns it"
        );
        assert_eq!(
            problem.next,
            "as owner, or a superuser: REVOKE GRANT OPTION FOR SELECT ON TABLE \"public\".\"t\" FROM \"shop\" CASCADE; \
             GRANT SELECT (\"a\") ON TABLE \"public\".\"t\" TO \"shop\" WITH GRANT OPTION; \
             REVOKE SELECT (\"a\") ON TABLE \"public\".\"t\" FROM \"shop\" CASCADE;"
        );
    }

    fn problems(relation: &Relation, own: &BTreeSet<String>) -> Vec<Problem> {
        super::problems(std::slice::from_ref(relation), own, "admin")
    }

    #[test]
    fn what_goes_was_given_by_the_owner_to_others_than_him_and_the_links() {
        let own = BTreeSet::from(["reader".to_owned()]);
        let of = relation(vec![
            right("shop", "owner", None, true),
            right("reader", "owner", None, false),
            right("owner", "shop", None, false),
        ]);
        assert_eq!(of.taken(&own).collect::<Vec<_>>(), [&of.rights[0]]);
        assert!(of.has(&right("shop", "before", None, false)), "with grant option is as good");
        assert!(!of.has(&right("reader", "before", None, true)));
        assert!(of.has(&right("owner", "before", None, true)), "an owner needs none");
    }
}
