//! Soft references without a row that they name, in one database and across two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use strangler::mapping::SliceMapping;
use strangler::name::TableName;
use strangler::reconcile::finding::{FindingKind, Shown};
use strangler::reconcile::form::{Side, TableForm};
use strangler::reconcile::orphans::{Neighbour, OrphanError, Orphans, orphans};
use strangler::reconcile::redact::Redactor;
use strangler::reconcile::sides::Sides;
use tokio_postgres::Client;

use crate::support::scenario::{Run, Scenario};

const SCHEMA: &str = r#"
CREATE TABLE "Customers" ("Id" int PRIMARY KEY, "Name" text);
CREATE TABLE "Shops" ("Country" text, "No" int, PRIMARY KEY ("Country", "No"));
CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "CustomerId" int REFERENCES "Customers", "Country" text, "ShopNo" int,
    FOREIGN KEY ("Country", "ShopNo") REFERENCES "Shops");
INSERT INTO "Customers" SELECT i FROM generate_series(1, 200) i;
INSERT INTO "Shops" SELECT 'DE', i FROM generate_series(1, 20) i;
INSERT INTO "Orders" SELECT i, 1 + i % 100, 'DE', 1 + i % 10 FROM generate_series(1, 300) i;
INSERT INTO "Orders" VALUES (301, NULL, NULL, 99), (302, NULL, 'XX', NULL);
"#;

const TABLES: &str = "      Orders: { columns: { CustomerId: { to: customer } } }\n";

struct Bench {
    scenario: Scenario,
    sides: Sides,
}

impl Bench {
    /// The service holds a copy; no mirror runs any more, so that each side can be written by itself.
    async fn new(authority: Side) -> Self {
        let scenario = Scenario::new(SCHEMA, TABLES).await;
        let running = scenario.start(&Run::new(&[]));
        scenario.settled().await;
        running.stop().await;
        if authority == Side::Target {
            let admin = scenario.pair.service().await;
            admin.batch_execute("UPDATE strangler.gate_things SET state = 'OPEN'").await.unwrap();
        }
        scenario.target.batch_execute("SET SESSION AUTHORIZATION strangler_apply").await.unwrap();
        let sides = Sides { authority, ..scenario.sides() };
        Self { scenario, sides }
    }

    async fn look_among(&self, others: &[SliceMapping], list: usize) -> Orphans {
        self.try_among(others, list).await.unwrap()
    }

    async fn try_among(&self, others: &[SliceMapping], list: usize) -> Result<Orphans, OrphanError> {
        let form = TableForm::new(self.scenario.mapping.tables[0].clone(), false);
        let neighbours: Vec<Neighbour<'_>> = std::iter::once(&self.scenario.mapping)
            .chain(others)
            .map(|mapping| Neighbour { mapping, server: &self.sides.service_apply })
            .collect();
        let redactor = Redactor::new().unwrap();
        orphans(&self.sides, "things", &form, &neighbours, &redactor, list).await
    }

    /// A slice beside the own one, which takes the customers.
    fn people(&self) -> SliceMapping {
        let mut table = self.scenario.mapping.tables[0].clone();
        table.source = TableName::new("public", "Customers");
        table.target = TableName::new("public", "clients");
        table.columns.truncate(1);
        table.columns[0].target = "cid".to_owned();
        let mut people = SliceMapping { slice: "people".to_owned(), ..self.scenario.mapping.clone() };
        people.tables = vec![table];
        people
    }

    async fn look(&self) -> Orphans {
        self.look_among(&[], 100).await
    }
}

