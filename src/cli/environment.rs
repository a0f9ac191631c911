//! The process's environment: the only place that reads variables and the files that links name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};

use crate::journal::ledger::Author;
use crate::plan::Variables;

/// A mounted secret is a line of text; a link to anything bigger is a mistake such as a device or a log.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The variables and files of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Environment;

impl Environment {
    /// The user asked for no colours, or the terminal has none.
    #[must_use]
    pub fn no_color(self) -> bool {
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb")
    }

    /// Who the user says to be, for the ledger: `STRANGLER_OPERATOR`, or the name of the account.
    #[must_use]
    pub fn operator(self) -> String {
        let named = ["STRANGLER_OPERATOR", "LOGNAME", "USER"];
        let name = named.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
    }

    /// How stores of archives are reached: the variables whose names begin with `AWS_`.
    #[must_use]
    pub fn of_stores(self) -> BTreeMap<String, String> {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("AWS_")).collect()
    }

    /// Who runs this and where, for the ledger.
    #[must_use]
    pub fn author(self) -> Author {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Author { operator: self.operator(), host }
    }
}

impl Variables for Environment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > SECRET_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 KiB"));
        }
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(text: &[u8]) -> io::Result<String> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text)?;
        Environment.file(file.path().to_str().unwrap())
    }

    #[test]
    fn the_last_line_break_of_a_secret_goes_and_nothing_else() {
        assert_eq!(file_of(b"secret\n").unwrap(), "secret");
        assert_eq!(file_of(b"secret\r\n").unwrap(), "secret");
        assert_eq!(file_of(b" two\nlines\n\n").unwrap(), " two\nlines\n");
        assert_eq!(file_of(b"").unwrap(), "");
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused() {
        assert_eq!(file_of(&[b'x'; 70_000]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(file_of(&[0xFF, 0xFE]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Environment.file("/dev/zero").is_err());
    }
}
