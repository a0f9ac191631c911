//! Everything through links of least privilege, on a schema of its own and a partitioned table.

use strangler::cluster::Cluster;
use strangler::reconcile::finding::FindingKind::{Differs, Extra, Missing};

use super::found::Run;
use super::stage::{Writers, corrupt};
use crate::support::cluster::Pair;
use crate::support::split::Split;

const SHOP: &str = r#"
CREATE ROLE retail_owner NOLOGIN; CREATE ROLE retail_app LOGIN;
CREATE ROLE shop_admin LOGIN; GRANT retail_owner TO shop_admin; GRANT CREATE ON DATABASE monolith TO shop_admin;
CREATE ROLE shop_read LOGIN REPLICATION; CREATE ROLE strangler_apply LOGIN;
CREATE SCHEMA logs AUTHORIZATION retail_owner; GRANT USAGE ON SCHEMA logs TO shop_read, retail_app;
GRANT CREATE ON SCHEMA public TO retail_owner;
SET ROLE retail_owner;
CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "Note" text);
CREATE TABLE logs."Events" ("Kind" text COLLATE "en-x-icu", "At" date, "Text" text, PRIMARY KEY ("Kind", "At"))
    PARTITION BY RANGE ("At");
CREATE TABLE logs."Events_1" PARTITION OF logs."Events" FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE logs."Events_2" PARTITION OF logs."Events" FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
INSERT INTO "Orders" SELECT i, 'note ' || i FROM generate_series(1, 3000) i;
INSERT INTO logs."Events" SELECT 'kind ' || i % 7, date '2026-06-01' + i, 'text' FROM generate_series(1, 400) i;
GRANT SELECT ON "Orders", logs."Events" TO shop_read; GRANT ALL ON "Orders", logs."Events" TO retail_app;
RESET ROLE;"#;

const SERVICE: &str = "
CREATE ROLE orders_deploy LOGIN; CREATE ROLE service_owner NOLOGIN; CREATE ROLE service_app LOGIN;
GRANT service_owner TO orders_deploy; GRANT CREATE ON DATABASE service TO orders_deploy;
CREATE ROLE strangler_apply LOGIN;";

const PLAN: &str = "version: 1
plan: split
monolith: { admin: '${ADMIN}', read: '${READ}', apply: '${APPLY}' }
services:
  service: { admin: '${DEPLOY}', apply: '${WRITE}', owner: service_owner, app: service_app, into: sales }
slices:
  one: { service: service, tables: { Orders: {}, logs.Events: {} } }
";

fn write(random: &mut fastrand::Rng) -> String {
    let id = random.u32(1000..=3000);
    match random.u8(0..3) {
        0 => format!("UPDATE \"Orders\" SET \"Note\" = \"Note\" || '.' WHERE \"Id\" = {id}"),
        1 => format!("DELETE FROM \"Orders\" WHERE \"Id\" = {id}"),
        _ => format!("INSERT INTO \"Orders\" VALUES ({id}, 'new') ON CONFLICT DO NOTHING"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_of_least_privilege_compare_prove_and_repair() {
    let (mut split, monolith, service) = Split::with_plan(PLAN, SHOP).await;
    service.batch_execute(SERVICE).await.unwrap();
    let version: String = service.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    let replica = if version.as_str() < "150000" {
        "ALTER ROLE strangler_apply SET session_replication_role = replica"
    } else {
        "GRANT SET ON PARAMETER session_replication_role TO strangler_apply"
    };
    for client in [&monolith, &service] {
        client.batch_execute(replica).await.unwrap();
    }
    for (variable, role) in [("ADMIN", "shop_admin"), ("READ", "shop_read"), ("APPLY", "strangler_apply")] {
        let link = split.pair.monolith.url_as(role, "", Pair::MONOLITH);
        split.lead(variable, &link);
    }
    for (variable, role) in [("DEPLOY", "orders_deploy"), ("WRITE", "strangler_apply")] {
        let link = split.pair.service.url_as(role, "", Pair::SERVICE);
        split.lead(variable, &link);
    }
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let application = split.pair.monolith.url_as("retail_app", "", Pair::MONOLITH);
    let writers = Writers::start(&application, write).await;
    let before = writers.done();
    Run::of(&split, &["--strict", "--parallel", "8"]).assert_clean();
    corrupt(
        &service,
        r#"UPDATE sales."Orders" SET "Note" = NULL WHERE "Id" = 1; DELETE FROM sales."Orders" WHERE "Id" = 2;
           INSERT INTO sales."Orders" VALUES (9000, 'extra');
           UPDATE sales."Events" SET "Text" = '' WHERE "At" = '2026-07-01';
           DELETE FROM sales."Events" WHERE "At" = '2027-03-01';
           INSERT INTO sales."Events" VALUES ('kind', '2027-03-01', '')"#,
    )
    .await;
    let expected = [(Missing, 2), (Extra, 2), (Differs, 2)];
    let run = Run::of(&split, &["--repair"]);
    assert_eq!((run.counts(), run.ended.exit), (expected.into(), Some(0)), "{}", run.ended.page());
    Run::of(&split, &["--strict"]).assert_clean();
    writers.assert_got_on(&before);
    writers.stop().await;
    let sql = "SELECT count(*) FROM strangler.ledger WHERE kind = 'repair'";
    assert_eq!(service.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 2);
}
