//! Whether a slice is armed, and what it lacks.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Client;

use super::facts::{ServiceFacts, Slot};
use crate::dualwrite::guard::{self, Guard};
use crate::journal::JournalError;
use crate::journal::archives::{self, Archive};
use crate::journal::arming::{self, Armed};
use crate::journal::retirement::{self, Retirement};
use crate::journal::streams::{StreamRow, StreamState};
use crate::name::TableName;
use crate::postgres::places;

/// What the monolith says about it.
#[derive(Debug, Clone, Default)]
pub struct ArmingFacts {
    /// Gates and foreign keys, as they are.
    pub guard: Guard,
    /// What the books say.
    pub armed: Armed,
    /// The reverse stream's row.
    pub reverse: Option<StreamRow>,
    /// How far its old tables were taken away.
    pub retirement: Option<Retirement>,
    /// Where they are archived.
    pub archive: Option<Archive>,
    /// Rights on them that were taken away and are not given back.
    pub rights_away: usize,
}

/// Whether a slice is armed. Serialised as `status --format json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArmedStatus {
    /// In a word.
    pub state: ArmedState,
    /// What is missing, a clause each; empty unless it is partly armed.
    pub lacks: Vec<String>,
    /// The reverse slot in the service.
    pub slot: Option<String>,
    /// WAL that the service holds for it, in bytes; absent while the service can't be read.
    pub held_bytes: Option<u64>,
    /// `arm` once finished, so that what is missing now is an alarm.
    #[serde(skip)]
    pub finished: bool,
    /// `disarm` was cut off.
    #[serde(skip)]
    pub disarming: bool,
    /// The monolith's gate is closed, so that whatever passes it is lost.
    #[serde(skip)]
    pub closed: bool,
    /// What of it is an alarm: everything that is missing after `arm` once finished; else triggers that a closed side lacks.
    #[serde(skip)]
    pub holes: Vec<String>,
    /// What has to be done before `arm` takes the slice, because nobody but its owner may: a child that inherits, a subscription.
    #[serde(skip)]
    pub first: Option<String>,
}

/// Whether a slice is armed, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmedState {
    /// Gates, foreign keys and the reverse stream are as a flip needs them.
    Armed,
    /// Some of it is.
    PartlyArmed,
    /// Nothing of it is.
    NotArmed,
}

impl ArmedState {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Armed => "yes",
            Self::PartlyArmed => "partly",
            Self::NotArmed => "no",
        }
    }
}

/// Asks the monolith. `shapes` has the slice's tables by their names.
///
/// # Errors
/// [`JournalError`].
pub async fn read(
    client: &Client,
    slice: &str,
    shapes: &BTreeMap<String, String>,
) -> Result<ArmingFacts, JournalError> {
    // Tables that were moved away have their gates with them.
    let places = places::read(client).await.map_err(JournalError::database("reading where tables stand"))?;
    let names = shapes.keys().filter_map(|name| TableName::parse(name, "public").ok());
    let tables: Vec<TableName> = names.map(|name| places.located(slice, &name)).collect();
    Ok(ArmingFacts {
        guard: guard::read(client, slice, &tables).await?,
        armed: arming::armed(client, slice).await?,
        reverse: arming::reverse(client, slice).await?,
        retirement: retirement::read(client, slice).await?,
        archive: archives::read(client, slice).await?,
        rights_away: retirement::rights(client, slice).await?.len(),
    })
}

