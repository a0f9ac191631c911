//! What a service does not get as the monolith has it: told each time, with what to type, and written into the journal once.

use std::borrow::Cow;

use serde_json::json;

use super::Statement;
use super::deferred::validate;
use super::draft::{Draft, Site, journal};
use super::expression::target_of;
use super::objects::validated;
use super::storage::{self, Left};
use super::tables::majors;
use crate::catalog::{Table, UserTypeKind};
use crate::mapping::{SliceMapping, TableMapping};
use crate::problem::Problem;

/// Something that does not go along as it was, for the journal.
pub(super) struct Note {
    pub(super) action: &'static str,
    pub(super) object: String,
    pub(super) detail: String,
    /// What the operator may type, where that is worth a warning.
    pub(super) next: Option<Cow<'static, str>>,
}

const BY_HAND: &str = "make it by hand in the service once the slice is live, where it is needed";

/// A thing of a table that is left out, and why.
pub(super) fn left_out(what: &str, name: &str, table: &Table, why: String) -> Note {
    let object = format!("{what} {name} of {}", table.name);
    Note { action: "left out", object, detail: why, next: Some(BY_HAND.into()) }
}

/// Journal entries that are not there yet; what was left out is a warning each time.
pub(super) fn remember(
    draft: &mut Draft<'_>,
    site: &Site<'_>,
    slice: &SliceMapping,
    notes: Vec<Note>,
) -> Vec<Statement> {
    let mut statements = Vec::new();
    for note in notes {
        let key = (slice.slice.clone(), note.action.to_owned(), note.object.clone());
        if !site.state.notes.contains(&key) {
            let detail = json!({ "object": note.object, "detail": note.detail });
            statements.push(journal(Some(&slice.slice), note.action, &detail));
        }
        if let Some(next) = note.next {
            draft.problem(
                Problem::warning("left-out", &note.object)
                    .fact(note.detail)
                    .consequence(format!("service {} goes without it", site.name))
                    .next(next),
            );
        }
    }
    statements
}

/// Checks of domains that were never validated are left out. The monolith looks at a value of a domain when it is made,
/// and never again while other columns of its row change; a service would look at it whenever the row is written, and
/// refuse rows that the monolith has.
pub(super) fn domains(draft: &Draft<'_>, mapping: &TableMapping, table: &Table, notes: &mut Vec<Note>) {
    for column in table.columns.iter().filter(|one| target_of(mapping, table, &one.name).is_some()) {
        let mut next = column.user_type.as_ref();
        while let Some(of) = next.and_then(|name| draft.survey.monolith.types.get(name)) {
            let UserTypeKind::Domain { checks, base_type, .. } = &of.kind else { break };
            for (check, _) in checks.iter().filter(|(_, definition)| !validated(definition)) {
                let object = format!("constraint {check} of domain {}", of.name);
                if notes.iter().all(|one| one.object != object) {
                    notes.push(Note {
                        action: "left out",
                        object,
                        detail: "it was never validated, so rows may break it, and the service would not take them"
                            .to_owned(),
                        next: Some(
                            "nothing; to carry it over, validate it on the monolith before provision: ALTER DOMAIN … VALIDATE \
                             CONSTRAINT …"
                                .into(),
                        ),
                    });
                }
            }
            next = base_type.as_ref();
        }
    }
}

/// NOT NULL that was never validated (18 and later): rows may hold nothing there.
pub(super) fn not_nulls(mapping: &TableMapping, table: &Table, notes: &mut Vec<Note>) {
    let carried = table.columns.iter().filter(|one| target_of(mapping, table, &one.name).is_some());
    let constraints = carried.filter_map(|column| table.not_null(&column.name));
    notes.extend(constraints.filter(|one| !one.validated).map(|one| Note {
        next: Some(
            format!(
                "nothing; to carry it over, validate it on the monolith before provision: {}",
                validate(&table.name, &one.name)
            )
            .into(),
        ),
        ..left_out(
            "constraint",
            &one.name,
            table,
            "it is a NOT NULL that was never validated, so rows may hold nothing there, and the service would not take them"
                .to_owned(),
        )
    }));
}

/// Storage parameters that the service does not get.
pub(super) fn parameters(
    (draft, site): (&Draft<'_>, &Site<'_>),
    (mapping, table): (&TableMapping, &Table),
    notes: &mut Vec<Note>,
) {
    let split = storage::split(&draft.survey.monolith, table, majors(draft, site));
    notes.extend(split.left.into_iter().map(|Left { parameter, of, why }| {
        let set = storage::set(mapping, &[parameter]).unwrap_or_default();
        Note {
            action: "left out",
            object: format!("storage parameter {parameter} of {of}"),
            detail: why,
            next: Some(format!("nothing; where it is wanted, run in the service: {set}").into()),
        }
    }));
}
