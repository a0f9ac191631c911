//! A move of the authority that was begun and has not ended: while it lasts, nobody may write.

use super::Commands;
use crate::authority::Cause;
use crate::status::facts::Gate;

/// Which one it is. Read off both gates, not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moving {
    /// The monolith was fenced, and the service is not open yet.
    There,
    /// The service was fenced, and the monolith is not open again yet.
    Back,
    /// A move was aborted, and the side that had the authority is not open again yet.
    Aborted,
}

impl Moving {
    /// What both gates say. `None` while one of them is open or unknown, and for rows that no move leaves behind.
    pub(super) fn of(monolith: Option<&Gate>, service: Option<&Gate>) -> Option<Self> {
        let (monolith, service) = (closed(monolith)?, closed(service)?);
        let latest = if monolith.epoch > service.epoch { monolith } else { service };
        match Cause::parse(&latest.cause)? {
            _ if monolith.epoch == service.epoch => None,
            Cause::Bump => Some(Self::Aborted),
            Cause::Fence if latest == monolith => Some(Self::There),
            Cause::Fence => Some(Self::Back),
            Cause::Open => None,
        }
    }

    pub(super) fn alarm(self, slice: &str, commands: &Commands) -> String {
        let (what, abort) = match self {
            Self::There => ("a flip to the service was begun and has not ended", true),
            Self::Back => ("a flip back to the monolith was begun and has not ended", true),
            Self::Aborted => ("a flip was aborted, and the side that had authority is not open again", false),
        };
        let abort = abort.then(|| format!("; {} takes it back", commands.of("flip", slice, " --abort")));
        format!(
            "nobody has authority: {what}, so every writer gets SQLSTATE 25006. A running mirror ends it within seconds, and \
             so does {}{}",
            self.next(slice, commands),
            abort.unwrap_or_default()
        )
    }

    /// The command that ends it.
    pub(super) fn next(self, slice: &str, commands: &Commands) -> String {
        let rest = match self {
            Self::There => "",
            Self::Back => " --back",
            Self::Aborted => " --abort",
        };
        commands.of("flip", slice, rest)
    }
}

fn closed(gate: Option<&Gate>) -> Option<&Gate> {
    gate.filter(|gate| gate.state == "FENCED")
}
