//! The rights on old tables, as the catalog has them, and what keeps them from being taken away and given back exactly.
//!
//! Only rights that a relation's owner gave are taken. Whoever acts as the owner is the grantor of what he grants and revokes
//! (PostgreSQL documentation, GRANT), so a GRANT gives back exactly what the REVOKE took. Rights that somebody has passed on are
//! refused, with the statements that take them away.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use crate::journal::retirement::{Ids, Right};
use crate::name::{TableName, quote_ident};
use crate::postgres::connect::APPLY_ROLE;
use crate::problem::Problem;

/// A table or a partition, with the rights on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: TableName,
    pub(super) owner: String,
    /// The session may act as the owner.
    pub(super) ours: bool,
    /// The session's role is a member of the owner's, though perhaps without the right to act as it.
    pub(super) member: bool,
    /// The open transaction holds its rights and those on its columns: nobody can change them before its end.
    pub(super) held: bool,
    /// Columns that the open transaction has written.
    pub(super) columns_written: i64,
    /// Rights on it and its columns, but for those that the owner has from himself.
    pub(super) rights: Vec<Right>,
}

/// Everything below the tables that are named or have these oids, and the tables. A row of a catalog that this transaction wrote can't be changed by
/// another one before its end. Rights stand in the row of the relation, or of a column; a column without any has nothing to hold; a
/// column that was dropped keeps its rights before PostgreSQL 17, and nobody writes these any more.
const RELATIONS: &str = "WITH RECURSIVE tree (oid) AS (SELECT coalesce(to_regclass(t.name)::oid, t.oid) FROM unnest($1, $2) AS t (name, oid) \
         UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid), \
     ours (xid) AS (SELECT pg_current_xact_id_if_assigned()::xid) \
     SELECT c.oid, n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, \
         pg_has_role(c.relowner, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END), \
         coalesce(c.xmin = ours.xid AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL \
             AND NOT a.attisdropped AND a.xmin <> ours.xid), false), \
         (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.xmin = ours.xid), pg_has_role(c.relowner, 'MEMBER') \
     FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace, ours \
     WHERE c.relkind IN ('r', 'p', 'f') ORDER BY 2, 3";

/// The rights on them.
const RIGHTS: &str = "SELECT x.oid, x.attname, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, \
         a.privilege_type, a.is_grantable, pg_get_userbyid(a.grantor)::text, x.attnum, a.grantee \
     FROM (SELECT c.oid, 0::int2 AS attnum, NULL::text AS attname, coalesce(c.relacl, acldefault('r', c.relowner)) AS acl, c.relowner \
             FROM pg_class c WHERE c.oid = ANY ($1) \
         UNION ALL SELECT c.oid, t.attnum, t.attname::text, t.attacl, c.relowner FROM pg_class c \
             JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped WHERE c.oid = ANY ($1)) AS x, \
         LATERAL aclexplode(x.acl) AS a WHERE NOT (a.grantee = x.relowner AND a.grantor = x.relowner) \
     ORDER BY x.oid, 3 NULLS FIRST, 5, 4, 2 NULLS FIRST, 6";

/// Reads those of tables and everything below them.
///
/// # Errors
/// The server's.
pub(super) async fn read(monolith: &Client, tables: &[TableName]) -> Result<Vec<Relation>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    found(monolith, &names, &[]).await
}

/// Numbers of relations, in their order.
pub(super) fn oids(relations: &[Relation]) -> Vec<u32> {
    relations.iter().map(|relation| relation.oid).collect()
}

/// Reads those of relations, and everything below them, by oid.
///
/// # Errors
/// The server's.
pub(super) async fn read_oids(monolith: &Client, oids: &[u32]) -> Result<Vec<Relation>, Error> {
    found(monolith, &[], oids).await
}

async fn found(monolith: &Client, names: &[String], oids: &[u32]) -> Result<Vec<Relation>, Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&names, Type::TEXT_ARRAY), (&oids, Type::OID_ARRAY)];
    let rows = monolith.query_typed(RELATIONS, &parameters).await?;
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
            ids: Ids { relation: oid, column: row.get(6), grantee: row.get(7) },
        };
        let of = rights.iter().filter(|right| right.get::<_, u32>(0) == oid);
        Relation {
            owner: row.get(3),
            ours: row.get(4),
            held: row.get(5),
            columns_written: row.get(6),
            member: row.get(7),
            oid,
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
                    && (now.ids.column == right.ids.column && now.ids.grantee == right.ids.grantee)
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
            .next(format!(
                "GRANT {} TO {}{};",
                quote_ident(&relation.owner),
                quote_ident(user),
                // Only PostgreSQL 16 and later have members that can't act as the role.
                if relation.member { " WITH SET TRUE" } else { "" }
            ))
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

/// A use of a table that a role may make, by whatever way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct May {
    /// The relation, as SQL.
    pub(super) table: String,
    /// Whose it is.
    pub(super) owner: String,
    /// Who may.
    pub(super) role: String,
    /// `SELECT` and so on.
    pub(super) privilege: String,
    /// A column, quoted; `None` for the whole table.
    pub(super) column: Option<String>,
}

/// What must be allowed after rights went as it was before: to the roles of the links, what the tool does with the tables (all of them
/// read, and the way back writes; a partition is used through its table, with the rights on that), and to owners, as whom referential
/// checks are made, what these need on the owner's own relations.
const MAY: &str = "SELECT t, o.rolname::text, r.rolname::text, p, quote_ident(a.attname) \
    FROM unnest($1) AS t JOIN pg_class c ON c.oid = to_regclass(t) JOIN pg_roles o ON o.oid = c.relowner CROSS JOIN pg_roles r, \
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p \
        CROSS JOIN LATERAL (SELECT NULL::name AS attname, NULL::int2 AS attnum UNION ALL SELECT attname, attnum FROM pg_attribute \
            WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND p IN ('SELECT', 'INSERT', 'UPDATE')) AS a \
    WHERE (r.oid = o.oid AND p IN ('SELECT', 'UPDATE', 'DELETE') \
            OR t = ANY ($2) AND r.rolname = ANY ($3) AND (p = 'SELECT' OR r.rolname = $4)) \
        AND CASE WHEN a.attnum IS NULL THEN has_table_privilege(r.oid, c.oid, p) \
            ELSE has_column_privilege(r.oid, c.oid, a.attnum, p) END";

