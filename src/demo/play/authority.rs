//! The acts in which the right to write orders moves to their service, back, and there again.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::desk::{Acknowledged, Book, Desk, Expected, FIND};
use super::super::narrator::{count, seconds};
use super::super::operator::{PLAN_PATH, typed};
use super::super::owner::{self, Side};
use super::super::stage::{MONOLITH, ORDERS};
use super::super::traffic::{Rate, Traffic};
use super::super::view::View;
use super::{DemoError, GLANCE, Journey, PATIENCE, Play, TOO_EARLY, comparison, ended, too_slow, verdict};
use crate::name::quote_literal;
use crate::plan::Plan;

/// The slice that moves.
pub(super) const SLICE: &str = "ordering";

/// What the release that leaves orders to the desk writes.
const RATE: Rate = Rate { writers: 4, transactions_per_second: 60 };

/// The new release's ids are others than the old one's.
const SEED: u64 = 2;

/// So many orders are acknowledged by a side before the play goes on.
const SETTLED: usize = 60;

/// A write of the old release, which comes too late.
const LATECOMER: &str = r#"UPDATE "Orders" SET "Notes" = 'too late' WHERE "Id" = 17"#;

impl Play<'_> {
    pub(super) async fn arm(&mut self, plan: &Plan) -> Result<(), DemoError> {
        self.narrator.act("Arm: a release that can follow its orders, gates, and a way back")?;
        self.narrator.say(
            "The release in use checks out in one transaction over five services' tables. None of that kind",
        )?;
        self.narrator.say("outlives a split, so a new one is rolled out: it writes orders in transactions of their own, and")?;
        self.narrator
            .say("when a side refuses, it tries the other one with back-off, as docs/clients.md shows.")?;
        self.roll_out(plan).await?;
        let Journey { operator, view } = self.journey.as_mut().ok_or(TOO_EARLY)?;
        let words = ["arm", PLAN_PATH, "--slice", SLICE];
        self.narrator.command(&typed(&words))?;
        let begun = Instant::now();
        let said = operator.run(&words).await?;
        self.narrator.excerpt(&said.words, 3, 3)?;
        let took = seconds(begun.elapsed());
        self.narrator
            .say(&format!("In {took}, a table at a time. The gates are open, so the application goes on."))?;
        let mirror = self.mirror.as_mut().ok_or(TOO_EARLY)?;
        tokio::select! {
            read = way_back_is_read(view) => read,
            error = ended(mirror) => Err(error),
        }
    }

    /// Ends the old release and starts the new one.
    async fn roll_out(&mut self, plan: &Plan) -> Result<(), DemoError> {
        let monolith = self.application.as_ref().ok_or(TOO_EARLY)?;
        let service = plan.services.get(ORDERS.label()).ok_or(TOO_EARLY)?;
        let service = self.stage.application(ORDERS, &service.app).await?;
        if let Some(traffic) = self.traffic.take() {
            self.before = self.before + traffic.stop().await;
        }
        let traffic =
            Traffic::start_without_orders(monolith, RATE, SEED).await.map_err(DemoError::Traffic)?;
        self.traffic = Some(traffic);
        self.desk = Some(Desk::open(monolith, &service).await.map_err(DemoError::Orders)?);
        self.service = Some(service);
        Ok(())
    }

    pub(super) async fn rehearse(&mut self) -> Result<(), DemoError> {
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        self.narrator.act("Rehearse: everything but closing the gate, twenty times")?;
        let words = ["flip", PLAN_PATH, "--slice", SLICE, "--rehearse"];
        self.narrator.command(&typed(&words))?;
        let (said, refused) = operator.flip(&words).await?;
        self.narrator.output(&said.data)?;
        self.refusals(refused)
    }

    pub(super) async fn flip(&mut self) -> Result<(), DemoError> {
        self.narrator.act("Flip: the order service takes over, while everybody writes")?;
        self.narrator
            .say("This plan wants a week of mirroring before that, and a pause of 500 ms at most; the demo's copy of it says 0s and 2s.")?;
        self.turn(Side::Service).await?;
        self.narrator.blank()?;
        let sides = self.sides().await?;
        let desk = self.desk.as_mut().ok_or(TOO_EARLY)?;
        let order = desk.next_on(Side::Service).await.ok_or(TOO_EARLY)?;
        self.narrator.say("Orders land in the service now, and appear in the monolith's old tables for who still reads there:")?;
        self.show_order(&order, &sides).await?;
        self.narrator.say("Who still writes there is told where to go:")?;
        self.narrator.command(&format!("psql {} -U retail_app", MONOLITH.database))?;
        self.narrator.output(&format!("{LATECOMER};"))?;
        let [monolith, _] = sides;
        match monolith.batch_execute(LATECOMER).await {
            Ok(()) => return Err(DemoError::Broken("the monolith took a write after the flip".to_owned())),
            Err(error) => {
                let refusal = error.as_db_error().filter(|refusal| refusal.code().code() == "25006");
                let Some(refusal) = refusal else { return Err(DemoError::Orders(error)) };
                self.narrator.output(&format!("ERROR:  {}", refusal.message()))?;
                self.narrator.output(&format!("HINT:  {}", refusal.hint().unwrap_or_default()))?;
            }
        }
        Ok(())
    }

    /// Reads one order on both sides, until both say the same of it.
    async fn show_order(
        &mut self,
        order: &Acknowledged,
        [monolith, service]: &[Client; 2],
    ) -> Result<(), DemoError> {
        let number = quote_literal(&order.number);
        let query =
            |table| format!(r#"SELECT "Id", "Status", "Total" FROM {table} WHERE "OrderNumber" = {number}"#);
        let (here, there) = (query(r#"sales."Orders""#), query(r#""Orders""#));
        let begun = Instant::now();
        let row = loop {
            let seen = (read(service, &here).await?, read(monolith, &there).await?);
            match seen {
                (Some(row), Some(same)) if row == same => break row,
                _ if begun.elapsed() > PATIENCE => return Err(too_slow("an order to come back")),
                _ => tokio::time::sleep(GLANCE / 50).await,
            }
        };
        let age = order.at.elapsed().as_secs_f64() * 1000.0;
        for (database, role, sql) in
            [(ORDERS.database, "order_user", here), (MONOLITH.database, "retail_app", there)]
        {
            self.narrator.command(&format!("psql {database} -U {role} -t"))?;
            self.narrator.output(&format!("{sql};"))?;
            self.narrator.output(&row)?;
        }
        self.narrator
            .say(&format!("Seen on both sides {age:.0} ms after the service had acknowledged it."))?;
        Ok(())
    }

    pub(super) async fn flip_back(&mut self) -> Result<(), DemoError> {
        self.narrator.act("Flip back: nothing that the service took is lost")?;
        self.proven().await?;
        self.turn(Side::Monolith).await
    }

    pub(super) async fn flip_again(&mut self) -> Result<(), DemoError> {
        self.narrator.act("And there again. Then: is every acknowledged order there, once?")?;
        self.proven().await?;
        self.turn(Side::Service).await?;
        self.narrator.blank()?;
        self.account_for().await
    }

    /// Both sides are compared, because a move voids what was proven before it.
    pub(super) async fn proven(&mut self) -> Result<(), DemoError> {
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        let words = ["reconcile", PLAN_PATH, "--slice", SLICE];
        self.narrator.command(&typed(&words))?;
        let said = operator.run(&words).await?;
        for line in said.data.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')) {
            self.narrator.output(line)?;
        }
        Ok(())
    }

    /// Moves the right to write, and says what the application saw of it.
    async fn turn(&mut self, to: Side) -> Result<(), DemoError> {
        let Journey { operator, .. } = self.journey.as_ref().ok_or(TOO_EARLY)?;
        let desk = self.desk.as_ref().ok_or(TOO_EARLY)?;
        let mut words = vec!["flip", PLAN_PATH, "--slice", SLICE];
        if to == Side::Monolith {
            words.push("--back");
        }
        self.narrator.command(&typed(&words))?;
        let before = desk.book();
        let (said, refused) = operator.flip(&words).await?;
        self.narrator.output(&said.data)?;
        self.refusals(refused)?;
        let desk = self.desk.as_ref().ok_or(TOO_EARLY)?;
        let moved = Instant::now();
        let book = loop {
            let book = desk.book();
            expected(&book)?;
            if book.on(to) >= before.on(to) + SETTLED {
                break book;
            }
            if moved.elapsed() > PATIENCE {
                return Err(too_slow("orders on the side that has authority"));
            }
            tokio::time::sleep(GLANCE).await;
        };
        self.narrator.say(&format!(
            "What the application saw: {} attempts refused with SQLSTATE 25006 and done on the other side, no order",
            book.refused - before.refused
        ))?;
        self.narrator.say(&format!(
            "acknowledged for {:.0} ms at the longest, and no other error.",
            book.longest_silence(before.acknowledged.len()).as_secs_f64() * 1000.0
        ))?;
        Ok(())
    }

    fn refusals(&mut self, refused: u32) -> Result<(), DemoError> {
        if refused > 0 {
            self.narrator.say(&format!(
                "({refused} times before that it was refused, because the mirror lagged for a moment.)"
            ))?;
        }
        Ok(())
    }

    /// Looks for every acknowledged order on both sides, and compares both sides row by row.
    async fn account_for(&mut self) -> Result<(), DemoError> {
        let sides = self.sides().await?;
        let desk = self.desk.as_ref().ok_or(TOO_EARLY)?;
        let begun = Instant::now();
        let pause = desk.pause().await;
        let book = desk.book();
        let Journey { view, .. } = self.journey.as_mut().ok_or(TOO_EARLY)?;
        let mirror = self.mirror.as_mut().ok_or(TOO_EARLY)?;
        tokio::select! {
            quiet = quiet(view) => quiet?,
            error = ended(mirror) => return Err(error),
        }
        for (side, client) in Side::BOTH.into_iter().zip(&sides) {
            missing(&book, side, client).await?;
        }
        let number = |number: usize| count(u64::try_from(number).unwrap_or(u64::MAX));
        self.narrator.say(&format!(
            "The order desk pauses. {} orders in {} acknowledged transactions, {} by the monolith and {} by the service:",
            number(book.orders.len()),
            number(book.acknowledged.len()),
            number(book.on(Side::Monolith)),
            number(book.on(Side::Service))
        ))?;
        self.narrator.say("each is there exactly once on either side, with its lines and its last status. And all the rows:")?;
        let mut all = Vec::new();
        if let Some(slice) = view.mappings().await?.get(SLICE) {
            for table in view.compare(slice).await? {
                self.narrator.output(&comparison(&table))?;
                all.push(table);
            }
        }
        drop(pause);
        verdict(&mut self.narrator, &all, begun.elapsed())
    }

    /// A session of the application on each side.
    pub(super) async fn sides(&self) -> Result<[Client; 2], DemoError> {
        let (monolith, service) =
            (self.application.as_ref().ok_or(TOO_EARLY)?, self.service.as_ref().ok_or(TOO_EARLY)?);
        Ok([
            owner::connect(monolith).await.map_err(DemoError::Orders)?,
            owner::connect(service).await.map_err(DemoError::Orders)?,
        ])
    }
}

/// An order's columns as psql writes them.
async fn read(client: &Client, sql: &str) -> Result<Option<String>, DemoError> {
    let rows = client.simple_query(sql).await.map_err(DemoError::Orders)?;
    Ok(rows.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let values = (0..row.len()).map(|place| row.get(place).unwrap_or_default());
        Some(values.collect::<Vec<_>>().join(" | "))
    }))
}

