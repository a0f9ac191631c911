//! Tables of our own that an earlier version made.

use super::facts::{Facts, Named};
use crate::journal::migrate::Form;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let older = facts.databases().filter(|named| named.database.form == Form::Older);
    let problem = |Named { name, .. }: Named<'_>| {
        Problem::warning("older-tables", name)
            .fact("strangler's own tables there are of an earlier version")
            .consequence(
                "this version refuses to mirror, and keeps no ledger there, before they are upgraded",
            )
            .next("strangler provision PLAN upgrades them and keeps what they hold")
    };
    older.map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn an_earlier_version_is_told_and_none_or_the_present_one_is_not() {
        let mut facts = clean();
        assert_eq!(rule(&facts), []);
        facts.service("ordering").form = Form::Current;
        assert_eq!(rule(&facts), []);
        facts.service("ordering").form = Form::Older;
        expect(&rule(&facts), Severity::Warning, "older-tables", "service ordering");
    }
}
