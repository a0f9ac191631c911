//! The act in which rows of a service go wrong, are found while the application writes, and are made right.

use std::time::Instant;

use super::super::narrator::seconds;
use super::super::operator::{PLAN_PATH, Said, typed};
use super::super::stage::{AS_MIRROR, ORDERS};
use super::{DemoError, Journey, Play, TOO_EARLY};

/// What somebody does to the order service behind everybody's back: rows that the application has done with.
const MISHAPS: [&str; 3] = [
    r#"UPDATE sales."Orders" SET "Total" = "Total" + 100 WHERE "Id" = 17"#,
    "UPDATE sales.order_lines SET name = upper(name) WHERE id = 23",
    "DELETE FROM sales.order_lines WHERE id = 42",
];

/// Differences were found.
const DIFFERS: i32 = 1;

impl Play<'_> {
    pub(super) async fn reconcile(&mut self) -> Result<(), DemoError> {
        self.narrator.act("Reconcile: rows go wrong. Who notices, while everybody writes?")?;
        self.narrator.say(
            "The gate refuses even a superuser. Somebody gets around it, as the mirror's own role, and changes the order service by \
             hand:",
        )?;
        self.narrator.command(&format!("psql {} -U postgres", ORDERS.database))?;
        self.narrator.output(&format!("{AS_MIRROR};"))?;
        for mishap in MISHAPS {
            self.narrator.output(&format!("{mishap};"))?;
        }
        self.stage.meddle(ORDERS, &MISHAPS).await?;
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        let compare = ["reconcile", PLAN_PATH, "--slice", "ordering"];
        self.narrator.blank()?;
        self.narrator.command(&typed(&compare))?;
        let begun = Instant::now();
        let found = operator.run_to(&compare, DIFFERS).await?;
        self.show(&found)?;
        self.narrator.say(&format!(
            "Three of three, in {}, with the application writing. The mirror makes them right:",
            seconds(begun.elapsed())
        ))?;
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        let repair = [&compare[..], &["--repair", "--format", "json", "--output", "found.json"]].concat();
        self.narrator.command(&typed(&repair))?;
        let repaired = operator.run(&repair).await?;
        self.show(&repaired)?;
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        self.narrator.command(&typed(&["reconcile", PLAN_PATH]))?;
        let clean = operator.run(&["reconcile", PLAN_PATH]).await?;
        self.narrator.say("Of each slice its headline, and the last line:")?;
        for line in clean.data.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')) {
            self.narrator.output(line)?;
        }
        Ok(())
    }

    fn show(&mut self, said: &Said) -> Result<(), DemoError> {
        for line in said.data.lines().chain(said.words.lines()) {
            self.narrator.output(line)?;
        }
        Ok(())
    }
}
