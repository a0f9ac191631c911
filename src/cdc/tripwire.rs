//! Watching a fenced side: whose a transaction is that the mirror did not make.
//!
//! A stream in mode TRIPWIRE reads the side that must not be written and writes nothing. Every transaction there that
//! touches the slice's tables must carry the slice's own tag. One that does not is either the first write of an
//! authority that was opened a moment ago, whose stream row follows, or a stray one, which is an alarm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::batch::Boundary;
use super::engine::Engine;
use super::error::MirrorError;
use super::record::Happened;
use super::start::is_turned;
use crate::authority::Gate;
use crate::authority::tripwire::{Untagged, judge};
use crate::change::{Relation, RowChange, Value};
use crate::failpoint;
use crate::failpoint::hooks::Mutant;
use crate::journal::alarms::{self, Operation, Stray, StrayTransaction};
use crate::journal::ledger;
use crate::journal::streams::{self, Direction};
use crate::journal::{authority, canaries};
use crate::landing::pieces::EventOrigin;
use crate::lsn::Lsn;

/// How often an engine looks whether its stream row gives it another part.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Rows of one stray transaction that are told one by one. More would only hide the others.
const STRAYS_MAX: usize = 100;

/// What an untagged transaction did to the slice's tables.
#[derive(Default)]
pub(crate) struct Strays {
    listed: Vec<Stray>,
    more: u64,
}

/// Counts only: keys are row values.
impl std::fmt::Debug for Strays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Strays({} and {} more)", self.listed.len(), self.more)
    }
}

