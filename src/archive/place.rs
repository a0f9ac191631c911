//! Where an archive lies: a folder, or, in a build with the feature `s3`, a bucket of an S3-compatible store. Files are written whole and read
//! whole.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

#[cfg(feature = "s3")]
use super::bucket::{Bucket, BucketError};

/// A place for one archive.
#[derive(Debug, Clone)]
pub enum Place {
    /// A folder of this machine, by its whole path.
    Folder(PathBuf),
    /// A bucket, with what the names of files there begin with.
    #[cfg(feature = "s3")]
    Bucket(Bucket),
}

/// Something about a place, or a file in it, did not work.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// What was typed is none.
    #[error("{text:?} is no place for an archive: {why}")]
    Unclear {
        /// What was typed.
        text: String,
        /// Why.
        why: String,
    },
    /// A folder.
    #[error("could not {action} {file}")]
    File {
        /// As a bare verb.
        action: &'static str,
        /// The whole path.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bucket.
    #[cfg(feature = "s3")]
    #[error("could not {action} {file}")]
    Object {
        /// As a bare verb.
        action: &'static str,
        /// `s3://bucket/name`.
        file: String,
        /// Why.
        #[source]
        source: BucketError,
    },
}

impl PlaceError {
    /// The disk, or the quota on it, is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let Self::File { source, .. } = self else { return false };
        matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

/// As it is written down, and typed again.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => write!(f, "{bucket}"),
        }
    }
}

impl Place {
    /// Reads a path or `file:///path`; with the feature `s3` also `s3://bucket/prefix`. `folder` is what a path that is not whole begins in;
    /// `settings` are variables by name (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and so on) by which a store is reached.
    ///
    /// # Errors
    /// [`PlaceError::Unclear`], which repeats no setting.
    pub fn parse(text: &str, folder: &Path, settings: &BTreeMap<String, String>) -> Result<Self, PlaceError> {
        let unclear = |why: String| PlaceError::Unclear { text: text.to_owned(), why };
        if text.starts_with("s3://") {
            return in_store(text, settings).map_err(unclear);
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() || path.contains("://") || (text.starts_with("file://") && !path.starts_with('/'))
        {
            return Err(unclear("it is neither a path nor file:///path".to_owned()));
        }
        Ok(Self::Folder(folder.join(path)))
    }

    /// The whole name of a file in it.
    #[must_use]
    pub fn of(&self, file: &str) -> String {
        format!("{}/{file}", self.to_string().trim_end_matches('/'))
    }

    /// Nothing is in it, or it is not there.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn is_empty(&self) -> Result<bool, PlaceError> {
        match self {
            Self::Folder(path) => {
                let path = path.clone();
                let failed = self.file_failed("list", None);
                let listed = blocking(move || match std::fs::read_dir(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
                    listed => listed.map(|mut entries| entries.next().is_none()),
                });
                listed.await.map_err(failed)
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.is_empty().await.map_err(self.object_failed("list", None)),
        }
    }

    /// Writes a file, in the place of one of its name: all of it, or nothing. In a folder it outlives a crash of the machine.
    ///
    /// # Errors
    /// [`PlaceError`], which names the file.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), PlaceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let written = blocking(move || write_whole(&path, &bytes)).await;
                written.map_err(self.file_failed("write", Some(name)))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                bucket.put(name, bytes).await.map_err(self.object_failed("write", Some(name)))
            }
        }
    }

    /// Writes a file where none has its name; `false` where one has.
    ///
    /// # Errors
    /// [`PlaceError`], which names the file.
    pub async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool, PlaceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let written = blocking(move || match write_new(&path, &bytes) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                    written => written.map(|()| true),
                });
                written.await.map_err(self.file_failed("write", Some(name)))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                bucket.put_new(name, bytes).await.map_err(self.object_failed("write", Some(name)))
            }
        }
    }

    /// Reads a file; `None` when it is not there.
    ///
    /// # Errors
    /// [`PlaceError`], which names the file.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, PlaceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let read = blocking(move || match std::fs::read(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    read => read.map(Some),
                });
                read.await.map_err(self.file_failed("read", Some(name)))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => bucket.get(name).await.map_err(self.object_failed("read", Some(name))),
        }
    }

    /// Bytes of a file, without reading it; `None` when it is not there.
    ///
    /// # Errors
    /// [`PlaceError`], which names the file.
    pub async fn size(&self, name: &str) -> Result<Option<u64>, PlaceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let asked = blocking(move || match std::fs::metadata(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    found => found.map(|found| Some(found.len())),
                });
                asked.await.map_err(self.file_failed("look at", Some(name)))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                bucket.size(name).await.map_err(self.object_failed("look at", Some(name)))
            }
        }
    }

    /// Removes a file that may be there.
    ///
    /// # Errors
    /// [`PlaceError`], which names the file.
    pub async fn remove(&self, name: &str) -> Result<(), PlaceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let removed = blocking(move || match std::fs::remove_file(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    removed => removed,
                });
                removed.await.map_err(self.file_failed("remove", Some(name)))
            }
            #[cfg(feature = "s3")]
            Self::Bucket(bucket) => {
                bucket.remove(name).await.map_err(self.object_failed("remove", Some(name)))
            }
        }
    }

    fn file_failed(&self, action: &'static str, name: Option<&str>) -> impl FnOnce(io::Error) -> PlaceError {
        let file = name.map_or_else(|| self.to_string(), |name| self.of(name));
        move |source| PlaceError::File { action, file, source }
    }

    #[cfg(feature = "s3")]
    fn object_failed(
        &self,
        action: &'static str,
        name: Option<&str>,
    ) -> impl FnOnce(BucketError) -> PlaceError {
        let file = name.map_or_else(|| self.to_string(), |name| self.of(name));
        move |source| PlaceError::Object { action, file, source }
    }
}

