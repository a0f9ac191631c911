//! Policies of the plan and of its slices, groups that flip together, classified columns.

use std::time::Duration;

use super::super::file::{ClassifiedFile, PlanFile, PolicyFile};
use super::super::problem::{PlanProblem, Severity, closest, listed, named};
use super::super::{TableSelector, file::example};
use super::tables::TableEntry;
use super::{Review, Seen, hooks, with_first};
use crate::name::TableName;

pub(super) fn check(review: &mut Review<'_>, file: &PlanFile, entries: &[TableEntry<'_>]) {
    let own = file
        .slices
        .iter()
        .flatten()
        .filter_map(|(name, slice)| Some((name.as_str(), slice.policy.as_ref()?)));
    let slices: Vec<(Vec<&str>, &PolicyFile)> =
        own.map(|(name, policy)| (vec!["slices", name, "policy"], policy)).collect();
    let all = file.policy.iter().map(|policy| (vec!["policy"], policy)).chain(slices);
    let mut members = Seen::new();
    for (path, policy) in all {
        check_limits(review, &path, policy);
        check_groups(review, &path, policy, &mut members);
        check_classes(review, file, &path, policy, entries);
        hooks::check(review, &path, policy);
    }
}

/// Numbers that would switch a safeguard off.
fn check_limits(review: &mut Review<'_>, path: &[&str], policy: &PolicyFile) {
    let zero_period = |period: &Option<super::super::units::Period>| {
        period.is_some_and(|period| period.0 == Duration::ZERO)
    };
    let limits = [
        ("evidence_max_age", zero_period(&policy.evidence_max_age), "no verdict could ever be fresh enough"),
        ("write_pause_budget", zero_period(&policy.write_pause_budget), "no flip could ever be quick enough"),
        (
            "write_pause_budget",
            policy.write_pause_budget.is_some_and(|period| period.0 > Duration::from_secs(60)),
            "more than a minute without writes is an outage",
        ),
        (
            "clean_runs_before_retire",
            policy.clean_runs_before_retire == Some(0),
            "retirement needs at least one clean verdict",
        ),
        (
            "sequence_margin",
            policy.sequence_margin == Some(0),
            "the two sides could hand out the same number",
        ),
        (
            "wal_budget",
            policy.wal_budget.is_some_and(|size| size.0 < 16_000_000),
            "WAL comes in segments of 16 MB",
        ),
    ];
    for (key, wrong, fact) in limits {
        if wrong {
            let path: Vec<&str> = path.iter().copied().chain([key]).collect();
            let help =
                example(key).map_or_else(String::new, |example| format!("write for example `{example}`"));
            review.add(
                PlanProblem::error("plan.bad-limit", format!("`{key}` cannot have this value: {fact}"))
                    .at(review.value(&path))
                    .help(help),
            );
        }
    }
}

fn check_groups<'a>(
    review: &mut Review<'_>,
    path: &[&'a str],
    policy: &'a PolicyFile,
    members: &mut Seen<&'a str>,
) {
    let known = review.root.keys_of(&["slices"]);
    for (number, group) in policy.flip_together.iter().flatten().enumerate() {
        let number = number.to_string();
        let group_path: Vec<&str> = path.iter().copied().chain(["flip_together", number.as_str()]).collect();
        let written = group_path.iter().copied();
        if group.len() < 2 {
            let problem = PlanProblem::error(
                "plan.flip-together",
                "a group that flips together needs two slices or more",
            );
            let help = match known.as_slice() {
                [first, second, ..] => {
                    format!("write for example `flip_together: [[{first}, {second}]]`, or remove the group")
                }
                _ => "remove the group".to_owned(),
            };
            review.add(problem.at(review.value(&group_path)).help(help));
        }
        for (position, name) in group.iter().enumerate() {
            let position = position.to_string();
            let item: Vec<&str> = written.clone().chain([position.as_str()]).collect();
            let place = review.value(&item);
            if !known.contains(&name.as_str()) {
                review.unknown("slice", name, &known, place);
            } else if let Some(first) = members.again(name, place) {
                let problem = PlanProblem::error(
                    "plan.flip-together",
                    format!("slice {} is named twice in `flip_together`", named(name)),
                )
                .at(place)
                .help("name every slice once; groups that share a slice are one group, so write them as one");
                review.add(with_first(problem, first, "named here"));
            }
        }
        if let ["slices", own, ..] = path
            && !group.iter().any(|name| name == own)
        {
            review.add(
                PlanProblem::error(
                    "plan.flip-together",
                    format!("this group is written in slice {} and does not name it", named(own)),
                )
                .at(review.value(&group_path))
                .help(format!("add `{own}` to the group, or move the group to the `policy:` of the plan")),
            );
        }
    }
}

