//! The monolith and the services: links, roles, schemas.

use std::collections::BTreeMap;

use super::super::file::{MonolithFile, PlanFile, ServiceFile};
use super::super::link;
use super::super::problem::{Place, PlanProblem, named};
use super::{Review, with_first};

/// Role that appliers log in as; the gate lets only its `session_user` through.
const APPLY_ROLE: &str = "strangler_apply";

pub(super) fn check(review: &mut Review<'_>, file: &PlanFile) {
    if let Some(monolith) = &file.monolith {
        check_monolith(review, monolith);
    }
    let Some(services) = file.services.as_ref().filter(|services| !services.is_empty()) else {
        review.nothing_in("services", file.services.is_some());
        return;
    };
    for (name, service) in services {
        check_service(review, name, service);
    }
    check_same_links(review, file);
    check_unused(review, file, services);
}

fn check_monolith(review: &mut Review<'_>, monolith: &MonolithFile) {
    let links = [
        ("url", &monolith.url),
        ("admin", &monolith.admin),
        ("read", &monolith.read),
        ("apply", &monolith.apply),
    ];
    check_links(review, &["monolith"], "the monolith", &links, &["admin", "read", "apply"]);
    for (number, role) in monolith.app_roles.iter().flatten().enumerate() {
        let place = review.value(&["monolith", "app_roles", &number.to_string()]);
        review.identifier("role", role, place);
        if role == APPLY_ROLE {
            review.add(apply_role_problem().at(place));
        }
    }
}

fn check_service(review: &mut Review<'_>, name: &str, service: &ServiceFile) {
    let path = ["services", name];
    review.name("service", name, review.key(&path));
    let links = [
        ("url", &service.url),
        ("admin", &service.admin),
        ("read", &service.read),
        ("apply", &service.apply),
    ];
    check_links(review, &path, &format!("service {}", named(name)), &links, &["admin", "apply"]);
    for (key, role) in [("owner", &service.owner), ("app", &service.app)] {
        let Some(role) = role else { continue };
        let place = review.value(&["services", name, key]);
        review.identifier("role", role, place);
        if role == APPLY_ROLE {
            review.add(apply_role_problem().at(place));
        }
    }
    if let (Some(owner), Some(app)) = (&service.owner, &service.app)
        && owner == app
    {
        let problem = PlanProblem::error(
            "plan.same-role",
            format!("service {} has one role as `owner` and as `app`", named(name)),
        );
        review.add(
            problem
                .at(review.value(&["services", name, "app"]))
                .help("name two roles: the application logs in as `app`, and whoever owns the tables could take the gate away"),
        );
    }
    for (number, class) in service.accepts.iter().flatten().enumerate() {
        review.identifier("class", class, review.value(&["services", name, "accepts", &number.to_string()]));
    }
    if let Some(into) = &service.into {
        check_schema(review, into, &["services", name, "into"]);
    }
}

fn check_schema(review: &mut Review<'_>, schema: &str, path: &[&str]) {
    let place = review.value(path);
    review.identifier("schema", schema, place);
    if is_reserved_schema(schema) {
        review.add(
            PlanProblem::error(
                "plan.reserved-schema",
                format!("the schema {} is not for tables of a service", named(schema)),
            )
            .at(place)
            .help("choose another schema, for example `into: sales`"),
        );
    }
}

/// Schemas of PostgreSQL and of the tool.
pub(super) fn is_reserved_schema(schema: &str) -> bool {
    schema == "strangler" || schema == "information_schema" || schema.starts_with("pg_")
}

fn apply_role_problem() -> PlanProblem {
    PlanProblem::error("plan.same-role", format!("`{APPLY_ROLE}` is the role of strangler's own appliers"))
        .help("name the role that the application uses; what `strangler_apply` writes passes every gate")
}

