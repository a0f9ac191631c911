//! `status` against real databases whose rows stand as the mirror leaves them.

use std::time::Duration;

use strangler::journal::migrate;
use strangler::status::judge::Commands;
use strangler::status::read;
use strangler::status::{Authority, Phase, Side, SliceFacts, SliceStatus, judge};
use tokio_postgres::Client;

use crate::support::cluster::Pair;

/// The tables of our own with one slice on both sides, mirrored by process 42 up to where the monolith is now.
async fn mirrored(pair: &Pair) -> (Client, Client) {
    let (mut monolith, mut service) = (pair.monolith().await, pair.service().await);
    for (client, side, gate) in [(&mut monolith, "monolith", "OPEN"), (&mut service, "service", "FENCED")] {
        migrate::run(client).await.unwrap();
        let sql = format!(
            "INSERT INTO strangler.slice (slice, plan, service, side, plan_hash, publication)
                VALUES ('ordering', 'retail', 'orders', '{side}', 'hash', 'strangler_retail_ordering');
            CREATE TABLE strangler.gate_ordering (one bool PRIMARY KEY DEFAULT true, state text NOT NULL,
                epoch bigint NOT NULL, cause text, owner text);
            INSERT INTO strangler.gate_ordering (state, epoch) VALUES ('{gate}', 4)"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    let slot =
        "SELECT lsn::text FROM pg_create_logical_replication_slot('strangler_retail_ordering', 'pgoutput')";
    let lsn: String = monolith.query_one(slot, &[]).await.unwrap().get(0);
    let sql = format!(
        "INSERT INTO strangler.stream (slice, dir, epoch, mode, state, slot, publication, src_system_identifier,
                src_database_oid, src_uuid, src_timeline, applied_lsn, source_time, nonce)
            VALUES ('ordering', 'forward', 4, 'APPLY', 'running', 'strangler_retail_ordering', 'p', 's', 1,
                gen_random_uuid(), 1, '{lsn}', now(), 9);
        INSERT INTO strangler.mirror_process (slice, dir, nonce, host, pid, phase)
            VALUES ('ordering', 'forward', 9, 'box', 42, 'streaming');
        INSERT INTO strangler.mirror_table (slice, source_table, target_table, state, rows_copied, rows_estimate)
            VALUES ('ordering', 'public.Orders', 'public.orders', 'live', 70, 80)"
    );
    service.batch_execute(&sql).await.unwrap();
    (monolith, service)
}

async fn status(monolith: &Client, service: &Client) -> SliceStatus {
    let slices = ["ordering"];
    let take = "ordering";
    let mut on_service = read::service(service, &slices).await.unwrap().remove(take).unwrap();
    // The service has rows of ours and nothing else: neither tables nor the gate's function.
    on_service.unguarded.clear();
    on_service.unfit.clear();
    let facts = SliceFacts {
        slice: take.to_owned(),
        service: "orders".to_owned(),
        wal_budget_bytes: 1_000_000_000,
        evidence_max_age: Duration::from_secs(86_400),
        service_side: Side::Read(on_service),
        monolith_side: Side::Read(read::monolith(monolith, &slices).await.unwrap().remove(take).unwrap()),
        astray: std::collections::BTreeSet::new(),
        claimed: Vec::new(),
        mapping_changed: false,
        earlier: None,
    };
    judge(&facts, &Commands::about("retail.yaml"))
}

#[tokio::test]
async fn untouched_databases_are_not_provisioned() {
    let pair = Pair::launch().await;
    let status = status(&pair.monolith().await, &pair.service().await).await;
    assert_eq!(
        (status.phase, status.authority, status.epoch),
        (Phase::NotProvisioned, Authority::Unknown, None)
    );
}

#[tokio::test]
async fn status_follows_a_mirror_that_runs_falls_behind_stops_and_dies() {
    let pair = Pair::launch().await;
    let (monolith, service) = mirrored(&pair).await;

    let running = status(&monolith, &service).await;
    assert_eq!(
        (running.phase, running.authority, running.epoch),
        (Phase::Streaming, Authority::Monolith, Some(4))
    );
    assert_eq!((running.rows_copied, running.rows_estimate), (70, 80));
    assert!(running.alarms.is_empty(), "{:?}", running.alarms);

    monolith.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10000)").await.unwrap();
    let behind = status(&monolith, &service).await;
    let wal = behind.wal.unwrap();
    assert!(behind.lag.unwrap().bytes.unwrap() > 100_000);
    assert!(wal.held_bytes > 100_000 && !wal.active && wal.wal_status == "reserved", "{wal:?}");

    let process = |change: &str| format!("UPDATE strangler.mirror_process SET {change}");
    service.batch_execute(&process("stopped_at = now(), seen_at = now() - interval '1 day'")).await.unwrap();
    assert_eq!(status(&monolith, &service).await.phase, Phase::Stopped);
    service.batch_execute(&process("stopped_at = NULL, seen_at = now() - interval '11 s'")).await.unwrap();
    let dead = status(&monolith, &service).await;
    assert_eq!(dead.phase, Phase::Dead);
    assert_eq!(dead.next.as_deref(), Some("strangler mirror retail.yaml --slice ordering"));

    monolith.batch_execute("SELECT pg_drop_replication_slot('strangler_retail_ordering')").await.unwrap();
    assert_eq!(status(&monolith, &service).await.phase, Phase::Gap);
}

#[tokio::test]
async fn rows_of_unfinished_pieces_count_and_outstanding_objects_are_listed() {
    let pair = Pair::launch().await;
    let (monolith, service) = mirrored(&pair).await;
    service
        .batch_execute(
            "INSERT INTO strangler.mirror_table (slice, source_table, target_table, state, rows_estimate,
                    copy_started_at)
                VALUES ('ordering', 'public.Lines', 'public.lines', 'copying', 1000, now() - interval '10 s');
            INSERT INTO strangler.part VALUES ('ordering', 'public.Lines', 1, 4, '1:1:', 250);
            INSERT INTO strangler.deferred (slice, target_table, kind, object, create_sql, done_at)
                VALUES ('ordering', 'public.lines', 'foreign_key', 'lines_fk', '', NULL),
                    ('ordering', 'public.lines', 'index', 'lines_i', '', now())",
        )
        .await
        .unwrap();
    let status = status(&monolith, &service).await;
    assert_eq!((status.phase, status.rows_copied), (Phase::Copying, 320));
    assert_eq!(status.deferred, ["foreign key lines_fk on public.lines"]);
    let left = status.copy_seconds_left.unwrap();
    assert!((29.0..40.0).contains(&left), "750 rows to go at 25 a second, not {left}");
}
