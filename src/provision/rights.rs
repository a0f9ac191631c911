//! Roles, and exactly the rights they need.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::password::scram_sha_256;
use secrecy::ExposeSecret;

use super::draft::{Draft, Site};
use super::state::{Grant, GrantOn, State};
use super::{Database, Login, Statement, type_rights};
use crate::dualwrite::gate::{self, APPLY_ROLE};
use crate::journal::granted::{self, On};
use crate::name::{TableName, quote_ident, quote_literal};
use crate::plan::Ddl;
use crate::problem::Problem;

/// Sessions of `strangler_apply` on one server: several slices with eight workers each fit, and a runaway can't take
/// the application's connections.
const APPLY_CONNECTIONS: u32 = 100;

/// What the application may do with its tables.
pub(super) const DML: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];

/// What the mirror may do with the slice's tables.
pub(crate) const DML_AND_TRUNCATE: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// What mirror and reconcile may do with our own tables in a service.
const APPLY_ON_OURS: &[(&str, &[&str])] = &[
    ("stream", DML),
    ("piece", DML),
    ("part", DML),
    ("mirror_table", DML),
    ("baseline", DML),
    ("mirror_process", DML),
    ("deferred", &["SELECT", "UPDATE"]),
    ("journal", &["SELECT", "INSERT"]),
    ("slice", &["SELECT"]),
    ("database", &["SELECT"]),
    ("schema_history", &["SELECT"]),
    ("cut_key", &["SELECT"]),
    ("abandonment", &["SELECT"]),
    ("dropped", &["SELECT"]),
    ("ledger", &["SELECT", "INSERT"]),
    ("reconcile_run", DML),
    ("reconcile_chunk", DML),
    ("touched", &["SELECT", "INSERT", "DELETE"]),
    ("touched_floor", &["SELECT", "INSERT", "UPDATE"]),
    ("repair", DML),
    ("alarm", &["SELECT", "INSERT", "UPDATE"]),
    ("canary", &["SELECT", "INSERT", "UPDATE"]),
    ("lineage", &["SELECT", "INSERT", "UPDATE"]),
];

/// A database with what its server's roles are made from.
struct Place<'a> {
    database: Database,
    state: &'a State,
    /// As problems name it.
    name: String,
    /// Who its apply link logs in as.
    login: Option<&'a Login>,
    /// Where the plan has that link.
    link: String,
    major: u32,
}

impl<'a> Place<'a> {
    fn of_service(draft: &Draft<'a>, site: &Site<'a>) -> Self {
        Self {
            database: site.database(),
            state: site.state,
            name: format!("service {}", site.name),
            login: draft.logins.apply.get(site.name),
            link: format!("services.{}.apply", site.name),
            major: site.catalog.major(),
        }
    }

    fn of_monolith(draft: &Draft<'a>) -> Self {
        Self {
            database: Database::Monolith,
            state: &draft.survey.monolith_state,
            name: "monolith".to_owned(),
            login: draft.logins.monolith_apply.as_ref(),
            link: "monolith.apply".to_owned(),
            major: draft.survey.monolith.major(),
        }
    }
}

/// Servers with what was decided to be made there: roles are the server's, not the database's, so databases of one
/// server share a step.
type Made<'a> = BTreeSet<(&'a str, String)>;

/// Roles that are missing.
pub(super) fn roles<'a>(draft: &mut Draft<'a>, sites: &[Site<'a>]) {
    let mut made = Made::new();
    for site in sites {
        let place = Place::of_service(draft, site);
        let mut wanted = vec![(&site.service.app, app_role(&site.service.app))];
        let owner =
            (&site.service.owner, format!("CREATE ROLE {} NOLOGIN", quote_ident(&site.service.owner)));
        if site.service.ddl == Ddl::Create {
            wanted.push(owner);
        }
        for (role, sql) in wanted {
            if !site.state.roles.contains_key(role) && made.insert((&site.state.server, role.clone())) {
                let means = "the service's tables would have nobody to own or use them";
                create(draft, &place, (role, means), sql.into());
            }
        }
        if site.service.ddl == Ddl::Create {
            membership(draft, site, &mut made);
        }
        apply_role(draft, &place, &mut made);
        replica_role(draft, &place, &mut made);
    }
    let monolith = Place::of_monolith(draft);
    // On a development machine one superuser's link may stand for all three, and nobody logs in as the role.
    if monolith.login.is_some_and(|login| login.user == APPLY_ROLE) {
        apply_role(draft, &monolith, &mut made);
        if monolith.state.superuser {
            replica_role(draft, &monolith, &mut made);
        }
    }
}

