//! Which slices of a plan are retired for good, and which are left then.

use std::collections::BTreeSet;

use super::{ANSWER_MAX, Needs, Opened, Ways};
use crate::check;
use crate::cli::report::CliError;
use crate::cli::ui::Ui;
use crate::journal::dropped::{self, Dropped};
use crate::postgres::Server;
use crate::problem::Problem;

impl Opened {
    /// Leaves out the slices whose old tables are dropped, with a line about each. `None` where no other is left, and nothing to be done.
    ///
    /// # Errors
    /// One of them was named: [`CliError::SliceDropped`]. A service can't be asked.
    pub(in crate::cli) async fn living(
        mut self,
        ui: &mut Ui,
        named: &[String],
        needs: Needs,
    ) -> Result<Option<Self>, CliError> {
        self.ask_dropped(needs).await?;
        self.left(ui, named)
    }

    /// The same for whoever has asked already ([`Self::ask_dropped`]).
    ///
    /// # Errors
    /// One of them was named: [`CliError::SliceDropped`].
    pub(in crate::cli) fn left(self, ui: &mut Ui, named: &[String]) -> Result<Option<Self>, CliError> {
        let opened = self.leave_out(ui, named)?;
        Ok((!opened.slices.is_empty()).then_some(opened))
    }

    /// The same for whoever does what he can while a service can't be reached: its slices stay in, with a line that says that nobody knows
    /// whether they are retired, and are met by whoever works with them, who can't without that service. Also where no slice is left.
    ///
    /// # Errors
    /// As [`Self::living`].
    pub(in crate::cli) async fn reachable(
        mut self,
        ui: &mut Ui,
        named: &[String],
        needs: Needs,
    ) -> Result<Self, CliError> {
        let mut answered = BTreeSet::new();
        for (service, link) in self.asked(needs) {
            match self.ask_one(&link).await {
                Ok(()) => drop(answered.insert(service)),
                Err(CliError::Connect(_) | CliError::Silent { .. }) => ui.words(&format!(
                    "service {service} can't be reached, so nobody knows which of its slices are retired"
                )),
                Err(error) => return Err(error),
            }
        }
        self.ask_monolith(needs, &answered).await?;
        self.leave_out(ui, named)
    }

    fn leave_out(mut self, ui: &mut Ui, named: &[String]) -> Result<Self, CliError> {
        let of = |slice: &String| {
            let forgotten = self.forgotten.get(slice).map(dropped::forgotten);
            self.dropped.get(slice).map(Dropped::problem).or(forgotten)
        };
        let refused: Vec<Problem> = named.iter().filter_map(of).collect();
        if !refused.is_empty() {
            return Err(CliError::SliceDropped(self.typed_all(refused)));
        }
        for slice in self.slices.iter().filter(|slice| self.dropped.contains_key(*slice)) {
            ui.words(&format!("slice {slice} is retired, and left out"));
        }
        let unknown: Vec<Problem> = self.forgotten.values().map(dropped::forgotten).collect();
        if !unknown.is_empty() {
            ui.words(check::list(&self.typed_all(unknown)).trim_end());
        }
        self.slices.retain(|slice| !self.dropped.contains_key(slice) && !self.forgotten.contains_key(slice));
        Ok(self)
    }

    /// Refuses where a service does not know that old tables of its are dropped: whoever makes something for the slice would begin from
    /// nothing.
    ///
    /// # Errors
    /// [`CliError::SliceDropped`].
    pub(in crate::cli) fn known_to_services(self) -> Result<Self, CliError> {
        let problems: Vec<Problem> = self.forgotten.values().map(dropped::forgotten).collect();
        if problems.is_empty() { Ok(self) } else { Err(CliError::SliceDropped(self.typed_all(problems))) }
    }

    /// Asks the services which slices are retired for good.
    ///
    /// # Errors
    /// One of them can't be asked: what nobody knows is not taken for a slice that has both its sides.
    pub(in crate::cli) async fn ask_dropped(&mut self, needs: Needs) -> Result<(), CliError> {
        for (_, link) in self.asked(needs) {
            self.ask_one(&link).await?;
        }
        self.ask_monolith(needs, &self.services.keys().cloned().collect()).await
    }

    /// Asks the monolith for slices whose old tables went from it, and whose services, which were asked, know nothing of that. One that can't be
    /// reached is met by whoever needs it.
    async fn ask_monolith(&mut self, needs: Needs, answered: &BTreeSet<String>) -> Result<(), CliError> {
        let link = if needs == Needs::Rows { &self.monolith.apply } else { &self.monolith.admin };
        let link = link.clone().answering_within(ANSWER_MAX);
        let Ok(session) = link.connect("strangler").await else { return Ok(()) };
        let found = async { Ok(dropped::all(&session).await?) };
        let found = found.await.map_err(|error: CliError| error.over_silence([&link]))?;
        let forgotten = found.into_iter().filter(|one| {
            let asked = self.plan.service_of(&one.slice).is_some_and(|(name, _)| answered.contains(name));
            one.side == "monolith"
                && one.plan == self.plan.name
                && asked
                && !self.dropped.contains_key(&one.slice)
        });
        self.forgotten = forgotten.map(|one| (one.slice.clone(), one)).collect();
        self.forgotten.retain(|slice, _| self.slices.contains(slice));
        Ok(())
    }

    /// The services, each with the link by which it is asked.
    fn asked(&self, needs: Needs) -> Vec<(String, Server)> {
        let link = |ways: &Ways| if needs == Needs::Rows { ways.apply.clone() } else { ways.admin.clone() };
        let asked = self.services.iter().map(|(name, ways)| (name.clone(), link(ways)));
        asked.map(|(name, link)| (name, link.answering_within(ANSWER_MAX))).collect()
    }

    /// Whether a slice is retired by now: for whoever runs for so long that it may have become so. `None` also where nobody can say; who works
    /// with the slice meets that.
    pub(in crate::cli) async fn dropped_now(&self, slice: &str) -> Option<Dropped> {
        let (service, _) = self.plan.service_of(slice)?;
        let link = self.services.get(service)?.apply.clone().answering_within(ANSWER_MAX);
        let session = link.connect("strangler").await.ok()?;
        let found = dropped::read(&session, slice).await.ok()??;
        (found.plan == self.plan.name).then_some(found)
    }

    async fn ask_one(&mut self, link: &Server) -> Result<(), CliError> {
        let found = async { Ok(dropped::all(&*link.connect("strangler").await?).await?) };
        let found = found.await.map_err(|error: CliError| error.over_silence([link]))?;
        let ours = found.into_iter().filter(|dropped| dropped.plan == self.plan.name);
        self.dropped.extend(ours.map(|dropped| (dropped.slice.clone(), dropped)));
        Ok(())
    }
}