fn keys(found: &Orphans) -> Vec<String> {
    let mut keys: Vec<String> = found.listed.iter().map(|finding| finding.raw_key.0.join(",")).collect();
    keys.sort();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_inherits_are_none_that_a_reference_finds() {
    let bench = Bench::new(Side::Source).await;
    let hidden = r#"SET session_replication_role = replica; CREATE TABLE kin () INHERITS ("Customers");
        DELETE FROM ONLY "Customers" WHERE "Id" = 7; INSERT INTO kin VALUES (7); RESET session_replication_role"#;
    bench.scenario.write(hidden).await;
    assert_eq!(keys(&bench.look().await), ["106", "206", "6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_in_one_database_are_found_and_nulls_are_no_references() {
    let bench = Bench::new(Side::Source).await;
    assert_eq!(bench.look().await, Orphans::default());
    let damage = r#"SET session_replication_role = replica; DELETE FROM "Customers" WHERE "Id" IN (7, 150);
        UPDATE "Orders" SET "ShopNo" = 77 WHERE "Id" = 5; RESET session_replication_role"#;
    bench.scenario.write(damage).await;
    let found = bench.look().await;
    assert_eq!(keys(&found), ["106", "206", "5", "6"]);
    assert_eq!((found.count, found.reasons.len()), (4, 0));
    let shop = found.listed.iter().find(|finding| finding.raw_key.0 == ["5"]).unwrap();
    assert_eq!(shop.kind, FindingKind::Orphan);
    let reference: Vec<_> = shop.columns.iter().map(|diff| (diff.column.as_str(), &diff.authority)).collect();
    let (country, number) = (Shown::Text("DE".to_owned()), Shown::Text("77".to_owned()));
    assert_eq!(reference, [("Country", &country), ("ShopNo", &number)]);
    let short = bench.look_among(&[], 1).await;
    assert_eq!((short.count, short.listed.len()), (4, 1), "all are counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_across_two_databases_are_found() {
    let bench = Bench::new(Side::Target).await;
    assert_eq!(
        bench.look().await,
        Orphans::default(),
        "customers 101 to 200 have no order, which is nothing wrong"
    );
    let target = &bench.scenario.target;
    target.batch_execute(r#"UPDATE "Orders" SET customer = 999 WHERE "Id" IN (1, 2)"#).await.unwrap();
    bench.scenario.write(r#"ALTER TABLE "Orders" DISABLE TRIGGER ALL; DELETE FROM "Orders"; DELETE FROM "Shops" WHERE "No" = 3"#).await;
    let found = bench.look().await;
    assert_eq!(found.count, 2 + 30);
    assert!(found.reasons.is_empty() && keys(&found).contains(&"1".to_owned()), "{found:?}");
    assert_eq!(keys(&found).len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_slice_that_was_flipped_are_looked_for_in_its_service() {
    let bench = Bench::new(Side::Target).await;
    let admin = bench.scenario.pair.service().await;
    admin
        .batch_execute(
            "CREATE TABLE clients (cid int PRIMARY KEY); INSERT INTO clients SELECT generate_series(1, 99);
             GRANT SELECT ON clients TO strangler_apply;
             CREATE TABLE strangler.gate_people (LIKE strangler.gate_things);
             INSERT INTO strangler.gate_people SELECT * FROM strangler.gate_things;
             UPDATE strangler.gate_people SET state = 'FENCED';
             GRANT SELECT ON strangler.gate_people TO strangler_apply",
        )
        .await
        .unwrap();
    let people = bench.people();
    let found = bench.look_among(std::slice::from_ref(&people), 100).await;
    assert_eq!(found, Orphans::default(), "while its gate is fenced, the monolith is asked");
    // It is flipped during the search: what the monolith lacks since then proves nothing.
    let writer = bench.scenario.writer().await;
    writer.batch_execute(r#"BEGIN; LOCK TABLE "Customers""#).await.unwrap();
    let among = [people];
    let (found, ()) = tokio::join!(bench.look_among(&among, 100), async {
        let waits =
            r#"SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = '"Customers"'::regclass"#;
        bench.scenario.until_source(waits).await;
        admin
            .batch_execute("UPDATE strangler.gate_people SET state = 'OPEN', epoch = epoch + 1")
            .await
            .unwrap();
        let lags =
            r#"SET session_replication_role = replica; DELETE FROM "Customers" WHERE "Id" = 50; COMMIT"#;
        writer.batch_execute(lags).await.unwrap();
    });
    let moved = "references of Orders to Customers could not be looked at: the authority of slice people moved meanwhile";
    assert_eq!((found.count, found.reasons), (0, vec![moved.to_owned()]));
    let found = bench.look_among(&among, 100).await;
    assert_eq!(keys(&found), ["199", "299", "99"], "customer 100 is not there");
    // A run that began before its own slice was flipped reads the referring rows of a copy.
    admin.batch_execute("UPDATE strangler.gate_things SET state = 'FENCED'").await.unwrap();
    let found = bench.look().await;
    assert!(found.reasons[0].ends_with("the authority of slice things moved meanwhile"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_slice_that_is_not_provisioned_are_the_monoliths_unless_it_has_closed_its_gate() {
    let bench = Bench::new(Side::Source).await;
    let people = [bench.people()];
    let damage = r#"SET session_replication_role = replica; DELETE FROM "Customers" WHERE "Id" = 7;
        RESET session_replication_role"#;
    bench.scenario.write(damage).await;
    assert_eq!(keys(&bench.look_among(&people, 100).await), ["106", "206", "6"]);
    let closed = "CREATE TABLE strangler.gate_people (LIKE strangler.gate_things);
        INSERT INTO strangler.gate_people SELECT * FROM strangler.gate_things;
        GRANT SELECT ON strangler.gate_people TO PUBLIC; UPDATE strangler.gate_people SET state = 'FENCED'";
    bench.scenario.write(closed).await;
    let error = bench.try_among(&people, 100).await.unwrap_err();
    assert!(matches!(&error, OrphanError::Astray { slice, .. } if slice == "people"), "{error}");
    bench.scenario.write("UPDATE strangler.gate_people SET state = 'OPEN'").await;
    assert_eq!(bench.look_among(&people, 100).await.count, 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_referenced_row_that_nobody_sees_yet_makes_no_orphan() {
    let bench = Bench::new(Side::Target).await;
    bench.scenario.lose_the_standby().await;
    bench.scenario.commit_invisibly(r#"INSERT INTO "Customers" VALUES (999)"#).await;
    let target = &bench.scenario.target;
    target.batch_execute(r#"UPDATE "Orders" SET customer = 999 WHERE "Id" = 1"#).await.unwrap();
    let found = bench.look().await;
    assert_eq!((found.count, found.reasons.len()), (0, 1), "{found:?}");
    assert!(
        found.reasons[0].starts_with("1 values of Orders that refer to Customers may be orphans: "),
        "{found:?}"
    );
    bench.scenario.forget_the_standby().await;
    assert_eq!(bench.look().await, Orphans::default());
}

/// Puts customers and their orders there and takes them away again, in the order that an application has to keep.
async fn come_and_go(monolith: Client, service: Client, stop: Arc<AtomicBool>) -> u32 {
    let mut turns = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = 1_000 + turns % 5;
        monolith.batch_execute(&format!(r#"INSERT INTO "Customers" VALUES ({id})"#)).await.unwrap();
        service.batch_execute(&format!(r#"INSERT INTO "Orders" VALUES ({id}, {id})"#)).await.unwrap();
        service.batch_execute(&format!(r#"DELETE FROM "Orders" WHERE "Id" = {id}"#)).await.unwrap();
        monolith.batch_execute(&format!(r#"DELETE FROM "Customers" WHERE "Id" = {id}"#)).await.unwrap();
        turns += 1;
    }
    turns
}

#[tokio::test(flavor = "multi_thread")]
async fn references_that_come_and_go_are_no_orphans() {
    let bench = Bench::new(Side::Target).await;
    let stop = Arc::new(AtomicBool::new(false));
    let service = bench.scenario.pair.service().await;
    service.batch_execute("SET SESSION AUTHORIZATION strangler_apply").await.unwrap();
    let going = tokio::spawn(come_and_go(bench.scenario.writer().await, service, Arc::clone(&stop)));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let found = bench.look().await;
        assert_eq!((found.count, found.reasons), (0, vec![]));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(going.await.unwrap() > 50, "the writer did not get on");
}
