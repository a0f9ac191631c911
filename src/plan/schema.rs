//! The plan file's form as a JSON schema, for editors and for `strangler schema`.

use schemars::generate::SchemaSettings;

use super::file::PlanFile;

/// The JSON schema (draft 2020-12) of a plan file, indented, with a line break at its end. `docs/plan.schema.json`
/// is this text.
///
/// It knows only what this version can do. Names that refer to each other, and filters, are the parser's to check.
#[must_use]
pub fn json_schema() -> String {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<PlanFile>();
    format!("{:#}\n", schema.as_value())
}