/// Reads it. A right on the whole table shows as that, and on each of its columns.
///
/// # Errors
/// The server's.
pub(super) async fn allowed(
    monolith: &Client,
    (relations, tables): (&[Relation], &[TableName]),
    own: &BTreeSet<String>,
) -> Result<BTreeSet<May>, Error> {
    let all: Vec<String> = relations.iter().map(|relation| relation.name.sql()).collect();
    let names: Vec<String> = tables.iter().map(TableName::sql).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&all, Type::TEXT_ARRAY),
        (&names, Type::TEXT_ARRAY),
        (&own, Type::TEXT_ARRAY),
        (&APPLY_ROLE, Type::TEXT),
    ];
    let rows = monolith.query_typed(MAY, &parameters).await?;
    let may = |row: &Row| May {
        table: row.get(0),
        owner: row.get(1),
        role: row.get(2),
        privilege: row.get(3),
        column: row.get(4),
    };
    Ok(rows.iter().map(may).collect())
}

/// What keeps rights from going that links and owners need: one problem for each role and table.
pub(super) fn lost(before: &BTreeSet<May>, after: &BTreeSet<May>) -> Vec<Problem> {
    let mut lost: BTreeSet<&May> = before.difference(after).collect();
    let whole = |may: &May| May { column: None, ..may.clone() };
    let of_columns: BTreeSet<May> =
        lost.iter().filter(|may| may.column.is_some()).map(|may| whole(may)).collect();
    // Whoever keeps every column needs no right on the whole table.
    let by_column = |may: &May| matches!(may.privilege.as_str(), "SELECT" | "INSERT" | "UPDATE");
    lost.retain(|may| may.column.is_some() || !by_column(may) || of_columns.contains(*may));
    // `SELECT` says what `SELECT (a)` does.
    let said = lost.iter().filter(|may| may.column.is_none() || !lost.contains(&whole(may)));
    let mut by: BTreeMap<(&str, &str, &str), Vec<String>> = BTreeMap::new();
    for may in said {
        let column = may.column.as_deref().map(|column| format!(" ({column})")).unwrap_or_default();
        let of = by.entry((&may.role, &may.table, &may.owner)).or_default();
        of.push(format!("{}{column}", may.privilege));
    }
    let problem = |((role, table, owner), what): ((&str, &str, &str), Vec<String>)| {
        let what = what.join(", ");
        let (code, why, consequence) = if role == owner {
            let why = format!("it owns {table}");
            ("owner-loses-right", why, "checks of foreign keys, which are made as the owner, would fail")
        } else {
            let why = "a link of the plan logs in as it".to_owned();
            ("link-loses-right", why, "the mirror or a comparison would fail")
        };
        Problem::error(code, format!("role {role}"))
            .fact(format!("{why}, and it may {what} {table} only by way of a right that goes"))
            .consequence(consequence)
            .next(format!(
                "as {owner}, or a superuser: GRANT {what} ON TABLE {table} TO {};",
                quote_ident(role)
            ))
    };
    by.into_iter().map(problem).collect()
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
            ids: Ids {
                relation: 1,
                column: i16::from(column.is_some()),
                grantee: grantee.bytes().map(u32::from).sum(),
            },
        }
    }

    fn relation(rights: Vec<Right>) -> Relation {
        let name = TableName::new("public", "t");
        Relation {
            oid: 1,
            name,
            owner: "owner".into(),
            ours: true,
            member: true,
            held: true,
            columns_written: 0,
            rights,
        }
    }

    #[test]
    fn a_member_that_may_not_act_as_the_owner_is_told_the_grant_that_lets_it() {
        let next = |member| {
            not_owner(&[Relation { ours: false, member, ..relation(Vec::new()) }], "admin")[0].next.clone()
        };
        assert_eq!(next(false), "GRANT \"owner\" TO \"admin\";");
        assert_eq!(next(true), "GRANT \"owner\" TO \"admin\" WITH SET TRUE;");
    }

    #[test]
    fn what_a_role_would_lose_is_one_problem_for_each_table() {
        let may = |role: &str, privilege: &str, column: Option<&str>| May {
            table: "\"t\"".into(),
            owner: "owner".into(),
            role: role.into(),
            privilege: privilege.into(),
            column: column.map(str::to_owned),
        };
        let before = BTreeSet::from([
            may("reader", "SELECT", None),
            may("reader", "SELECT", Some("a")),
            may("reader", "UPDATE", Some("b")),
            may("owner", "SELECT", Some("a")),
        ]);
        let found = lost(&before, &BTreeSet::from([may("x", "SELECT", None)]));
        let said: Vec<_> = found.iter().map(|problem| (problem.code, problem.next.as_str())).collect();
        assert_eq!(
            said,
            [
                (
                    "owner-loses-right",
                    "as owner, or a superuser: GRANT SELECT (a) ON TABLE \"t\" TO \"owner\";"
                ),
                (
                    "link-loses-right",
                    "as owner, or a superuser: GRANT SELECT, UPDATE (b) ON TABLE \"t\" TO \"reader\";"
                ),
            ]
        );
        assert_eq!(lost(&before, &before), Vec::new());
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