/// The application met nothing but what it was told to expect.
fn expected(book: &Book) -> Result<(), DemoError> {
    match book.failed.first() {
        None => Ok(()),
        Some(error) => {
            Err(DemoError::Broken(format!("the application got an error that it does not expect: {error}")))
        }
    }
}

/// Every acknowledged order is there once, as it was acknowledged.
async fn missing(book: &Book, side: Side, client: &Client) -> Result<(), DemoError> {
    let [monolith, service] = FIND;
    let sql = if side == Side::Monolith { monolith } else { service };
    let numbers: Vec<&String> = book.orders.keys().collect();
    let rows = client.query(sql, &[&numbers]).await.map_err(DemoError::Orders)?;
    let mut found: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for row in rows {
        let of = || Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)));
        let (number, there) = of().map_err(DemoError::Orders)?;
        found.entry(number).or_default().push(there);
    }
    let kept = |(number, wanted): &(&String, &Expected)| {
        let there = found.get(*number).map(Vec::as_slice).unwrap_or_default();
        matches!(there, [(status, lines)] if status == wanted.status && *lines == wanted.lines)
    };
    match book.orders.iter().find(|order| !kept(order)) {
        None => Ok(()),
        Some((number, wanted)) => Err(DemoError::Broken(format!(
            "order {number} was acknowledged as {} with {} lines and is not so on the side of the {side:?}",
            wanted.status, wanted.lines
        ))),
    }
}

/// The mirror has begun to read the service's log.
async fn way_back_is_read(view: &mut View) -> Result<(), DemoError> {
    let begun = Instant::now();
    loop {
        let read = view
            .slices()
            .await
            .into_iter()
            .any(|slice| slice.slice == SLICE && slice.way_back.is_some_and(|way| way.process.is_some()));
        if read {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(too_slow("the way back to be read"));
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Both directions have brought everything that both sides have written.
async fn quiet(view: &mut View) -> Result<(), DemoError> {
    let begun = Instant::now();
    let [there, here] = view.mark_both(SLICE, ORDERS.label()).await?;
    loop {
        let arrived = view.slices().await.into_iter().any(|slice| {
            let forward = slice.lag.is_some_and(|lag| lag.applied_lsn >= there);
            let back = slice.way_back.is_some_and(|way| way.applied_lsn >= here);
            slice.slice == SLICE && forward && back
        });
        if arrived {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(too_slow("both sides to have everything"));
        }
        tokio::time::sleep(GLANCE).await;
    }
}
