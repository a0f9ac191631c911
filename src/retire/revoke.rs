//! The first stage: rights on the old tables are taken away, and given back.

use std::collections::{BTreeMap, BTreeSet};

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
}

impl Rights {
    /// Those that are to go: of everybody but the owner and the tool.
    pub fn others(&self) -> impl Iterator<Item = &Right> {
        let rights = self.relations.iter().flat_map(|relation| &relation.rights);
        rights.filter(|right| right.grantee.as_ref().is_none_or(|grantee| !self.own.contains(grantee)))
    }

    /// Those that stay beside the owner's.
    pub fn kept(&self) -> BTreeSet<&Right> {
        let rights = self.relations.iter().flat_map(|relation| &relation.rights);
        rights
            .filter(|right| right.grantee.as_ref().is_some_and(|grantee| self.own.contains(grantee)))
            .collect()
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
    for one in rights.unstoppable.iter().filter(|one| !rights.own.contains(&one.role)) {
        let problem = |problem: Problem| {
            problem.fact(format!("role {} {}", one.role, one.why)).consequence(
                "it can use the old tables without any right on them, so it would not be stopped",
            )
        };
        if rights.app_roles.contains(&one.role) {
            problems.push(
                problem(Problem::error("app-role-unstoppable", format!("slice {slice}"))).next(format!(
                    "give the application another role, or take that away from {}: ALTER TABLE … OWNER TO …, or ALTER ROLE … \
                     NOSUPERUSER",
                    quote_ident(&one.role)
                )),
            );
        } else {
            problems.push(
                problem(Problem::warning("role-unstoppable", format!("slice {slice}")))
                    .next("make sure that nothing but administration uses it"),
            );
        }
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

/// The statements of one transaction, in their order. `epoch` is the authority's; `approved_by` goes into the ledger.
#[must_use]
pub(super) fn revoke((slice, epoch): (&str, i64), approved_by: Option<&str>, rights: &Rights) -> Vec<String> {
    let mut sql: Vec<String> = rights.others().map(|right| retirement::note_right(slice, right)).collect();
    for relation in &rights.relations {
        let grantees: BTreeSet<String> = rights
            .others()
            .filter(|right| right.relation == relation.name)
            .map(|right| role_sql(right.grantee.as_deref()))
            .collect();
        if grantees.is_empty() {
            continue;
        }
        // CASCADE takes what they gave to others: those are on the list too.
        let grantees: Vec<String> = grantees.into_iter().collect();
        sql.push(format!(
            "REVOKE ALL PRIVILEGES ON {} FROM {} CASCADE",
            on(relation.is_sequence, &relation.name.sql()),
            grantees.join(", ")
        ));
    }
    sql.push(retirement::set_stage(slice, Stage::Revoked, epoch));
    let mut detail = json!({ "object": slice });
    if let (Some(name), Some(detail)) = (approved_by, detail.as_object_mut()) {
        detail.insert("approved_by".to_owned(), name.into());
    }
    sql.push(statements::insert_journal(RETIRE, Some(slice), "take away the rights on old tables", &detail));
    sql
}

/// The way back: every right as it was, by whoever gave it. Rights of roles that are gone are returned apart.
#[must_use]
pub(super) fn restore(
    slice: &str,
    owners: &BTreeMap<String, String>,
    rights: &[Right],
    roles: &BTreeSet<String>,
) -> (Vec<String>, Vec<Right>) {
    let (mut sql, mut lost) = (Vec::new(), Vec::new());
    for right in rights {
        let there = |role: &String| roles.contains(role);
        if !right.grantee.as_ref().is_none_or(there) || !there(&right.grantor) {
            lost.push(right.clone());
            continue;
        }
        let by_owner = owners.get(&right.relation.to_string()) == Some(&right.grantor);
        if !by_owner {
            sql.push(format!("SET LOCAL ROLE {}", quote_ident(&right.grantor)));
        }
        let column =
            right.column.as_deref().map(|column| format!(" ({})", quote_ident(column))).unwrap_or_default();
        let option = if right.grantable { " WITH GRANT OPTION" } else { "" };
        sql.push(format!(
            "GRANT {}{column} ON {} TO {}{option}",
            right.privilege,
            on(right.is_sequence, &right.relation.sql()),
            role_sql(right.grantee.as_deref())
        ));
        if !by_owner {
            sql.push("RESET ROLE".to_owned());
        }
    }
    sql.push(retirement::rights_restored(slice));
    sql.push(retirement::forget(slice));
    sql.push(statements::insert_journal(
        RETIRE,
        Some(slice),
        "give back the rights on old tables",
        &json!({ "object": slice }),
    ));
    (sql, lost)
}

fn on(is_sequence: bool, name: &str) -> String {
    format!("{} {name}", if is_sequence { "SEQUENCE" } else { "TABLE" })
}

fn role_sql(role: Option<&str>) -> String {
    role.map_or_else(|| "PUBLIC".to_owned(), quote_ident)
}
