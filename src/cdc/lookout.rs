//! The watch over a source whose tables nobody copies from: the service, and a monolith that has given the authority away.
//! What changes rows there without an event is told, and stops nothing, because only a comparison could find the rows.

use std::collections::BTreeMap;

use super::contents::{self, Contents, Heard, Judgement, TableContents, Unheard};
use super::error::MirrorError;
use super::record::Happened;
use super::source;
use super::watch::{self, Site};
use crate::failpoint;
use crate::journal::streams::{self, Direction, StreamOf};
use crate::journal::{self, baselines};
use crate::lsn::Lsn;
use crate::name::TableName;

/// TRUNCATEs of one table that are remembered until its partitions are looked at again, a moment later.
const TRUNCATES_MAX: usize = 50;

/// Transactions in which a stream brought a TRUNCATE of a whole table, by the source's tables.
#[derive(Debug, Clone, Default)]
pub struct Truncates(BTreeMap<TableName, Vec<String>>);

impl Truncates {
    /// The stream brought one.
    pub fn add(&mut self, table: TableName, xid: u32) {
        let known = self.0.entry(table).or_default();
        if known.len() >= TRUNCATES_MAX {
            known.remove(0);
        }
        known.push(xid.to_string());
    }

    fn of(&self, table: &TableName) -> &[String] {
        self.0.get(table).map(Vec::as_slice).unwrap_or_default()
    }
}

/// What was seen, and what waits for the stream's word.
#[derive(Debug)]
pub struct Lookout {
    direction: Direction,
    before: Contents,
    /// A later reading that only the stream can judge, and the position that it has to pass for that.
    held: Option<(Contents, Lsn)>,
}

/// What a look came to.
#[derive(Debug, Default)]
struct Seen {
    unheard: Vec<Unheard>,
    /// Tables whose measure is another one now.
    moved: Contents,
}

impl Lookout {
    /// The measure of the monolith is the one that the service has, and is kept there: whoever gets the authority back goes
    /// on from it. The one of the way back begins with what is there now.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn begin(site: Site<'_>, direction: Direction) -> Result<Self, MirrorError> {
        let before = match direction {
            Direction::Forward => watch::measure(site).await?,
            Direction::Reverse => Contents::new(),
        };
        Ok(Self { direction, before, held: None })
    }

    /// The position that the stream has to pass before everything seen can be judged.
    #[must_use]
    pub fn awaits(&self) -> Option<Lsn> {
        self.held.as_ref().map(|(_, lsn)| *lsn)
    }

    /// Looks at the catalogs and notes what happened unheard since the last look. `brought` is asked for what the way back's
    /// stream has brought, once it is known how far that is applied.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn look(
        &mut self,
        site: Site<'_>,
        brought: impl FnOnce() -> Truncates,
    ) -> Result<(), MirrorError> {
        let mut now = contents::read(site.source, site.publication).await?;
        contents::look_into_attached(site.source, &self.before, &mut now).await?;
        // Whatever the readings hold was committed before this position.
        let position = source::insert_position(site.source).await?;
        let (applied, brought) = match self.direction {
            Direction::Forward => forward(site).await?,
            Direction::Reverse => {
                let row = streams::read(site.target, StreamOf::reverse(site.slice)).await?;
                (row.map_or(Lsn::ZERO, |row| row.applied), brought())
            }
        };
        let seen = self.take(site.publication, (now, position), (applied, &brought));
        self.note(site, &seen.unheard).await?;
        if self.direction == Direction::Forward {
            for (table, contents) in &seen.moved {
                watch::write_down(site, table, contents).await?;
            }
        }
        Ok(())
    }

    /// Where rows are not copied, nothing could be copied again: a comparison finds what changed unheard, and evidence of
    /// before is void because the tables' shapes are others.
    async fn note(&self, site: Site<'_>, found: &[Unheard]) -> Result<(), MirrorError> {
        let direction = self.direction.as_str();
        for Unheard { table, what, .. } in found {
            tracing::error!(
                slice = site.slice,
                direction,
                %table,
                what,
                "a table changed in a way that is not in the stream; compare the slice with `strangler reconcile PLAN`"
            );
            // First, because it is told of once: what was seen is forgotten when the process ends.
            let service = if self.direction == Direction::Forward { site.target } else { site.source };
            let (label, side) = (table.to_string(), self.direction.source());
            let happened = Happened::Unheard { table: &label, what, side };
            site.recorder.write_alone(service, None, happened).await?;
            let entry =
                serde_json::json!({ "table": table.to_string(), "what": what, "direction": direction });
            journal::record(site.target, Some(site.slice), "changed-unheard", &entry).await?;
            failpoint::hit("unheard-noted");
        }
        Ok(())
    }

    /// Judges a reading, and the one that waits once the stream has passed it.
    fn take(
        &mut self,
        publication: &str,
        (now, position): (Contents, Lsn),
        (applied, brought): (Lsn, &Truncates),
    ) -> Seen {
        let mut seen = Seen::default();
        if self.held.as_ref().is_some_and(|(_, at)| applied >= *at)
            && let Some((held, _)) = self.held.take()
        {
            for (table, contents) in held {
                let heard = Heard { emptied_by: brought.of(&table), passed: true };
                drop(self.judge(publication, (table, contents), heard, &mut seen));
            }
        }
        let mut open = Contents::new();
        for (table, contents) in now {
            let heard = Heard { emptied_by: brought.of(&table), passed: false };
            open.extend(self.judge(publication, (table, contents), heard, &mut seen));
        }
        if let Some((held, _)) = &mut self.held {
            held.retain(|table, _| open.contains_key(table));
        }
        if self.held.as_ref().is_none_or(|(held, _)| held.is_empty()) {
            self.held = (!open.is_empty()).then_some((open, position));
        }
        seen
    }

    /// Judges one table. What only the stream can tell comes back; all else is the measure from now on.
    fn judge(
        &mut self,
        publication: &str,
        (table, contents): (TableName, TableContents),
        heard: Heard<'_>,
        seen: &mut Seen,
    ) -> Option<(TableName, TableContents)> {
        let judgement = match self.before.get(&table) {
            None => Judgement::Heard,
            Some(before) if before.publication != contents.publication => {
                Judgement::Unheard(watch::altered(publication))
            }
            Some(before) => contents::other_expression(before, &contents)
                .map_or_else(|| contents::judge(before, &contents, heard), Judgement::Unheard),
        };
        match judgement {
            Judgement::Open => return Some((table, contents)),
            Judgement::Heard => {}
            Judgement::Unheard(what) => {
                seen.unheard.push(Unheard { table: table.clone(), what, first: None })
            }
        }
        let contents = contents.settled();
        if self.before.get(&table) != Some(&contents) {
            seen.moved.insert(table.clone(), contents.clone());
            self.before.insert(table, contents);
        }
        None
    }
}

