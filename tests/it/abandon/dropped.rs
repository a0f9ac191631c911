//! A slice whose old tables are dropped, or about to be, is not taken back; and what is written down of it keeps our schema.

use tokio_postgres::Client;

use super::{abandon, refused, token};
use crate::support::binary::flat;
use crate::support::split::Split;

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: { orders: {} } } }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')";

/// What `retire --stage drop` writes down: in the service when it is decided, on the monolith when the tables go.
async fn note(client: &Client, (slice, side): (&str, &str)) {
    let sql = format!(
        "INSERT INTO strangler.dropped (slice, plan, service, side, epoch, token, place, manifest_sha256, archived_at, reverse_lsn, \
            leftover, fragment, monolith_system_identifier, monolith_oid, monolith_uuid) VALUES ('{slice}', 'split', 'service', '{side}', 2, 't', '/archive', repeat('a', 64), now(), '0/1', '{{}}', \
            '{{\"tables\": [], \"sequences\": [], \"foreign_keys\": []}}', '1', 1, gen_random_uuid())"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_whose_old_tables_are_dropped_or_being_dropped_stays() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let shown = token(&abandon(&split, "one", &[]));
    // What the monolith alone has written down, the service has forgotten, and so may lack rows.
    note(&monolith, ("one", "monolith")).await;
    for arguments in [&[][..], &["--confirm", &shown]] {
        let words = ["service service knows nothing of that", "--stage drop"];
        refused(&abandon(&split, "one", arguments), "drop-forgotten", &words);
    }
    monolith.batch_execute("DELETE FROM strangler.dropped").await.unwrap();
    note(&service, ("one", "service")).await;
    for arguments in [&[][..], &["--confirm", &shown]] {
        let words = ["its old tables are being dropped since", "--stage drop"];
        refused(&abandon(&split, "one", arguments), "slice-dropped", &words);
    }
    service.batch_execute("UPDATE strangler.dropped SET ended_at = now()").await.unwrap();
    refused(&abandon(&split, "one", &[]), "slice-dropped", &["its old tables were dropped at"]);
    service.batch_execute("DELETE FROM strangler.dropped").await.unwrap();
    token(&abandon(&split, "one", &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_stays_wherever_it_tells_of_another_slice_whose_old_tables_are_dropped() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    note(&monolith, ("before", "monolith")).await;
    note(&service, ("before", "service")).await;
    let preview = abandon(&split, "one", &["--drop-ledger"]);
    assert!(!preview.stdout.contains("DROP SCHEMA strangler"), "{}", preview.page());
    let done = abandon(&split, "one", &["--drop-ledger", "--confirm", &token(&preview)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    let said = flat(&done.stderr);
    assert_eq!(said.matches("(schema-stays)").count(), 2, "{}", done.page());
    assert!(
        said.contains("what is written down of slices whose old tables are dropped: before"),
        "{}",
        done.page()
    );
    for client in [&monolith, &service] {
        let left = "SELECT (SELECT count(*) FROM strangler.dropped) = 1 AND NOT EXISTS (SELECT FROM strangler.slice)";
        assert!(client.query_one(left, &[]).await.unwrap().get::<_, bool>(0), "{}", done.page());
    }
}
