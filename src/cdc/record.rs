//! What a mirror writes into the ledger: ends and new beginnings of copies, and what a human must look at.
//!
//! What is in the service's database already, such as a table's state, gets its entry by the same transaction. For the rest an
//! entry is made right after it, under a name by which whoever meets the same thing again finds that it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::error::MirrorError;
use super::mirror::chain_of;
use super::start::open;
use crate::failpoint;
use crate::journal::JournalError;
use crate::journal::ledger::{self, Subject};
use crate::journal::streams::{Direction, StreamState};
use crate::lsn::Lsn;
use crate::postgres::connect::{Server, Session};

/// Writes entries about one slice.
#[derive(Debug, Clone)]
pub struct Recorder {
    subject: Arc<Subject>,
    /// The service's name in the plan.
    name: Arc<str>,
    service: Server,
    /// The monolith under a role that may write its journal, which is to remember the ledger's head.
    monolith: Option<Server>,
    /// The head is about to be written, and will be that of all entries until then.
    anchoring: Arc<AtomicBool>,
    /// The ledger knows why the stream is about to stop.
    explained: Arc<AtomicBool>,
}

/// What happened. Tables go by the monolith's names.
#[derive(Debug, Clone, Copy)]
pub enum Happened<'a> {
    /// All rows of a table are copied, and every event on it applies from now on.
    CopyEnded {
        /// Table.
        table: &'a str,
        /// Rows that were copied.
        rows: i64,
        /// Bytes of COPY data.
        bytes: i64,
        /// Which copy of the table it is, from 1.
        copy: i32,
    },
    /// A table was emptied and is copied again.
    CopyAgain {
        /// Table.
        table: &'a str,
        /// Why: `retry`, `rebuild`, or `interrupted` for a copy in parts whose snapshot was lost.
        cause: &'static str,
        /// Which copy of the table it will be.
        copy: i32,
    },
    /// An event, or a copied row, met what it could not have met: the table stands still.
    Diverged {
        /// Table.
        table: &'a str,
        /// What was met, without values.
        detail: &'a str,
    },
    /// A stream can't go on: changes are lost, or the source is another one.
    Broken {
        /// Which of the slice's streams.
        direction: Direction,
        /// `Gap` or `Diverged`.
        state: StreamState,
        /// The facts.
        detail: &'a str,
        /// The slot that it read from. Another stream has another one.
        slot: &'a str,
    },
    /// Rows of a table changed without an event.
    Unheard {
        /// Table.
        table: &'a str,
        /// What happened to it.
        what: &'a str,
        /// The side that it happened on.
        side: &'static str,
    },
    /// Rows of the monolith are not those that the service's writes met: the way back stands still.
    Contradicted {
        /// Table.
        table: &'a str,
        /// What was met, without values.
        detail: &'a str,
        /// Epoch of the way back.
        epoch: i64,
        /// How far it is applied.
        applied: Lsn,
    },
    /// A stream stopped over something else, mostly a definition that changed: it waits for a human.
    Stopped {
        /// Which of the slice's streams.
        direction: Direction,
        /// Why.
        detail: &'a str,
        /// How far it is applied.
        applied: Lsn,
    },
    /// The watch over a fenced monolith begins anew: what was written there meanwhile nobody looked at.
    Unwatched {
        /// The slot that it read from.
        slot: &'a str,
        /// How far it had looked.
        since: Lsn,
        /// The slot that it reads from now.
        anew: &'a str,
    },
    /// The service's application wrote rows that the slice's filter forbids; the way back leaves them where they are.
    Outside {
        /// Table.
        table: &'a str,
        /// Transaction id, 32 bits.
        xid: u32,
    },
    /// Somebody wrote on a fenced side.
    Stray {
        /// The side.
        side: &'static str,
        /// Transaction id, 32 bits.
        xid: u32,
        /// Rows and emptied tables.
        rows: u64,
        /// The tables, each once.
        tables: &'a [&'a str],
    },
}

