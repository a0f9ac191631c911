//! `strangler disarm`.

use super::arm::{Shared, go};
use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::arm::Verb;

/// Undo arm: take the gates off the monolith's tables, bring the foreign keys back, drop the reverse stream
///
/// Foreign keys come back as they were, with their comments: first without looking at the rows that are there, then
/// proven while the application goes on. Where rows refer to nothing, the key stays NOT VALID, the number of rows and the
/// query that finds them are said, and the exit code is 1; typed again, it tries to prove it again. A key that another
/// armed slice needs gone stays gone until that one is disarmed.
///
/// Refused while the service has the authority over the slice. Roles, rights and replica identities stay; they harm
/// nobody.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    shared: Shared,
}

pub(super) async fn run(ui: &mut Ui, arguments: &Arguments) -> Result<Exit, CliError> {
    Box::pin(go(ui, Verb::Disarm, &arguments.shared)).await
}
