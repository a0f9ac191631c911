//! The plan file's form: the only types that a user's file can shape. Everything else sees [`super::Plan`].
//!
//! The descriptions become those of the JSON schema, so they speak to the writer of a plan. Every field is optional
//! here because [`super::decode`] leaves out what it cannot read; [`super::check`] says what is missing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{
    self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer,
};

use super::units::{Period, Size};

/// Keys that are part of the format and do nothing in this version: they are refused with a message of their own.
pub(crate) const NOT_YET: [&str; 7] = ["lookup", "expr", "keep", "reverse", "via", "replicas", "reversible"];

/// An example for a key, shown to whoever wrote something else there.
pub(crate) fn example(key: &str) -> Option<&'static str> {
    Some(match key {
        "version" => "version: 1",
        "plan" => "plan: retail",
        "monolith" => "monolith: { url: \"${MONOLITH_URL}\" }",
        "services" => "services: { orders: { url: \"${ORDERS_URL}\" } }",
        "slices" => "slices: { ordering: { service: orders, tables: { Orders: {} } } }",
        "url" => "url: \"${ORDERS_URL}\"",
        "admin" => "admin: \"${ORDERS_ADMIN_URL}\"",
        "read" => "read: \"${MONOLITH_READ_URL}\"",
        "apply" => "apply: \"${ORDERS_APPLY_URL}\"",
        "app_roles" => "app_roles: [retail_app]",
        "owner" => "owner: orders_owner",
        "app" => "app: orders_app",
        "accepts" => "accepts: [pii]",
        "into" => "into: sales",
        "service" => "service: orders",
        "tables" => "tables: { Orders: {}, OrderLines: { to: order_lines } }",
        "to" => "to: order_lines",
        "others" => "others: drop",
        "where" => "where: { Region: [EU, UK] }",
        "columns" => "columns: { Id: id, LegacyFlag: { drop: true } }",
        "references" => "references: Products",
        "drop" => "drop: true",
        "policy" => "policy: { min_mirror_time: 7d, wal_budget: 50GB }",
        "min_mirror_time" => "min_mirror_time: 7d",
        "safety_period" => "safety_period: 30d",
        "quiet_period" => "quiet_period: 7d",
        "evidence_max_age" => "evidence_max_age: 24h",
        "clean_runs_before_retire" => "clean_runs_before_retire: 3",
        "write_pause_budget" => "write_pause_budget: 500ms",
        "wal_budget" => "wal_budget: 50GB",
        "at_wal_limit" => "at_wal_limit: drop_slot",
        "sequence_margin" => "sequence_margin: 1000",
        "fence_standbys" => "fence_standbys: all",
        "approval" => "approval: required",
        "flip_together" => "flip_together: [[catalog, ordering]]",
        "classify" => "classify: [{ table: customers, column: email, class: pii }]",
        "hooks" => "hooks: { before: [{ command: [pause-pool, shop], timeout: 10s }] }",
        "before" => "before: [{ command: [pause-pool, shop], timeout: 10s }]",
        "after" => "after: [{ webhook: \"${FLAGS_URL}\", timeout: 5s }]",
        "command" => "command: [pause-pool, shop]",
        "webhook" => "webhook: \"${FLAGS_URL}\"",
        "timeout" => "timeout: 10s",
        _ => return None,
    })
}

/// A strangler plan: which tables of a shared PostgreSQL database (the monolith) move to which service's database.
/// Table and column names are the monolith's, with their exact case.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFile {
    /// Version of this format.
    #[schemars(required, range(min = 1, max = 1))]
    pub(crate) version: Option<u32>,
    /// Name of the plan. It becomes part of slot and publication names.
    #[schemars(required, regex(pattern = "^[a-z][a-z0-9_]{0,29}$"), example = &"retail")]
    pub(crate) plan: Option<String>,
    /// The shared database that is split.
    #[schemars(required)]
    pub(crate) monolith: Option<MonolithFile>,
    /// The services' databases, by service name.
    #[schemars(required, length(min = 1))]
    pub(crate) services: Option<BTreeMap<String, ServiceFile>>,
    /// Tables that change authority together, by slice name: the unit of mirror, flip and retire.
    #[schemars(required, length(min = 1))]
    pub(crate) slices: Option<BTreeMap<String, SliceFile>>,
    #[schemars(skip)]
    pub(crate) replicas: Option<Later>,
    /// Limits and periods. Every slice may override them.
    pub(crate) policy: Option<PolicyFile>,
}