/// How far the forward stream is applied, and what it brought until then.
async fn forward(site: Site<'_>) -> Result<(Lsn, Truncates), MirrorError> {
    let (applied, rows) = baselines::read(site.target, site.slice).await?;
    let brought = rows.into_iter().filter_map(|row| Some((watch::name_of(&row)?, row.emptied_by))).collect();
    Ok((applied, Truncates(brought)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::contents::Heap;

    fn heap(oid: u32, file: u32, by: &str) -> (u32, Heap) {
        let heap = Heap {
            name: format!("p{oid}"),
            file,
            changed_by: by.into(),
            logged: true,
            partition: true,
            made: true,
            empty: false,
            ties: "9/700".into(),
            columns: BTreeMap::new(),
            identity: None,
        };
        (oid, heap)
    }

    fn reading(heaps: [(u32, Heap); 2]) -> Contents {
        let contents = TableContents {
            publication: "7 700".into(),
            labels: BTreeMap::new(),
            composites: BTreeMap::new(),
            generated: BTreeMap::new(),
            heaps: heaps.into(),
        };
        [(TableName::new("public", "t"), contents)].into()
    }

    fn lookout() -> Lookout {
        let mut lookout = Lookout { direction: Direction::Reverse, before: Contents::new(), held: None };
        let first = reading([heap(1, 1, "700"), heap(2, 2, "700")]);
        let seen = lookout.take("pub", (first, Lsn(10)), (Lsn(0), &Truncates::default()));
        assert_eq!((seen.unheard.len(), seen.moved.len()), (0, 1));
        lookout
    }

    #[test]
    fn files_that_all_are_others_wait_until_the_stream_has_passed_them() {
        let emptied = || reading([heap(1, 11, "900"), heap(2, 12, "900")]);
        let mut told = Truncates::default();
        let mut lookout = lookout();
        assert!(lookout.take("pub", (emptied(), Lsn(20)), (Lsn(15), &told)).unheard.is_empty());
        assert_eq!(lookout.awaits(), Some(Lsn(20)));
        assert!(lookout.take("pub", (emptied(), Lsn(30)), (Lsn(19), &told)).unheard.is_empty());
        assert_eq!(
            lookout.awaits(),
            Some(Lsn(20)),
            "it does not wait for longer than the first reading does"
        );
        let unheard = lookout.take("pub", (emptied(), Lsn(40)), (Lsn(20), &told)).unheard;
        assert_eq!(unheard.len(), 1, "each partition was emptied by its own name");
        assert_eq!(lookout.awaits(), None);
        assert!(lookout.take("pub", (emptied(), Lsn(50)), (Lsn(20), &told)).unheard.is_empty(), "told once");
        let again = || reading([heap(1, 21, "950"), heap(2, 22, "950")]);
        assert!(lookout.take("pub", (again(), Lsn(60)), (Lsn(50), &told)).unheard.is_empty());
        told.add(TableName::new("public", "t"), 950);
        let seen = lookout.take("pub", (again(), Lsn(70)), (Lsn(55), &told));
        assert!(seen.unheard.is_empty() && lookout.awaits().is_none(), "the stream brought the TRUNCATE");
    }

    #[test]
    fn what_is_certain_is_told_once_and_is_the_measure_then() {
        let mut lookout = lookout();
        let one = || reading([heap(1, 11, "900"), heap(2, 2, "700")]);
        let seen = lookout.take("pub", (one(), Lsn(20)), (Lsn(20), &Truncates::default()));
        assert_eq!((seen.unheard.len(), seen.moved.len()), (1, 1));
        let seen = lookout.take("pub", (one(), Lsn(30)), (Lsn(30), &Truncates::default()));
        assert_eq!((seen.unheard.len(), seen.moved.len()), (0, 0));
    }
}
