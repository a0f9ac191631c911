//! Whether the link of the monolith leads to the database whose rows were copied, decided without I/O. The copies are worth nothing only
//! as long as that one has its rows; any other database, an empty one above all, would make them the only ones that are left.

use serde_json::{Value, json};

use super::facts::Facts;
use super::lost;
use crate::journal::migrate::Form;
use crate::problem::{Problem, START_ANEW};

/// Tells a database from others, as far as a server's clone of another one has not the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// System identifier of its cluster.
    pub(super) system_identifier: String,
    /// Its oid.
    pub(super) database_oid: u32,
}

/// What the first step writes down of the monolith, and every later run compares with.
#[must_use]
pub(super) fn to_remember(facts: &Facts) -> Value {
    let here = &facts.monolith;
    json!({
        "system_identifier": here.identity.system_identifier,
        "database_oid": here.identity.database_oid,
        "uuid": here.uuid,
        "schema_may_go": lost::schema_may_go(facts),
    })
}

/// The same, as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    identity: Identity,
    uuid: Option<String>,
    /// Our schema was to go with the last slice, by this abandonment or by that of another slice.
    schema_may_go: bool,
}

/// Reads it; `None` where nobody wrote it down.
#[must_use]
pub(super) fn remembered(monolith: &Value) -> Option<Known> {
    let text = |name: &str| Some(monolith.get(name)?.as_str()?.to_owned());
    let database_oid = u32::try_from(monolith.get("database_oid")?.as_u64()?).ok()?;
    Some(Known {
        identity: Identity { system_identifier: text("system_identifier")?, database_oid },
        uuid: text("uuid"),
        schema_may_go: monolith.get("schema_may_go")?.as_bool()?,
    })
}

/// Why this is not the monolith; nothing where it is, or where nothing of the slice is left that could be lost.
#[must_use]
pub(super) fn problem(facts: &Facts, slice: &str) -> Option<Problem> {
    let here = &facts.monolith;
    let fact = another(facts, slice)?;
    Some(
        Problem::error("other-monolith", "monolith")
            .fact(format!("its link leads to database {}, {fact}", here.database))
            .consequence(format!("it need not have the rows of slice {slice}, which would go from the service"))
            .next(format!(
                "correct the link of the monolith in the plan, or the variable that holds it, and type the same command again; only where the \
                 right database is gone for good, the service is cleared by hand: {START_ANEW}"
            )),
    )
}

fn another(facts: &Facts, slice: &str) -> Option<String> {
    let here = &facts.monolith;
    let known = facts.known_monolith.as_ref();
    // Where our schema was to go, whoever provisions there next gives the database another name for itself.
    let anew = known.is_some_and(|known| known.schema_may_go) && here.row.is_none();
    let other_uuid =
        |then: Option<&str>| !anew && then.zip(here.uuid.as_deref()).is_some_and(|(then, now)| then != now);
    if let Some(source) = &facts.source {
        let then = Identity {
            system_identifier: source.system_identifier.clone(),
            database_oid: source.database_oid,
        };
        if then != here.identity || other_uuid(Some(&source.uuid)) {
            return Some(format!("and slice {slice} was mirrored from another database"));
        }
    }
    facts.begun.as_ref()?;
    match known {
        Some(known) if known.identity != here.identity || other_uuid(known.uuid.as_deref()) => {
            Some(format!("and the abandonment of slice {slice} was begun with another database"))
        }
        Some(known) if here.form == Form::Absent && !known.schema_may_go => Some(
            "from which the schema strangler is gone, and the abandonment that has begun was not to remove it"
                .to_owned(),
        ),
        None if facts.source.is_none() && facts.home.is_none() => {
            Some("and nothing says whether the abandonment was begun with it".to_owned())
        }
        Some(_) | None => None,
    }
}