/// The shared database. `url` alone serves all purposes; `admin`, `read` and `apply` separate them.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MonolithFile {
    /// One link for everything: demo and development.
    #[schemars(example = &"${MONOLITH_URL}")]
    pub(crate) url: Option<String>,
    /// Link for DDL, publications and gates. `${ENV}` and `${file:/path}` are filled in at every connect.
    #[schemars(example = &"${MONOLITH_ADMIN_URL}")]
    pub(crate) admin: Option<String>,
    /// Link with REPLICATION and SELECT: mirror and reconcile.
    #[schemars(example = &"${MONOLITH_READ_URL}")]
    pub(crate) read: Option<String>,
    /// Link that logs in as `strangler_apply`: reverse mirror and arbitration.
    #[schemars(example = &"${MONOLITH_APPLY_URL}")]
    pub(crate) apply: Option<String>,
    /// Roles that are expected to use the tables.
    #[schemars(example = ["retail_app"])]
    pub(crate) app_roles: Option<Vec<String>>,
}

/// Who makes the tables of a service.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DdlFile {
    /// `strangler provision` creates them from the monolith's catalogs.
    Create,
    /// The service's own migrations (Prisma, EF, Flyway) did, and `strangler provision` verifies them.
    Adopt,
}

/// Standbys that are waited for before authority is given away.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FenceStandbysFile {
    /// All that follow the server.
    All,
    /// Those that commits wait for.
    Sync,
    /// None: after a failover both sides may be open.
    None,
}

/// Whether a flip has to name who approved it.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ApprovalFile {
    /// A flip, and a flip back, is refused without `--approved-by NAME`.
    Required,
    /// Nobody has to be named.
    None,
}

/// What becomes of WAL that piles up on the monolith.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AtWalLimitFile {
    /// The mirror warns, and goes on.
    Warn,
    /// At nine tenths the mirror drops its slot, so that the monolith's disk does not fill; `mirror --rebuild` goes on from there.
    DropSlot,
}

/// One service's database. `url` alone serves all purposes; `admin` and `apply` separate them.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceFile {
    /// One link for everything: demo and development.
    #[schemars(example = &"${ORDERS_URL}")]
    pub(crate) url: Option<String>,
    /// Link for DDL, publications and gates.
    #[schemars(example = &"${ORDERS_ADMIN_URL}")]
    pub(crate) admin: Option<String>,
    /// Link for reading; that of `apply` when it is left out.
    pub(crate) read: Option<String>,
    /// Link that logs in as `strangler_apply`: the mirror.
    #[schemars(example = &"${ORDERS_APPLY_URL}")]
    pub(crate) apply: Option<String>,
    /// Role without login that owns the tables; `<service>_owner` when it is left out.
    #[schemars(example = &"orders_owner")]
    pub(crate) owner: Option<String>,
    /// Role that the application logs in as; `<service>_app` when it is left out.
    #[schemars(example = &"orders_app")]
    pub(crate) app: Option<String>,
    /// Classes of classified columns that may be stored here.
    #[schemars(example = ["pii"])]
    pub(crate) accepts: Option<Vec<String>>,
    /// Who makes the tables; `create` when it is left out.
    pub(crate) ddl: Option<DdlFile>,
    /// Schema that all tables go into; without it they keep the monolith's schema.
    #[schemars(example = &"sales")]
    pub(crate) into: Option<String>,
}

/// Tables that change authority together.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SliceFile {
    /// Service that will own the tables.
    #[schemars(required, example = &"orders")]
    pub(crate) service: Option<String>,
    /// The tables: `Orders`, `schema.table`, or `schema.*` for all tables of a schema.
    #[schemars(required, length(min = 1))]
    pub(crate) tables: Option<BTreeMap<String, Option<TableFile>>>,
    /// What this slice does differently from the plan's policy.
    pub(crate) policy: Option<PolicyFile>,
    #[schemars(skip)]
    pub(crate) reversible: Option<Later>,
}

