//! From the file's form to the [`Plan`] that everyone else sees, with the defaults filled in. The file was checked
//! before, so nothing can be missing here.

use std::collections::BTreeMap;

use super::file::{
    ApprovalFile, AtWalLimitFile, ColumnFile, DdlFile, FenceStandbysFile, HookFile, HooksFile, MonolithFile,
    OthersFile, PlanFile, PolicyFile, ServiceFile, SliceFile, TableFile,
};
use super::hooks::{Action, Hook, Hooks, TIMEOUT_DEFAULT};
use super::tree::Node;
use super::{
    Approval, AtWalLimit, Classified, ColumnRule, Ddl, FenceStandbys, LinkTemplate, Links, Monolith, Others,
    Plan, Policy, Service, Slice, TableRule, TableSelector,
};
use crate::name::{NameError, TableName};

/// Which tables an entry's key means.
///
/// # Errors
/// What is wrong with the name.
pub(super) fn selector(text: &str) -> Result<TableSelector, String> {
    let read = |text| TableName::parse(text, "public").map_err(|error: NameError| error.to_string());
    match text.strip_suffix(".*") {
        // The star is read as a table, so that the schema goes through the same reading as everywhere.
        Some(_) => read(text).map(|name| TableSelector::Schema(name.schema)),
        None if text == "*" => {
            Err("`*` names no schema; all tables of the schema public are `public.*`".to_owned())
        }
        None => read(text).map(TableSelector::Table),
    }
}

/// A new table name, which may be in inner double quotes as in a key.
pub(super) fn bare_name(text: &str) -> String {
    TableName::parse(text, "").map_or_else(|_| text.to_owned(), |table| table.name)
}

pub(super) fn resolve(file: PlanFile, root: &Node) -> Plan {
    let hooks = file.policy.as_ref().and_then(|policy| policy.hooks.as_ref());
    let hooks = resolve_hooks(hooks, root, &["policy"]);
    let policy = Policy { hooks, ..merged(Policy::default(), file.policy.as_ref()) };
    let mut classify = classes(file.policy.as_ref());
    let mut groups = policy.flip_together.clone();
    for slice in file.slices.iter().flatten().filter_map(|(_, slice)| slice.policy.as_ref()) {
        classify.extend(classes(Some(slice)));
        groups.extend(slice.flip_together.iter().flatten().cloned());
    }
    let policy = Policy { flip_together: groups, ..policy };
    let slices = file
        .slices
        .into_iter()
        .flatten()
        .map(|(name, slice)| (name.clone(), resolve_slice(&name, slice, &policy, root)))
        .collect();
    let services = file
        .services
        .into_iter()
        .flatten()
        .map(|(name, service)| (name.clone(), resolve_service(&name, service, root)))
        .collect();
    Plan {
        name: file.plan.unwrap_or_default(),
        monolith: resolve_monolith(file.monolith.unwrap_or_default(), root),
        services,
        slices,
        policy,
        classify,
    }
}

fn resolve_monolith(file: MonolithFile, root: &Node) -> Monolith {
    let link = |keys: &[&str]| link(root, &["monolith"], keys);
    let links = Links {
        admin: link(&["admin", "url"]),
        read: link(&["read", "url"]),
        apply: link(&["apply", "url"]),
    };
    Monolith { links, app_roles: file.app_roles.unwrap_or_default() }
}

fn resolve_service(name: &str, file: ServiceFile, root: &Node) -> Service {
    let link = |keys: &[&str]| link(root, &["services", name], keys);
    Service {
        links: Links {
            admin: link(&["admin", "url"]),
            read: link(&["read", "apply", "url"]),
            apply: link(&["apply", "url"]),
        },
        owner: file.owner.unwrap_or_else(|| format!("{name}_owner")),
        app: file.app.unwrap_or_else(|| format!("{name}_app")),
        accepts: file.accepts.unwrap_or_default(),
        ddl: match file.ddl {
            Some(DdlFile::Adopt) => Ddl::Adopt,
            Some(DdlFile::Create) | None => Ddl::Create,
        },
        into: file.into,
    }
}

/// The first of the keys that is written, with its place.
fn link(root: &Node, parent: &[&str], keys: &[&str]) -> LinkTemplate {
    let written = keys.iter().find_map(|key| {
        let path: Vec<&str> = parent.iter().copied().chain([*key]).collect();
        let text = root.find(&path).filter(|node| !node.is_null())?.text()?;
        Some(LinkTemplate::placed(text, root.place_of(&path).unwrap_or_default()))
    });
    written.unwrap_or_else(|| LinkTemplate::new(""))
}

fn resolve_slice(name: &str, file: SliceFile, policy: &Policy, root: &Node) -> Slice {
    let mut tables: Vec<TableRule> = file
        .tables
        .into_iter()
        .flatten()
        .filter_map(|(text, table)| {
            let place = root.key_place_of(&["slices", name, "tables", &text]).unwrap_or_default();
            resolve_table(&text, table.unwrap_or_default(), (place.line, place.column))
        })
        .collect();
    tables.sort_by_key(|table| table.place);
    // Groups of all slices are in the plan's policy already.
    let own = merged(policy.clone(), file.policy.as_ref());
    let hooks = file.policy.as_ref().and_then(|policy| policy.hooks.as_ref());
    let hooks = policy.hooks.and(&resolve_hooks(hooks, root, &["slices", name, "policy"]));
    let policy = Policy { flip_together: policy.flip_together.clone(), hooks, ..own };
    Slice { service: file.service.unwrap_or_default(), tables, policy }
}

