//! A move of the authority that was begun and has not ended: while it lasts, nobody may write.

use super::{Commands, shell_word};
use crate::authority::Cause;
use crate::status::facts::{Gate, MonolithFacts, ServiceFacts, Stream};

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
    /// Everything that the closed side accepted is on the other one, whatever became of the stream since.
    brought: bool,
    /// Why it never will be.
    lost: Option<String>,
    /// Tables of the service that are no whole copies, by the monolith's names, and whether each has to be copied again.
    not_whole: Vec<(String, bool)>,
    slice: String,
}

impl Moving {
    /// What both sides say. `None` while a gate is open or unknown, and for rows that no move leaves behind.
    pub(super) fn of(
        slice: &str,
        monolith: Option<&MonolithFacts>,
        service: Option<&ServiceFacts>,
    ) -> Option<Self> {
        let facts = monolith?;
        let (copy, back) = (service?, facts.back.as_ref());
        let (monolith, service) = (closed(facts.gate.as_ref())?, closed(copy.gate.as_ref())?);
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
        let stream = match kind {
            Kind::There => copy.stream.as_ref(),
            Kind::Back => back.map(|back| &back.stream),
            Kind::Aborted => None,
        };
        let reached = |stream: &Stream| latest.fence.is_some_and(|fence| stream.applied_lsn >= fence);
        let brought = |stream: &Stream| reached(stream) && stream.state != "diverged";
        let blocked = facts.blocked.as_ref().filter(|blocked| blocked.epoch == latest.epoch);
        Some(Self {
            kind,
            members: group.map_or_else(|| vec![slice.to_owned()], |group| group.members.clone()),
            settled: group.is_some_and(|group| group.state == "open"),
            blocked: blocked.map(|blocked| blocked.why.clone()).filter(|_| kind != Kind::Aborted),
            brought: stream.is_some_and(brought),
            lost: stream.filter(|stream| !brought(stream)).and_then(why_lost),
            not_whole: if kind == Kind::There { not_whole(copy) } else { Vec::new() },
            slice: slice.to_owned(),
        })
    }

    pub(super) fn alarm(&self, commands: &Commands) -> String {
        let what = match self.kind {
            Kind::There => "a flip to the service was begun and has not ended",
            Kind::Back => "a flip back to the monolith was begun and has not ended",
            Kind::Aborted => "a flip was aborted, and the side that had authority is not open again",
        };
        let (forward, abort) = (self.forward(commands), commands.of_all("flip", &self.members, " --abort"));
        let blocked = self.blocked.as_ref().filter(|_| self.not_whole.is_empty());
        let way_out = match (blocked, self.settled) {
            _ if self.stuck().is_some() => self.out_of_it(commands),
            (Some(why), true) => format!("{why}. Once that is mended, {forward} ends it"),
            (Some(why), false) => {
                format!("{why}. {abort} takes it back, and once that is mended, {forward} ends it")
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

    /// Why neither a mirror nor the same command ends it.
    fn stuck(&self) -> Option<String> {
        let tables: Vec<&str> = self.not_whole.iter().map(|(name, _)| name.as_str()).collect();
        let copies =
            (!tables.is_empty()).then(|| format!("the service has no whole copy of {}", tables.join(", ")));
        let lost = self.lost.as_ref();
        lost.map(|why| format!("what the closed side accepted last can't be brought any more: {why}"))
            .or(copies)
    }

    /// The way out of what neither a mirror nor the same command ends.
    fn out_of_it(&self, commands: &Commands) -> String {
        let (why, next) = (self.stuck().unwrap_or_default(), self.next(commands));
        if !self.settled {
            return format!("{why}. {next} gives authority back to the side that had it, which has all rows");
        }
        let settled = "it was settled that all of its slices move, so none can be taken back";
        match self.copied_again(commands) {
            Some(copy) => format!(
                "{why}. {copy} copies it again from the closed monolith, and then a running mirror ends the move; {settled}"
            ),
            None if self.lost.is_none() => {
                format!("{why}. It is copied again by a running mirror, which then ends the move; {settled}")
            }
            None => format!("{why}. Page whoever owns the data; {settled}"),
        }
    }

    /// What has the service's tables copied again, where that is asked for and helps.
    fn copied_again(&self, commands: &Commands) -> Option<String> {
        if self.kind != Kind::There || !self.settled {
            return None;
        }
        if self.lost.is_some() {
            return Some(commands.of("mirror", &self.slice, " --rebuild"));
        }
        let wrong = self.not_whole.iter().filter(|(_, again)| *again);
        let again: String = wrong.map(|(name, _)| format!(" --retry {}", shell_word(name))).collect();
        (!again.is_empty()).then(|| commands.of("mirror", &self.slice, &again))
    }

    /// The command that ends it.
    pub(super) fn next(&self, commands: &Commands) -> String {
        let stuck = self.blocked.is_some() || self.stuck().is_some();
        if stuck && !self.settled {
            commands.of_all("flip", &self.members, " --abort")
        } else if let Some(again) = self.copied_again(commands) {
            again
        } else if self.settled && !self.not_whole.is_empty() {
            commands.of("mirror", &self.slice, "")
        } else {
            self.forward(commands)
        }
    }

    /// A mirror can end it, and without one nothing drains.
    pub(super) fn needs_mirror(&self) -> bool {
        self.blocked.is_none() && self.stuck().is_none()
    }

    /// Its stream is broken, and it can be ended even so.
    pub(super) fn needs_no_stream(&self) -> bool {
        self.brought
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

fn why_lost(stream: &Stream) -> Option<String> {
    let broken = matches!(stream.state.as_str(), "gap" | "diverged");
    broken.then(|| stream.detail.clone().unwrap_or_else(|| format!("the stream is {}", stream.state)))
}

fn not_whole(service: &ServiceFacts) -> Vec<(String, bool)> {
    let tables = service.tables.iter().filter(|table| table.state != "live");
    tables.map(|table| (table.source_table.clone(), table.state == "diverged")).collect()
}
