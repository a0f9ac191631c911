//! Rows that a comparison found in the service alone, or otherwise than on the monolith, are not taken in silence.

use tokio_postgres::Client;

use super::{abandon, take_back, token};
use crate::support::binary::flat;
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 20) i;
    CREATE TABLE lines (id int PRIMARY KEY, v text); INSERT INTO lines SELECT i, 'v' FROM generate_series(1, 20) i";

/// As somebody writes who is let past the gate, where no mirror sees it.
async fn past_the_gate(service: &Client, sql: &str) {
    let sql = format!(
        "SET session_replication_role = replica; ALTER TABLE orders DISABLE TRIGGER aa_strangler_gate; {sql}; \
        ALTER TABLE orders ENABLE ALWAYS TRIGGER aa_strangler_gate; RESET session_replication_role"
    );
    service.batch_execute(&sql).await.unwrap();
}

fn drops(split: &Split, table: &str) -> bool {
    let preview = abandon(split, "one", &[]);
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    let line =
        preview.stdout.lines().find(|line| line.starts_with("DROP TABLE \"public\"")).unwrap_or_default();
    line.contains(&format!("\"{table}\""))
}

/// Brings the mirror to where it has everything, does something past the gate, and compares, which must come to this exit code.
async fn compared(split: &Split, (monolith, service): (&Client, &Client), past: &str, exit: i32) {
    // It has caught up only once it has this, which the one before it has not read.
    monolith.batch_execute("UPDATE orders SET v = v WHERE id = 1").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    past_the_gate(service, past).await;
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(exit), "{past}: {}", compared.page());
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_of_which_the_last_verdict_names_rows_of_the_service_stays() {
    let (split, monolith, service) = Split::launch("{ orders: {}, lines: {} }", SETUP).await;
    split.provision();
    let both = (&monolith, &service);
    for (wrong, right, words) in [
        ("INSERT INTO orders VALUES (99, 'own')", "DELETE FROM orders WHERE id = 99", "1 extra"),
        ("UPDATE orders SET v = 'own' WHERE id = 3", "UPDATE orders SET v = 'v' WHERE id = 3", "1 differs"),
    ] {
        compared(&split, both, "SELECT 1", 0).await;
        assert!(drops(&split, "orders") && drops(&split, "lines"), "so it would be");
        compared(&split, both, wrong, 1).await;
        let preview = abandon(&split, "one", &[]);
        for words in ["(table-stays)", "(ledger entry", words] {
            assert!(flat(&preview.stderr).contains(words), "{words}: {}", preview.page());
        }
        assert!(!drops(&split, "orders") && drops(&split, "lines"), "{}", preview.page());
        compared(&split, both, right, 0).await;
        assert!(drops(&split, "orders"), "a later comparison has taken it back");
    }
    // What the service lacks is in no danger.
    compared(&split, both, "DELETE FROM orders WHERE id = 5", 1).await;
    assert!(drops(&split, "orders"));
    compared(&split, both, "INSERT INTO orders VALUES (5, 'v'), (99, 'own')", 1).await;
    let done = abandon(&split, "one", &["--confirm", &token(&abandon(&split, "one", &[]))]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    let left = "SELECT count(*) FROM orders WHERE id = 99";
    assert_eq!(service.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 1, "{}", done.page());
    // It is of an earlier life then.
    service.batch_execute("DROP TABLE orders").await.unwrap();
    split.provision();
    compared(&split, both, "SELECT 1", 0).await;
    take_back(&split, "one", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_copied_anew_since_are_not_those_that_a_verdict_names() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    compared(&split, (&monolith, &service), "INSERT INTO orders VALUES (99, 'own')", 1).await;
    assert!(!drops(&split, "orders"));
    monolith.batch_execute("UPDATE orders SET v = v WHERE id = 1").await.unwrap();
    let mirror = split.mirror_with(None, &["--rebuild"]);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    assert!(drops(&split, "orders"));
}