/// What the facts come to. `closed` when the monolith's gate is, for which all triggers have to be there, whoever took them
/// off. Pure.
#[must_use]
pub fn judge(facts: &ArmingFacts, closed: bool, service: Option<&ServiceFacts>) -> ArmedStatus {
    let slot = facts.reverse.as_ref().map(|row| row.slot.clone());
    let found = slot.as_ref().zip(service).map(|(name, service)| {
        let found: Option<&Slot> = service.slots.iter().find(|slot| slot.name == *name);
        found
    });
    let begun = closed
        || facts.armed.recorded
        || facts.armed.disarming
        || facts.armed.cut_keys > 0
        || facts.reverse.is_some()
        || !facts.guard.is_bare();
    let mut lacks = Vec::new();
    if begun {
        lacks = facts.guard.lacks();
        lacks.extend(stream_lacks(facts.reverse.as_ref(), found));
        if facts.armed.disarming {
            lacks.push("disarm has begun and not finished".to_owned());
        } else if !facts.armed.recorded {
            lacks.push("arm has begun and not finished".to_owned());
        }
    }
    let holes = match (facts.armed.recorded, closed) {
        (true, _) => lacks.clone(),
        (false, true) => facts.guard.lacks(),
        (false, false) => Vec::new(),
    };
    let state = match (begun, lacks.is_empty()) {
        (false, _) => ArmedState::NotArmed,
        (true, true) => ArmedState::Armed,
        (true, false) => ArmedState::PartlyArmed,
    };
    ArmedStatus {
        state,
        lacks,
        held_bytes: found.flatten().map(|slot| slot.held_bytes),
        slot,
        finished: facts.armed.recorded,
        disarming: facts.armed.disarming,
        closed,
        holes,
        first: facts.guard.problems("monolith").into_iter().next().map(|problem| problem.next),
    }
}

/// `slot` is `None` where the service was not asked.
fn stream_lacks(row: Option<&StreamRow>, slot: Option<Option<&Slot>>) -> Option<String> {
    let Some(row) = row else { return Some("there is no reverse stream".to_owned()) };
    match (row.state, slot) {
        (StreamState::Creating, _) => Some("the reverse slot is not made yet".to_owned()),
        (StreamState::Gap | StreamState::Diverged, _) => Some(format!(
            "the reverse stream can't go on: {}",
            row.detail.as_deref().unwrap_or(row.state.as_str())
        )),
        (StreamState::Running, Some(None)) => Some(format!("the reverse slot {} is gone", row.slot)),
        (StreamState::Running, Some(Some(slot))) if slot.wal_status == "lost" => {
            Some(format!("the service dropped WAL that the reverse slot {} needed", row.slot))
        }
        (StreamState::Running, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::streams::Source;
    use crate::lsn::Lsn;

    fn facts() -> ArmingFacts {
        ArmingFacts {
            guard: Guard::default(),
            armed: Armed { recorded: true, disarming: false, cut_keys: 1 },
            reverse: Some(StreamRow {
                epoch: 1,
                mode: crate::journal::streams::Mode::Tripwire,
                state: StreamState::Running,
                detail: None,
                slot: "slot".to_owned(),
                publication: "p".to_owned(),
                source: Source {
                    system_identifier: "1".to_owned(),
                    database_oid: 1,
                    uuid: "u".to_owned(),
                    timeline: 1,
                },
                applied: Lsn(1),
                nonce: 0,
            }),
            retirement: None,
            archive: None,
            rights_away: 0,
        }
    }

    fn service(wal_status: &str) -> ServiceFacts {
        let slot = Slot {
            name: "slot".to_owned(),
            active: false,
            wal_status: wal_status.to_owned(),
            held_bytes: 7,
            safe_wal_bytes: None,
        };
        ServiceFacts { slots: vec![slot], ..ServiceFacts::default() }
    }

    #[test]
    fn what_is_missing_decides_and_a_service_that_is_away_takes_nothing_back() {
        let whole = judge(&facts(), false, Some(&service("reserved")));
        assert_eq!((whole.state, whole.held_bytes), (ArmedState::Armed, Some(7)));
        assert_eq!(judge(&facts(), false, None).state, ArmedState::Armed, "nobody knows better");
        let untouched = judge(&ArmingFacts::default(), false, None);
        assert_eq!((untouched.state, untouched.lacks.len()), (ArmedState::NotArmed, 0));
        let lost = judge(&facts(), false, Some(&service("lost")));
        assert_eq!(lost.state, ArmedState::PartlyArmed);
        let gone = judge(&facts(), false, Some(&ServiceFacts::default()));
        assert_eq!(gone.lacks, ["the reverse slot slot is gone"]);
        let bare = judge(&ArmingFacts::default(), true, None);
        assert_eq!(
            bare.state,
            ArmedState::PartlyArmed,
            "a closed side has to be guarded, whatever the books say"
        );
        let half = ArmingFacts { armed: Armed::default(), ..facts() };
        let half = judge(&half, false, Some(&service("reserved")));
        assert_eq!(
            (half.finished, half.lacks.as_slice()),
            (false, ["arm has begun and not finished".to_owned()].as_slice())
        );
    }
}
