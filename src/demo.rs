//! A split of the retail monolith to look at: clusters of its own, live traffic, and the words an operator types.
//!
//! [`run`] plays the acts in order, on a [`stage`] that is gone when it returns, however that happens.

mod narrator;
mod shop;
pub mod stage;
pub mod traffic;

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use narrator::Narrator;
use stage::{Stage, StageError};
use traffic::{Rate, Traffic};

/// Tables, types and roles of the retail monolith that `plans/retail.yaml` splits.
pub const RETAIL_SCHEMA_SQL: &str = include_str!("../plans/retail.sql");

/// Its rows, about 330,000. Needs a superuser.
pub const RETAIL_DATA_SQL: &str = include_str!("../plans/retail_data.sql");

/// The plan that splits it.
pub const RETAIL_PLAN: &str = include_str!("../plans/retail.yaml");

/// Enough to see every kind of change within seconds, and little enough to leave two cores to the mirror.
const RATE: Rate = Rate { writers: 4, transactions_per_second: 120 };

/// Transactions that the audience sees before the play goes on.
const WARM_UP: u64 = 200;

/// How often the traffic is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(50);

/// One part of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// A server for the monolith and one for each service.
    Clusters,
    /// The monolith gets its tables and rows.
    Load,
    /// The application starts to write, and goes on to the end.
    Traffic,
}

impl Act {
    /// All acts in order.
    pub const ALL: [Self; 3] = [Self::Clusters, Self::Load, Self::Traffic];

    fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Load => "load",
            Self::Traffic => "traffic",
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The last act to play.
    pub until: Act,
    /// Afterwards everything stays, traffic included, until the demo is told to stop.
    pub keep: bool,
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
    let mut play = Play { narrator: Narrator::new(out), stage: Stage::default(), traffic: None };
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(Ending::Interrupted),
        played = play.acts(options, stop) => played.map(|()| Ending::Played),
    };
    play.close().await?;
    ended
}

struct Play<'a> {
    narrator: Narrator<'a>,
    stage: Stage,
    traffic: Option<Traffic>,
}

impl Play<'_> {
    async fn acts(&mut self, options: Options, stop: &CancellationToken) -> Result<(), DemoError> {
        for act in Act::ALL.into_iter().filter(|act| *act <= options.until) {
            match act {
                Act::Clusters => self.clusters().await?,
                Act::Load => self.load().await?,
                Act::Traffic => self.start_traffic().await?,
            }
        }
        if options.keep {
            self.keep(stop).await?;
        }
        Ok(())
    }

    async fn clusters(&mut self) -> Result<(), DemoError> {
        self.narrator.act("A monolith, and an empty database for each service")?;
        let begun = Instant::now();
        for place in stage::PLACES {
            self.stage.open(place).await?;
            self.narrator.say(&format!(
                "{:<10} database {}",
                place.service.unwrap_or("monolith"),
                place.database
            ))?;
        }
        let (servers, seconds) = (stage::PLACES.len(), begun.elapsed().as_secs_f64());
        self.narrator.say(&format!("{servers} PostgreSQL servers are up after {seconds:.1} s."))?;
        Ok(())
    }

    async fn load(&mut self) -> Result<(), DemoError> {
        self.narrator.act("The retail monolith: one database that six domains share")?;
        self.narrator.command("psql -f plans/retail.sql -f plans/retail_data.sql")?;
        let begun = Instant::now();
        let loaded = self.stage.load().await?;
        let (rows, tables, keys) = (loaded.rows, loaded.tables, loaded.foreign_keys);
        let seconds = begun.elapsed().as_secs_f64();
        self.narrator
            .say(&format!("{rows} rows in {tables} tables with {keys} foreign keys, in {seconds:.1} s."))?;
        Ok(())
    }

    async fn start_traffic(&mut self) -> Result<(), DemoError> {
        self.narrator.act("The application is in use, from here to the end")?;
        let config = self.stage.monolith_config()?;
        let traffic = Traffic::start(&config, RATE, 1).await.map_err(DemoError::Traffic)?;
        let begun = Instant::now();
        while traffic.tally().acknowledged < WARM_UP {
            tokio::time::sleep(GLANCE).await;
        }
        let (count, seconds) = (traffic.tally().acknowledged, begun.elapsed().as_secs_f64());
        let writers = RATE.writers;
        self.narrator.say(&format!(
            "{writers} users fill carts, check out and pay: {count} transactions in the first {seconds:.1} s."
        ))?;
        self.traffic = Some(traffic);
        Ok(())
    }

    /// Leaves everything as it is until somebody has seen enough.
    async fn keep(&mut self, stop: &CancellationToken) -> Result<(), DemoError> {
        self.narrator.act("Look around")?;
        for line in self.stage.psql_lines() {
            self.narrator.command(&line)?;
        }
        self.narrator.say("Everything runs on until you press Ctrl-C, and is removed then.")?;
        stop.cancelled().await;
        Ok(())
    }

    /// Ends the traffic and removes the servers.
    async fn close(self) -> Result<(), DemoError> {
        let Self { mut narrator, stage, traffic } = self;
        if let Some(traffic) = traffic {
            let tally = traffic.stop().await;
            narrator.blank()?;
            narrator.say(&format!(
                "The traffic is over: {} transactions acknowledged, {} rolled back by the application, {} refused.",
                tally.acknowledged, tally.rolled_back, tally.rejected
            ))?;
        }
        stage.close().await?;
        narrator.say("The servers and their data are removed.")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_found_by_name_and_an_unknown_one_lists_them() {
        for act in Act::ALL {
            assert_eq!(act.to_string().parse(), Ok(act));
        }
        let error = "curtain".parse::<Act>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the demo has no act \"curtain\"; its acts are clusters, load, traffic"
        );
    }
}
