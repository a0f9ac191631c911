//! The last act: the old tables are taken away, a stage at a time, and are made again from their archive in another database.

use std::time::{Duration, Instant};

use super::super::narrator::seconds;
use super::super::operator::{PLAN_PATH, Said, typed};
use super::super::owner::Side;
use super::super::stage::MONOLITH;
use super::authority::SLICE;
use super::{DemoError, PATIENCE, Play, TOO_EARLY, too_slow};

/// What the report says while something is in the way.
const IN_THE_WAY: i32 = 1;

/// How the report names a view that still reads an old table.
const VIEW: &str = "(retire-view)";

/// What its owner does about it, once the catalog service has a report of its own.
const DROP_VIEW: &str = r#"DROP VIEW "ProductSales""#;

/// Comparisons that the plan wants to be clean since the flip.
const CLEAN_RUNS: usize = 3;

/// How often the report is asked again. It takes about a second.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Where the archive goes, below the folder of the operator.
const ARCHIVE: &str = "archive-of-ordering";

/// The variable, and the database, that the archive is restored to.
const RESTORED: (&str, &str) = ("RESTORED_URL", "OrdersArchive");

/// What somebody of the old days reads.
const LATE_READER: &str = r#"SELECT count(*) FROM "Orders""#;

impl Play<'_> {
    pub(super) async fn retire(&mut self) -> Result<(), DemoError> {
        self.narrator.act("Retire: the old order tables are taken away, when nothing speaks against it")?;
        self.narrator.say("This plan keeps them for 30 days, and until nobody has used them for 7; the demo's copy of it says 3s and 2s.")?;
        self.narrator.say("Who still uses them, or names them?")?;
        let report = ["retire", PLAN_PATH, "--slice", SLICE, "--report"];
        self.narrator.command(&typed(&report))?;
        let said = self.operator()?.run_to(&report, IN_THE_WAY).await?;
        let forgotten = said.data.split("\n\n").find(|paragraph| paragraph.contains(VIEW));
        let Some(forgotten) = forgotten else {
            return Err(DemoError::Broken(format!("the view was not named:\n{}", said.data)));
        };
        self.narrator.output(forgotten)?;
        self.narrator.say("A view that everybody had forgotten. The catalog service has its own by now:")?;
        self.narrator.command(&format!("psql {} -c '{DROP_VIEW}'", MONOLITH.database))?;
        self.stage.administer(MONOLITH, DROP_VIEW).await?;
        self.narrator.say("And the comparisons that a timer makes (docs/scheduling):")?;
        for _ in 0..CLEAN_RUNS {
            self.proven().await?;
        }
        self.quiet_tables(&report).await?;
        for stage in ["revoke", "quarantine"] {
            self.take(&["--stage", stage], 3).await?;
        }
        self.gone().await?;
        self.take(&["--stage", "archive", "--to", ARCHIVE], 2).await?;
        self.restored().await
    }

    /// Waits until the report finds nothing in the way.
    async fn quiet_tables(&mut self, report: &[&str]) -> Result<(), DemoError> {
        self.narrator.say("A server may tell of a read a minute late, so the watch over the old tables counts from a minute after the flip.")?;
        let begun = Instant::now();
        while let Err(error) = self.operator()?.run(report).await {
            if begun.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.narrator
            .say(&format!("After {} the report finds nothing in the way.", seconds(begun.elapsed())))?;
        Ok(())
    }

    /// Shows a stage, then takes it as shown.
    async fn take(&mut self, stage: &[&str], shown: usize) -> Result<(), DemoError> {
        let words = [&["retire", PLAN_PATH, "--slice", SLICE], stage].concat();
        self.narrator.blank()?;
        self.narrator.command(&typed(&words))?;
        let preview = self.operator()?.run(&words).await?;
        self.narrator.excerpt(&preview.data, shown, 1)?;
        let confirmed = [&words[..], &["--confirm", token(&preview)?]].concat();
        self.narrator.command(&typed(&confirmed))?;
        let begun = Instant::now();
        let done = self.operator()?.run(&confirmed).await?;
        let said = done.words.lines().skip_while(|line| !line.starts_with("the "));
        for line in said {
            self.narrator.output(line)?;
        }
        self.narrator.say(&format!("In {}.", seconds(begun.elapsed())))?;
        Ok(())
    }

    /// Nobody finds the tables on the monolith any more, and the order service goes on.
    async fn gone(&mut self) -> Result<(), DemoError> {
        self.narrator.blank()?;
        self.narrator.command(&format!("psql {} -U retail_app -c '{LATE_READER}'", MONOLITH.database))?;
        let [monolith, _] = self.sides().await?;
        match monolith.batch_execute(LATE_READER).await {
            Ok(()) => return Err(DemoError::Broken("the old tables are found on the monolith".to_owned())),
            Err(error) => match error.as_db_error() {
                Some(refusal) => self.narrator.output(&format!("ERROR:  {}", refusal.message()))?,
                None => return Err(DemoError::Orders(error)),
            },
        }
        let order = self.desk.as_mut().ok_or(TOO_EARLY)?.next_on(Side::Service).await;
        order.ok_or_else(|| too_slow("an order in the service"))?;
        self.narrator.say("The order service takes orders as before. Where does every slice stand?")?;
        let words = ["status", PLAN_PATH, "--slice", SLICE];
        self.narrator.command(&typed(&words))?;
        let said = self.operator()?.run(&words).await?;
        self.narrator.output(&said.data)?;
        Ok(())
    }

    /// The archive makes the tables in another database, with every row.
    async fn restored(&mut self) -> Result<(), DemoError> {
        let (variable, database) = RESTORED;
        let link = self.stage.create_database(MONOLITH, database).await?;
        self.journey.as_mut().ok_or(TOO_EARLY)?.operator.add_link(variable, link);
        let to = format!("${{{variable}}}");
        let words = ["restore", "--from", ARCHIVE, "--to", &to];
        self.narrator.blank()?;
        self.narrator.say("And should they ever be missed elsewhere:")?;
        self.narrator.command(&format!("createdb {database}"))?;
        self.narrator.command(&format!("strangler restore --from {ARCHIVE} --to '{to}'"))?;
        let said = self.operator()?.run(&words).await?;
        self.narrator.excerpt(&format!("{}{}", said.data, said.words), 3, 0)?;
        Ok(())
    }
}

/// What a preview asks to be confirmed.
fn token(preview: &Said) -> Result<&str, DemoError> {
    let (_, behind) = preview.words.split_once("--confirm ").unwrap_or_default();
    behind
        .split_whitespace()
        .next()
        .ok_or_else(|| DemoError::Broken(format!("a stage shows nothing to confirm:\n{}", preview.words)))
}
