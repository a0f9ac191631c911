//! Roles that can use old tables without any right on them: taking rights away would not stop them.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use crate::name::quote_ident;
use crate::problem::Problem;

/// Of whom it is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The slice.
    pub(super) slice: &'a str,
    /// Owners of its old tables.
    pub(super) owners: &'a BTreeSet<&'a str>,
    /// Roles of the plan's links, which keep their rights.
    pub(super) own: &'a BTreeSet<String>,
    /// The plan's `app_roles`.
    pub(super) app_roles: &'a [String],
    /// Roles that were met using the tables within the quiet period.
    pub(super) recent: &'a BTreeSet<&'a str>,
}

/// Roles that may log in, and the application's, that are owner, superuser, a member of these or of a link's role, or may use all data.
/// A role that may become another one, or has its rights, can use what that can; memberships that are for neither (PostgreSQL 16) don't
/// count. `first` is the membership that a role itself has, from which the others follow.
const READ: &str = "WITH RECURSIVE member (role, of) AS (SELECT m.member, m.roleid FROM pg_auth_members m \
        WHERE coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true) OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)), \
    way (role, first, of) AS (SELECT role, of, of FROM member \
        UNION SELECT way.role, way.first, member.of FROM way JOIN member ON member.role = way.of) \
    SELECT r.rolname::text, r.rolsuper, r.rolname = ANY ($1), w.firsts, w.ofs, \
        r.rolname = ANY ($3) OR EXISTS (SELECT FROM way JOIN pg_roles x ON x.oid = way.of WHERE way.role = r.oid AND x.rolname = ANY ($3)) \
    FROM pg_roles r, LATERAL (SELECT array_agg(DISTINCT f.rolname::text ORDER BY f.rolname::text) AS firsts, \
        array_agg(DISTINCT x.rolname::text ORDER BY x.rolname::text) AS ofs \
        FROM way JOIN pg_roles x ON x.oid = way.of JOIN pg_roles f ON f.oid = way.first \
        WHERE way.role = r.oid AND (x.rolname = ANY ($1 || $2) OR x.rolsuper OR x.rolname IN ('pg_read_all_data', 'pg_write_all_data'))) AS w \
    WHERE (r.rolcanlogin OR r.rolname = ANY ($3)) AND r.rolname <> ALL ($2) ORDER BY 1";

/// One problem for each: an error for the application's roles and for those that were met of late, a warning for others.
///
/// # Errors
/// The server's.
pub(super) async fn problems(monolith: &Client, asked: Asked<'_>) -> Result<Vec<Problem>, Error> {
    let owners: Vec<&str> = asked.owners.iter().copied().collect();
    let own: Vec<&str> = asked.own.iter().map(String::as_str).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&owners, Type::TEXT_ARRAY), (&own, Type::TEXT_ARRAY), (&asked.app_roles, Type::TEXT_ARRAY)];
    let rows = monolith.query_typed(READ, &parameters).await?;
    let mut problems = of_links(asked);
    problems.extend(asked.app_roles.is_empty().then(|| unnamed(asked.slice)));
    for row in rows {
        let (role, application): (String, bool) = (row.get(0), row.get(5));
        let sql = quote_ident(&role);
        let ways = row.get::<_, Option<Vec<String>>>(3).zip(row.get::<_, Option<Vec<String>>>(4));
        let (why, next) = match (row.get(1), row.get(2), ways) {
            (true, _, _) => ("is a superuser".to_owned(), format!("ALTER ROLE {sql} NOSUPERUSER;")),
            (_, true, _) => (
                "owns tables of it, and an owner can't be stopped".to_owned(),
                "give them to a role that nobody logs in as: ALTER TABLE … OWNER TO …;".to_owned(),
            ),
            (_, _, Some((firsts, of))) => {
                let names: Vec<String> = firsts.iter().map(|name| quote_ident(name)).collect();
                let through =
                    if firsts == of { String::new() } else { format!(", by way of {}", firsts.join(", ")) };
                (
                    format!("is a member of {}{through}", of.join(", ")),
                    format!("REVOKE {} FROM {sql};", names.join(", ")),
                )
            }
            (_, _, None) => continue,
        };
        let object = format!("slice {}", asked.slice);
        let (problem, next) = if application {
            (
                Problem::error("app-role-unstoppable", object),
                format!("give the application another role, or: {next}"),
            )
        } else if asked.recent.contains(role.as_str()) {
            (Problem::error("role-unstoppable", object), format!("move it to the service, or: {next}"))
        } else {
            let next = "make sure that nothing but administration uses it".to_owned();
            (Problem::warning("role-unstoppable", object), next)
        };
        let met = if asked.recent.contains(role.as_str()) { ", and was met using them of late" } else { "" };
        problems.push(
            problem
                .fact(format!("role {role} {why}{met}"))
                .consequence(
                    "it can use the old tables without any right on them, so it would not be stopped",
                )
                .next(next),
        );
    }
    Ok(problems)
}

/// The links' roles keep their rights, so the application must not use one of them.
fn of_links(asked: Asked<'_>) -> Vec<Problem> {
    let problem = |role: &String| {
        Problem::error("app-role-unstoppable", format!("slice {}", asked.slice))
            .fact(format!(
                "role {role} is one of app_roles, and a link of the plan to the monolith logs in as it"
            ))
            .consequence(
                "its rights stay, because the tool needs them, so the application would not be stopped",
            )
            .next("give the plan's links roles of their own")
    };
    asked.app_roles.iter().filter(|role| asked.own.contains(*role)).map(problem).collect()
}

/// Nobody is known to be the application.
fn unnamed(slice: &str) -> Problem {
    Problem::warning("no-app-roles", format!("slice {slice}"))
        .fact("the plan names no app_roles")
        .consequence(
            "an application that owns the tables, or needs no right on them, is not noticed, and not stopped",
        )
        .next("write the roles that the application logs in as into the plan: monolith.app_roles")
}