fn check_classes(
    review: &mut Review<'_>,
    file: &PlanFile,
    path: &[&str],
    policy: &PolicyFile,
    entries: &[TableEntry<'_>],
) {
    for (number, classified) in policy.classify.iter().flatten().enumerate() {
        let number = number.to_string();
        let path: Vec<&str> = path.iter().copied().chain(["classify", number.as_str()]).collect();
        let fields =
            [("table", &classified.table), ("column", &classified.column), ("class", &classified.class)];
        for (key, value) in fields {
            let path: Vec<&str> = path.iter().copied().chain([key]).collect();
            match value {
                None => missing_field(review, &path, key),
                Some(value) if key != "table" => review.identifier(key, value, review.value(&path)),
                Some(_) => {}
            }
        }
        check_class(review, file, &path, classified, entries);
    }
}

fn missing_field(review: &mut Review<'_>, path: &[&str], key: &str) {
    let Some((_, parent)) = path.split_last() else { return };
    if review.is_written(path) {
        return;
    }
    review.add(
        PlanProblem::error("plan.missing-key", format!("an entry of `classify` has no `{key}`"))
            .at(review.value(parent))
            .help("write for example `{ table: customers, column: email, class: pii }`"),
    );
}

fn check_class(
    review: &mut Review<'_>,
    file: &PlanFile,
    path: &[&str],
    classified: &ClassifiedFile,
    entries: &[TableEntry<'_>],
) {
    let Some(text) = &classified.table else { return };
    let below = |key| path.iter().copied().chain([key]).collect::<Vec<&str>>();
    let table_place = review.value(&below("table"));
    let table = match TableName::parse(text, "public") {
        Ok(table) => table,
        Err(error) => {
            let problem = PlanProblem::error("plan.bad-name", "`table` is not the name of a table");
            review.add(problem.at(table_place).help(error.to_string()));
            return;
        }
    };
    let moving: Vec<&TableEntry<'_>> = entries.iter().filter(|entry| entry.covers(&table)).collect();
    if moving.is_empty() {
        unmoved_table(review, &table, entries, table_place);
        return;
    }
    let (Some(column), Some(class)) = (&classified.column, &classified.class) else { return };
    for entry in moving.into_iter().filter(|entry| !entry.drops(column)) {
        let Some(name) = entry.service else { continue };
        let Some(service) = file.services.as_ref().and_then(|services| services.get(name)) else { continue };
        if service.accepts.iter().flatten().any(|accepted| accepted == class) {
            continue;
        }
        // What could not be read may well hold the class.
        if service.accepts.is_none() && review.is_written(&["services", name, "accepts"]) {
            continue;
        }
        let mut accepts: Vec<&str> = service.accepts.iter().flatten().map(String::as_str).collect();
        accepts.push(class);
        let problem = PlanProblem::error(
            "plan.class-not-accepted",
            format!(
                "column {} of {} is classed {}, and service {} does not accept that class",
                named(column),
                named(&table.to_string()),
                named(class),
                named(name)
            ),
        )
        .at(review.value(&below("class")))
        .help(format!(
            "write `accepts: [{}]` in service `{name}`, or drop the column there",
            accepts.join(", ")
        ));
        let service_place = review.key(&["services", name]);
        review.add(with_first(problem, service_place, "the service"));
    }
}

fn unmoved_table(
    review: &mut Review<'_>,
    table: &TableName,
    entries: &[TableEntry<'_>],
    place: Option<super::Place>,
) {
    if review.is_full(Severity::Warning) {
        return;
    }
    let known: Vec<String> = entries
        .iter()
        .filter_map(|entry| match &entry.selector {
            TableSelector::Table(table) => Some(table.to_string()),
            TableSelector::Schema(_) => None,
        })
        .collect();
    let shown = table.to_string();
    let help = match closest(&shown, known.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!(
            "remove the line, or correct the name: the slices move {}",
            listed(known.iter().take(20).map(String::as_str))
        ),
    };
    review.add(
        PlanProblem::warning(
            "plan.unknown-table",
            format!("no slice moves a table {}, so its class has no effect", named(&shown)),
        )
        .at(place)
        .help(help),
    );
}
