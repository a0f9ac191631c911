//! The sessions of a driver: on each side one that changes and one that looks. Each step of a command works with those that the
//! step before it has left.

use std::sync::{Arc, Mutex, PoisonError};

use super::{ANSWER_MAX, APPLICATION, FlipError, Limits};
use crate::authority::Side;
use crate::postgres::connect::{Server, Session};
use crate::postgres::sqlstate;
use crate::words;

/// The ways to both sides of a slice, and the sessions that are open. A session that broke is opened again when it is next
/// asked for.
#[derive(Debug)]
pub struct Links {
    monolith: Way,
    service: Way,
}

#[derive(Debug)]
struct Way {
    server: Server,
    /// Holds at most one transaction, in which something is changed.
    acting: Option<Session>,
    /// What was last done in it may have left a transaction open.
    used: bool,
    /// Never in a transaction: looks, and sends markers.
    looking: Option<Session>,
}

impl Links {
    /// `monolith` and `service` are the administrators' links: they own gates and sequences.
    #[must_use]
    pub fn new(monolith: Server, service: Server) -> Self {
        let way = |server| Way { server, acting: None, used: false, looking: None };
        Self { monolith: way(monolith), service: way(service) }
    }

    /// Opens all sessions, so that no login falls into the pause.
    ///
    /// # Errors
    /// [`FlipError::Failed`].
    pub async fn open(&mut self) -> Result<(), FlipError> {
        for side in [Side::Monolith, Side::Service] {
            self.acting(side).await?;
            self.looking(side).await?;
        }
        Ok(())
    }

    fn way(&mut self, side: Side) -> &mut Way {
        match side {
            Side::Monolith => &mut self.monolith,
            Side::Service => &mut self.service,
        }
    }

    /// The session that changes a side, outside any transaction.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when the side can't be reached.
    pub async fn acting(&mut self, side: Side) -> Result<&Session, FlipError> {
        let Way { server, acting, used, .. } = self.way(side);
        live_acting(server, acting, used).await
    }

    /// The session that looks at a side.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when the side can't be reached.
    pub async fn looking(&mut self, side: Side) -> Result<&Session, FlipError> {
        let Way { server, looking, .. } = self.way(side);
        live(server, looking).await
    }

    /// The sessions that look at the monolith and at the service.
    pub async fn both_looking(&mut self) -> (Result<&Session, FlipError>, Result<&Session, FlipError>) {
        let Self { monolith, service } = self;
        tokio::join!(
            live(&monolith.server, &mut monolith.looking),
            live(&service.server, &mut service.looking)
        )
    }

    /// The session that changes `side`, and the ones that look at it and at its peer.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when a side can't be reached.
    pub async fn three(&mut self, side: Side) -> Result<(&Session, &Session, &Session), FlipError> {
        let (own, peer) = match side {
            Side::Monolith => (&mut self.monolith, &mut self.service),
            Side::Service => (&mut self.service, &mut self.monolith),
        };
        let Way { server, acting, used, looking } = own;
        let acting = live_acting(server, acting, used).await?;
        let looking = live(server, looking).await?;
        Ok((acting, looking, live(&peer.server, &mut peer.looking).await?))
    }

    /// The same, with the transaction that is open in the first of them.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when that session has ended, or the others can't be opened.
    pub async fn three_in_transaction(
        &mut self,
        side: Side,
    ) -> Result<(&Session, &Session, &Session), FlipError> {
        let (own, peer) = match side {
            Side::Monolith => (&mut self.monolith, &mut self.service),
            Side::Service => (&mut self.service, &mut self.monolith),
        };
        let Way { server, acting, looking, .. } = own;
        let gone = || FlipError::Failed {
            what: "going on in a transaction",
            words: "its session has ended".to_owned(),
        };
        let acting = acting.as_ref().ok_or_else(gone)?;
        let looking = live(server, looking).await?;
        Ok((acting, looking, live(&peer.server, &mut peer.looking).await?))
    }

