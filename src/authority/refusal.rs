//! Why nothing more is done, in words an operator can act on.

use super::facts::GateState;
use super::facts::{Epoch, GroupId, Mode, Posture, Side};
use crate::journal::streams::{Direction, StreamState};
use crate::problem::Problem;

/// Why a step is refused. `Display` says the fact; [`Refusal::problem`] adds what follows and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// A side does not answer. `other` is the row of the one that does.
    #[error("the {side} does not answer")]
    Unreachable {
        /// The silent side.
        side: Side,
        /// The other side's gate row.
        other: Option<Posture>,
    },
    /// A side is another database than the one that was provisioned.
    #[error("the {side} is another database than the one this slice was provisioned in")]
    Stranger {
        /// Which side.
        side: Side,
    },
    /// Both gates are open.
    #[error("both sides accept writes: monolith {monolith}, service {service}")]
    BothOpen {
        /// The monolith's row.
        monolith: Posture,
        /// The service's row.
        service: Posture,
    },
    /// The rows contradict each other.
    #[error("the gates contradict each other: monolith {monolith}, service {service}")]
    Broken {
        /// The monolith's row.
        monolith: Posture,
        /// The service's row.
        service: Posture,
    },
    /// A stream that is needed was never made.
    #[error("there is no {} stream", direction.as_str())]
    NoStream {
        /// Which one.
        direction: Direction,
    },
    /// A stream that is needed can't go on.
    #[error("the {} stream is {}", direction.as_str(), state.as_str())]
    StreamDown {
        /// Which one.
        direction: Direction,
        /// How it stands.
        state: StreamState,
    },
    /// A stream is in a mode that does not fit the gates.
    #[error("the {} stream is in mode {}", direction.as_str(), mode.as_str())]
    WrongMode {
        /// Which one.
        direction: Direction,
        /// Its mode.
        mode: Mode,
    },
    /// A move in the opposite direction is under way.
    #[error("the {from} was fenced at epoch {epoch} to move authority away from it")]
    OtherWay {
        /// Who was fenced.
        from: Side,
        /// The fence.
        epoch: Epoch,
        /// For this slice alone, not together with others.
        alone: bool,
        /// Together with others, and it was settled that all of them move.
        settled: bool,
    },
    /// Somebody else ended the move that this command began.
    #[error("the move of epoch {epoch} was ended by somebody else, and the {owner} had authority afterwards")]
    Superseded {
        /// Who had authority afterwards.
        owner: Side,
        /// The epoch that this command meant.
        epoch: Epoch,
    },
    /// The abort came too late.
    #[error("the move could not be aborted: the {owner} has had authority since epoch {epoch}")]
    TooLate {
        /// Who has authority.
        owner: Side,
        /// Since which change.
        epoch: Epoch,
    },
    /// The group of this move was given up.
    #[error("the group {} was aborted", id.0)]
    GroupAborted {
        /// Its number.
        id: GroupId,
    },
    /// The group of this move goes forward only.
    #[error("every member of the group {} was fenced, and it was settled that they move", id.0)]
    GroupOpen {
        /// Its number.
        id: GroupId,
        /// Who was fenced.
        from: Side,
    },
    /// The gate names a group row that was not looked at, or is not there.
    #[error("the fence belongs to the group {}, whose row was not found", id.0)]
    GroupUnread {
        /// Its number.
        id: GroupId,
    },
    /// One of several slices is in the middle of a move of its own.
    #[error("the {from} was fenced at epoch {epoch} for this slice alone")]
    FencedAlone {
        /// Who was fenced.
        from: Side,
        /// The fence.
        epoch: Epoch,
    },
    /// The limit of attempts was reached.
    #[error("{attempts} attempts ran out of time; authority was not moved by any of them")]
    OutOfTime {
        /// How many.
        attempts: u8,
        /// Who was to be fenced.
        from: Side,
    },
    /// As `OutOfTime`, with what was begun by a fence left where it is.
    #[error("{attempts} attempts ran out of time, and the move is not finished")]
    Unfinished {
        /// How many.
        attempts: u8,
    },
    /// The driver reported something that it was not asked for: a defect of ours.
    #[error("an event came that belongs to no effect in flight")]
    OutOfStep,
}

