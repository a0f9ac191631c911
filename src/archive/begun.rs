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

/// Takes an empty place.
///
/// # Errors
/// [`ArchiveError::Place`].
pub async fn begin(place: &Place, whose: &Whose) -> Result<(), ArchiveError> {
    let text = serde_json::json!(whose).to_string();
    Ok(place.put(FILE, text.into_bytes()).await?)
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
        let ours = Whose::of(&empty().of);
        let another = Whose { epoch: 4, ..ours.clone() };
        assert_eq!(look(&place, &ours).await.unwrap(), There::Nothing);
        begin(&place, &ours).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Begun);
        assert!(matches!(look(&place, &another).await.unwrap(), There::Other(_)));
        let digest = conclude(&place, &empty()).await.unwrap();
        end(&place).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Whole(Box::new(empty()), digest));
        assert!(matches!(look(&place, &another).await.unwrap(), There::Other(_)));
        place.remove("manifest.json").await.unwrap();
        place.put("holiday.jpg", Vec::new()).await.unwrap();
        assert_eq!(look(&place, &ours).await.unwrap(), There::Other("is not empty".to_owned()));
    }
}
