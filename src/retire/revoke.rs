//! The first stage: rights on the old tables are taken away, and given back.
//!
//! Each right is taken by whoever gave it, what came of it first, and nothing that is not on the list: so giving back, by the same
//! roles in the other order, is the exact reverse.

use std::collections::BTreeSet;

use serde_json::json;

use super::rights::{Relation, Unstoppable};
use crate::journal::ledger::RETIRE;
use crate::journal::retirement::{self, Right, Stage};
use crate::journal::statements;
use crate::name::quote_ident;
use crate::problem::Problem;

/// What is known of the rights on a slice's old tables.
#[derive(Debug, Clone)]
pub struct Rights {
    /// Tables, partitions, sequences.
    pub relations: Vec<Relation>,
    /// Roles that no right can stop.
    pub unstoppable: Vec<Unstoppable>,
    /// Roles of the plan's links: theirs stay.
    pub own: BTreeSet<String>,
    /// Roles that the plan says the application uses.
    pub app_roles: Vec<String>,
    /// Whom the administrator's link logs in as.
    pub user: String,
    /// Which of those who gave rights that session may act as.
    pub acts_as: BTreeSet<String>,
}

impl Rights {
    /// Those that are to go, in the order in which they were given: of everybody but the owner and the tool, and what others gave the
    /// owner.
    pub fn others(&self) -> impl DoubleEndedIterator<Item = &Right> {
        let rights = self.relations.iter().flat_map(|relation| &relation.rights);
        rights.filter(|right| right.grantee.as_ref().is_none_or(|grantee| !self.own.contains(grantee)))
    }
}

/// What keeps rights from being taken away, or from having an effect.
#[must_use]
pub(super) fn problems(slice: &str, rights: &Rights) -> Vec<Problem> {
    let mut problems = Vec::new();
    for relation in rights.relations.iter().filter(|relation| !relation.ours) {
        problems.push(
            Problem::error("not-owner", &relation.name)
                .fact(format!(
                    "it belongs to {}, and {} is no member of that role",
                    relation.owner, rights.user
                ))
                .consequence("rights on it can't be taken away")
                .next(format!("GRANT {} TO {};", quote_ident(&relation.owner), quote_ident(&rights.user))),
        );
    }
    problems.extend(not_grantor(rights));
    for one in &rights.unstoppable {
        let problem = |problem: Problem| {
            problem.fact(format!("role {} {}", one.role, one.why)).consequence(
                "it can use the old tables without any right on them, so it would not be stopped",
            )
        };
        let object = format!("slice {slice}");
        problems.push(if one.application {
            problem(Problem::error("app-role-unstoppable", object)).next(format!(
                "give the application another role, or take that away from {}: ALTER TABLE … OWNER TO …, REVOKE … FROM …, or \
                 ALTER ROLE … NOSUPERUSER",
                quote_ident(&one.role)
            ))
        } else {
            problem(Problem::warning("role-unstoppable", object))
                .next("make sure that nothing but administration uses it")
        });
    }
    for role in rights.app_roles.iter().filter(|role| rights.own.contains(*role)) {
        problems.push(
            Problem::error("app-role-unstoppable", format!("slice {slice}"))
                .fact(format!(
                    "role {role} is one of app_roles, and a link of the plan to the monolith logs in as it"
                ))
                .consequence(
                    "its rights stay, because the tool needs them, so the application would not be stopped",
                )
                .next("give the plan's links roles of their own"),
        );
    }
    problems.sort();
    problems
}

/// Rights that a role has passed on, as which the administrator may not act: he could neither take them nor give them back.
fn not_grantor(rights: &Rights) -> Vec<Problem> {
    let passed = rights.others().filter(|right| !right.by_owner && !rights.acts_as.contains(&right.grantor));
    let grantors: BTreeSet<&str> = passed.map(|right| right.grantor.as_str()).collect();
    let problem = |grantor: &str| {
        let given = rights.others().find(|right| right.grantor == grantor);
        let example = given.map(words).unwrap_or_default();
        Problem::error("not-grantor", format!("role {grantor}"))
            .fact(format!("it has passed rights on ({example}), and {} may not act as it", rights.user))
            .consequence("they could neither be taken away nor be given back as they were")
            .next(format!("GRANT {} TO {};", quote_ident(grantor), quote_ident(&rights.user)))
    };
    grantors.into_iter().map(problem).collect()
}

/// A right, as an operator names it.
#[must_use]
pub fn words(right: &Right) -> String {
    let column = right.column.as_deref().map(|column| format!(" ({column})")).unwrap_or_default();
    let grantee = right.grantee.as_deref().unwrap_or("PUBLIC");
    format!("{}{column} on {} of {grantee}, by {}", right.privilege, right.relation, right.grantor)
}

/// The statements of one transaction, in their order. `epoch` is the authority's; `approved_by` goes into the ledger.
#[must_use]
pub(super) fn revoke((slice, epoch): (&str, i64), approved_by: Option<&str>, rights: &Rights) -> Vec<String> {
    let mut sql: Vec<String> = rights.others().map(|right| retirement::note_right(slice, right)).collect();
    for right in rights.others().rev() {
        let what = format!("REVOKE {} FROM {}", privilege(right), role_sql(right.grantee.as_deref()));
        sql.extend(by_grantor(right, what));
    }
    sql.push(retirement::set_stage(slice, Stage::Revoked, epoch));
    let mut detail = json!({ "object": slice });
    if let (Some(name), Some(detail)) = (approved_by, detail.as_object_mut()) {
        detail.insert("approved_by".to_owned(), name.into());
    }
    let action = "take away the rights on old tables";
    sql.push(statements::insert_journal(RETIRE, Some(slice), action, &detail));
    sql
}

/// What gives a right back.
pub(super) fn grant(right: &Right) -> Vec<String> {
    let option = if right.grantable { " WITH GRANT OPTION" } else { "" };
    let what = format!("GRANT {} TO {}{option}", privilege(right), role_sql(right.grantee.as_deref()));
    by_grantor(right, what)
}

/// The statements behind the last right that was given back. `all` is false where some have to be tried again.
pub(super) fn restored(slice: &str, all: bool) -> Vec<String> {
    let detail = json!({ "object": slice });
    let action =
        if all { "give back the rights on old tables" } else { "give back some rights on old tables" };
    let told = statements::insert_journal(RETIRE, Some(slice), action, &detail);
    if all { vec![retirement::forget(slice), told] } else { vec![told] }
}

/// Whoever may act as the owner acts as him already.
fn by_grantor(right: &Right, sql: String) -> Vec<String> {
    if right.by_owner {
        return vec![sql];
    }
    vec![format!("SET LOCAL ROLE {}", quote_ident(&right.grantor)), sql, "RESET ROLE".to_owned()]
}

fn privilege(right: &Right) -> String {
    let column =
        right.column.as_deref().map(|column| format!(" ({})", quote_ident(column))).unwrap_or_default();
    let kind = if right.is_sequence { "SEQUENCE" } else { "TABLE" };
    format!("{}{column} ON {kind} {}", right.privilege, right.relation.sql())
}

fn role_sql(role: Option<&str>) -> String {
    role.map_or_else(|| "PUBLIC".to_owned(), quote_ident)
}
