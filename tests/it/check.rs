//! Check on real servers: a monolith with almost everything wrong, and one with nothing.

use std::collections::BTreeMap;

use strangler::check::{self, LinkFailure, Links, Opened, Problem, Report, Severity};
use strangler::cluster::{Cluster, LocalCluster, Options};
use strangler::name::TableName;
use strangler::plan::{
    self, ColumnRule, Ddl, LinkTemplate, Others, Plan, Policy, Service, Slice, TableRule, TableSelector,
};

use crate::support::cluster::{connect, create_database, launch, launch_with, try_connect};
use crate::support::scenario::author;
use strangler::provision::{self, Databases, Logins, ProvisionError};

/// A rule for a table, `public` unless it says otherwise.
fn rule(name: &str) -> TableRule {
    TableRule {
        selector: TableSelector::Table(TableName::parse(name, "public").unwrap()),
        to: None,
        others: Others::Keep,
        columns: BTreeMap::new(),
        filter: BTreeMap::new(),
        place: (9, 3),
    }
}

/// A plan whose slices go to services of their own names.
fn plan(slices: Vec<(&str, Vec<TableRule>)>) -> Plan {
    let links = || {
        let link = || LinkTemplate::new("postgresql://not.used");
        plan::Links { admin: link(), read: link(), apply: link() }
    };
    let service = |name: &str| Service {
        links: links(),
        owner: format!("{name}_owner"),
        app: format!("{name}_app"),
        accepts: Vec::new(),
        ddl: Ddl::Create,
        into: None,
    };
    let slice = |name: &str, tables| Slice { service: name.to_owned(), tables, policy: Policy::default() };
    Plan {
        name: "retail".into(),
        monolith: plan::Monolith { links: links(), app_roles: vec!["retail_app".into()] },
        services: slices.iter().map(|(name, _)| ((*name).to_owned(), service(name))).collect(),
        slices: slices.into_iter().map(|(name, tables)| (name.to_owned(), slice(name, tables))).collect(),
        policy: Policy::default(),
        classify: Vec::new(),
    }
}

async fn open(cluster: &LocalCluster, role: &str, database: &str) -> Opened {
    try_connect(&cluster.url_as(role, "", database)).await.map_err(|error| LinkFailure::new(&error))
}

async fn links(cluster: &LocalCluster, roles: [&str; 3], database: &str) -> Links {
    Links {
        admin: open(cluster, roles[0], database).await,
        read: Some(open(cluster, roles[1], database).await),
        apply: open(cluster, roles[2], database).await,
    }
}

async fn checked(plan: &Plan, monolith: Links, services: Vec<(&str, Links)>) -> Report {
    let services = services.into_iter().map(|(name, links)| (name.to_owned(), links)).collect();
    let slices: Vec<String> = plan.slices.keys().cloned().collect();
    check::report(&check::gather(plan, &slices, (monolith, services)).await)
}

const SPOILT: &str = r#"
CREATE ROLE retail_app LOGIN;
CREATE ROLE reader LOGIN;
CREATE ROLE admin LOGIN;
CREATE ROLE strangler_apply LOGIN;
CREATE EXTENSION citext;
CREATE EXTENSION lo;
CREATE SEQUENCE pool;
CREATE TABLE "Customers" ("Id" int PRIMARY KEY, "Mail" citext);
CREATE TABLE "Orders" (
    "Id" bigint PRIMARY KEY DEFAULT nextval('pool'),
    "CustomerId" int REFERENCES "Customers" ON DELETE CASCADE,
    "Scan" lo,
    "Total" numeric,
    "Gross" numeric GENERATED ALWAYS AS ("Total" * 2) STORED
);
ALTER TABLE "Orders" REPLICA IDENTITY FULL;
CREATE TABLE "Invoices" ("Number" bigint PRIMARY KEY DEFAULT nextval('pool'), "OrderId" bigint REFERENCES "Orders");
CREATE TABLE "OrderNotes" ("OrderId" bigint REFERENCES "Orders", "Body" text);
CREATE TABLE "Events" ("Id" int, at date, PRIMARY KEY ("Id", at)) PARTITION BY RANGE (at);
CREATE TABLE "Archive" () INHERITS ("Customers");
CREATE UNLOGGED TABLE "Hot" ("Id" int PRIMARY KEY);
CREATE VIEW "Totals" AS SELECT "CustomerId", sum("Total") FROM "Orders" GROUP BY 1;
CREATE FUNCTION close_order(id bigint) RETURNS void LANGUAGE plpgsql
    AS 'BEGIN UPDATE "Orders" SET "Total" = 0 WHERE "Id" = id; END';
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER noted AFTER INSERT ON "Orders" EXECUTE FUNCTION noted();
CREATE RULE keep AS ON DELETE TO "Orders" DO INSTEAD NOTHING;
ALTER TABLE "Orders" ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON "Orders" USING (true);
CREATE PUBLICATION feed FOR TABLE "Orders";
ALTER TABLE "Orders" OWNER TO retail_app;
"#;

