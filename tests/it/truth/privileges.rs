//! Everything through links of least privilege, on a schema of its own and a partitioned table.

use strangler::cluster::Cluster;
use strangler::reconcile::finding::FindingKind::{Differs, Extra, Missing};

use super::found::Run;
use super::stage::{Writers, corrupt};
use crate::support::cluster::Pair;
use crate::support::privilege;

const SCHEMA: &str = r#"
GRANT USAGE ON SCHEMA logs TO retail_app;
CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "Note" text);
CREATE TABLE logs."Events" ("Kind" text COLLATE "en-x-icu", "At" date, "Text" text, PRIMARY KEY ("Kind", "At"))
    PARTITION BY RANGE ("At");
CREATE TABLE logs."Events_1" PARTITION OF logs."Events" FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE logs."Events_2" PARTITION OF logs."Events" FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
INSERT INTO "Orders" SELECT i, 'note ' || i FROM generate_series(1, 3000) i;
INSERT INTO logs."Events" SELECT 'kind ' || i % 7, date '2026-06-01' + i, 'text' FROM generate_series(1, 400) i;
GRANT SELECT ON "Orders", logs."Events" TO shop_read; GRANT ALL ON "Orders", logs."Events" TO retail_app"#;

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
    let (split, monolith, service) = privilege::open("{ Orders: {}, logs.Events: {} }", SCHEMA).await;
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