#[cfg(feature = "s3")]
fn in_store(text: &str, settings: &BTreeMap<String, String>) -> Result<Place, String> {
    Bucket::parse(text, settings).map(Place::Bucket).map_err(|source| source.to_string())
}

/// Nobody may take a name of a store for a folder of that name.
#[cfg(not(feature = "s3"))]
fn in_store(_: &str, _: &BTreeMap<String, String>) -> Result<Place, String> {
    Err("this build keeps archives in folders alone; cargo build --features s3 makes one that has a way to a store".to_owned())
}

/// Does something that waits for a disk, where waiting holds nobody up.
async fn blocking<T: Send + 'static>(
    doing: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(doing).await.map_err(io::Error::other)?
}

/// Under another name first, so that no file is ever there in part; what could not be written leaves nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    make_folder(folder)?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let made = private().create(true).truncate(true).open(&unfinished);
    let written = made.and_then(|mut file| write_all(&mut file, bytes));
    if let Err(error) = written.and_then(|()| std::fs::rename(&unfinished, path)) {
        // What the disk has no room for must not take up what is left of it.
        let _ = std::fs::remove_file(&unfinished);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

/// What could not be written of it is taken away again: nobody else has it.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    make_folder(folder)?;
    let mut file = private().create_new(true).open(path)?;
    if let Err(error) = write_all(&mut file, bytes) {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whole tables are in these files: nobody else on the machine is to read them.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// With those that it is in. The name of a new folder is in the one above, and must outlive a crash as the files do.
fn make_folder(folder: &Path) -> io::Result<()> {
    let Some(above) = folder.parent().filter(|_| !folder.exists()) else { return Ok(()) };
    make_folder(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        let parsed = Place::parse(text, Path::new("/here"), &BTreeMap::new());
        parsed.map(|place| place.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn places_are_read_as_they_are_typed() {
        assert_eq!(parse("old").unwrap(), "/here/old");
        assert_eq!(parse("/a/b").unwrap(), "/a/b");
        assert_eq!(parse("file:///a/b").unwrap(), "/a/b");
        for wrong in ["", "file://a", "ftp://host/a", "s3://", "s3:///a"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[cfg(feature = "s3")]
    #[test]
    fn buckets_are_read_as_they_are_typed() {
        assert_eq!(parse("s3://bucket/a/b/").unwrap(), "s3://bucket/a/b");
        assert_eq!(parse("s3://bucket").unwrap(), "s3://bucket");
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn a_build_without_stores_says_so_and_makes_no_folder_of_the_name() {
        let error = parse("s3://bucket/a").unwrap_err();
        assert!(error.contains("\"s3://bucket/a\"") && error.contains("folders alone"), "{error}");
    }

    #[tokio::test]
    async fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().join("new"));
        assert!(place.is_empty().await.unwrap());
        assert_eq!(place.get("data/a").await.unwrap(), None);
        place.put("data/a", b"one".to_vec()).await.unwrap();
        place.put("data/a", b"two".to_vec()).await.unwrap();
        assert_eq!(place.get("data/a").await.unwrap().as_deref(), Some(&b"two"[..]));
        assert!(!place.is_empty().await.unwrap());
        // Nothing can be written where a folder has the name; what was begun is gone.
        let error = place.put("data", b"x".to_vec()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("could not write {}", place.of("data")));
        assert!(!folder.path().join("new/data.part").exists());
        place.remove("data/a").await.unwrap();
        place.remove("data/a").await.unwrap();
        assert_eq!(place.get("data/a").await.unwrap(), None);
    }
}