impl Strays {
    pub(crate) fn add(&mut self, stray: Stray) {
        if self.listed.len() < STRAYS_MAX {
            self.listed.push(stray);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}

impl Engine {
    /// Looks at the stream row now and then, between transactions: another process may have taken over, and whoever
    /// moves the authority gives the stream another part by its row.
    pub(crate) async fn look(&mut self) -> Result<(), MirrorError> {
        if self.looked_at.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at = Instant::now();
        let claim = self.applier.claim();
        let slice = || claim.slice.clone();
        match streams::read(self.applier.session(), claim.of()).await? {
            Some(row) if row.nonce != claim.nonce => Err(MirrorError::Fenced { slice: slice() }),
            Some(row) if is_turned(&row, claim) => Err(MirrorError::Turned { slice: slice() }),
            Some(_) => Ok(()),
            None => Err(MirrorError::Fenced { slice: slice() }),
        }
    }

    /// The part is over once the row says so; until then nothing is read.
    async fn wait_for_turn(&mut self, stop: &CancellationToken) -> Result<(), MirrorError> {
        let words = format!("the {} was opened; the stream follows", self.config.direction.source());
        self.vitals.set_phase("turning", Some(&words));
        self.config.board.phase(self.config.of(), "turning", Some(&words));
        loop {
            tokio::select! {
                () = stop.cancelled() => return Err(MirrorError::Stopped),
                () = tokio::time::sleep(LOOK_EVERY) => self.look().await?,
            }
        }
    }

    /// An untagged change met by the tripwire.
    pub(crate) async fn stray(
        &mut self,
        relation: &Arc<Relation>,
        change: &RowChange,
    ) -> Result<(), MirrorError> {
        if let Some((number, operation, key)) =
            self.router.stray((relation, change), &self.tables, &self.source).await?
            && let Some(table) = self.tables.get(number)
        {
            self.strays.add(Stray { source_table: table.label.clone(), operation, key });
        }
        Ok(())
    }

    /// An untagged TRUNCATE met by the tripwire.
    pub(crate) async fn stray_truncate(&mut self, relations: &[Arc<Relation>]) -> Result<(), MirrorError> {
        for relation in relations.iter().filter(|relation| !is_canary(relation)) {
            if let Some(number) = self.router.table_of(relation, &self.tables, &self.source).await?
                && let Some(table) = self.tables.get(number)
            {
                let operation = Operation::Truncate;
                self.strays.add(Stray { source_table: table.label.clone(), operation, key: None });
            }
        }
        Ok(())
    }

    /// The end of a transaction that the tripwire looked through.
    pub(crate) async fn end_watched(
        &mut self,
        (origin, boundary): (Option<EventOrigin>, Boundary),
        stop: &CancellationToken,
    ) -> Result<(), MirrorError> {
        let strays = std::mem::take(&mut self.strays);
        let alarmed = !strays.is_empty();
        if let (Some(origin), true) = (origin, alarmed) {
            self.alarm(origin, &strays, stop).await?;
        }
        self.consumed = boundary;
        let marked = std::mem::take(&mut self.marked);
        if alarmed || marked || self.canary.is_some() {
            self.persist().await?;
        }
        self.report_heartbeat();
        Ok(())
    }

    /// Whose the transaction is that commits at `commit`, by the gate as it is now that the transaction came in. Where there
    /// is no gate nobody may write.
    async fn judge(&self, commit: Lsn) -> Result<Untagged, MirrorError> {
        let slice = &self.applier.claim().slice;
        let Some(row) = authority::gate(&self.source, slice).await? else { return Ok(Untagged::Rogue) };
        let gate = Gate::try_from(&row).map_err(|error| MirrorError::Unreadable {
            what: format!("the gate of slice {slice} ({error})"),
        })?;
        Ok(judge(&gate, commit))
    }

    /// Raises the alarm before anything else happens, unless the transaction is the new authority's first.
    async fn alarm(
        &mut self,
        origin: EventOrigin,
        strays: &Strays,
        stop: &CancellationToken,
    ) -> Result<(), MirrorError> {
        let claim = self.applier.claim().clone();
        let untagged = self.judge(origin.commit_lsn).await?;
        let advances = self.config.options.hooks.mutant(Mutant::TripwireAdvances);
        if untagged == Untagged::Accepted {
            if advances {
                return Ok(());
            }
            // All that committed before it has been looked through, and the server sends it again when asked from there.
            self.consumed.end = self.consumed.end.max(origin.commit_lsn);
            self.persist().await?;
            return self.wait_for_turn(stop).await;
        }
        let service = match claim.direction {
            Direction::Forward => self.applier.session(),
            Direction::Reverse => &self.source,
        };
        let transaction = StrayTransaction { epoch: claim.epoch, lsn: origin.commit_lsn, xid: origin.xid };
        let recorder = &self.config.recorder;
        let mut tables: Vec<&str> = strays.listed.iter().map(|stray| stray.source_table.as_str()).collect();
        tables.sort_unstable();
        tables.dedup();
        let happened = Happened::Stray {
            side: claim.direction.source(),
            xid: origin.xid,
            rows: strays.listed.len() as u64 + strays.more,
            tables: &tables,
        };
        let new = ledger::transaction(service, async || {
            let new = alarms::raise(service, claim.of(), transaction, &strays.listed).await?;
            if new > 0 {
                recorder.write(service, Some(origin.commit_lsn), happened).await?;
            }
            Ok(new)
        })
        .await?;
        if new > 0 {
            recorder.anchor();
        }
        failpoint::hit("tripwire-alarmed");
        if new > 0 {
            tracing::error!(
                slice = claim.slice,
                side = claim.direction.source(),
                lsn = %origin.commit_lsn,
                xid = origin.xid,
                table = strays.listed.first().map(|stray| stray.source_table.as_str()),
                rows = strays.listed.len() as u64 + strays.more,
                "somebody wrote on the fenced side; see `strangler status`"
            );
        }
        Ok(())
    }

    /// Takes note of a canary of this stream, to be landed with the position.
    pub(crate) fn canary_row(&mut self, relation: &Relation, change: &RowChange) {
        let new = match change {
            RowChange::Insert { new } | RowChange::Update { new, .. } => new,
            RowChange::Delete { .. } => return,
        };
        let value = |name: &str| {
            let place = relation.columns.iter().position(|column| column.name == name)?;
            std::str::from_utf8(new.get(place).and_then(Value::as_bytes)?).ok()
        };
        let of = self.config.of();
        if value("slice") == Some(of.slice) && value("dir") == Some(of.direction.as_str()) {
            self.canary = value("nonce").map(str::to_owned);
        }
    }

    /// Lands a canary in the open target transaction.
    pub(crate) async fn land_canary(&mut self) -> Result<(), MirrorError> {
        let Some(nonce) = self.canary.take() else { return Ok(()) };
        let claim = self.applier.claim().clone();
        let session = self.applier.open_session().await?;
        Ok(canaries::land(session, claim.of(), &nonce).await?)
    }
}

/// Whether a relation of the stream is the table that proves the way, rather than one of the slice.
pub(crate) fn is_canary(relation: &Relation) -> bool {
    (relation.schema.as_str(), relation.name.as_str()) == canaries::TABLE
}