impl Happened<'_> {
    /// Kind and body of its entry, and the name under which it is told once, where nothing else keeps it from being told again.
    fn entry(self) -> (&'static str, Value, Option<String>) {
        let alarm = |what: &str, body: Value, event: Option<String>| {
            let mut body = body;
            if let Value::Object(fields) = &mut body {
                fields.insert("alarm".to_owned(), json!(what));
            }
            (ledger::ALARM, body, event)
        };
        match self {
            Self::CopyEnded { table, rows, bytes, copy } => {
                let body =
                    json!({ "action": "ended", "table": table, "rows": rows, "bytes": bytes, "copy": copy });
                (ledger::COPY, body, None)
            }
            Self::CopyAgain { table, cause, copy } => {
                let body = json!({ "action": "again", "table": table, "cause": cause, "copy": copy });
                (ledger::COPY, body, None)
            }
            Self::Diverged { table, detail } => {
                alarm("diverged", json!({ "table": table, "detail": detail }), None)
            }
            Self::Broken { direction, state, detail, slot } => {
                let body = json!({ "direction": direction.as_str(), "detail": detail, "slot": slot });
                alarm(stream_alarm(state), body, Some(format!("{} of {slot}", stream_alarm(state))))
            }
            Self::Unheard { table, what, side } => {
                alarm("unheard", json!({ "table": table, "detail": what, "side": side }), None)
            }
            Self::Contradicted { table, detail, epoch, applied } => {
                let body =
                    json!({ "table": table, "detail": detail, "direction": Direction::Reverse.as_str() });
                alarm("contradicted", body, Some(format!("{table} at {applied}, epoch {epoch}")))
            }
            Self::Stopped { direction, detail, applied } => {
                let body = json!({ "direction": direction.as_str(), "detail": detail });
                alarm("stopped", body, Some(format!("{} stopped at {applied}", direction.as_str())))
            }
            Self::Unwatched { slot, since, anew } => {
                let detail =
                    format!("writes past its gate since {since} were not seen; the slot is {anew} now");
                alarm("unwatched", json!({ "side": "monolith", "detail": detail, "slot": slot }), None)
            }
            Self::Outside { table, xid } => {
                let detail = "the service wrote rows that the slice's filter forbids, which go no way back";
                alarm("outside-filter", json!({ "table": table, "xid": xid, "detail": detail }), None)
            }
            Self::Stray { side, xid, rows, tables } => alarm(
                "stray-write",
                json!({ "side": side, "xid": xid, "rows": rows, "tables": tables }),
                None,
            ),
        }
    }
}

/// What a state of a stream is called as an alarm.
fn stream_alarm(state: StreamState) -> &'static str {
    match state {
        StreamState::Gap => "gap",
        StreamState::Diverged => "other-source",
        StreamState::Creating | StreamState::Running => "broken",
    }
}

impl Recorder {
    /// One for a slice. `service` and `monolith` are the links of the apply role, or of whoever reads a service.
    #[must_use]
    pub fn new(subject: Subject, name: &str, service: Server, monolith: Option<Server>) -> Self {
        let (anchoring, explained) = (Arc::default(), Arc::default());
        Self { subject: Arc::new(subject), name: name.into(), service, monolith, anchoring, explained }
    }

