//! What the reverse mirror may do on the monolith: it logs in as the one role that the gates let pass.

use super::design::Draft;
use crate::dualwrite::gate::APPLY_ROLE;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::problem::Problem;
use crate::provision::monolith_rights::{OURS, WAY_BACK, to_lock_rows};
use crate::provision::{Database, Grant, GrantOn, Statement, note_granted};

/// Rows of the moved tables, and every column of them, since any may be mapped.
const ON_TABLES: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// Adds what is missing.
pub(super) fn grants(draft: &mut Draft<'_>, slice: &SliceMapping) {
    let state = &draft.survey.provisioned.monolith_state;
    if !state.roles.contains_key(APPLY_ROLE) && !draft.made_apply_role {
        if !state.create_roles {
            draft.problem(
                Problem::error("no-apply-role", "monolith")
                    .fact(format!(
                        "the role {APPLY_ROLE} does not exist, and {} may not create it",
                        state.user
                    ))
                    .consequence("the gates let only that role pass, so nothing could be written back")
                    .next(format!("run as an administrator: CREATE ROLE {APPLY_ROLE} LOGIN;")),
            );
            return;
        }
        draft.made_apply_role = true;
        create_role(draft, slice);
    }
    let mut wanted: Vec<(GrantOn, &[&str])> = vec![(GrantOn::Schema("strangler".to_owned()), &["USAGE"])];
    let ours = |table: &str| GrantOn::Table(TableName::new("strangler", table));
    wanted.extend(OURS.iter().map(|table| (ours(table), &["SELECT"] as &[&str])));
    wanted.push((ours("journal"), &["SELECT", "INSERT"]));
    wanted.extend(WAY_BACK.iter().map(|(table, privileges)| (ours(table), *privileges)));
    wanted.push((GrantOn::Table(crate::dualwrite::gate::name(&slice.slice)), &["SELECT"]));
    for table in &slice.tables {
        wanted.push((GrantOn::Schema(table.source.place_schema().to_owned()), &["USAGE"]));
        wanted.push((GrantOn::Table(table.source.clone()), ON_TABLES));
    }
    if draft.made_apply_role {
        wanted.extend(of_others(draft, slice));
    }
    let statements = wanted.into_iter().flat_map(|(on, privileges)| missing(draft, on, privileges)).collect();
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("grant", "rights of the reverse mirror"),
        (Vec::new(), None, statements),
        "arm-rights-granted",
    );
}

/// A superuser's link becomes this role wherever it exists, so a role that comes with the first armed slice gets what `provision`
/// would have granted it for the others: without that nobody could lock their rows to prove a difference.
fn of_others(draft: &Draft<'_>, armed: &SliceMapping) -> Vec<(GrantOn, &'static [&'static str])> {
    let survey = draft.survey;
    let provisioned = |slice: &&SliceMapping| {
        slice.slice != armed.slice && survey.provisioned.monolith_state.slices.contains_key(&slice.slice)
    };
    let mut wanted: Vec<(GrantOn, &'static [&'static str])> = Vec::new();
    for slice in survey.mappings.values().filter(provisioned) {
        wanted.push((GrantOn::Table(crate::dualwrite::gate::name(&slice.slice)), &["SELECT"]));
        wanted.extend(slice.tables.iter().flat_map(to_lock_rows));
    }
    wanted
}

/// As `provision` makes it in the services: the application's triggers and foreign keys do not act on what it writes.
fn create_role(draft: &mut Draft<'_>, slice: &SliceMapping) {
    let survey = &draft.survey.provisioned;
    let mut statements =
        vec![Statement::from(format!("CREATE ROLE {APPLY_ROLE} LOGIN CONNECTION LIMIT 100"))];
    if survey.monolith_state.superuser {
        statements.push(Statement::from(if survey.monolith.major() >= 15 {
            format!("GRANT SET ON PARAMETER session_replication_role TO {APPLY_ROLE}")
        } else {
            format!("ALTER ROLE {APPLY_ROLE} SET session_replication_role = 'replica'")
        }));
    }
    draft.journaled(
        (Database::Monolith, &slice.slice),
        ("create role", APPLY_ROLE),
        (Vec::new(), None, statements),
        "arm-rights-granted",
    );
}

fn missing(draft: &Draft<'_>, on: GrantOn, privileges: &[&str]) -> Vec<Statement> {
    let held = |privilege: &str| {
        let grant = Grant { on: on.clone(), role: APPLY_ROLE.to_owned(), privilege: privilege.to_owned() };
        draft.survey.provisioned.monolith_state.holds(&grant)
    };
    // What nobody but a schema's owner can grant, provision has already asked for.
    let state = &draft.survey.provisioned.monolith_state;
    if let GrantOn::Schema(schema) = &on {
        let owner = state.schema_owners.get(schema).and_then(|owner| state.roles.get(owner));
        if !state.superuser && owner.is_some_and(|owner| !owner.ours) {
            return Vec::new();
        }
    }
    let missing: Vec<String> =
        privileges.iter().filter(|privilege| !held(privilege)).map(|one| (*one).to_owned()).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let object = match &on {
        GrantOn::Schema(name) => format!("SCHEMA {}", crate::name::quote_ident(name)),
        GrantOn::Table(name) => format!("TABLE {}", name.sql()),
        GrantOn::Column(name, _) => format!("TABLE {}", name.sql()),
        GrantOn::Sequence(_) => return Vec::new(),
    };
    let column = match &on {
        GrantOn::Column(_, column) => format!(" ({})", crate::name::quote_ident(column)),
        GrantOn::Schema(_) | GrantOn::Table(_) | GrantOn::Sequence(_) => String::new(),
    };
    let statement = format!("GRANT {}{column} ON {object} TO {APPLY_ROLE}", missing.join(", "));
    let noted = note_granted(&on, APPLY_ROLE, &missing);
    std::iter::once(statement).chain(noted).map(Statement::from).collect()
}
