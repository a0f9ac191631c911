//! The checker workload by itself: a test that relies on it must know that it finds what it should.

use strangler::cluster::{Cluster, LocalCluster, StopMode};
use tokio_postgres::{Client, Config};

use crate::support::cluster::{connect, create_database, launch};
use crate::support::wait::{SOON, until};
use crate::support::writers::{FindingKind, Ledger, Options, PLAN, Side, Table, Workload};

const DATABASE: &str = "workload";

async fn prepare() -> (LocalCluster, Config) {
    let cluster = launch();
    create_database(&cluster, DATABASE).await;
    let config = cluster.url(DATABASE).parse().unwrap();
    (cluster, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_accounts_for_every_row_and_makes_every_kind_of_change() {
    let (cluster, config) = prepare().await;
    let file = cluster.dir().join("acknowledged");
    let options = Options { acknowledged_file: Some(file.clone()), ..Options::default() };
    let ledger = Ledger::create(&config, &options).await;
    let client = connect(&cluster.url(DATABASE)).await;
    ledger.assert_verified(&client, Side::Monolith, &Table::ALL).await;
    let workload = Workload::resume(&config, &options, ledger);
    workload.advance(1_500).await;
    workload.busy().await;
    let ledger = workload.stop().await;
    ledger.assert_verified(&client, Side::Monolith, &Table::ALL).await;
    ledger.assert_every_kind();
    let sum: i64 = client.query_one("SELECT sum(balance)::bigint FROM accounts", &[]).await.unwrap().get(0);
    assert_eq!(sum, 64_000, "transfers keep the sum");
    let lines = std::fs::read_to_string(file).unwrap().lines().count();
    assert_eq!(lines, ledger.acknowledged(), "the file names every acknowledged transaction");

    let resumed = Workload::resume(&config, &options, ledger);
    resumed.advance(200).await;
    assert!(resumed.acknowledged() >= 200);
    resumed.stop().await.assert_verified(&client, Side::Monolith, &Table::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_the_service_side_are_those_of_the_plan() {
    let (cluster, config) = prepare().await;
    let ledger = Ledger::create(&config, &Options { rows: 400, ..Options::default() }).await;
    let client = connect(&cluster.url(DATABASE)).await;
    // The mapping of the plan, by hand.
    let mapped = r#"CREATE SCHEMA service;
        CREATE TABLE service.moves AS SELECT "Id" AS id, "Writer", "Seq", "Ticket", "Tag" AS label FROM "Moves";
        CREATE TABLE service.documents AS SELECT id, writer, seq, title AS heading, body FROM documents;
        SET search_path = service, public"#;
    client.batch_execute(mapped).await.unwrap();
    for name in ["to: moves", "Id: id", "Tag: label", "Legacy: { drop: true }", "title: heading"] {
        assert!(PLAN.contains(name), "{name}");
    }
    for table in Table::LEFT.iter().chain(&Table::RIGHT) {
        ledger.assert_verified(&client, Side::Service, &[*table]).await;
    }
    client
        .batch_execute("DELETE FROM service.moves WHERE id = (SELECT max(id) FROM service.moves)")
        .await
        .unwrap();
    assert_eq!(ledger.verify(&client, Side::Service, &Table::LEFT).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_survives_crashes_of_the_server() {
    let (mut cluster, config) = prepare().await;
    let workload = Workload::start(&config, &Options { per_second: None, ..Options::default() }).await;
    for _ in 0..4 {
        workload.advance(150).await;
        workload.busy().await;
        cluster.stop(StopMode::Immediate).unwrap();
        cluster.start().unwrap();
    }
    workload.advance(150).await;
    let ledger = workload.stop().await;
    assert!(ledger.counts.lost >= 8, "the writers lost their connections: {:?}", ledger.counts);
    let client = connect(&cluster.url(DATABASE)).await;
    ledger.assert_verified(&client, Side::Monolith, &Table::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_looked_up() {
    let (mut cluster, config) = prepare().await;
    let workload = Workload::start(&config, &Options { rows: 400, ..Options::default() }).await;
    workload.advance(50).await;
    // Waiting for a standby that does not exist, a transaction is committed and its client does not hear of it.
    let admin = connect(&cluster.admin_url()).await;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    until("writers wait for the standby", SOON, || async {
        let count: i64 = admin.query_one(waiting, &[]).await.unwrap().get(0);
        (count >= 4).then_some(())
    })
    .await;
    cluster.stop(StopMode::Immediate).unwrap();
    cluster.start().unwrap();
    let admin = connect(&cluster.admin_url()).await;
    admin.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    workload.advance(50).await;
    let ledger = workload.stop().await;
    assert!(ledger.counts.unknown_committed >= 4, "{:?}", ledger.counts);
    let client = connect(&cluster.url(DATABASE)).await;
    ledger.assert_verified(&client, Side::Monolith, &Table::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_fails_for_each_row_that_is_lost_changed_or_doubled() {
    let (cluster, config) = prepare().await;
    let options = Options { rows: 400, truncate: false, ..Options::default() };
    let workload = Workload::start(&config, &options).await;
    workload.advance(300).await;
    let ledger = workload.stop().await;
    let client = connect(&cluster.url(DATABASE)).await;
    ledger.assert_verified(&client, Side::Monolith, &Table::ALL).await;

    for (table, damage) in DAMAGES {
        let kinds = findings_after(&client, &ledger, damage).await;
        let expected = match damage.split_once(' ').unwrap().0 {
            "DELETE" if *table != Table::Events => vec!["missing"],
            "INSERT" if *table != Table::Events => vec!["extra"],
            "ALTER" => vec!["duplicate"],
            _ => vec!["differs"],
        };
        assert_eq!(kinds, [(*table, expected[0])], "{damage}");
    }
}

/// One row each; a batch of `events` is compared as a whole, so there every damage is a difference.
const DAMAGES: &[(Table, &str)] = &[
    (Table::Accounts, "UPDATE accounts SET balance = balance + 1 WHERE id = 7"),
    (Table::Moves, r#"DELETE FROM "Moves" WHERE "Id" = (SELECT max("Id") FROM "Moves")"#),
    (Table::Moves, r#"UPDATE "Moves" SET "Tag" = 'x' WHERE "Id" = (SELECT min("Id") FROM "Moves")"#),
    (Table::Moves, r#"INSERT INTO "Moves" SELECT -1, "Writer", "Seq", -1, "Tag" FROM "Moves" LIMIT 1"#),
    (
        Table::Moves,
        r#"ALTER TABLE "Moves" DROP CONSTRAINT "Moves_pkey", DROP CONSTRAINT "Moves_Ticket_key"; INSERT INTO "Moves" SELECT * FROM "Moves" LIMIT 1"#,
    ),
    (Table::Sessions, "DELETE FROM sessions WHERE id = (SELECT id FROM sessions ORDER BY id LIMIT 1)"),
    (
        Table::Sessions,
        "UPDATE sessions SET state = '' WHERE id = (SELECT id FROM sessions ORDER BY id LIMIT 1)",
    ),
    (Table::Places, "UPDATE places SET amount = -1 WHERE slot = (SELECT min(slot) FROM places)"),
    (Table::Documents, "DELETE FROM documents WHERE id = (SELECT min(id) FROM documents)"),
    (
        Table::Documents,
        "UPDATE documents SET body = left(body, 9000) WHERE id = (SELECT min(id) FROM documents)",
    ),
    (Table::Documents, "UPDATE documents SET seq = seq - 1 WHERE id = (SELECT min(id) FROM documents)"),
    (Table::Events, "DELETE FROM events WHERE id = (SELECT min(id) FROM events)"),
    (Table::Events, "UPDATE events SET payload = 'x' WHERE id = (SELECT min(id) FROM events)"),
    (
        Table::Events,
        "INSERT INTO events (writer, seq, n, payload) SELECT writer, seq, n, payload FROM events ORDER BY id LIMIT 1",
    ),
    (Table::Done, "DELETE FROM done WHERE (writer, seq) = (SELECT writer, seq FROM done LIMIT 1)"),
    (Table::Done, "INSERT INTO done VALUES (0, -1, 'tx')"),
];

/// What verification says while the damage is there; it is rolled back.
async fn findings_after(client: &Client, ledger: &Ledger, damage: &str) -> Vec<(Table, &'static str)> {
    client.batch_execute(&format!("BEGIN; {damage}")).await.unwrap();
    let findings = ledger.verify(client, Side::Monolith, &Table::ALL).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    let name = |kind: &FindingKind| match kind {
        FindingKind::Missing => "missing",
        FindingKind::Extra => "extra",
        FindingKind::Duplicate => "duplicate",
        FindingKind::Differs { .. } => "differs",
    };
    findings.iter().map(|finding| (finding.table, name(&finding.kind))).collect()
}
