//! Reasons that go into a ledger.

/// A reason as it was typed, for an argument: one that says nothing is none. Who calls it: every verb that asks for one.
pub(super) fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("that is no reason".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}
