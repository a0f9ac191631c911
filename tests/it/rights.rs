//! The rights of each link, on real servers, by the statements that need them: what is granted suffices, and no more is
//! granted.

use std::time::Duration;

use strangler::cluster::Cluster;
use strangler::journal::ledger::{self, Anchored, Author};
use strangler::journal::runs::{self, Chunk, Lock, Wanted};
use strangler::journal::{grounds, slices, whereabouts};
use strangler::reconcile::evidence::{self, Monolith, conclude};
use strangler::reconcile::verdict::{Counts, Coverage, Outcome, TableVerdict, Verdict};
use tokio_postgres::Client;

use crate::support::cluster::{Pair, connect, create_database};
use crate::support::privilege;
use crate::support::split::Split;

const TABLES: &str = "{ Orders: { columns: { CustomerId: { references: Customers } } }, logs.Events: {} }";

/// Two schemas of one owner.
const SCHEMA: &str = r#"
CREATE TABLE "Customers" ("Id" int PRIMARY KEY, "Name" text);
CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "CustomerId" int REFERENCES "Customers", "Note" text);
CREATE TABLE logs."Events" ("Kind" int, "At" date, "Text" text, PRIMARY KEY ("Kind", "At")) PARTITION BY RANGE ("At");
CREATE TABLE logs."Events_1" PARTITION OF logs."Events" FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO "Customers" VALUES (1, 'ann'); INSERT INTO "Orders" VALUES (7, 1, 'x');
INSERT INTO logs."Events" VALUES (1, '2026-05-05', 'x');
GRANT SELECT ON "Customers", "Orders", logs."Events" TO shop_read"#;

struct Shop {
    split: Split,
    monolith: Client,
    service: Client,
}

impl Shop {
    async fn open() -> Self {
        let (split, monolith, service) = privilege::open(TABLES, SCHEMA).await;
        Self { split, monolith, service }
    }

    async fn on_monolith(&self, role: &str) -> Client {
        connect(&self.split.pair.monolith.url_as(role, "", Pair::MONOLITH)).await
    }

    async fn on_service(&self, role: &str) -> Client {
        connect(&self.split.pair.service.url_as(role, "", Pair::SERVICE)).await
    }

    /// The problems that check lists, as `code object next`.
    fn checked(&self) -> Vec<String> {
        let ended = self.split.run("check", &["--format", "json"]);
        let report: serde_json::Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.page()));
        let text = |problem: &serde_json::Value, key: &str| problem[key].as_str().unwrap().to_owned();
        let problems = report["problems"].as_array().unwrap();
        let line = |one| {
            format!(
                "{} {} {} {}",
                text(one, "severity"),
                text(one, "code"),
                text(one, "object"),
                text(one, "next")
            )
        };
        problems.iter().map(line).collect()
    }

    /// The one problem of a code.
    fn found(&self, code: &str) -> String {
        let all = self.checked();
        let found: Vec<&String> = all.iter().filter(|line| line.split(' ').nth(1) == Some(code)).collect();
        assert_eq!(found.len(), 1, "{code}: {all:#?}");
        found[0].clone()
    }

    fn not_found(&self, codes: &[&str]) {
        let all = self.checked();
        let found = all.iter().find(|line| codes.contains(&line.split(' ').nth(1).unwrap()));
        assert_eq!(found, None, "{all:#?}");
    }
}