fn app_role(role: &str) -> String {
    format!("CREATE ROLE {} LOGIN", quote_ident(role))
}

fn create(draft: &mut Draft<'_>, place: &Place<'_>, (role, means): (&str, &str), statement: Statement) {
    if !place.state.create_roles {
        draft.problem(
            Problem::error("may-not-create-roles", format!("{}, role {role}", place.name))
                .fact(format!("it does not exist, and {} may not create roles", place.state.user))
                .consequence(means)
                .next(format!("run as an administrator: {};", statement.shown())),
        );
        return;
    }
    draft.journaled(place.database.clone(), None, ("create role", role), vec![statement]);
}

/// Whoever gives tables to a role must be a member of it (ALTER TABLE … OWNER TO).
fn membership<'a>(draft: &mut Draft<'a>, site: &Site<'a>, made: &mut Made<'a>) {
    let owner = &site.service.owner;
    let member = site.state.superuser || site.state.roles.get(owner).is_some_and(|role| role.ours);
    if !member && made.insert((&site.state.server, format!("member of {owner}"))) {
        let sql = format!("GRANT {} TO {}", quote_ident(owner), quote_ident(&site.state.user));
        draft.journaled(site.database(), None, ("join role", owner), vec![sql.into()]);
    }
}

fn apply_role<'a>(draft: &mut Draft<'a>, place: &Place<'a>, made: &mut Made<'a>) {
    let present = place.state.roles.get(APPLY_ROLE);
    if present.is_none() && made.insert((&place.state.server, APPLY_ROLE.to_owned())) {
        let means = match place.database {
            Database::Monolith => "no row could be locked there to prove that it differs",
            Database::Service(_) => "nobody could write what is mirrored",
        };
        create(draft, place, (APPLY_ROLE, means), create_apply_role(place));
    }
    let asleep = present.is_some_and(|role| !role.login);
    if asleep && made.insert((&place.state.server, format!("login of {APPLY_ROLE}"))) {
        let sql = format!("ALTER ROLE {APPLY_ROLE} LOGIN");
        draft.journaled(place.database.clone(), None, ("let log in", APPLY_ROLE), vec![sql.into()]);
    }
}

fn replica_role<'a>(draft: &mut Draft<'a>, place: &Place<'a>, made: &mut Made<'a>) {
    if place.state.roles.get(APPLY_ROLE).is_some_and(|role| role.may_replicate)
        || !made.insert((&place.state.server, "session_replication_role".to_owned()))
    {
        return;
    }
    let sql = if place.major >= 15 {
        format!("GRANT SET ON PARAMETER session_replication_role TO {APPLY_ROLE}")
    } else {
        format!("ALTER ROLE {APPLY_ROLE} SET session_replication_role = 'replica'")
    };
    if place.state.superuser {
        let purpose = "let the mirror keep triggers quiet:";
        draft.journaled(place.database.clone(), None, (purpose, APPLY_ROLE), vec![sql.into()]);
    } else {
        draft.problem(
            Problem::warning("apply-may-not-replicate", format!("{}, role {APPLY_ROLE}", place.name))
                .fact(format!(
                    "it may not set session_replication_role, and {} can't allow it",
                    place.state.user
                ))
                .consequence("triggers and foreign keys of the service would act on mirrored rows")
                .next(format!("run as a superuser: {sql};")),
        );
    }
}

