//! What `doctor` judges.

use std::collections::BTreeMap;
use std::fmt;

use crate::journal::inventory::{Entries, Objects};

/// A database of the plan. The monolith comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The monolith's.
    Monolith,
    /// A service's, by the service's name.
    Service(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monolith => f.write_str("monolith"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// What was read in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What there is.
    pub objects: Objects,
    /// What our tables said of it, a moment later.
    pub entries: Entries,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Name of the plan.
    pub plan: String,
    /// Its slices, with the service of each.
    pub slices: BTreeMap<String, String>,
    /// Every database of the plan, or why it could not be read.
    pub databases: BTreeMap<Place, Result<Seen, String>>,
}

impl Facts {
    /// What was read there.
    pub(super) fn seen(&self, place: &Place) -> Option<&Seen> {
        self.databases.get(place)?.as_ref().ok()
    }
}
