//! The links of a plan: which of them a verb uses, and the ways into the databases that they are.

use std::sync::Arc;

use super::{ANSWER_MAX, Needs};
use crate::cdc::mirror::chain_of;
use crate::plan::{LinkTemplate, Links, Plan, PlanProblem, Variables};
use crate::postgres::{ConnectError, Server, SessionRole};

/// The ways into one database.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Ways {
    /// DDL, publications, gates.
    pub(in crate::cli) admin: Server,
    /// Catalogs, snapshots, slots.
    pub(in crate::cli) read: Server,
    /// Mirrored rows.
    pub(in crate::cli) apply: Server,
}

impl Ways {
    /// Everywhere within [`ANSWER_MAX`].
    pub(super) fn answering(self) -> Self {
        let within = |server: Server| server.answering_within(ANSWER_MAX);
        Self { admin: within(self.admin), read: within(self.read), apply: within(self.apply) }
    }
}

/// The ways of these links, which nobody has looked at yet; `label` is how the database is called.
pub(super) fn ways(label: &str, links: &Links, variables: &Arc<dyn Variables>) -> Ways {
    let server = |link: &LinkTemplate, role| Server::new(label, link.clone(), role, Arc::clone(variables));
    Ways {
        admin: server(&links.admin, SessionRole::Admin),
        read: server(&links.read, SessionRole::Read),
        apply: server(&links.apply, SessionRole::Apply),
    }
}

/// Those of the links that a verb uses.
pub(super) fn used_links(links: &Links, ways: &Ways, needs: Needs) -> Vec<(LinkTemplate, Server)> {
    let pair = |link: &LinkTemplate, server: &Server| (link.clone(), server.clone());
    let admin = [pair(&links.admin, &ways.admin)];
    let rows = [pair(&links.read, &ways.read), pair(&links.apply, &ways.apply)];
    match needs {
        Needs::Admin => admin.into(),
        Needs::Rows => rows.into(),
        Needs::All => admin.into_iter().chain(rows).collect(),
    }
}

/// Fills in and reads each used link once, so that everything that is wrong is said before anything is begun.
pub(super) fn link_problems(
    plan: &Plan,
    used: &[(LinkTemplate, Server)],
    variables: &dyn Variables,
) -> Vec<PlanProblem> {
    let of_used = |problem: &PlanProblem| used.iter().any(|(link, _)| link.place() == problem.place);
    let mut problems: Vec<PlanProblem> =
        plan.missing_variables(variables).into_iter().filter(of_used).collect();
    for (link, server) in used {
        if let Err(error @ ConnectError::Syntax { .. }) = server.describe() {
            let problem = PlanProblem::error("plan.bad-link", chain_of(&error));
            problems.push(
                problem.help("a link reads postgresql://user:password@host:5432/database").at(link.place()),
            );
        }
    }
    problems
}