impl Refusal {
    /// The refusal as a problem. `plan` is the path of the plan file, `slice` the slice.
    #[must_use]
    pub fn problem(&self, plan: &str, slice: &str) -> Problem {
        let (consequence, next) = self.words(plan, slice);
        Problem::error(self.code(), format!("slice {slice}"))
            .fact(self.to_string())
            .consequence(consequence)
            .next(next)
    }

    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "authority-unreachable",
            Self::Stranger { .. } => "authority-stranger",
            Self::BothOpen { .. } => "authority-both-open",
            Self::Broken { .. } => "authority-broken",
            Self::NoStream { .. } => "authority-no-stream",
            Self::StreamDown { .. } => "authority-stream-down",
            Self::WrongMode { .. } => "authority-wrong-mode",
            Self::OtherWay { .. } => "authority-other-way",
            Self::Superseded { .. } => "authority-superseded",
            Self::TooLate { .. } => "authority-too-late",
            Self::GroupAborted { .. } => "authority-group-aborted",
            Self::GroupOpen { .. } => "authority-group-open",
            Self::GroupUnread { .. } => "authority-group-unread",
            Self::FencedAlone { .. } => "authority-fenced-alone",
            Self::OutOfTime { .. } => "authority-out-of-time",
            Self::Unfinished { .. } => "authority-unfinished",
            Self::OutOfStep => "authority-out-of-step",
        }
    }

    /// It speaks against the command wherever the slice stands, and by the command nothing was changed: the rest is said of a
    /// move that may have begun.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Stranger { .. }
            | Self::BothOpen { .. }
            | Self::Broken { .. }
            | Self::OtherWay { .. }
            | Self::TooLate { .. }
            | Self::GroupOpen { .. }
            | Self::FencedAlone { .. } => true,
            Self::Unreachable { .. }
            | Self::NoStream { .. }
            | Self::StreamDown { .. }
            | Self::WrongMode { .. }
            | Self::Superseded { .. }
            | Self::GroupAborted { .. }
            | Self::GroupUnread { .. }
            | Self::OutOfTime { .. }
            | Self::Unfinished { .. }
            | Self::OutOfStep => false,
        }
    }

    /// It is about a move of this one slice, also where a command names several: what is to be typed names it alone.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        matches!(self, Self::FencedAlone { .. } | Self::OtherWay { alone: true, .. })
    }

    /// What follows, and what to do.
    fn words(&self, plan: &str, slice: &str) -> (String, String) {
        let command = |verb: &str| format!("strangler {verb} {plan} --slice {slice}");
        let owned = |consequence: &str, next: String| (consequence.to_owned(), next);
        match *self {
            Self::Unreachable { side, other } => Self::unreachable(side, other, &command("status")),
            Self::Stranger { side } => owned(
                "its gate row is a copy of another database's and proves nothing; nothing was changed",
                format!("point the link of the {side} at the database that was provisioned, then {}", command("status")),
            ),
            Self::BothOpen { .. } => owned(
                "a failover lost a commit that was acknowledged, and the sides may have accepted different writes; \
                 nothing is repaired by itself",
                "stop the application and the mirror, page whoever owns the data, and compare the alarms of the \
                 tripwires of both sides before either gate is closed by hand"
                    .to_owned(),
            ),
            Self::Broken { .. } => owned(
                "a failover or a restore lost a commit that was acknowledged; nothing is opened, since it can't be \
                 told which side has every write",
                format!("page whoever owns the data; {} shows both rows and positions", command("status")),
            ),
            Self::NoStream { .. } => owned(
                "writes could not follow authority, and it could not come back",
                format!("{}, and start the mirror", command("arm")),
            ),
            Self::StreamDown { .. } => owned(
                "writes may be missing on the other side, so authority stays where it is",
                format!("{} says how it is repaired", command("status")),
            ),
            Self::WrongMode { .. } => owned(
                "what it has passed proves nothing about what was applied, so nothing is opened",
                format!("report it, with the output of {}", command("status")),
            ),
            Self::OtherWay { from, settled, .. } => Self::under_way(from, settled, (plan, slice)),
            Self::FencedAlone { from, .. } => Self::under_way(from, false, (plan, slice)),
            Self::Superseded { .. } => owned(
                "this command changed nothing more",
                format!("{} shows where it stands; type the same command again for a new attempt", command("status")),
            ),
            Self::TooLate { owner, .. } => owned(
                "the move is complete; nothing was lost and nothing changed by this command",
                format!("{} to move authority back", Self::command(owner, plan, slice)),
            ),
            Self::GroupAborted { .. } => owned(
                "authority stays, or is given back, where it was for every slice of the group",
                "type the same command again for a new attempt".to_owned(),
            ),
            Self::GroupOpen { from, .. } => owned(
                "some of its slices may have moved already, so the others follow",
                format!("{} to finish it, and the same for its other slices; then move all of them back", Self::command(from, plan, slice)),
            ),
            Self::GroupUnread { .. } => owned(
                "whether the slices of the group move or stay is not known, so none is opened",
                format!("{}; if the monolith was restored or failed over, page whoever owns the data", command("status")),
            ),
            Self::OutOfTime { from, .. } => owned(
                "writers were only slowed down",
                Self::rehearsal(from, plan, slice),
            ),
            Self::Unfinished { .. } => owned(
                "what was committed stays as it is; a side that was closed stays closed until the other one is open",
                format!(
                    "see that the mirror runs and its standbys follow ({}); then type the same command again",
                    command("status")
                ),
            ),
            Self::OutOfStep => owned("nothing was changed", "report it as a defect".to_owned()),
        }
    }

    fn unreachable(side: Side, other: Option<Posture>, status: &str) -> (String, String) {
        let fenced = other.is_some_and(|gate| gate.state == GateState::Fenced);
        let consequence = if fenced {
            format!(
                "the {side} may have authority or may not, so the other side stays closed and nothing can be aborted \
                 until it answers"
            )
        } else {
            "nothing was changed".to_owned()
        };
        (consequence, format!("bring the {side} back, then {status}"))
    }

    /// Another move has to end first; one that was settled can't be taken back.
    fn under_way(from: Side, settled: bool, (plan, slice): (&str, &str)) -> (String, String) {
        let finish = Self::command(from, plan, slice);
        if settled {
            (
                "nobody has authority until that move is finished, and it can't be taken back".to_owned(),
                format!("{finish} to finish it; then move all of its slices back"),
            )
        } else {
            (
                "nobody has authority until that move is finished or aborted".to_owned(),
                format!(
                    "{finish} to finish it, or strangler flip --abort {plan} --slice {slice} to give authority back"
                ),
            )
        }
    }

    fn rehearsal(from: Side, plan: &str, slice: &str) -> String {
        let command = Self::command(from, plan, slice);
        format!("{command} --rehearse lists who holds the gate or locks tables; try again when they are gone")
    }

    /// The command that moves authority away from `from`.
    fn command(from: Side, plan: &str, slice: &str) -> String {
        match from {
            Side::Monolith => format!("strangler flip {plan} --slice {slice}"),
            Side::Service => format!("strangler flip --back {plan} --slice {slice}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_the_fact_and_what_to_do() {
        let refusal = Refusal::OtherWay { from: Side::Service, epoch: Epoch(7), alone: true, settled: false };
        let problem = refusal.problem("plans/retail.yaml", "orders");
        assert_eq!(problem.fact, "the service was fenced at epoch 7 to move authority away from it");
        assert!(
            problem.next.contains("strangler flip --back plans/retail.yaml --slice orders"),
            "{}",
            problem.next
        );
        assert!(problem.next.contains("flip --abort"), "{}", problem.next);
        let settled = Refusal::OtherWay { from: Side::Service, epoch: Epoch(7), alone: false, settled: true };
        let next = settled.problem("plans/retail.yaml", "orders").next;
        assert!(!next.contains("--abort"), "what was settled can't be taken back: {next}");
    }

    #[test]
    fn whoever_ran_out_of_time_is_sent_to_a_rehearsal_of_the_same_direction() {
        let next = |from| Refusal::OutOfTime { attempts: 5, from }.problem("p.yaml", "one").next;
        assert!(next(Side::Monolith).starts_with("strangler flip p.yaml --slice one --rehearse lists"));
        assert!(next(Side::Service).starts_with("strangler flip --back p.yaml --slice one --rehearse lists"));
    }

    #[test]
    fn silence_of_one_side_says_whether_writers_wait_for_it() {
        let quiet = Refusal::Unreachable { side: Side::Service, other: None };
        assert_eq!(quiet.problem("p", "s").consequence, "nothing was changed");
    }
}
