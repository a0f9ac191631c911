//! Roles, and exactly the rights they need.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::password::scram_sha_256;
use secrecy::ExposeSecret;

use super::draft::{Draft, Site};
use super::state::{Grant, GrantOn};
use super::{Database, Statement, Work};
use crate::dualwrite::gate::{self, APPLY_ROLE};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::plan::Ddl;
use crate::problem::Problem;

/// Sessions of `strangler_apply` on one server: several slices with eight workers each fit, and a runaway can't take
/// the application's connections.
const APPLY_CONNECTIONS: u32 = 100;

/// What the application may do with its tables.
const DML: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];

/// What the mirror may do with the slice's tables.
const DML_AND_TRUNCATE: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// What mirror and reconcile may do with our own tables in a service.
const APPLY_ON_OURS: &[(&str, &[&str])] = &[
    ("stream", DML),
    ("piece", DML),
    ("part", DML),
    ("mirror_table", DML),
    ("mirror_process", DML),
    ("deferred", &["SELECT", "UPDATE"]),
    ("journal", &["SELECT", "INSERT"]),
    ("slice", &["SELECT"]),
    ("database", &["SELECT"]),
    ("ledger", &["SELECT", "INSERT"]),
    ("reconcile_run", DML),
    ("reconcile_chunk", DML),
    ("touched", &["SELECT", "INSERT", "DELETE"]),
    ("touched_floor", &["SELECT", "INSERT", "UPDATE"]),
    ("repair", &["SELECT", "INSERT", "UPDATE"]),
];

/// Roles are the server's, not the database's: services on one server share a step.
pub(super) fn roles<'a>(draft: &mut Draft<'a>, sites: &[Site<'a>]) {
    let mut made: BTreeSet<(&'a str, String)> = BTreeSet::new();
    for site in sites {
        let mut wanted = vec![(&site.service.app, app_role(&site.service.app))];
        let owner =
            (&site.service.owner, format!("CREATE ROLE {} NOLOGIN", quote_ident(&site.service.owner)));
        if site.service.ddl == Ddl::Create {
            wanted.push(owner);
        }
        for (role, sql) in wanted {
            if !site.state.roles.contains_key(role) && made.insert((&site.state.server, role.clone())) {
                create(draft, site, role, vec![sql.into()]);
            }
        }
        if site.service.ddl == Ddl::Create {
            membership(draft, site, &mut made);
        }
        apply_role(draft, site, &mut made);
    }
}

fn app_role(role: &str) -> String {
    format!("CREATE ROLE {} LOGIN", quote_ident(role))
}

fn create(draft: &mut Draft<'_>, site: &Site<'_>, role: &str, statements: Vec<Statement>) {
    if !site.state.create_roles {
        let sql: Vec<&str> = statements.iter().map(Statement::shown).collect();
        draft.problem(
            Problem::error("may-not-create-roles", format!("service {}, role {role}", site.name))
                .fact(format!("it does not exist, and {} may not create roles", site.state.user))
                .consequence("the service's tables would have nobody to own or use them")
                .next(format!("run as an administrator: {};", sql.join("; "))),
        );
        return;
    }
    draft.step(site.database(), "create role", role, Work::Sql(statements));
}

/// Whoever gives tables to a role must be a member of it (ALTER TABLE … OWNER TO).
fn membership<'a>(draft: &mut Draft<'a>, site: &Site<'a>, made: &mut BTreeSet<(&'a str, String)>) {
    let owner = &site.service.owner;
    let member = site.state.superuser || site.state.roles.get(owner).is_some_and(|role| role.ours);
    if !member && made.insert((&site.state.server, format!("member of {owner}"))) {
        let sql = format!("GRANT {} TO {}", quote_ident(owner), quote_ident(&site.state.user));
        draft.step(site.database(), "join role", owner, Work::Sql(vec![sql.into()]));
    }
}

fn apply_role<'a>(draft: &mut Draft<'a>, site: &Site<'a>, made: &mut BTreeSet<(&'a str, String)>) {
    let present = site.state.roles.get(APPLY_ROLE);
    let new = present.is_none() && made.insert((&site.state.server, APPLY_ROLE.to_owned()));
    if new {
        let statement = create_apply_role(draft, site.name);
        create(draft, site, APPLY_ROLE, vec![statement]);
    }
    let asleep = present.is_some_and(|role| !role.login);
    if asleep && made.insert((&site.state.server, format!("login of {APPLY_ROLE}"))) {
        let sql = format!("ALTER ROLE {APPLY_ROLE} LOGIN");
        draft.step(site.database(), "let log in", APPLY_ROLE, Work::Sql(vec![sql.into()]));
    }
    if present.is_some_and(|role| role.may_replicate)
        || !made.insert((&site.state.server, "session_replication_role".to_owned()))
    {
        return;
    }
    let sql = if site.catalog.major() >= 15 {
        format!("GRANT SET ON PARAMETER session_replication_role TO {APPLY_ROLE}")
    } else {
        format!("ALTER ROLE {APPLY_ROLE} SET session_replication_role = 'replica'")
    };
    if site.state.superuser {
        draft.step(
            site.database(),
            "let the mirror keep triggers quiet:",
            APPLY_ROLE,
            Work::Sql(vec![sql.into()]),
        );
    } else {
        draft.problem(
            Problem::warning("apply-may-not-replicate", format!("service {}, role {APPLY_ROLE}", site.name))
                .fact(format!(
                    "it may not set session_replication_role, and {} can't allow it",
                    site.state.user
                ))
                .consequence("triggers and foreign keys of the service would act on mirrored rows")
                .next(format!("run as a superuser: {sql};")),
        );
    }
}