/// The monolith with almost everything wrong, checked against four services.
async fn spoilt() -> (Report, Vec<LocalCluster>) {
    let settings = [
        ("wal_level", "replica"),
        ("max_replication_slots", "1"),
        ("max_wal_senders", "1"),
        ("max_prepared_transactions", "5"),
        ("logical_decoding_work_mem", "4MB"),
    ];
    let monolith = launch_with(
        settings.iter().fold(Options::default(), |options, (name, value)| options.set(name, value)),
    );
    let server = launch_with(Options::default());
    let client = connect(&monolith.admin_url()).await;
    client.batch_execute(SPOILT).await.unwrap();
    client.batch_execute("BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'left open'").await.unwrap();
    let client = connect(&server.admin_url()).await;
    for statement in [
        "CREATE DATABASE ordering ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        "CREATE DATABASE people",
        "CREATE ROLE strangler_apply NOLOGIN",
        "CREATE ROLE ordering_app LOGIN",
        "CREATE ROLE people_owner LOGIN",
        "CREATE ROLE people_app LOGIN IN ROLE people_owner",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    let people = connect(&server.url("people")).await;
    people
        .batch_execute(
            r#"CREATE TABLE "Customers" ("Id" bigint PRIMARY KEY); INSERT INTO "Customers" VALUES (1)"#,
        )
        .await
        .unwrap();
    let report = spoilt_report(&monolith, &server).await;
    (report, vec![monolith, server])
}

async fn spoilt_report(monolith: &LocalCluster, server: &LocalCluster) -> Report {
    let mut orders = rule("Orders");
    orders.columns.insert("Totl".into(), ColumnRule::Drop);
    let plan = plan(vec![
        ("ordering", vec![orders, rule("OrderNotes"), rule("Hot"), rule("Products")]),
        ("people", vec![rule("Customers")]),
        ("events", vec![rule("Events")]),
        ("lost", vec![]),
    ]);
    let superuser = ["postgres"; 3];
    let gone = || Err(LinkFailure { words: "connection refused".into(), login_refused: false });
    checked(
        &plan,
        links(monolith, ["admin", "reader", "reader"], "postgres").await,
        vec![
            ("ordering", links(server, ["postgres", "postgres", "strangler_apply"], "ordering").await),
            ("people", links(server, superuser, "people").await),
            ("events", links(monolith, superuser, "postgres").await),
            ("lost", Links { admin: gone(), read: None, apply: gone() }),
        ],
    )
    .await
}

#[tokio::test]
async fn everything_that_is_wrong_is_found_at_once() {
    let (report, _servers) = Box::pin(spoilt()).await;
    let found: Vec<String> = report
        .problems
        .iter()
        .map(|problem| format!("{} {} ({})", problem.severity, problem.object, problem.code))
        .collect();
    let expected: Vec<&str> = EXPECTED.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let missing: Vec<&&str> = expected.iter().filter(|line| !found.contains(&(**line).to_owned())).collect();
    let extra: Vec<&String> = found.iter().filter(|line| !expected.contains(&line.as_str())).collect();
    assert!(missing.is_empty() && extra.is_empty(), "not found: {missing:#?}\nnot expected: {extra:#?}");
    assert_eq!(report.exit_code(), 4, "one database could not be reached");

    let text = check::text(&report);
    for line in [
        "next   run on the monolith: ALTER TABLE \"public\".\"OrderNotes\" ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY; (rewrites the table)",
        "did you mean Total?",
        "GRANT \"retail_app\" TO \"admin\";",
        "max_replication_slots = 5;",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["problems"][0]["severity"], "error");
    assert!(json["predictions"]["slices"]["people"]["copy_seconds"].is_u64(), "{json:#}");
}

const EXPECTED: &str = "
    error Customers (inheritance)
    error Hot (unlogged-table)
    error OrderNotes (no-key)
    error Orders.Totl (unknown-column)
    error Products (unknown-table)
    error keep on Orders (rule)
    error monolith (no-create)
    error monolith (no-replication)
    error monolith (no-select)
    error monolith (not-owner)
    error monolith (prepared-transactions)
    error monolith (row-security)
    error monolith (wal-level)
    error monolith (wrong-apply-role)
    error monolith, service events (senders)
    error monolith, service events (slots)
    error service events (prepared-transactions)
    error service events (service-is-monolith)
    error service lost (database-unreachable)
    error service ordering (encoding)
    error service ordering (login-refused)
    error service ordering (no-login)
    error service people: Customers (target-differs)
    error service people: Customers (target-not-empty)
    warning Events (open-partitions)
    warning Orders (cut-key)
    warning Orders (large-object)
    warning close_order (function)
    warning feed (publication)
    warning monolith (app-role-owns)
    warning monolith (slot-wal-unlimited)
    warning monolith (two-phase)
    warning noted on Orders (trigger)
    warning own on Orders (policy)
    warning pool (shared-sequence)
    warning service events (wal-level)
    warning service ordering (app-role-reaches)
    warning service ordering (no-password)
    warning service people (app-role-powerful)
    warning service people (app-role-reaches)
    warning service people (no-password)
    warning service people (owner-login)
    note Events (partitioned)
    note Invoices (cut-key)
    note Orders (generated)
    note Orders (identity-full)
    note Totals (view)
    note monolith (decoding-memory)
    note service ordering (extension-missing)
    note service people (extension-missing)
";

#[tokio::test]
async fn a_system_that_is_ready_has_no_problem() {
    let options = || Options::default().set("max_slot_wal_keep_size", "200GB");
    let (monolith, server) = (launch_with(options()), launch_with(options()));
    let client = connect(&monolith.admin_url()).await;
    client
        .batch_execute(
            r#"
            CREATE ROLE retail_owner;
            CREATE ROLE retail_app LOGIN PASSWORD 'a';
            CREATE ROLE admin LOGIN CREATEROLE IN ROLE retail_owner;
            CREATE ROLE reader LOGIN REPLICATION;
            CREATE ROLE strangler_apply LOGIN PASSWORD 'b';
            GRANT CREATE ON DATABASE postgres TO admin;
            CREATE TABLE "Orders" ("Id" bigint PRIMARY KEY, "Region" text NOT NULL);
            CREATE TABLE "Lines" ("Id" uuid PRIMARY KEY, "OrderId" bigint REFERENCES "Orders");
            CREATE TABLE "Staying" ("Id" int);
            ALTER TABLE "Orders" OWNER TO retail_owner;
            ALTER TABLE "Lines" OWNER TO retail_owner;
            GRANT SELECT ON "Orders", "Lines" TO reader;
            "#,
        )
        .await
        .unwrap();
    let client = connect(&server.admin_url()).await;
    client
        .batch_execute(
            "CREATE ROLE admin LOGIN CREATEROLE REPLICATION; CREATE ROLE strangler_apply LOGIN REPLICATION;
             GRANT CREATE ON DATABASE postgres TO admin;
             GRANT CREATE, USAGE ON SCHEMA public TO admin WITH GRANT OPTION",
        )
        .await
        .unwrap();
    for cluster in [&monolith, &server] {
        // PostgreSQL 14 has no grants on parameters.
        let old = cluster.version_num() < 150_000;
        let right = if old {
            "ALTER ROLE strangler_apply SET session_replication_role = replica"
        } else {
            "GRANT SET ON PARAMETER session_replication_role TO strangler_apply"
        };
        connect(&cluster.admin_url()).await.batch_execute(right).await.unwrap();
    }
    let plan = plan(vec![("ordering", vec![rule("Orders"), rule("Lines")])]);
    let service = Links {
        admin: open(&server, "admin", "postgres").await,
        read: None,
        apply: open(&server, "strangler_apply", "postgres").await,
    };
    let monolith = links(&monolith, ["admin", "reader", "strangler_apply"], "postgres").await;
    let report = checked(&plan, monolith, vec![("ordering", service)]).await;
    assert_eq!(report.problems, [], "{}", check::text(&report));
    assert_eq!((report.exit_code(), report.count(Severity::Error)), (0, 0));
    let ordering = &report.predictions.slices["ordering"];
    assert_eq!(ordering.tables.len(), 2);
    assert!(report.predictions.wal_bytes_per_second.is_some());
}

/// A plan, a monolith, and a service's database in which an ordinary administrator may make schemas of its own only.
async fn foreign_schema() -> (Plan, LocalCluster) {
    let server = launch();
    for database in ["monolith", "ordering"] {
        create_database(&server, database).await;
    }
    let monolith = connect(&server.url("monolith")).await;
    let setup = r#"CREATE TYPE "Status" AS ENUM ('new'); CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "Status" "Status");
        CREATE ROLE admin LOGIN CREATEROLE; GRANT CREATE ON DATABASE ordering TO admin;
        REVOKE CREATE ON SCHEMA public FROM PUBLIC"#;
    monolith.batch_execute(setup).await.unwrap();
    let service = connect(&server.url("ordering")).await;
    service.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await.unwrap();
    let mut plan = plan(vec![("ordering", vec![rule("Orders")])]);
    plan.services.get_mut("ordering").unwrap().into = Some("sales".into());
    (plan, server)
}

async fn provision_as_admin(plan: &Plan, server: &LocalCluster) -> Result<provision::Design, ProvisionError> {
    let service = connect(&server.url_as("admin", "", "ordering")).await;
    let mut databases = Databases {
        monolith: connect(&server.url("monolith")).await,
        services: [("ordering".to_owned(), service)].into(),
    };
    provision::run(plan, &[], &mut databases, (&Logins::default(), &author()), &mut |_| {}).await
}

#[tokio::test]
async fn a_schema_at_which_provision_would_stop_is_found_and_its_remedy_helps() {
    let (plan, server) = foreign_schema().await;
    let look = async || {
        let monolith = links(&server, ["postgres"; 3], "monolith").await;
        let service = links(&server, ["admin", "admin", "postgres"], "ordering").await;
        let report = checked(&plan, monolith, vec![("ordering", service)]).await;
        report.problems.into_iter().find(|problem| problem.code == "no-create-in-schema")
    };
    let problem = look().await.expect("the type stays in public");
    assert!(problem.fact.contains("the type Status of Orders"), "{}", problem.fact);
    let stopped = provision_as_admin(&plan, &server).await.unwrap_err();
    let ProvisionError::Refused { problems } = &stopped else { panic!("{stopped:?}") };
    let told: Vec<&Problem> = problems.iter().filter(|one| one.severity == Severity::Error).collect();
    assert_eq!((told.len(), told[0].code, &told[0].next), (1, problem.code, &problem.next), "{told:?}");
    let made = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('sales', 'strangler')";
    let row = connect(&server.url("ordering")).await.query_one(made, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "nothing is begun");

    let remedy = problem.next.split_once(": ").unwrap().1;
    connect(&server.url("ordering")).await.batch_execute(remedy).await.unwrap();
    assert_eq!(look().await, None);
    provision_as_admin(&plan, &server).await.unwrap();
    assert_eq!(provision_as_admin(&plan, &server).await.unwrap().steps, []);
    assert_eq!(look().await, None);
}

#[tokio::test]
async fn a_schema_in_which_everybody_may_create_is_left_as_it_is() {
    let (plan, server) = foreign_schema().await;
    let service = connect(&server.url("ordering")).await;
    service.batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await.unwrap();
    provision_as_admin(&plan, &server).await.unwrap();
    assert_eq!(provision_as_admin(&plan, &server).await.unwrap().steps, []);
}