/// What happens to one table. `{}` moves it whole, under its own name.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableFile {
    /// Name in the service, when it changes.
    #[schemars(example = &"order_lines")]
    pub(crate) to: Option<String>,
    /// What happens to columns that are not listed; `keep` when it is left out.
    pub(crate) others: Option<OthersFile>,
    /// Only rows whose columns hold one of these values. All conditions must hold.
    #[serde(rename = "where")]
    #[schemars(example = serde_json::json!({"Region": ["EU", "UK"]}))]
    pub(crate) filter: Option<BTreeMap<String, Values>>,
    /// Columns that change.
    #[schemars(example = serde_json::json!({"Id": "id", "LegacyFlag": {"drop": true}}))]
    pub(crate) columns: Option<BTreeMap<String, ColumnFile>>,
}

/// What happens to columns that are not listed.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OthersFile {
    /// They move under their own names.
    Keep,
    /// They stay behind.
    Drop,
}

/// What happens to one column.
#[derive(Debug)]
pub(crate) enum ColumnFile {
    /// `Id:` moves it under its own name.
    Keep,
    /// `Id: id`.
    Rename(String),
    /// `Id: { … }`.
    Rule(Box<ColumnRuleFile>),
}

/// What happens to one column, the long form.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColumnRuleFile {
    /// Name in the service, when it changes.
    #[schemars(example = &"product_id_ref")]
    pub(crate) to: Option<String>,
    /// Table of the monolith that the column refers to across the cut.
    #[schemars(example = &"Products")]
    pub(crate) references: Option<String>,
    /// The column stays behind.
    pub(crate) drop: Option<bool>,
    #[schemars(skip)]
    pub(crate) lookup: Option<Later>,
    #[schemars(skip)]
    pub(crate) expr: Option<Later>,
    #[schemars(skip)]
    pub(crate) keep: Option<Later>,
    #[schemars(skip)]
    pub(crate) reverse: Option<Later>,
}

/// Limits and periods. In a slice, numbers and periods replace those of the plan; `flip_together`, `classify` and
/// `hooks` add.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyFile {
    /// How long a slice must have been mirrored before a flip.
    #[schemars(example = &"7d")]
    pub(crate) min_mirror_time: Option<Period>,
    /// How long the old tables are kept after a flip.
    #[schemars(example = &"30d")]
    pub(crate) safety_period: Option<Period>,
    /// How long nobody may have used the old tables before they are retired.
    #[schemars(example = &"7d")]
    pub(crate) quiet_period: Option<Period>,
    /// How old a clean verdict may be.
    #[schemars(example = &"24h")]
    pub(crate) evidence_max_age: Option<Period>,
    /// Clean verdicts since the flip that retirement needs.
    #[schemars(range(min = 1), example = 3)]
    pub(crate) clean_runs_before_retire: Option<u32>,
    /// How long one flip attempt may hold writers.
    #[schemars(example = &"500ms")]
    pub(crate) write_pause_budget: Option<Period>,
    /// WAL that the monolith may hold for one slice.
    #[schemars(example = &"50GB")]
    pub(crate) wal_budget: Option<Size>,
    /// What the mirror does when WAL held for a slice of the monolith's comes near that, or near `max_slot_wal_keep_size`.
    pub(crate) at_wal_limit: Option<AtWalLimitFile>,
    /// Increments that a sequence skips at a flip.
    #[schemars(range(min = 1), example = 1000)]
    pub(crate) sequence_margin: Option<u32>,
    /// Standbys of a closed side that have to have its fence before the other side is opened.
    pub(crate) fence_standbys: Option<FenceStandbysFile>,
    /// Whether a flip has to name who approved it.
    pub(crate) approval: Option<ApprovalFile>,
    /// Groups of slices that flip together.
    #[schemars(inner(length(min = 2)), example = [["catalog", "ordering"]])]
    pub(crate) flip_together: Option<Vec<Vec<String>>>,
    /// Columns whose values are never shown.
    pub(crate) classify: Option<Vec<ClassifiedFile>>,
    /// What is run around a flip.
    pub(crate) hooks: Option<HooksFile>,
}

