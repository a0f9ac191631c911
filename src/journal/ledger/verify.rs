//! Recomputes the chain.

use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::Client;

use super::anchor::{self, Anchor, Known, Memory};
use super::chain::{Hash, hash_of};
use super::{Entry, Filter, Head, JournalError, entries, head};

/// A ledger that holds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Its last entry; `None` when it is empty.
    pub head: Option<Head>,
    /// The furthest entry that the monolith's journal confirms. Later ones could be cut off unseen. `None` too when
    /// the monolith was not asked.
    pub confirmed: Option<i64>,
    /// The entry by which a human accepted that earlier ones were broken: they are not looked at.
    pub accepted: Option<i64>,
}

/// An entry that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {id} of the ledger {fault}")]
pub struct Broken {
    /// The first entry that does not hold.
    pub id: i64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no such entry, and later ones exist.
    Missing,
    /// Its content does not have its hash.
    Changed,
    /// It does not hold the hash of the entry before it.
    Unchained,
    /// The monolith's journal remembers the entry, and the ledger ends before it.
    CutOff,
    /// The monolith's journal remembers another hash of it: the chain was written anew.
    Replaced,
    /// By it a human accepted that earlier ones, which somebody relies on, were broken.
    Accepted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Changed => "was changed: its content does not have its hash",
            Self::Unchained => "does not follow the one before it: it holds another hash than that one's",
            Self::CutOff => "is missing at the end: the monolith's journal remembers it",
            Self::Replaced => "was replaced: the monolith's journal remembers another hash of it",
            Self::Accepted => "accepts that earlier ones were broken, so they prove nothing",
        })
    }
}

/// The ledger could not be verified, or is broken.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It is not what was written.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Recomputes the whole chain, a page at a time. Without the monolith, a ledger whose end was cut off looks whole.
/// Entries may be appended meanwhile.
///
/// # Errors
/// [`VerifyError`]; the first fault in the order of the entries.
pub async fn verify(service: &Client, monolith: Option<&Client>) -> Result<Verified, VerifyError> {
    verify_by(service, monolith.map(Memory::Monolith)).await
}

/// The same by whatever remembers the ledger.
///
/// # Errors
/// As [`verify`].
pub async fn verify_by(service: &Client, memory: Option<Memory<'_>>) -> Result<Verified, VerifyError> {
    let anchors = read(service, memory).await?;
    let begun = anchors.as_ref().and_then(Anchors::accepted).unwrap_or(1);
    chain(service, anchors, begun).await
}

/// As [`verify`], from this entry on: that it and what follows are as they were written, for whoever relies on it. With the
/// monolith also that the furthest head that it remembers is the ledger's: where it is not, no later head is written, and
/// what is cut off from then on shows nowhere.
///
/// # Errors
/// [`VerifyError`].
pub async fn verify_from(
    service: &Client,
    monolith: Option<&Client>,
    entry: i64,
) -> Result<Verified, VerifyError> {
    let anchors = read(service, monolith.map(Memory::Monolith)).await?;
    if let Some(anchor) = anchors.as_ref().and_then(|anchors| anchors.latest.as_ref()) {
        let remembered = against(service, anchor).await?;
        // What is wrong further on is found in its place.
        let behind = remembered.contradicted.as_ref().is_some_and(|broken| broken.id < entry);
        if let Some(broken) =
            remembered.broken(entry).filter(|broken| behind || broken.fault == Fault::Accepted)
        {
            return Err(broken.into());
        }
    }
    chain(service, anchors, entry).await
}

async fn read<'a>(service: &Client, memory: Option<Memory<'a>>) -> Result<Option<Anchors<'a>>, JournalError> {
    match memory {
        Some(memory) => Ok(Some(Anchors::read(service, memory).await?)),
        None => Ok(None),
    }
}

