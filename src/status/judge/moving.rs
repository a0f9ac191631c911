//! A move of the authority that was begun and has not ended: while it lasts, nobody may write.

use super::Commands;
use crate::authority::Cause;
use crate::status::facts::{Gate, MonolithFacts, ServiceFacts};

/// Which one it is. Read off both gates, not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The monolith was fenced, and the service is not open yet.
    There,
    /// The service was fenced, and the monolith is not open again yet.
    Back,
    /// A move was aborted, and the side that had the authority is not open again yet.
    Aborted,
}

/// A move that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moving {
    kind: Kind,
    /// All slices that move at once.
    members: Vec<String>,
    /// It was settled that all of them move, so that none can be taken back.
    settled: bool,
    /// Why the side that is to be opened can't be.
    blocked: Option<String>,
}

impl Moving {
    /// What both sides say. `None` while a gate is open or unknown, and for rows that no move leaves behind.
    pub(super) fn of(
        slice: &str,
        monolith: Option<&MonolithFacts>,
        service: Option<&ServiceFacts>,
    ) -> Option<Self> {
        let facts = monolith?;
        let (monolith, service) = (closed(facts.gate.as_ref())?, closed(service?.gate.as_ref())?);
        let (latest, other) =
            if monolith.epoch > service.epoch { (monolith, service) } else { (service, monolith) };
        let kind = match Cause::parse(&latest.cause)? {
            _ if monolith.epoch == service.epoch => return None,
            Cause::Bump => Kind::Aborted,
            Cause::Fence if latest == monolith => Kind::There,
            Cause::Fence => Kind::Back,
            Cause::Open => return None,
        };
        // A bump forgets the group, and the side that was fenced names it still.
        let id = if kind == Kind::Aborted { other.group } else { latest.group };
        let group = facts.groups.iter().find(|group| Some(group.id) == id);
        let blocked = facts.blocked.as_ref().filter(|blocked| blocked.epoch == latest.epoch);
        Some(Self {
            kind,
            members: group.map_or_else(|| vec![slice.to_owned()], |group| group.members.clone()),
            settled: group.is_some_and(|group| group.state == "open"),
            blocked: blocked.map(|blocked| blocked.why.clone()).filter(|_| kind != Kind::Aborted),
        })
    }

    pub(super) fn alarm(&self, commands: &Commands) -> String {
        let what = match self.kind {
            Kind::There => "a flip to the service was begun and has not ended",
            Kind::Back => "a flip back to the monolith was begun and has not ended",
            Kind::Aborted => "a flip was aborted, and the side that had authority is not open again",
        };
        let (forward, abort) = (self.forward(commands), commands.of_all("flip", &self.members, " --abort"));
        let way_out = match (&self.blocked, self.settled) {
            (Some(why), true) => format!("{why}. Once it has room, {forward} ends it"),
            (Some(why), false) => {
                format!("{why}. {abort} takes it back, and once it has room, {forward} ends it")
            }
            (None, true) => format!(
                "A running mirror ends it within seconds, and so does {forward}; it was settled that all of its slices move, so \
                 none can be taken back"
            ),
            (None, false) if self.kind == Kind::Aborted => {
                format!("A running mirror ends it within seconds, and so does {forward}")
            }
            (None, false) => format!(
                "A running mirror ends it within seconds, and so does {forward}; {abort} takes it back"
            ),
        };
        format!("nobody has authority: {what}, so every writer gets SQLSTATE 25006. {way_out}")
    }

    /// The command that ends it.
    pub(super) fn next(&self, commands: &Commands) -> String {
        if self.blocked.is_some() && !self.settled {
            commands.of_all("flip", &self.members, " --abort")
        } else {
            self.forward(commands)
        }
    }

    /// A mirror can end it, and without one nothing drains.
    pub(super) fn needs_mirror(&self) -> bool {
        self.blocked.is_none()
    }

    fn forward(&self, commands: &Commands) -> String {
        let rest = match self.kind {
            Kind::There => "",
            Kind::Back => " --back",
            Kind::Aborted => " --abort",
        };
        commands.of_all("flip", &self.members, rest)
    }
}

fn closed(gate: Option<&Gate>) -> Option<&Gate> {
    gate.filter(|gate| gate.is_closed())
}
