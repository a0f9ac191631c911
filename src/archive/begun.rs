//! Whose a place is: before anything else an archive's name is written there, so that no two get into each other's way, and one that
//! was cut off is known.

use serde::{Deserialize, Serialize};

use super::ArchiveError;
use super::manifest::{Manifest, Origin};
use super::place::Place;
use super::verify::find;

/// The file that stands there until the archive is written down.
const FILE: &str = "begun.json";

/// What an archive is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// Plan.
    pub plan: String,
    /// Slice.
    pub slice: String,
    /// Epoch of the authority.
    pub epoch: i64,
    /// The monolith's cluster.
    pub system_identifier: String,
    /// What `provision` named its database.
    pub uuid: String,
}

impl Whose {
    fn of(origin: &Origin) -> Self {
        Self {
            plan: origin.plan.clone(),
            slice: origin.slice.clone(),
            epoch: origin.epoch,
            system_identifier: origin.system_identifier.clone(),
            uuid: origin.uuid.clone(),
        }
    }
}

/// What is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// An archive of the same tables that was not finished. Its rows are of a snapshot that is gone, so it is begun anew.
    Begun,
    /// A whole one of the same tables, with the SHA-256 of its manifest.
    Whole(Box<Manifest>, String),
    /// Something else, in words.
    Other(String),
}

/// Looks, and changes nothing.
///
/// # Errors
/// [`ArchiveError`].
pub async fn look(place: &Place, whose: &Whose) -> Result<There, ArchiveError> {
    if let Some((manifest, digest)) = find(place).await? {
        let of = Whose::of(&manifest.of);
        if of == *whose {
            return Ok(There::Whole(Box::new(manifest), digest));
        }
        return Ok(There::Other(format!(
            "holds an archive of slice {} of plan {} in epoch {}",
            of.slice, of.plan, of.epoch
        )));
    }
    if let Some(bytes) = place.get(FILE).await? {
        return Ok(match serde_json::from_slice::<Whose>(&bytes) {
            Ok(of) if of == *whose => There::Begun,
            Ok(of) => There::Other(format!(
                "holds the beginning of an archive of slice {} of plan {}",
                of.slice, of.plan
            )),
            Err(_) => There::Other(format!("has a {FILE} that can't be read")),
        });
    }
    let empty = place.is_empty().await?;
    Ok(if empty { There::Nothing } else { There::Other("is not empty".to_owned()) })
}

/// What was written at a place when an archive was begun there: no other attempt writes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun(Vec<u8>);

/// Takes an empty place, or goes on with one that was begun: `anew`, which only one process does at a time.
///
/// # Errors
/// [`ArchiveError::Taken`] where somebody else has taken it since it was looked at; [`ArchiveError::Place`].
pub async fn begin(place: &Place, whose: &Whose, anew: bool) -> Result<Begun, ArchiveError> {
    let mut text = serde_json::json!(whose);
    if let Some(text) = text.as_object_mut() {
        let attempt: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        text.insert("attempt".to_owned(), attempt.into());
    }
    let begun = Begun(text.to_string().into_bytes());
    let taken = || ArchiveError::Taken { place: place.to_string() };
    if anew {
        place.put(FILE, begun.0.clone()).await?;
    } else if !place.put_new(FILE, begun.0.clone()).await? {
        return Err(taken());
    }
    // Whoever had begun there may have ended since: then the archive is whole, and his.
    if find(place).await?.is_some() {
        place.remove(FILE).await?;
        return Err(taken());
    }
    Ok(begun)
}

/// Refuses where another attempt has begun at the place since.
///
/// # Errors
/// [`ArchiveError::Taken`]; [`ArchiveError::Place`].
pub(super) async fn is_ours(place: &Place, begun: &Begun) -> Result<(), ArchiveError> {
    if place.get(FILE).await?.as_ref() == Some(&begun.0) {
        return Ok(());
    }
    Err(ArchiveError::Taken { place: place.to_string() })
}

/// The archive is whole and written down: the manifest says whose the place is.
///
/// # Errors
/// [`ArchiveError::Place`].
pub async fn end(place: &Place) -> Result<(), ArchiveError> {
    Ok(place.remove(FILE).await?)
}

#[cfg(test)]
mod tests {
    use super::super::manifest::fixture::empty;
    use super::*;
    use crate::archive::conclude;

    #[tokio::test]
    async fn a_place_is_ones_own_or_empty_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().join("archive"));
        let whole = empty();
        let ours = Whose::of(&whole.of);
        let another = Whose { epoch: 4, ..ours.clone() };
        assert_eq!(look(&place, &ours).await.unwrap(), There::Nothing);
        let begun = begin(&place, &ours, false).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Begun);
        assert!(matches!(look(&place, &another).await.unwrap(), There::Other(_)));
        let digest = conclude(&place, &begun, &whole).await.unwrap();
        end(&place).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Whole(Box::new(whole), digest));
        assert!(matches!(look(&place, &another).await.unwrap(), There::Other(_)));
        place.remove("manifest.json").await.unwrap();
        place.put("holiday.jpg", Vec::new()).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Other("is not empty".to_owned()));
    }

    #[tokio::test]
    async fn of_two_that_found_a_place_empty_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().to_owned());
        let (whole, ours) = (empty(), Whose::of(&empty().of));
        let is_taken = |error: ArchiveError| matches!(error, ArchiveError::Taken { .. });
        let first = begin(&place, &ours, false).await.unwrap();
        assert!(is_taken(begin(&place, &ours, false).await.unwrap_err()));
        // Begun anew: what the first one has written is not concluded.
        let second = begin(&place, &ours, true).await.unwrap();
        assert!(is_taken(conclude(&place, &first, &whole).await.unwrap_err()));
        conclude(&place, &second, &whole).await.unwrap();
        end(&place).await.unwrap();
        // One that looked before all of it comes to a whole archive.
        assert!(is_taken(begin(&place, &ours, false).await.unwrap_err()));
        assert!(matches!(look(&place, &ours).await.unwrap(), There::Whole(..)));
    }
}
