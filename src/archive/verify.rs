//! Finds an archive, proves every byte of it, and ends the writing of one.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::begun::{self, Begun};
use super::definitions;
use super::manifest::{FILE, Manifest, Relation};
use super::part::{Damage, Text, same_bytes};
use super::place::Place;
use super::rows::Rows;
use super::{ArchiveError, Progress, Tell};

/// Files that are looked at, at the same time.
const AT_ONCE: usize = 16;

/// The manifest of the archive at a place, with its SHA-256; `None` where no archive is, or one that was not finished.
///
/// # Errors
/// [`ArchiveError::Place`], [`ArchiveError::Manifest`].
pub async fn find(place: &Place) -> Result<Option<(Manifest, String)>, ArchiveError> {
    let Some(bytes) = place.get(FILE).await? else { return Ok(None) };
    let read = Manifest::read(&bytes);
    read.map(Some).map_err(|source| ArchiveError::Manifest { place: place.to_string(), source })
}

/// Reads every file back and proves it: its bytes, the text in it, the number of rows, and the rows' digest of each relation.
///
/// # Errors
/// [`ArchiveError::Damaged`] with every file that is not what the manifest says; [`ArchiveError::Place`].
pub async fn verify(place: &Place, manifest: &Manifest, tell: Tell<'_>) -> Result<(), ArchiveError> {
    let mut files: Vec<(String, String)> = Vec::new();
    let (mut done, total) = (0, manifest.bytes());
    files.extend(unlike_texts(place, manifest));
    for text in &manifest.texts {
        let found = fetch(place, &text.file).await?;
        let proven = found.and_then(|bytes| same_bytes(&bytes, (text.bytes, &text.sha256)));
        files.extend(proven.err().map(|Damage(why)| (place.of(&text.file), why)));
        done += text.bytes;
    }
    for relation in &manifest.relations {
        let (mut rows, mut sound) = (Rows::default(), true);
        for part in &relation.parts {
            let found = fetch(place, &part.file).await?;
            let proven = found.and_then(|bytes| {
                let mut text = Text::open(&bytes, part)?;
                while text.next(&mut rows)?.is_some() {}
                Ok(())
            });
            sound &= proven.is_ok();
            files.extend(proven.err().map(|Damage(why)| (place.of(&part.file), why)));
            done += part.bytes;
            tell(Progress { what: "read back", done, total });
        }
        if sound && let Err(why) = same_rows(relation, &rows) {
            files.push((format!("{FILE}: {}", relation.name), why));
        }
    }
    if files.is_empty() { Ok(()) } else { Err(ArchiveError::Damaged { files }) }
}

/// Looks whether every file is still there, with as many bytes as the manifest says: for whoever has proven them before, and has no time now.
///
/// # Errors
/// [`ArchiveError::Damaged`] with every file that is not; [`ArchiveError::Place`].
pub async fn still_there(place: &Place, manifest: &Manifest) -> Result<(), ArchiveError> {
    let parts = manifest.relations.iter().flat_map(|relation| &relation.parts);
    let parts = parts.map(|part| (&part.file, part.bytes));
    let texts = manifest.texts.iter().map(|text| (&text.file, text.bytes));
    let found = texts.chain(parts).map(async |(file, bytes)| {
        let why = match place.size(file).await? {
            None => "is not there".to_owned(),
            Some(now) if now != bytes => format!("has {now} bytes, and the manifest says {bytes}"),
            Some(_) => return Ok(None),
        };
        Ok::<_, ArchiveError>(Some((place.of(file), why)))
    });
    let files: Vec<_> = stream::iter(found).buffered(AT_ONCE).try_collect().await?;
    let files: Vec<_> = files.into_iter().flatten().collect();
    if files.is_empty() { Ok(()) } else { Err(ArchiveError::Damaged { files }) }
}

/// Definitions that are not those of the files for `psql`, which were written from them: nothing else proves them.
fn unlike_texts(place: &Place, manifest: &Manifest) -> Vec<(String, String)> {
    let unlike = definitions::TEXTS.iter().filter(|(phase, file)| {
        let bytes = definitions::text(&manifest.definitions, *phase).into_bytes();
        let text = manifest.texts.iter().find(|text| text.file == *file);
        text.is_none_or(|text| same_bytes(&bytes, (text.bytes, &text.sha256)).is_err())
    });
    let damaged =
        |file: &str| (place.of(FILE), format!("has other definitions than {file} was written from"));
    unlike.map(|(_, file)| damaged(file)).collect()
}

/// Whether rows are those of a relation; else in which way they are not.
pub(super) fn same_rows(relation: &Relation, rows: &Rows) -> Result<(), String> {
    if rows.count() != relation.rows {
        return Err(format!("there are {}, and the manifest says {}", rows.count(), relation.rows));
    }
    if rows.digest() != relation.rows_digest {
        return Err(format!(
            "their digest is {}, and the manifest says {}",
            rows.digest(),
            relation.rows_digest
        ));
    }
    Ok(())
}

pub(super) async fn fetch(place: &Place, file: &str) -> Result<Result<Vec<u8>, Damage>, ArchiveError> {
    Ok(place.get(file).await?.ok_or_else(|| Damage("is not there".to_owned())))
}

/// Writes the manifest of an archive whose files are all proven, and reads it back; returns its SHA-256. From then on the archive is
/// whole.
///
/// # Errors
/// [`ArchiveError::Taken`] where the place is somebody else's by now; [`ArchiveError`].
pub async fn conclude(place: &Place, begun: &Begun, manifest: &Manifest) -> Result<String, ArchiveError> {
    let failed = |source| ArchiveError::Manifest { place: place.to_string(), source };
    let (bytes, digest) = manifest.written().map_err(failed)?;
    begun::is_ours(place, begun).await?;
    if !place.put_new(FILE, bytes.clone()).await? {
        return Err(ArchiveError::Taken { place: place.to_string() });
    }
    if place.get(FILE).await?.as_ref() != Some(&bytes) {
        let why = "was read back as something else than was written".to_owned();
        return Err(ArchiveError::Damaged { files: vec![(place.of(FILE), why)] });
    }
    Ok(digest)
}