    /// The same, and the acting session of the peer, in which nothing is open.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when that session has ended, or the others can't be opened.
    pub async fn four_in_transaction(
        &mut self,
        side: Side,
    ) -> Result<(&Session, &Session, &Session, &Session), FlipError> {
        let (own, peer) = match side {
            Side::Monolith => (&mut self.monolith, &mut self.service),
            Side::Service => (&mut self.service, &mut self.monolith),
        };
        let gone = || FlipError::Failed {
            what: "going on in a transaction",
            words: "its session has ended".to_owned(),
        };
        let acting = own.acting.as_ref().ok_or_else(gone)?;
        let looking = live(&own.server, &mut own.looking).await?;
        let idle = live_acting(&peer.server, &mut peer.acting, &mut peer.used).await?;
        Ok((acting, looking, live(&peer.server, &mut peer.looking).await?, idle))
    }

    /// Takes back whatever is open on a side.
    ///
    /// # Errors
    /// [`FlipError::Failed`] when the side can't be reached; the server has taken it back then, or will.
    pub async fn roll_back(&mut self, side: Side) -> Result<(), FlipError> {
        self.acting(side).await.map(drop)
    }

    /// The transaction in a side's acting session has ended.
    pub fn ended(&mut self, side: Side) {
        self.way(side).used = false;
    }

    /// Lets go of a session whose state is not known any more.
    pub fn drop_acting(&mut self, side: Side) {
        self.way(side).acting = None;
    }
}

/// The ways to both sides of a slice, with the sessions that nobody is using. Clones share them.
#[derive(Debug, Clone)]
pub struct KeptLinks {
    monolith: Server,
    service: Server,
    idle: Arc<Mutex<Vec<Links>>>,
}

impl KeptLinks {
    /// `monolith` and `service` are the administrators' links: they own gates and sequences. A side that does not answer in time
    /// is as good as gone; for locks of the application a statement waits as long as the `limits` say.
    #[must_use]
    pub fn new(monolith: Server, service: Server, limits: &Limits) -> Self {
        let within = |server: Server| server.answering_within(limits.pause_budget + ANSWER_MAX);
        Self { monolith: within(monolith), service: within(service), idle: Arc::default() }
    }

    /// The administrator's link to a side.
    #[must_use]
    pub fn server(&self, side: Side) -> &Server {
        match side {
            Side::Monolith => &self.monolith,
            Side::Service => &self.service,
        }
    }

    /// What is to be said of a side that did not answer in time, where one of the two did not.
    #[must_use]
    pub fn owed_an_answer(&self) -> Option<String> {
        [Side::Monolith, Side::Service].into_iter().find_map(|side| owed_an_answer(self.server(side), side))
    }

    /// Sessions for one user; whoever does not [`keep`](Self::keep) them closes them, as is right after an error.
    #[must_use]
    pub fn take(&self) -> Links {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Links::new(self.monolith.clone(), self.service.clone()))
    }

    /// Keeps sessions for the next user, outside any transaction.
    pub async fn keep(&self, mut links: Links) {
        for way in [&mut links.monolith, &mut links.service] {
            if std::mem::take(&mut way.used)
                && let Some(acting) = &way.acting
                && acting.batch_execute("ROLLBACK").await.is_err()
            {
                way.acting = None;
            }
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(links);
    }

    /// Closes the sessions that nobody is using.
    pub fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What is to be said of a side that did not answer over this way in time.
pub(super) fn owed_an_answer(server: &Server, side: Side) -> Option<String> {
    let limit = server.owed_an_answer()?;
    Some(format!("the {side} gave no answer within {}", words::seconds(limit.as_secs_f64())))
}

async fn live<'a>(server: &Server, place: &'a mut Option<Session>) -> Result<&'a Session, FlipError> {
    let session = match place.take().filter(|session| !session.is_closed()) {
        Some(session) => session,
        None => {
            let session = server.connect(APPLICATION).await;
            session.map_err(Box::new)?
        }
    };
    Ok(&*place.insert(session))
}

/// A session outside any transaction: one that an earlier effect left open is none of this one's.
async fn live_acting<'a>(
    server: &Server,
    place: &'a mut Option<Session>,
    used: &mut bool,
) -> Result<&'a Session, FlipError> {
    let clean = match std::mem::replace(used, true) {
        true => live(server, place).await?.batch_execute("ROLLBACK").await,
        false => Ok(()),
    };
    if let Err(error) = clean {
        // The server has ended it, as one that was idle for too long while another slice's writers were waited for.
        if !sqlstate::is_connection_lost(&error) && sqlstate::code(&error) != Some("25P03") {
            let (what, words) = ("opening a session", sqlstate::words(&error));
            return Err(FlipError::Failed { what, words });
        }
        *place = None;
    }
    live(server, place).await
}