/// Runs statements, each of which must be allowed.
async fn allowed(client: &Client, statements: &[&str]) {
    for sql in statements {
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Runs statements, each of which must be refused for want of a right.
async fn denied(client: &Client, statements: &[&str]) {
    for sql in statements {
        let error = client.batch_execute(sql).await.expect_err(sql);
        assert_eq!(
            error.code().map(tokio_postgres::error::SqlState::code),
            Some("42501"),
            "{sql}: {error:?}"
        );
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

const LOCK_ORDERS: &str = r#"BEGIN; SELECT "Id" FROM "Orders" WHERE "Id" = 7 FOR SHARE; COMMIT"#;

/// No link of an administrator is needed to see that a later version has provisioned a database.
async fn assert_later_versions_are_seen(shop: &Shop, on_monolith: [&Client; 2]) {
    let later = "INSERT INTO strangler.schema_history (version, name) VALUES (999, 'later')";
    for (place, owner) in [("monolith", &shop.monolith), ("service service", &shop.service)] {
        allowed(owner, &[later]).await;
        let told = shop.split.run("reconcile", &[]).page();
        assert!(told.contains("(newer-tables)") && told.contains(place), "{place}: {told}");
        let on_service = shop.on_service("strangler_apply").await;
        let links = if place == "monolith" { on_monolith.to_vec() } else { vec![&on_service] };
        for client in links {
            assert!(whereabouts::read(client).await.unwrap().newer, "{place}");
        }
        allowed(owner, &["DELETE FROM strangler.schema_history WHERE version = 999"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_apply_link_may_lock_rows_of_the_authority_and_change_almost_nothing() {
    let shop = Shop::open().await;
    let apply = shop.on_monolith("strangler_apply").await;
    denied(&apply, &[LOCK_ORDERS]).await;
    shop.not_found(&[
        "no-row-lock",
        "no-schema-usage",
        "reference-not-readable",
        "no-marker",
        "row-security",
    ]);

    let dry = shop.split.run("provision", &["--dry-run"]);
    for grant in [
        r#"GRANT USAGE ON SCHEMA "logs" TO "strangler_apply";"#,
        r#"GRANT SELECT ON TABLE "public"."Orders" TO "strangler_apply";"#,
        r#"GRANT UPDATE ("Id") ON TABLE "public"."Orders" TO "strangler_apply";"#,
        r#"GRANT UPDATE ("Kind") ON TABLE "logs"."Events" TO "strangler_apply";"#,
    ] {
        assert!(dry.stdout.contains(grant), "{grant}\n{}", dry.page());
    }
    shop.split.provision();
    let again = shop.split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());

    allowed(
        &apply,
        &[
            LOCK_ORDERS,
            r#"BEGIN; SELECT "Text" FROM logs."Events" WHERE ("Kind", "At") = (1, '2026-05-05') FOR SHARE;
                SELECT pg_logical_emit_message(true, 'strangler', 'x'); COMMIT"#,
            "SELECT * FROM strangler.gate_one",
            // The way back keeps its progress here. Rows of the tables are granted when the slice is armed.
            "UPDATE strangler.stream SET nonce = nonce WHERE dir = 'reverse'",
            "SELECT * FROM strangler.touched, strangler.repair, strangler.canary",
        ],
    )
    .await;
    denied(
        &apply,
        &[
            r#"UPDATE "Orders" SET "Note" = 'y'"#,
            r#"DELETE FROM "Orders""#,
            r#"INSERT INTO "Orders" VALUES (8)"#,
            r#"TRUNCATE "Orders""#,
            r#"SELECT * FROM "Customers""#,
            r#"SELECT * FROM logs."Events_1""#,
            "UPDATE strangler.journal SET actor = 'x'",
            "DELETE FROM strangler.journal",
            "UPDATE strangler.gate_one SET state = 'OPEN'",
            "UPDATE strangler.slice SET plan_hash = 'x'",
            "SELECT * FROM strangler.ledger",
        ],
    )
    .await;
    let read = shop.on_monolith("shop_read").await;
    allowed(
        &read,
        &[
            r#"SELECT * FROM "Orders""#,
            r#"SELECT * FROM logs."Events""#,
            r#"SELECT * FROM "Customers""#,
            "SELECT * FROM strangler.stream, strangler.mirror_process",
        ],
    )
    .await;
    denied(&read, &[LOCK_ORDERS, "SELECT * FROM strangler.journal"]).await;
    assert_later_versions_are_seen(&shop, [&apply, &read]).await;
    for client in [&apply, &read] {
        assert_eq!(whereabouts::read(client).await.unwrap().sides.len(), 1);
        assert!(slices::gate(client, "one").await.unwrap().is_some());
        assert_eq!(grounds::monolith(client, "one").await.unwrap().len(), 2);
    }
}

fn author() -> Author {
    Author { operator: "ann".to_owned(), host: "box".to_owned() }
}

/// What a run about both tables would say.
fn verdict(run: &runs::Run) -> Verdict {
    let tables = run.ground.tables.keys().map(|name| TableVerdict {
        source_table: strangler::name::TableName::parse(name, "public").unwrap(),
        target_table: strangler::name::TableName::parse(name, "public").unwrap(),
        outcome: Outcome::Clean,
        coverage: Coverage::Full,
        rows_authority: 1,
        rows_copy: 1,
        bytes: 8192,
        duration: Duration::ZERO,
        findings: Counts::new(),
        reasons: Vec::new(),
    });
    Verdict {
        run: run.id.clone(),
        plan: "split".to_owned(),
        slice: "one".to_owned(),
        service: "service".to_owned(),
        outcome: Outcome::Clean,
        strict: false,
        every_table: true,
        plan_hash: run.ground.plan_hash.clone(),
        epoch: run.ground.epoch,
        authority: "monolith",
        lsn: "0/1000".parse().unwrap(),
        from_lsn: "0/10".parse().unwrap(),
        started_at: run.started_at.clone(),
        finished_at: String::new(),
        tables: tables.collect(),
        listed: Vec::new(),
        reasons: Vec::new(),
        repairs: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_is_recorded_by_roles_of_least_privilege() {
    let shop = Shop::open().await;
    shop.split.provision();
    let mirror = shop.split.mirror(None);
    mirror.caught_up(&shop.monolith, &shop.service).await;
    mirror.stop();
    let (read, apply) = (shop.on_monolith("shop_read").await, shop.on_monolith("strangler_apply").await);
    let service = shop.on_service("strangler_apply").await;

    allowed(&service, &[r#"SELECT * FROM sales."Orders""#, r#"SELECT * FROM sales."Events""#]).await;
    assert!(matches!(ledger::anchor(&service, Some(&apply), "service").await, Anchored::Recorded(_)));
    assert_eq!(runs::lock(&service, "one").await.unwrap(), Lock::Taken);
    let ground = grounds::service(&service, "one").await.unwrap().unwrap();
    let ground = ground.with_monolith(&grounds::monolith(&read, "one").await.unwrap());
    let author = author();
    let wanted = Wanted {
        slice: "one",
        options: "{}",
        ground: &ground,
        author: &author,
        pid: 42,
        resume_within: Duration::ZERO,
    };
    let run = runs::begin(&service, &wanted).await.unwrap();
    assert!(runs::beat(&service, &run).await.unwrap());
    let chunk = Chunk {
        source_table: "Orders".to_owned(),
        number: 1,
        lo: None,
        hi: None,
        lsn: "0/1000".parse().unwrap(),
        rows_authority: 1,
        rows_copy: 1,
        findings: "[]".to_owned(),
    };
    assert!(runs::settle(&service, &run, &chunk).await.unwrap());
    assert_eq!(runs::chunks(&service, &run, "Orders").await.unwrap().len(), 1);
    let mut said = verdict(&run);
    let monolith = Monolith { read: &read, journal: Some(&apply) };
    let concluded = conclude(&service, monolith, &run, &mut said, &author).await.unwrap();
    assert!(matches!(concluded.anchored, Anchored::Recorded(_)), "{:?}", concluded.anchored);
    runs::unlock(&service, "one").await.unwrap();
    let ground = grounds::service(&service, "one").await.unwrap();
    let shown = evidence::evidence(&service, "one").await.unwrap();
    assert_eq!(shown.lacks(ground.as_ref(), Duration::from_secs(60)), []);
    assert_eq!(ledger::verify(&service, Some(&apply)).await.unwrap().confirmed, Some(concluded.head.id));

    allowed(
        &service,
        &[
            "INSERT INTO strangler.touched (slice, source_table, lsn, keys, key_count) VALUES ('one', 'Orders', '0/1', '[]', 0);
             DELETE FROM strangler.touched",
            "INSERT INTO strangler.touched_floor VALUES ('another', 'Orders', '0/1');
             UPDATE strangler.touched_floor SET lsn = '0/2'",
            "INSERT INTO strangler.repair (run, slice, source_table, key, finding, requested_by)
                 VALUES (gen_random_uuid(), 'one', 'Orders', '{7}', 'differs', 'ann');
             UPDATE strangler.repair SET state = 'done'; DELETE FROM strangler.repair",
        ],
    )
    .await;
    denied(&service, &["UPDATE strangler.ledger SET operator = 'x'", "DELETE FROM strangler.ledger"]).await;
    denied(&service, &["TRUNCATE strangler.ledger"]).await;
    let status = shop.split.run("status", &[]);
    assert!(status.stdout.contains("evidence   stands: both sides are proven equal"), "{}", status.page());
}

/// What the mirror says itself, each with the role that lacks it.
async fn assert_the_mirror_tells(shop: &Shop) {
    for (place, spoilt, mended, hint) in [
        (
            &shop.monolith,
            "ALTER ROLE shop_read NOREPLICATION",
            "ALTER ROLE shop_read REPLICATION",
            "run on the monolith: ALTER ROLE \"shop_read\" REPLICATION",
        ),
        (
            &shop.monolith,
            "ALTER ROLE shop_read NOBYPASSRLS",
            "ALTER ROLE shop_read BYPASSRLS",
            "run on the monolith: ALTER ROLE \"shop_read\" BYPASSRLS",
        ),
        (
            &shop.service,
            "ALTER TABLE sales.\"Orders\" ENABLE ROW LEVEL SECURITY",
            "SELECT",
            "run on the service: ALTER ROLE \"strangler_apply\" BYPASSRLS",
        ),
    ] {
        allowed(place, &[spoilt]).await;
        let (_, log) = shop.split.mirror(None).ended();
        let hint = format!("hint: {hint}; then strangler mirror plan.yaml --slice one");
        assert!(log.contains(&hint), "{hint}\n{log}");
        allowed(place, &[mended]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_told_with_what_to_type() {
    let shop = Shop::open().await;
    let apply = shop.on_monolith("strangler_apply").await;
    let revoke = "REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO shop_read, retail_owner, shop_admin;
        REVOKE SELECT ON \"Customers\" FROM shop_read;
        REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM PUBLIC;
        ALTER TABLE logs.\"Events\" ENABLE ROW LEVEL SECURITY;";
    // From PostgreSQL 17 on the function has one more argument.
    let version: String = shop.monolith.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    let of_version = if version.as_str() < "170000" {
        revoke.to_owned()
    } else {
        revoke.replace("boolean, text, text)", "boolean, text, text, boolean)")
    };
    shop.monolith.batch_execute(&of_version).await.unwrap();
    let schema = shop.found("no-schema-usage");
    assert!(schema.ends_with("GRANT USAGE ON SCHEMA \"public\" TO strangler_apply;"), "{schema}");
    let reference = shop.found("reference-not-readable");
    assert!(
        reference.ends_with("run: GRANT SELECT ON \"public\".\"Customers\" TO \"shop_read\";"),
        "{reference}"
    );
    let all = shop.checked();
    for expected in [
        "error no-marker monolith run as a superuser: GRANT EXECUTE ON FUNCTION pg_logical_emit_message",
        "warning no-marker monolith run as a superuser: GRANT EXECUTE ON FUNCTION pg_logical_emit_message",
        "error row-security monolith run as a superuser: ALTER ROLE \"shop_read\" BYPASSRLS;",
        "warning row-security monolith run as a superuser: ALTER ROLE strangler_apply BYPASSRLS;",
    ] {
        assert!(all.iter().any(|line| line.starts_with(expected)), "{expected}: {all:#?}");
    }
    // What check says to type.
    let next = |line: &str| line.find("GRANT ").or(line.find("ALTER ROLE ")).map(|at| line[at..].to_owned());
    for typed in all.iter().filter_map(|line| next(line)) {
        shop.monolith.batch_execute(&typed).await.unwrap_or_else(|error| panic!("{typed}: {error:?}"));
    }
    let codes = ["no-row-lock", "no-schema-usage", "reference-not-readable", "no-marker", "row-security"];
    shop.not_found(&codes);
    shop.split.provision();
    shop.not_found(&codes);
    allowed(&apply, &[LOCK_ORDERS]).await;

    shop.monolith.batch_execute("REVOKE ALL ON \"Orders\" FROM strangler_apply").await.unwrap();
    denied(&apply, &[LOCK_ORDERS]).await;
    let lock = shop.found("no-row-lock");
    assert!(lock.contains("strangler provision plan.yaml grants it"), "{lock}");
    shop.split.provision();
    shop.not_found(&codes);
    allowed(&apply, &[LOCK_ORDERS]).await;

    assert_the_mirror_tells(&shop).await;
    let filtered = shop.found("row-security");
    assert!(filtered.starts_with("error row-security service service"), "{filtered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_administrator_can_not_open_does_not_stop_provision() {
    let shop = Shop::open().await;
    let close = "ALTER SCHEMA logs OWNER TO postgres; GRANT USAGE ON SCHEMA logs TO shop_admin, retail_owner";
    shop.monolith.batch_execute(close).await.unwrap();
    let dry = shop.split.run("provision", &[]);
    assert_eq!(dry.exit, Some(0), "{}", dry.page());
    assert!(dry.stderr.contains("GRANT USAGE ON SCHEMA \"logs\" TO strangler_apply;"), "{}", dry.stderr);
    shop.monolith.batch_execute("GRANT USAGE ON SCHEMA logs TO strangler_apply").await.unwrap();
    let again = shop.split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());
    let apply = shop.on_monolith("strangler_apply").await;
    allowed(&apply, &[r#"BEGIN; SELECT 1 FROM logs."Events" FOR SHARE; COMMIT"#]).await;
}

/// A superuser's apply link becomes the apply role where that exists, as it does on a server that holds a service too.
#[tokio::test(flavor = "multi_thread")]
async fn one_superuser_and_one_server_for_everything_may_lock_rows_as_well() {
    let orders = r#"CREATE TABLE "Orders" ("Id" int PRIMARY KEY); INSERT INTO "Orders" VALUES (7)"#;
    let (mut split, monolith, _) = Split::launch("{ Orders: {} }", orders).await;
    create_database(&split.pair.monolith, "beside").await;
    let link = split.pair.monolith.url("beside");
    split.lead("SERVICE", &link);
    split.provision();
    let again = split.run("provision", &[]);
    assert!(again.stderr.contains("nothing was missing"), "{}", again.page());
    monolith.batch_execute("SET SESSION AUTHORIZATION strangler_apply").await.unwrap();
    allowed(&monolith, &[LOCK_ORDERS, "INSERT INTO strangler.journal (actor, action) VALUES ('a', 'b')"])
        .await;
    denied(&monolith, &[r#"DELETE FROM "Orders""#]).await;
}
