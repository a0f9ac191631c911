//! The links of `plans/retail.yaml` into the demo's servers: what an operator would export before the first command.

use std::collections::BTreeMap;
use std::{fmt, io};

use crate::plan::Variables;

/// Values of the plan's variables. They hold passwords, which `Debug` does not show.
#[derive(Clone, Default)]
pub(super) struct Links {
    urls: BTreeMap<String, String>,
}

impl Links {
    /// Notes the link that `${NAME}` stands for.
    pub(super) fn set(&mut self, name: String, url: String) {
        self.urls.insert(name, url);
    }

    /// Names and values, for the environment of a command.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.urls.iter().map(|(name, url)| (name.as_str(), url.as_str()))
    }

    /// Lines for a shell's `.` command.
    pub(super) fn shell_text(&self) -> String {
        self.iter().map(|(name, url)| format!("export {name}='{url}'\n")).collect()
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.urls.keys()).finish()
    }
}

impl Variables for Links {
    fn variable(&self, name: &str) -> Option<String> {
        self.urls.get(name).cloned()
    }

    /// The demo's plan names no file.
    fn file(&self, path: &str) -> io::Result<String> {
        Err(io::Error::new(io::ErrorKind::NotFound, path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_variables_and_show_no_password() {
        let mut links = Links::default();
        links.set("ORDERS_ADMIN_URL".to_owned(), "postgres://a:secret@127.0.0.1:1/d".to_owned());
        assert_eq!(links.shell_text(), "export ORDERS_ADMIN_URL='postgres://a:secret@127.0.0.1:1/d'\n");
        assert_eq!(links.variable("ORDERS_ADMIN_URL").unwrap(), "postgres://a:secret@127.0.0.1:1/d");
        assert!(links.file("/etc/hostname").is_err());
        assert_eq!(format!("{links:?}"), r#"{"ORDERS_ADMIN_URL"}"#);
    }
}