fn create_apply_role(place: &Place<'_>) -> Statement {
    let sql = format!("CREATE ROLE {APPLY_ROLE} LOGIN CONNECTION LIMIT {APPLY_CONNECTIONS}");
    let login = place.login.filter(|login| login.user == APPLY_ROLE);
    match login.and_then(|login| login.password.as_ref()) {
        // The server gets a verifier, so the password itself is in no log of it.
        Some(password) => Statement::secret(
            format!("{sql} PASSWORD {}", quote_literal(&scram_sha_256(password.expose_secret().as_bytes()))),
            format!("{sql} PASSWORD '<SCRAM-SHA-256 verifier of the password in {}>'", place.link),
        ),
        None => Statement::from(sql),
    }
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
        // The mirror's rows say nothing of columns that are the service's alone: their defaults draw for them, in the mirror's name.
        for sequence in super::objects::sequences_of_its_own(site, table) {
            wanted.schema(&sequence.schema, APPLY_ROLE);
            wanted.add(GrantOn::Sequence(sequence), APPLY_ROLE, &["USAGE"]);
        }
    }
    let of_types: BTreeSet<String> =
        site.tables().flat_map(|(_, table)| type_rights::schemas_there(draft, site, table)).collect();
    // The mirror names types when it finds a value, and the application when it casts to one.
    for role in [app.as_str(), APPLY_ROLE] {
        type_rights::want(draft, &mut wanted, (&site.database(), site.state), (&of_types, role));
    }
    // Tables that are made anew lose what was granted on the old ones.
    let stays = |grant: &Grant| {
        site.remade.is_empty() || matches!(&grant.on, GrantOn::Table(name) if name.schema == "strangler")
    };
    grant(draft, site.database(), wanted, &|grant| stays(grant) && site.state.holds(grant));
}

/// Rights that are to be there.
#[derive(Default)]
pub(super) struct Wanted(BTreeSet<Grant>);

impl Wanted {
    pub(super) fn add(&mut self, on: GrantOn, role: &str, privileges: &[&str]) {
        for privilege in privileges {
            let (on, privilege) = (on.clone(), (*privilege).to_owned());
            self.0.insert(Grant { on, role: role.to_owned(), privilege });
        }
    }

    pub(super) fn schema(&mut self, schema: &str, role: &str) {
        self.add(GrantOn::Schema(schema.to_owned()), role, &["USAGE"]);
    }

    pub(super) fn table(&mut self, table: &TableName, role: &str, privileges: &[&str]) {
        self.add(GrantOn::Table(table.clone()), role, privileges);
    }
}

/// What writes down that rights were granted, so that `abandon` finds them.
pub(crate) fn note(on: &GrantOn, role: &str, privileges: &[String]) -> Option<String> {
    let on = match on {
        GrantOn::Schema(name) => On::Schema(name),
        GrantOn::Table(name) | GrantOn::Sequence(name) => On::Relation(name),
        GrantOn::Column(name, column) => On::Column(name, column),
    };
    granted::note(&on, role, privileges)
}

/// Grants what is missing, one statement per object and role.
pub(super) fn grant(
    draft: &mut Draft<'_>,
    database: Database,
    wanted: Wanted,
    present: &dyn Fn(&Grant) -> bool,
) {
    let mut missing: BTreeMap<(GrantOn, String), Vec<String>> = BTreeMap::new();
    for grant in wanted.0.into_iter().filter(|grant| !present(grant)) {
        missing.entry((grant.on, grant.role)).or_default().push(grant.privilege);
    }
    let statements = missing.into_iter().flat_map(|((on, role), privileges)| {
        let noted = note(&on, &role, &privileges);
        let (of_column, on) = match on {
            GrantOn::Schema(name) => (String::new(), format!("SCHEMA {}", quote_ident(&name))),
            GrantOn::Table(name) => (String::new(), format!("TABLE {}", name.sql())),
            GrantOn::Sequence(name) => (String::new(), format!("SEQUENCE {}", name.sql())),
            GrantOn::Column(name, column) => {
                (format!(" ({})", quote_ident(&column)), format!("TABLE {}", name.sql()))
            }
        };
        let privileges: Vec<String> =
            privileges.iter().map(|privilege| format!("{privilege}{of_column}")).collect();
        let grant = format!("GRANT {} ON {on} TO {}", privileges.join(", "), quote_ident(&role));
        std::iter::once(grant).chain(noted).map(Statement::from)
    });
    let statements = statements.collect();
    draft.journaled(database, None, ("grant", "rights"), statements);
}