async fn chain(service: &Client, anchors: Option<Anchors<'_>>, entry: i64) -> Result<Verified, VerifyError> {
    let (mut head, mut filter) = (None::<Head>, Filter { after: entry - 1, ..Filter::default() });
    loop {
        let page = entries(service, &filter).await?;
        let Some(last) = page.last() else { break };
        let upto = last.id;
        let known = match &anchors {
            Some(anchors) => anchors.of((filter.after, upto)).await?,
            None => Vec::new(),
        };
        for entry in &page {
            if head.is_none() && entry.id > 1 && entry.id == filter.after + 1 {
                // What is before the first one is not looked at.
                head = Some(Head { id: entry.id - 1, hash: entry.previous, at_us: entry.at_us });
            }
            check(entry, head, &known)?;
            head = Some(Head { id: entry.id, hash: entry.hash, at_us: entry.at_us });
        }
        filter.after = upto;
    }
    let accepted = anchors.as_ref().and_then(Anchors::accepted);
    let confirmed = anchors.and_then(|anchors| anchors.latest).map(|anchor| anchor.head.id);
    let end = match head {
        Some(head) => head.id,
        // The walk began behind the end: at an entry by which earlier ones were accepted, and which is cut off too.
        None => self::head(service).await?.map_or(0, |head| head.id),
    };
    match confirmed {
        Some(confirmed) if confirmed > end => Err(Broken { id: end + 1, fault: Fault::CutOff }.into()),
        Some(_) | None => Ok(Verified { head, confirmed, accepted }),
    }
}

/// What the monolith remembers of a ledger, held against what the ledger has in that place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    accepted: Option<i64>,
    contradicted: Option<Broken>,
}

impl Remembered {
    /// Why an entry is not to be relied on, as far as the monolith tells it.
    #[must_use]
    pub fn broken(&self, entry: i64) -> Option<Broken> {
        let accepted = self.accepted.filter(|accepted| entry < *accepted);
        let accepted = accepted.map(|id| Broken { id, fault: Fault::Accepted });
        self.contradicted.clone().or(accepted)
    }
}

/// Holds what the monolith remembers of all ledgers against the one in this database. The anchors are to be read before.
///
/// # Errors
/// [`JournalError`].
pub async fn remembered(
    service: &Client,
    anchors: &BTreeMap<String, Anchor>,
) -> Result<Remembered, JournalError> {
    match anchors.get(&anchor::database(service).await?) {
        Some(anchor) => against(service, anchor).await,
        None => Ok(Remembered::default()),
    }
}

async fn against(service: &Client, anchor: &Anchor) -> Result<Remembered, JournalError> {
    let (accepted, known) = (anchor.accepted, &anchor.head);
    if anchor::hash_at(service, known.id).await?.as_ref() == Some(&known.hash) {
        return Ok(Remembered { accepted, contradicted: None });
    }
    let end = head(service).await?.map_or(0, |head| head.id);
    let contradicted = if end < known.id {
        Broken { id: end + 1, fault: Fault::CutOff }
    } else {
        Broken { id: known.id, fault: Fault::Replaced }
    };
    Ok(Remembered { accepted, contradicted: Some(contradicted) })
}

fn check(entry: &Entry, before: Option<Head>, known: &[Known]) -> Result<(), Broken> {
    let (id, previous) = before.map_or((1, Hash::NONE), |head| (head.id + 1, head.hash));
    let fault = if entry.id != id {
        Some(Fault::Missing)
    } else if hash_of(entry) != entry.hash {
        Some(Fault::Changed)
    } else if entry.previous != previous {
        Some(Fault::Unchained)
    } else if known.iter().any(|known| known.id == id && known.hash != entry.hash.to_string()) {
        Some(Fault::Replaced)
    } else {
        None
    };
    fault.map_or(Ok(()), |fault| Err(Broken { id, fault }))
}

/// The heads in the monolith's journal.
struct Anchors<'a> {
    memory: Memory<'a>,
    database: String,
    latest: Option<Anchor>,
    /// Those of a journal that is kept as one text, which is read once.
    kept: Option<Vec<Known>>,
}

impl<'a> Anchors<'a> {
    /// Read before the ledger: what the journal remembers by then, the ledger holds by then.
    async fn read(service: &Client, memory: Memory<'a>) -> Result<Self, JournalError> {
        let database = anchor::database(service).await?;
        let latest = anchor::latest(memory, &database).await?;
        let kept = match memory {
            Memory::Monolith(_) => None,
            Memory::Kept(_) => Some(anchor::between(memory, &database, (0, i64::MAX)).await?),
        };
        Ok(Self { memory, database, latest, kept })
    }

    fn accepted(&self) -> Option<i64> {
        self.latest.as_ref()?.accepted
    }

    async fn of(&self, range: (i64, i64)) -> Result<Vec<Known>, JournalError> {
        match &self.kept {
            None => anchor::between(self.memory, &self.database, range).await,
            Some(known) => {
                let (after, upto) = range;
                Ok(known.iter().filter(|known| known.id > after && known.id <= upto).cloned().collect())
            }
        }
    }
}