fn resolve_table(text: &str, file: TableFile, place: (u32, u32)) -> Option<TableRule> {
    Some(TableRule {
        selector: selector(text).ok()?,
        to: file.to.as_deref().map(bare_name),
        others: match file.others {
            Some(OthersFile::Drop) => Others::Drop,
            Some(OthersFile::Keep) | None => Others::Keep,
        },
        columns: file
            .columns
            .into_iter()
            .flatten()
            .map(|(name, column)| (name, resolve_column(column)))
            .collect(),
        filter: file
            .filter
            .into_iter()
            .flatten()
            .map(|(column, values)| (column, values.0))
            .collect::<BTreeMap<_, _>>(),
        place,
    })
}

fn resolve_column(column: ColumnFile) -> ColumnRule {
    match column {
        ColumnFile::Keep => ColumnRule::Keep { to: None, references: None },
        ColumnFile::Rename(to) => ColumnRule::Keep { to: Some(to), references: None },
        ColumnFile::Rule(rule) if rule.drop == Some(true) => ColumnRule::Drop,
        ColumnFile::Rule(rule) => ColumnRule::Keep {
            to: rule.to,
            references: rule.references.and_then(|text| TableName::parse(&text, "public").ok()),
        },
    }
}

/// A policy with what the file says in place of its own numbers.
fn merged(base: Policy, file: Option<&PolicyFile>) -> Policy {
    let Some(file) = file else { return base };
    Policy {
        min_mirror_time: file.min_mirror_time.map_or(base.min_mirror_time, |period| period.0),
        safety_period: file.safety_period.map_or(base.safety_period, |period| period.0),
        quiet_period: file.quiet_period.map_or(base.quiet_period, |period| period.0),
        evidence_max_age: file.evidence_max_age.map_or(base.evidence_max_age, |period| period.0),
        clean_runs_before_retire: file.clean_runs_before_retire.unwrap_or(base.clean_runs_before_retire),
        write_pause_budget: file.write_pause_budget.map_or(base.write_pause_budget, |period| period.0),
        wal_budget_bytes: file.wal_budget.map_or(base.wal_budget_bytes, |size| size.0),
        at_wal_limit: match file.at_wal_limit {
            Some(AtWalLimitFile::DropSlot) => AtWalLimit::DropSlot,
            Some(AtWalLimitFile::Warn) => AtWalLimit::Warn,
            None => base.at_wal_limit,
        },
        sequence_margin: file.sequence_margin.unwrap_or(base.sequence_margin),
        fence_standbys: match file.fence_standbys {
            Some(FenceStandbysFile::All) => FenceStandbys::All,
            Some(FenceStandbysFile::Sync) => FenceStandbys::Sync,
            Some(FenceStandbysFile::None) => FenceStandbys::None,
            None => base.fence_standbys,
        },
        approval: match file.approval {
            Some(ApprovalFile::Required) => Approval::Required,
            Some(ApprovalFile::None) => Approval::None,
            None => base.approval,
        },
        flip_together: file.flip_together.clone().unwrap_or(base.flip_together),
        hooks: base.hooks,
    }
}

/// The hooks of the policy at a path.
fn resolve_hooks(file: Option<&HooksFile>, root: &Node, policy: &[&str]) -> Hooks {
    let list = |key: &str, hooks: Option<&Vec<HookFile>>| -> Vec<Hook> {
        let numbered = hooks.into_iter().flatten().enumerate();
        let resolved = numbered.filter_map(|(number, hook)| {
            let number = number.to_string();
            let path: Vec<&str> =
                policy.iter().copied().chain(["hooks", key, number.as_str(), "webhook"]).collect();
            let action = match (&hook.command, &hook.webhook) {
                (Some(command), _) => Action::Command(command.clone()),
                (None, Some(url)) => {
                    Action::Webhook(LinkTemplate::placed(url, root.place_of(&path).unwrap_or_default()))
                }
                (None, None) => return None,
            };
            Some(Hook { action, timeout: hook.timeout.map_or(TIMEOUT_DEFAULT, |period| period.0) })
        });
        resolved.collect()
    };
    file.map_or_else(Hooks::default, |file| Hooks {
        before: list("before", file.before.as_ref()),
        after: list("after", file.after.as_ref()),
    })
}

fn classes(file: Option<&PolicyFile>) -> Vec<Classified> {
    let entries = file.and_then(|file| file.classify.as_ref()).into_iter().flatten();
    entries
        .filter_map(|entry| {
            Some(Classified {
                table: TableName::parse(entry.table.as_deref()?, "public").ok()?,
                column: entry.column.clone()?,
                class: entry.class.clone()?,
            })
        })
        .collect()
}
