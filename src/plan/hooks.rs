//! What a plan has run around a flip: to hold back a pool of connections, to set a feature flag.

use std::time::Duration;

use super::LinkTemplate;

/// How long a hook may take whose plan says nothing. Pools that wait for running transactions need some seconds.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Longest that a hook may take. Whatever takes longer is no part of a flip.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);

/// Hooks of one list. More of them are one script.
pub(super) const HOOKS_MAX: usize = 20;

/// Hooks around a flip, in the order in which they are run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before anything is changed; one that fails refuses the flip.
    pub before: Vec<Hook>,
    /// When the flip is over, whatever came of it.
    pub after: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What is done.
    pub action: Action,
    /// How long it may take; then it is ended, and has failed.
    pub timeout: Duration,
}

/// What a hook does with the document that tells it of the flip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a program with its arguments, never through a shell. Not empty.
    Command(Vec<String>),
    /// Sends it to a URL. The URL may hold a token, so it is never shown.
    Webhook(LinkTemplate),
}

impl Hooks {
    /// These, then those of `more` that are not among them.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        let join = |own: &[Hook], more: &[Hook]| {
            let mut all = own.to_vec();
            all.extend(more.iter().filter(|hook| !own.contains(hook)).cloned());
            all
        };
        Self { before: join(&self.before, &more.before), after: join(&self.after, &more.after) }
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}