/// `url`, or all of the needed ones.
fn check_links(
    review: &mut Review<'_>,
    path: &[&str],
    owner: &str,
    links: &[(&str, &Option<String>)],
    needed: &[&str],
) {
    let prefix = path.last().copied().unwrap_or_default().to_uppercase();
    for (key, text) in links {
        let Some(text) = text else { continue };
        let name = if *key == "url" {
            format!("{prefix}_URL")
        } else {
            format!("{prefix}_{}_URL", key.to_uppercase())
        };
        let path: Vec<&str> = path.iter().copied().chain([*key]).collect();
        for problem in link::problems(text, &name) {
            review.add(problem.at(review.value(&path)));
        }
    }
    let written = |key: &str| review.is_meant(path, key);
    if written("url") {
        return;
    }
    let missing: Vec<&str> = needed.iter().copied().filter(|key| !written(key)).collect();
    if missing.is_empty() {
        return;
    }
    let variable = |name: &str| format!("${{{prefix}_{name}URL}}");
    let link = |key: &str| format!("`{key}: {:?}`", variable(&format!("{}_", key.to_uppercase())));
    let lines = |keys: &[&str]| keys.iter().map(|key| link(key)).collect::<Vec<_>>().join(" and ");
    let (message, help) = if links.iter().any(|(key, _)| written(key)) {
        let missing_keys: Vec<String> = missing.iter().map(|key| format!("`{key}`")).collect();
        (format!("{owner} has no {} link", missing_keys.join(" and no ")), format!("add {}", lines(&missing)))
    } else {
        (
            format!("{owner} has no link"),
            format!("write `url: {:?}` for everything, or {}", variable(""), lines(needed)),
        )
    };
    review.add(PlanProblem::error("plan.missing-link", message).at(review.key(path)).help(help));
}

/// Two databases with one link are one database.
fn check_same_links(review: &mut Review<'_>, file: &PlanFile) {
    let monolith = file.monolith.iter().map(|monolith| {
        (vec!["monolith"], [&monolith.url, &monolith.admin, &monolith.read, &monolith.apply])
    });
    let services = file.services.iter().flatten().map(|(name, service)| {
        (vec!["services", name.as_str()], [&service.url, &service.admin, &service.read, &service.apply])
    });
    let mut seen: BTreeMap<&str, (Vec<&str>, Option<Place>)> = BTreeMap::new();
    for (database, links) in monolith.chain(services) {
        for (key, link) in ["url", "admin", "read", "apply"].into_iter().zip(links) {
            let Some(link) = link else { continue };
            let path: Vec<&str> = database.iter().copied().chain([key]).collect();
            let place = review.value(&path);
            match seen.get(link.as_str()) {
                // One database may use one link for several purposes.
                Some((other, _)) if *other == database => {}
                Some((_, first)) => {
                    let problem =
                        PlanProblem::error("plan.same-database", "this link is another database's too")
                            .at(place)
                            .help("every service needs a database of its own: give each its own variable");
                    review.add(with_first(problem, *first, "the same link"));
                }
                None => drop(seen.insert(link, (database.clone(), place))),
            }
        }
    }
}

/// A service without a slice is probably forgotten.
fn check_unused(review: &mut Review<'_>, file: &PlanFile, services: &BTreeMap<String, ServiceFile>) {
    let slices = review.root.keys_of(&["slices"]);
    let read: Vec<&str> =
        file.slices.iter().flatten().filter_map(|(_, slice)| slice.service.as_deref()).collect();
    // A slice that could not be read, or names an unknown service, may be the one that means this service.
    if slices.is_empty() || read.len() < slices.len() || read.iter().any(|name| !services.contains_key(*name))
    {
        return;
    }
    for name in services.keys().filter(|name| !read.contains(&name.as_str())) {
        review.add(
            PlanProblem::warning(
                "plan.unused-service",
                format!("no slice belongs to service {}", named(name)),
            )
            .at(review.key(&["services", name]))
            .help(format!("write `service: {name}` in a slice, or remove the service")),
        );
    }
}
