//! Facts for the rules' unit tests: a clean retail system, to be spoilt by each test.

use std::collections::BTreeMap;

use super::facts::{APPLY_ROLE, Database, Facts, Link, LinkName, LinkRole, Role, Server};
use super::gather::join;
use crate::catalog::Catalog;
use crate::journal::migrate::Form;
use crate::journal::whereabouts::Whereabouts;
use crate::mapping::fixture::{catalog, plan, retail, table_rule};
use crate::plan::Plan;
use crate::problem::{Problem, Severity};

/// Slice `ordering` takes Orders and OrderLines, slice `catalog` takes Products; each goes to a service of its name.
pub(super) fn retail_plan() -> Plan {
    plan(vec![
        ("ordering", vec![table_rule("Orders"), table_rule("OrderLines")]),
        ("catalog", vec![table_rule("Products")]),
    ])
}

/// Facts in which no rule finds anything, but for the foreign key between the two slices.
pub(super) fn clean() -> Facts {
    with(retail_plan(), retail())
}

/// As [`clean`], about a plan and a monolith of the test's own.
pub(super) fn with(plan: Plan, monolith: Catalog) -> Facts {
    let (mappings, mapping_problems, moved) = join(&plan, &monolith);
    let services = plan.services.iter().enumerate().map(|(index, (name, service))| {
        let mut empty = catalog(Vec::new());
        empty.database = name.clone();
        empty.identity.database_oid = 100 + u32::try_from(index).unwrap();
        let mut database = database(empty, name);
        for role in [&service.owner, &service.app] {
            let app = *role == service.app;
            let made = Role { login: app, may_connect: app, has_password: Some(true), ..Role::default() };
            database.roles.insert(role.clone(), made);
        }
        (name.clone(), database)
    });
    let mut monolith_facts = database(monolith, "monolith");
    let app = Role { login: true, has_password: Some(true), may_connect: true, ..Role::default() };
    monolith_facts.roles.insert("retail_app".into(), app);
    Facts {
        services: services.collect(),
        monolith: monolith_facts,
        plan,
        mappings,
        mapping_problems,
        moved,
        left_behind: BTreeMap::new(),
        foreseen: Vec::new(),
        collated: Vec::new(),
    }
}

fn database(mut catalog: Catalog, instance: &str) -> Database {
    for (name, value) in [
        ("wal_level", "logical"),
        ("max_replication_slots", "10"),
        ("max_wal_senders", "10"),
        ("max_slot_wal_keep_size", "100GB"),
        ("max_prepared_transactions", "0"),
        ("logical_decoding_work_mem", "64MB"),
    ] {
        catalog.settings.insert(name.into(), value.into());
    }
    let link = |name: &str| {
        Link::Open(LinkRole {
            name: name.into(),
            replication: true,
            create_role: true,
            create_in_database: true,
            replica_role: true,
            ..LinkRole::default()
        })
    };
    let apply = Role { login: true, has_password: Some(true), may_connect: true, ..Role::default() };
    Database {
        catalog: Some(catalog),
        server: Some(Server {
            instance: instance.into(),
            wal_bytes_per_second: Some(1000.0),
            ..Server::default()
        }),
        roles: BTreeMap::from([(APPLY_ROLE.to_owned(), apply)]),
        links: BTreeMap::from([
            (LinkName::Admin, link("admin")),
            (LinkName::Read, link("reader")),
            (LinkName::Apply, link(APPLY_ROLE)),
        ]),
        whereabouts: Some(Whereabouts { place: instance.into(), ..Whereabouts::default() }),
        holdings: Vec::new(),
        form: Form::Absent,
        silent: None,
        unread: Vec::new(),
    }
}

impl Facts {
    pub(super) fn monolith_catalog(&mut self) -> &mut Catalog {
        self.monolith.catalog.as_mut().unwrap()
    }

    pub(super) fn service(&mut self, name: &str) -> &mut Database {
        self.services.get_mut(name).unwrap()
    }

    pub(super) fn service_catalog(&mut self, name: &str) -> &mut Catalog {
        self.service(name).catalog.as_mut().unwrap()
    }
}

/// Expects one problem with this code, severity and words.
pub(super) fn expect(problems: &[Problem], severity: Severity, code: &str, words: &str) {
    let [problem] = problems else { panic!("{code}: {problems:#?}") };
    assert_eq!((problem.severity, problem.code), (severity, code), "{problem:#?}");
    let all = format!("{}: {}; {}; {}", problem.object, problem.fact, problem.consequence, problem.next);
    assert!(all.contains(words), "{words} is not in {all}");
    assert!(
        ![&problem.fact, &problem.consequence, &problem.next].iter().any(|text| text.is_empty()),
        "{all}"
    );
}
