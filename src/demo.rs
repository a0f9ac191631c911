//! A split of the retail monolith to look at: clusters of its own, live traffic, and the words an operator types.
//!
//! [`run`] plays the acts in order, on a [`stage`] that is gone when it returns, however that happens.

mod desk;
mod links;
mod narrator;
mod operator;
mod owner;
mod play;
mod roles;
mod shop;
pub mod stage;
pub mod traffic;
mod view;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use tokio_util::sync::CancellationToken;

use crate::plan::PlanProblems;
use operator::OperatorError;
use play::Play;
use stage::StageError;
use view::ViewError;

/// Tables, types and roles of the retail monolith that `plans/retail.yaml` splits.
pub const RETAIL_SCHEMA_SQL: &str = include_str!("../plans/retail.sql");

/// Its rows, about 330,000. Needs a superuser.
pub const RETAIL_DATA_SQL: &str = include_str!("../plans/retail_data.sql");

/// The plan that splits it.
pub const RETAIL_PLAN: &str = include_str!("../plans/retail.yaml");

/// How long the plan wants a slice to be mirrored before a flip, and what is long enough for a play.
const MIRROR_TIME: (&str, &str) = ("min_mirror_time: 7d ", "min_mirror_time: 0s ");

/// How long a flip may hold writers by the plan, and by the play: it runs on one machine with everything that it shows, which may be a
/// busy one, and a mirror has to be calm for a fifth of it.
const PAUSE_BUDGET: (&str, &str) = ("write_pause_budget: 500ms", "write_pause_budget: 2s");

/// How long the plan keeps the old tables after a flip, and how long nobody may have used them; and what the play waits.
const SAFETY_PERIOD: (&str, &str) = ("safety_period: 30d ", "safety_period: 3s  ");
const QUIET_PERIOD: (&str, &str) = ("quiet_period: 7d ", "quiet_period: 2s ");

/// What the play changes of the plan.
const CHANGES: [(&str, &str); 4] = [MIRROR_TIME, PAUSE_BUDGET, SAFETY_PERIOD, QUIET_PERIOD];

/// The plan as the demo plays it: nobody waits a month, and a busy machine will do.
fn plan_text() -> String {
    CHANGES.iter().fold(RETAIL_PLAN.to_owned(), |text, (old, new)| text.replace(old, new))
}

/// One part of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// A server for the monolith and one for each service.
    Clusters,
    /// The monolith gets its tables and rows.
    Load,
    /// The application starts to write, and goes on to the end.
    Traffic,
    /// An administrator prepares roles; `strangler check` looks at everything.
    Check,
    /// `strangler provision` makes the service side.
    Provision,
    /// `strangler mirror` copies, then follows.
    Mirror,
    /// `strangler status` says where everything stands.
    Status,
    /// The traffic pauses, and both sides are compared.
    Prove,
    /// Rows of a service go wrong, are found and made right, while the application writes.
    Reconcile,
    /// A new release of the application; `strangler arm` makes the order slice ready to move.
    Arm,
    /// `strangler flip --rehearse` says what a flip would take.
    Rehearse,
    /// The right to write orders moves to their service, under traffic.
    Flip,
    /// It moves back to the monolith.
    Back,
    /// It moves to the service again, and every acknowledged order is looked for on both sides.
    Again,
    /// The old order tables are taken away and archived, and restored elsewhere.
    Retire,
}

impl Act {
    /// All acts in order.
    pub const ALL: [Self; 15] = [
        Self::Clusters,
        Self::Load,
        Self::Traffic,
        Self::Check,
        Self::Provision,
        Self::Mirror,
        Self::Status,
        Self::Prove,
        Self::Reconcile,
        Self::Arm,
        Self::Rehearse,
        Self::Flip,
        Self::Back,
        Self::Again,
        Self::Retire,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Load => "load",
            Self::Traffic => "traffic",
            Self::Check => "check",
            Self::Provision => "provision",
            Self::Mirror => "mirror",
            Self::Status => "status",
            Self::Prove => "prove",
            Self::Reconcile => "reconcile",
            Self::Arm => "arm",
            Self::Rehearse => "rehearse",
            Self::Flip => "flip",
            Self::Back => "back",
            Self::Again => "again",
            Self::Retire => "retire",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the demo has no act {name:?}; its acts are {}", names())]
pub struct UnknownAct {
    name: String,
}

fn names() -> String {
    Act::ALL.map(Act::name).join(", ")
}

impl FromStr for Act {
    type Err = UnknownAct;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Act::ALL.into_iter().find(|act| act.name() == name);
        found.ok_or_else(|| UnknownAct { name: name.to_owned() })
    }
}

/// What the demo is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The last act to play.
    pub until: Act,
    /// Afterwards everything stays, traffic included, until the demo is told to stop.
    pub keep: bool,
    /// The `strangler` program that the acts run.
    pub program: PathBuf,
}

/// How the demo ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All acts that were asked for were played.
    Played,
    /// It was told to stop before.
    Interrupted,
}

/// The demo could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The servers or their databases.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The traffic did not start.
    #[error("start the traffic")]
    Traffic(#[source] tokio_postgres::Error),
    /// The plan of the demo is wrong.
    #[error(transparent)]
    Plan(#[from] PlanProblems),
    /// A command did not end well.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// Both sides could not be seen.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A service's own application could not look at its data.
    #[error("visit the order service")]
    Visit(#[source] tokio_postgres::Error),
    /// The order desk could not be opened, or an order could not be looked for.
    #[error("work with orders")]
    Orders(#[source] tokio_postgres::Error),
    /// What an application was promised about its writes was not kept.
    #[error("orders: {0}")]
    Broken(String),
    /// A service's application could write, though the monolith has authority.
    #[error("the order service let its application delete a row; its gate must refuse that")]
    GateOpen,
    /// An act needs something that an earlier one makes.
    #[error("the act comes before {0}")]
    TooEarly(&'static str),
    /// Something did not happen in time.
    #[error("waited {seconds} s in vain for {what}")]
    TooSlow {
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The sides hold different rows.
    #[error("monolith and services differ in {}", tables.join(", "))]
    Different {
        /// The monolith's tables.
        tables: Vec<String>,
    },
    /// The commentary could not be written.
    #[error("write the commentary")]
    Write(#[from] std::io::Error),
}

/// Plays the demo and tells about it on `out`. Cancelling `stop` (the command line does it on Ctrl-C) ends it
/// early. Either way no server, file or process of it is left when this returns.
///
/// # Errors
/// [`DemoError`].
pub async fn run(
    options: Options,
    out: &mut (dyn Write + Send),
    stop: &CancellationToken,
) -> Result<Ending, DemoError> {
    let mut play = Play::new(out, options);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Ending::Interrupted),
        played = Box::pin(play.acts(stop)) => played.map(|()| Ending::Played),
    };
    play.close().await?;
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_of_the_play_differs_in_its_periods_alone() {
        for (old, new) in CHANGES {
            assert_eq!((RETAIL_PLAN.matches(old).count(), plan_text().matches(new).count()), (1, 1));
        }
        let restored = CHANGES.iter().fold(plan_text(), |text, (old, new)| text.replace(new, old));
        assert_eq!(restored, RETAIL_PLAN);
    }

    #[test]
    fn acts_are_found_by_name_and_an_unknown_one_lists_them() {
        for act in Act::ALL {
            assert_eq!(act.to_string().parse(), Ok(act));
        }
        let error = "curtain".parse::<Act>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the demo has no act \"curtain\"; its acts are clusters, load, traffic, check, provision, mirror, status, prove, reconcile, arm, rehearse, flip, back, again, retire"
        );
    }
}