    /// One for another stream of the same slice.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { explained: Arc::default(), ..self.clone() }
    }

    /// A stream begins to run, or is tried again.
    pub fn begin(&self) {
        self.explained.store(false, Ordering::Release);
    }

    /// What the stream is about to stop over has an entry of its own.
    pub fn explained(&self) {
        self.explained.store(true, Ordering::Release);
    }

    /// Tells why a stream stopped, where no entry says so yet. One that is started again meets the same thing at the same position.
    pub async fn stopped(&self, direction: Direction, error: &MirrorError, applied: Lsn) {
        let (MirrorError::Refused { what, .. } | MirrorError::Anew { what, .. }) = error else { return };
        if self.explained.load(Ordering::Acquire) {
            return;
        }
        let happened = Happened::Stopped { direction, detail: what, applied };
        match open(&self.service, &self.subject.slice).await {
            Ok(service) => self.write_if_possible(&service, Some(applied), happened).await,
            Err(error) => {
                let slice = self.subject.slice.as_str();
                tracing::warn!(
                    slice,
                    error = chain_of(&error),
                    "the ledger could not be told why a stream stopped"
                );
            }
        }
    }

    /// Makes an entry in the caller's open transaction on the service. [`Self::anchor`] is to follow the commit.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn write(
        &self,
        service: &Client,
        lsn: Option<Lsn>,
        happened: Happened<'_>,
    ) -> Result<(), JournalError> {
        let (kind, body, event) = happened.entry();
        match event {
            Some(event) => self.subject.append_once(service, kind, lsn, (&event, &body)).await.map(drop),
            None => self.subject.append(service, kind, lsn, &body).await.map(drop),
        }
    }

    /// Makes an entry in a transaction of its own, right after what it tells.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn write_alone(
        &self,
        service: &Client,
        lsn: Option<Lsn>,
        happened: Happened<'_>,
    ) -> Result<(), JournalError> {
        ledger::transaction(service, async || self.write(service, lsn, happened).await).await?;
        failpoint::hit("alarm-told");
        self.anchor();
        Ok(())
    }

    /// Makes the entry of something that a start meets again until a human has acted: one that could not be made is left to the
    /// next start, and does not hide what it is about.
    pub async fn write_if_possible(&self, service: &Client, lsn: Option<Lsn>, happened: Happened<'_>) {
        if let Err(error) = self.write_alone(service, lsn, happened).await {
            let slice = self.subject.slice.as_str();
            tracing::warn!(slice, error = chain_of(&error), "the ledger could not be told");
        }
    }

    /// Notes that the mirror was started with another mapping or policy than the ledger named last. The way back may be made while
    /// it runs, and was not typed for: it tells nothing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn note_plan(&self, service: &Client, direction: Direction) -> Result<(), JournalError> {
        if direction == Direction::Forward && self.subject.note_plan(service, "mirror").await? {
            self.anchor();
        }
        Ok(())
    }

    /// Writes the ledger's head to the monolith's journal, beside whatever goes on. Where that fails it is owed, and the next
    /// one writes it.
    pub fn anchor(&self) {
        let Some(monolith) = self.monolith.clone() else { return };
        if self.anchoring.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let opened = this.sessions(&monolith).await;
            this.anchoring.store(false, Ordering::Release);
            match opened {
                Ok((service, monolith)) => {
                    let anchored = ledger::anchor(&service, Some(&monolith), &this.name).await;
                    tracing::debug!(slice = this.subject.slice, ?anchored, "the ledger's head");
                }
                Err(error) => {
                    let slice = this.subject.slice.as_str();
                    tracing::debug!(
                        slice,
                        error = chain_of(&error),
                        "the ledger's head is owed to the monolith"
                    );
                }
            }
        });
    }

    async fn sessions(&self, monolith: &Server) -> Result<(Session, Session), MirrorError> {
        let slice = &self.subject.slice;
        Ok((open(&self.service, slice).await?, open(monolith, slice).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_met_again_has_a_name_of_its_own() {
        let broken = |slot| {
            let state = StreamState::Gap;
            let detail = "the slot is gone";
            Happened::Broken { direction: Direction::Forward, state, detail, slot }.entry().2
        };
        assert_eq!(broken("a"), broken("a"));
        assert_ne!(broken("a"), broken("b"));
        let stopped = |applied| {
            Happened::Contradicted { table: "t", detail: "no row", epoch: 2, applied: Lsn(applied) }.entry().2
        };
        assert!(stopped(1).is_some() && stopped(1) != stopped(2));
    }
}
