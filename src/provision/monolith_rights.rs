//! What the links may do on the monolith, beside what an administrator grants: see our own tables, lock single rows, and
//! bring back what a service writes once it has the authority.

use std::collections::BTreeSet;

use super::Database;
use super::draft::{Draft, Site};
use super::rights::{DML, Wanted, grant};
use super::state::GrantOn;
use super::type_rights;
use crate::dualwrite::gate::{self, APPLY_ROLE};
use crate::mapping::TableMapping;
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// What is granted to both links, because both look where they lead, which version made it, what the mapping was before
/// keys were cut, where old tables were moved, what dropped ones were, and how the way back is doing.
pub(crate) const OURS: &[&str] = &[
    "database",
    "schema_history",
    "slice",
    "stream",
    "mirror_process",
    "mirror_table",
    "cut_key",
    "quarantine",
    "dropped",
];

/// What the way back does with our own tables here: the same as the way there in a service. `arm` grants it, too, where only it
/// makes the role.
pub(crate) const WAY_BACK: &[(&str, &[&str])] = &[
    ("stream", DML),
    ("piece", DML),
    ("mirror_table", DML),
    ("mirror_process", DML),
    ("touched", &["SELECT", "INSERT", "DELETE"]),
    ("touched_floor", &["SELECT", "INSERT", "UPDATE"]),
    ("repair", DML),
    ("canary", &["SELECT", "INSERT", "UPDATE"]),
    ("own_scan", DML),
    ("table_use", &["SELECT", "INSERT", "UPDATE"]),
    ("table_user", &["SELECT", "INSERT", "UPDATE"]),
    (LINEAGE, COUNTS),
];

/// What reading writes: which scans of old tables were ours.
const OWN_SCANS: &str = "own_scan";

/// Whose source it is: the mirror counts a mark up there.
const LINEAGE: &str = "lineage";
const COUNTS: &[&str] = &["SELECT", "INSERT", "UPDATE"];

/// Rights of the read and the apply link.
pub(super) fn grants(draft: &mut Draft<'_>, sites: &[Site<'_>]) {
    let mut wanted = Wanted::default();
    if let Some(role) = read_role(draft) {
        see_ours(draft, &mut wanted, &role);
        wanted.table(&TableName::new("strangler", OWN_SCANS), &role, &["INSERT"]);
        wanted.table(&TableName::new("strangler", LINEAGE), &role, COUNTS);
        name_types(draft, &mut wanted, &role);
    }
    if applies(draft, sites) {
        see_ours(draft, &mut wanted, APPLY_ROLE);
        // The ledger's head.
        wanted.table(&TableName::new("strangler", "journal"), APPLY_ROLE, &["SELECT", "INSERT"]);
        for (table, privileges) in WAY_BACK {
            wanted.table(&TableName::new("strangler", *table), APPLY_ROLE, privileges);
        }
        lock_rows(draft, &mut wanted);
        name_types(draft, &mut wanted, APPLY_ROLE);
    }
    let survey = draft.survey;
    grant(draft, Database::Monolith, wanted, &|grant| survey.monolith_state.holds(grant));
}

/// The read link's role, when it needs to be given anything.
fn read_role(draft: &Draft<'_>) -> Option<String> {
    let state = &draft.survey.monolith_state;
    let role = draft.logins.monolith_read.as_ref()?;
    let present = state.roles.get(role).filter(|role| !role.superuser)?;
    (present.login && *role != state.user).then(|| role.clone())
}

/// The sessions of the apply link are the apply role's: it logs in as that role, or as a superuser who becomes it where it
/// exists. It is there, or is made in this run for the monolith or for a service on the same server.
fn applies(draft: &Draft<'_>, sites: &[Site<'_>]) -> bool {
    let state = &draft.survey.monolith_state;
    let Some(login) = &draft.logins.monolith_apply else { return false };
    let itself = login.user == APPLY_ROLE;
    let superuser = state.roles.get(&login.user).is_some_and(|role| role.superuser);
    let exists = state.roles.contains_key(APPLY_ROLE)
        || itself && state.create_roles
        || sites.iter().any(|site| site.state.server == state.server);
    exists && (itself || superuser)
}

fn see_ours(draft: &Draft<'_>, wanted: &mut Wanted, role: &str) {
    wanted.schema("strangler", role);
    for table in OURS {
        wanted.table(&TableName::new("strangler", *table), role, &["SELECT"]);
    }
    for slice in draft.mappings.keys() {
        wanted.table(&gate::name(slice), role, &["SELECT"]);
    }
}

/// What the apply role needs to lock rows of a table: to prove that a row differs, reconcile locks it on the monolith. SELECT …
/// FOR SHARE takes SELECT on the table and UPDATE on any one column of it (PostgreSQL documentation, section 5.8), so one
/// column of the key is what it gets. `arm` grants it, too, where only it makes the role.
pub(crate) fn to_lock_rows(table: &TableMapping) -> Vec<(GrantOn, &'static [&'static str])> {
    let key = table.key_columns().chain(&table.columns).next();
    let mut wanted: Vec<(GrantOn, &'static [&'static str])> = vec![
        (GrantOn::Schema(table.source.place_schema().to_owned()), &["USAGE"]),
        (GrantOn::Table(table.source.clone()), &["SELECT"]),
    ];
    let column = key.map(|key| GrantOn::Column(table.source.clone(), key.source.clone()));
    wanted.extend(column.map(|column| (column, &["UPDATE"] as _)));
    wanted
}

fn lock_rows(draft: &mut Draft<'_>, wanted: &mut Wanted) {
    let tables: Vec<&TableMapping> = draft.mappings.values().flat_map(|slice| &slice.tables).collect();
    for (on, privileges) in tables.into_iter().flat_map(to_lock_rows) {
        if let GrantOn::Schema(schema) = &on
            && !may_grant_usage(draft, schema)
        {
            draft.problem(closed(draft, schema));
            continue;
        }
        wanted.add(on, APPLY_ROLE, privileges);
    }
}

/// To hash a value of a type outside the tables' schemas, a role must be able to name the type.
fn name_types(draft: &mut Draft<'_>, wanted: &mut Wanted, role: &str) {
    let tables = draft.mappings.values().flat_map(|slice| &slice.tables);
    let schemas: BTreeSet<String> = tables.flat_map(|table| type_rights::schemas(draft, table)).collect();
    let survey = draft.survey;
    type_rights::want(draft, wanted, (&Database::Monolith, &survey.monolith_state), (&schemas, role));
}

/// Whether USAGE of a schema is there, or can be granted by whoever owns the schema.
fn may_grant_usage(draft: &Draft<'_>, schema: &str) -> bool {
    type_rights::may_grant(&draft.survey.monolith_state, schema, APPLY_ROLE)
}

fn closed(draft: &Draft<'_>, schema: &str) -> Problem {
    let state = &draft.survey.monolith_state;
    let owner = state.schema_owners.get(schema).map_or("somebody else", String::as_str);
    Problem::warning("no-schema-usage", format!("monolith, schema {schema}"))
        .fact(format!(
            "{APPLY_ROLE} may not use it; it belongs to {owner}, and {} can't grant that",
            state.user
        ))
        .consequence("no row there could be locked, so reconcile could not prove a difference")
        .next(format!(
            "run as {owner} or a superuser: GRANT USAGE ON SCHEMA {} TO {APPLY_ROLE};",
            quote_ident(schema)
        ))
}