/// Commands and webhooks that are run around a flip, each list in its order.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HooksFile {
    /// Before anything is changed. One that fails refuses the flip.
    #[schemars(length(max = 20))]
    pub(crate) before: Option<Vec<HookFile>>,
    /// When the flip is over, whatever came of it. One that fails is a warning.
    #[schemars(length(max = 20))]
    pub(crate) after: Option<Vec<HookFile>>,
}

/// One hook: either `command` or `webhook`. It gets a JSON document that says what is moved.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HookFile {
    /// Program and arguments, run without a shell. The document is its standard input.
    #[schemars(length(min = 1), example = ["pause-pool", "shop"])]
    pub(crate) command: Option<Vec<String>>,
    /// URL to which the document is sent by POST. `${ENV}` and `${file:/path}` are filled in.
    #[schemars(example = &"${FLAGS_URL}")]
    pub(crate) webhook: Option<String>,
    /// How long it may take; `10s` when it is left out.
    #[schemars(example = &"10s")]
    pub(crate) timeout: Option<Period>,
}

/// A column whose values are never shown. Services must accept its class to store it.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassifiedFile {
    /// The monolith's table.
    #[schemars(required, example = &"customers")]
    pub(crate) table: Option<String>,
    /// Its column.
    #[schemars(required, example = &"email")]
    pub(crate) column: Option<String>,
    /// Class.
    #[schemars(required, example = &"pii")]
    pub(crate) class: Option<String>,
}

/// Something that this version only recognises.
#[derive(Debug)]
pub(crate) struct Later;

impl<'de> Deserialize<'de> for Later {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Values of a filter: one, or a list.
#[derive(Debug)]
pub(crate) struct Values(pub(crate) Vec<String>);

/// `IN (NULL)` is never true in SQL, so such a filter would silently move nothing.
const NO_VALUE: &str = "is empty or null, and no row can be chosen by NULL";

/// One value of a filter's list.
struct FilterValue(String);

impl<'de> Deserialize<'de> for FilterValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            Some(text) => Ok(Self(text)),
            None => Err(de::Error::custom(NO_VALUE)),
        }
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Values, E> {
                Ok(Values(vec![text.to_owned()]))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Values, E> {
                Err(E::custom(NO_VALUE))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(FilterValue(value)) = items.next_element()? {
                    values.push(value);
                }
                Ok(Values(values))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl<'de> Deserialize<'de> for ColumnFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = ColumnFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a new name, or a mapping with `to`, `references` or `drop`")
            }

            fn visit_unit<E: de::Error>(self) -> Result<ColumnFile, E> {
                Ok(ColumnFile::Keep)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ColumnFile, E> {
                Ok(ColumnFile::Rename(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ColumnFile, A::Error> {
                let rule = ColumnRuleFile::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ColumnFile::Rule(Box::new(rule)))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl JsonSchema for Values {
    fn schema_name() -> Cow<'static, str> {
        "Values".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A value, or a list of values of which the column holds one.",
            "type": ["string", "number", "boolean", "array"],
            "items": { "type": ["string", "number", "boolean"] },
            "minItems": 1,
        })
    }
}

impl JsonSchema for ColumnFile {
    fn schema_name() -> Cow<'static, str> {
        "Column".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A new name, nothing (the column keeps its name), or a mapping.",
            "anyOf": [
                { "type": ["string", "null"] },
                generator.subschema_for::<ColumnRuleFile>(),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_an_example_that_can_be_written() {
        let schema: serde_json::Value = serde_json::from_str(&crate::plan::json_schema()).unwrap();
        let objects = schema["$defs"].as_object().unwrap().values().chain([&schema]);
        let keys: Vec<&String> = objects
            .filter(|object| !object["properties"]["class"].is_object()) // Entries of `classify` have one of their own.
            .filter_map(|object| object["properties"].as_object())
            .flat_map(|properties| properties.keys())
            .collect();
        assert!(keys.len() > 25);
        for key in keys {
            if key == "ddl" {
                continue; // Its two words are in the message.
            }
            let example = example(key).unwrap_or_else(|| panic!("{key} has no example"));
            let (tree, problems) = crate::plan::tree::read(example);
            assert!(problems.is_empty(), "{key}");
            assert_eq!(tree.unwrap().keys_of(&[]), [key], "{example}");
        }
    }
}
