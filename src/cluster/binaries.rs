//! Finds the programs of a PostgreSQL server on this machine.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ClusterError, Result};

/// The oldest major version that the project supports.
const MAJOR_MIN: u32 = 14;

/// Where packages put server programs; `*` stands for one path component, `~cache` for the user's cache folder and
/// `~brew` for Homebrew's. The first two lines are where `scripts/install-postgres.sh` puts the npm build.
const FOLDERS: &[&str] = &[
    "~cache/strangler/postgres/*/bin",
    "/opt/strangler/postgres/*/bin",
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/usr/local/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/lib/postgresql*/bin",
    "/opt/postgresql*/bin",
    "/opt/postgresql/*/bin",
    "/opt/pgsql*/bin",
    "~brew/opt/postgresql*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/Library/PostgreSQL/*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/bin",
];

/// A server version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// E.g. 15.
    pub major: u32,
    /// E.g. 18 of 15.18; 0 for a beta.
    pub minor: u32,
}

impl Version {
    /// As `server_version_num` writes it: 150018.
    #[must_use]
    pub fn num(self) -> u32 {
        self.major * 10_000 + self.minor
    }

    /// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn parse(text: &str) -> Option<Self> {
        let word = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let digits = |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>();
        let major = digits(word);
        let minor = word.strip_prefix(&major)?.strip_prefix('.').map(digits).unwrap_or_default();
        Some(Self { major: major.parse().ok()?, minor: minor.parse().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An installation of PostgreSQL that has a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `initdb` and `postgres`.
    pub bin: PathBuf,
    /// What `postgres --version` says.
    pub version: Version,
}

impl Binaries {
    /// The installation to use: the one that `STRANGLER_PG_BIN` names, else the one of `pg_config`, else the newest in
    /// the usual folders.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] with every place that was looked at, or [`ClusterError::BadVariable`].
    pub fn find() -> Result<Self> {
        if let Some(path) = named_by_variable() {
            return at(&path).map_err(|fact| ClusterError::BadVariable { path, fact });
        }
        let mut looked = vec!["STRANGLER_PG_BIN: not set".to_owned()];
        match named_by_pg_config() {
            Some(path) => match at(&path) {
                Ok(found) => return Ok(found),
                Err(fact) => looked.push(format!("pg_config --bindir says {}: {fact}", path.display())),
            },
            None => looked.push("pg_config: not on the PATH".to_owned()),
        }
        let mut found = in_folders(&mut looked);
        found.sort_by_key(|binaries| binaries.version);
        found.pop().ok_or(ClusterError::NotFound { looked })
    }

    /// One installation per major version, the newest of each, newest major first; for tests that go through all of
    /// them. What [`Binaries::find`] returns stands for its major.
    ///
    /// # Errors
    /// As [`Binaries::find`].
    pub fn find_all() -> Result<Vec<Self>> {
        let first = Self::find()?;
        let mut others = in_folders(&mut Vec::new());
        others.sort_by_key(|binaries| std::cmp::Reverse(binaries.version));
        let mut found = vec![first];
        for binaries in others {
            if found.iter().all(|known| known.version.major != binaries.version.major) {
                found.push(binaries);
            }
        }
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.version));
        Ok(found)
    }

    /// The installation in one folder.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] with what is wrong there.
    pub fn in_folder(bin: &Path) -> Result<Self> {
        at(bin).map_err(|fact| ClusterError::NotFound { looked: vec![format!("{}: {fact}", bin.display())] })
    }

    /// The path of one program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

fn named_by_variable() -> Option<PathBuf> {
    std::env::var_os("STRANGLER_PG_BIN").filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn named_by_pg_config() -> Option<PathBuf> {
    let out = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| PathBuf::from(text.trim()))
}

/// The installation in `bin`, or what is wrong there. Development packages bring `pg_config` without a server, and
/// client packages bring neither.
fn at(bin: &Path) -> std::result::Result<Binaries, String> {
    let missing: Vec<&str> =
        ["initdb", "postgres"].into_iter().filter(|name| !bin.join(name).is_file()).collect();
    if !missing.is_empty() {
        return Err(format!("has no {}", missing.join(" and no ")));
    }
    let program = bin.join("postgres");
    let out = Command::new(&program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("postgres cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let Some(version) = Version::parse(&text) else {
        let said = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
        return Err(format!("postgres --version says {:?}", said.trim()));
    };
    if version.major < MAJOR_MIN {
        return Err(format!("is PostgreSQL {version}, older than {MAJOR_MIN}"));
    }
    Ok(Binaries { bin: bin.to_owned(), version })
}

fn in_folders(looked: &mut Vec<String>) -> Vec<Binaries> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for pattern in FOLDERS {
        let Some(full) = with_prefix(pattern) else { continue };
        let paths = expand(&full);
        if paths.is_empty() {
            looked.push(format!("{}: not there", full.display()));
        }
        for path in paths {
            if !seen.insert(fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
                continue;
            }
            match at(&path) {
                Ok(binaries) => found.push(binaries),
                Err(fact) => looked.push(format!("{}: {fact}", path.display())),
            }
        }
    }
    found
}

/// `None` where the environment does not say what the prefix stands for.
fn with_prefix(pattern: &str) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(rest) = pattern.strip_prefix("~cache/") {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        return Some(cache.join(rest));
    }
    if let Some(rest) = pattern.strip_prefix("~brew/") {
        return Some(variable("HOMEBREW_PREFIX")?.join(rest));
    }
    Some(PathBuf::from(pattern))
}

/// The folders that a pattern with `*` stands for, in the order of their names.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.components() {
        let part = Path::new(part.as_os_str());
        let text = part.to_string_lossy();
        paths = match text.split_once('*') {
            None => paths.into_iter().map(|path| path.join(part)).filter(|path| path.is_dir()).collect(),
            Some((start, end)) => paths.iter().flat_map(|path| children(path, start, end)).collect(),
        };
    }
    paths
}

fn children(folder: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.len() >= start.len() + end.len()
            && name.starts_with(start)
            && name.ends_with(end)
            && path.is_dir()
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(fits).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_betas_and_distributions_are_read() {
        let num = |text| Version::parse(text).map(Version::num);
        assert_eq!(num("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(150_018));
        assert_eq!(num("postgres (PostgreSQL) 18beta1"), Some(180_000));
        assert_eq!(num("postgres (PostgreSQL) 17.10"), Some(170_010));
        assert_eq!(num("mysqld 8.0"), None);
        assert_eq!(num("postgres (PostgreSQL) devel"), None);
    }

    #[test]
    fn patterns_stand_for_the_folders_that_exist() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pg-14/bin", "pg-16/bin", "pg-17", "other/bin"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("pg-18"), "a file").unwrap();
        let found = expand(&dir.path().join("pg-*/bin"));
        assert_eq!(found, [dir.path().join("pg-14/bin"), dir.path().join("pg-16/bin")]);
    }

    #[test]
    fn a_folder_without_a_server_is_refused_with_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("initdb"), "").unwrap();
        let error = Binaries::in_folder(dir.path()).unwrap_err().to_string();
        assert!(error.contains("has no postgres"), "{error}");
        assert!(error.contains("scripts/install-postgres.sh"), "{error}");
        assert!(error.contains("STRANGLER_PG_BIN"), "{error}");
    }
}
