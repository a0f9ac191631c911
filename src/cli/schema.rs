//! `strangler schema`.

use super::report::{CliError, Exit};
use super::ui::Ui;
use crate::plan;

/// Print the JSON schema of plan files
///
/// Editors complete and check a plan that begins with the line
///
///   # yaml-language-server: $schema=plan.schema.json
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

pub(super) fn run(ui: &mut Ui, _arguments: &Arguments) -> Result<Exit, CliError> {
    ui.data(&plan::json_schema())?;
    Ok(Exit::Clean)
}