fn create_apply_role(draft: &Draft<'_>, service: &str) -> Statement {
    let sql = format!("CREATE ROLE {APPLY_ROLE} LOGIN CONNECTION LIMIT {APPLY_CONNECTIONS}");
    let login = draft.logins.apply.get(service).filter(|login| login.user == APPLY_ROLE);
    match login.and_then(|login| login.password.as_ref()) {
        // The server gets a verifier, so the password itself is in no log of it.
        Some(password) => Statement::secret(
            format!("{sql} PASSWORD {}", quote_literal(&scram_sha_256(password.expose_secret().as_bytes()))),
            format!("{sql} PASSWORD '<SCRAM-SHA-256 verifier of the password in services.{service}.apply>'"),
        ),
        None => Statement::from(sql),
    }
}

/// What the monolith's read link may see of ours. Reading the tables themselves is for an administrator to grant.
pub(super) fn monolith(draft: &mut Draft<'_>) {
    let survey = draft.survey;
    let Some(role) = draft.logins.monolith_read.clone() else { return };
    let Some(present) = survey.monolith_state.roles.get(&role).filter(|role| !role.superuser) else { return };
    if !present.login || role == survey.monolith_state.user {
        return;
    }
    let mut wanted = Wanted::default();
    wanted.schema("strangler", &role);
    for table in ["database", "slice"] {
        wanted.table(&TableName::new("strangler", table), &role, &["SELECT"]);
    }
    for slice in draft.mappings.keys() {
        wanted.table(&gate::name(slice), &role, &["SELECT"]);
    }
    grant(draft, Database::Monolith, wanted, &|grant| survey.monolith_state.holds(grant));
}

/// What the application and the mirror may do in a service.
pub(super) fn service(draft: &mut Draft<'_>, site: &Site<'_>) {
    let app = &site.service.app;
    let mut wanted = Wanted::default();
    for role in [app.as_str(), APPLY_ROLE] {
        wanted.schema("strangler", role);
        wanted.table(&TableName::new("strangler", "freshness"), role, &["SELECT"]);
    }
    for (table, privileges) in APPLY_ON_OURS {
        wanted.table(&TableName::new("strangler", *table), APPLY_ROLE, privileges);
    }
    for slice in &site.slices {
        wanted.table(&gate::name(&slice.slice), APPLY_ROLE, &["SELECT"]);
    }
    for (_, table) in site.tables() {
        for role in [app.as_str(), APPLY_ROLE] {
            wanted.schema(&table.target.schema, role);
        }
        wanted.table(&table.target, app, DML);
        wanted.table(&table.target, APPLY_ROLE, DML_AND_TRUNCATE);
        for sequence in super::objects::sequences_of(draft, site, table) {
            wanted.add(GrantOn::Sequence(sequence), app, &["USAGE"]);
        }
    }
    // Tables that are made anew lose what was granted on the old ones.
    let stays = |grant: &Grant| {
        site.remade.is_empty() || matches!(&grant.on, GrantOn::Table(name) if name.schema == "strangler")
    };
    grant(draft, site.database(), wanted, &|grant| stays(grant) && site.state.holds(grant));
}

#[derive(Default)]
struct Wanted(BTreeSet<Grant>);

impl Wanted {
    fn add(&mut self, on: GrantOn, role: &str, privileges: &[&str]) {
        for privilege in privileges {
            let (on, privilege) = (on.clone(), (*privilege).to_owned());
            self.0.insert(Grant { on, role: role.to_owned(), privilege });
        }
    }

    fn schema(&mut self, schema: &str, role: &str) {
        self.add(GrantOn::Schema(schema.to_owned()), role, &["USAGE"]);
    }

    fn table(&mut self, table: &TableName, role: &str, privileges: &[&str]) {
        self.add(GrantOn::Table(table.clone()), role, privileges);
    }
}

/// Grants what is missing, one statement per object and role.
fn grant(draft: &mut Draft<'_>, database: Database, wanted: Wanted, present: &dyn Fn(&Grant) -> bool) {
    let mut missing: BTreeMap<(GrantOn, String), Vec<String>> = BTreeMap::new();
    for grant in wanted.0.into_iter().filter(|grant| !present(grant)) {
        missing.entry((grant.on, grant.role)).or_default().push(grant.privilege);
    }
    let statements = missing.into_iter().map(|((on, role), privileges)| {
        let on = match on {
            GrantOn::Schema(name) => format!("SCHEMA {}", quote_ident(&name)),
            GrantOn::Table(name) => format!("TABLE {}", name.sql()),
            GrantOn::Sequence(name) => format!("SEQUENCE {}", name.sql()),
        };
        Statement::from(format!("GRANT {} ON {on} TO {}", privileges.join(", "), quote_ident(&role)))
    });
    let statements = statements.collect();
    draft.journaled(database, None, ("grant", "rights"), statements);
}
