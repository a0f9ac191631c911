//! What an armed table lets through, and what it refuses.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::stage::{Stage, rows};
use crate::support::cluster::{Pair, connect};

async fn count(client: &Client, sql: &str) -> u64 {
    client.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// Writes of every kind, each with the rows that it must report, on a partitioned table.
const COUNTED: &[(&str, u64)] = &[
    ("INSERT INTO moves SELECT i, date '2024-03-01' + i, NULL FROM generate_series(10, 14) i", 5),
    ("INSERT INTO moves_rest VALUES (20, '2030-01-01'), (21, '2030-01-02')", 2),
    ("UPDATE moves SET product = 1 WHERE id >= 10", 7),
    ("UPDATE moves_2024 SET product = 2 WHERE id >= 10", 5),
    // From one partition into the other.
    ("UPDATE moves SET at = '2031-01-01' WHERE id = 10", 1),
    ("DELETE FROM moves WHERE id IN (10, 11, 20)", 3),
    ("DELETE FROM moves_rest WHERE id = 21", 1),
    ("INSERT INTO moves VALUES (12, '2024-03-13') ON CONFLICT (id, at) DO UPDATE SET product = 3", 1),
    ("DELETE FROM moves WHERE id >= 10", 3),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_open_gate_changes_no_row_count_and_neither_does_a_fenced_one_for_the_mirror() {
    let stage = Stage::mirrored().await;
    let app = stage.app().await;
    let everything = "SELECT * FROM moves ORDER BY id";
    let before = rows(&stage.monolith, everything).await;
    for (sql, expected) in COUNTED {
        assert_eq!(count(&app, sql).await, *expected, "without a gate: {sql}");
    }
    stage.succeed("arm", &[]);
    for (sql, expected) in COUNTED {
        assert_eq!(count(&app, sql).await, *expected, "with an open gate: {sql}");
    }
    stage.fence().await;
    let apply = strangler::cluster::Cluster::url_as(
        &stage.split.pair.monolith,
        "strangler_apply",
        "",
        Pair::MONOLITH,
    );
    let apply = connect(&apply).await;
    for (sql, expected) in COUNTED {
        let Some(table) = sql.split_whitespace().find(|word| word.starts_with("moves")) else { continue };
        if table != "moves" {
            // The mirror writes through the root, on which arm gave it the rights.
            continue;
        }
        let expected = match *sql {
            "UPDATE moves SET product = 1 WHERE id >= 10" => 5,
            "DELETE FROM moves WHERE id IN (10, 11, 20)" => 2,
            _ => *expected,
        };
        assert_eq!(count(&apply, sql).await, expected, "the mirror at a fenced gate: {sql}");
    }
    assert_eq!(rows(&stage.monolith, everything).await, before);
    apply.batch_execute("BEGIN; TRUNCATE lines, moves; ROLLBACK").await.unwrap();
}

/// Statements that write into tables of the slice, each by another way.
fn writes(version: u32) -> Vec<&'static str> {
    let mut all = vec![
        "INSERT INTO lines VALUES (50, 1, 1)",
        "UPDATE lines SET product = 2",
        "UPDATE lines SET product = 2 WHERE false",
        "DELETE FROM lines WHERE id = 1",
        "INSERT INTO lines VALUES (1, 1, 1) ON CONFLICT (id) DO NOTHING",
        "INSERT INTO lines VALUES (1, 1, 1) ON CONFLICT (id) DO UPDATE SET product = 3",
        "WITH gone AS (DELETE FROM lines RETURNING id) SELECT count(*) FROM gone",
        "COPY lines FROM STDIN",
        "TRUNCATE lines",
        "TRUNCATE moves",
        "TRUNCATE moves_2024",
        "INSERT INTO moves VALUES (50, '2024-01-05', 1)",
        "INSERT INTO moves_2024 VALUES (50, '2024-01-05', 1)",
        "UPDATE moves_rest SET product = 1",
        "DELETE FROM moves_2024",
        // The key inside the slice carries it on.
        "DELETE FROM \"Orders\" WHERE id = 1",
        // A trigger of a staying table that writes into the slice.
        "INSERT INTO \"Customers\" VALUES (99)",
    ];
    if version >= 15 {
        all.push(
            "MERGE INTO lines USING (VALUES (1)) AS v (id) ON lines.id = v.id WHEN MATCHED THEN DELETE \
             WHEN NOT MATCHED THEN INSERT VALUES (v.id, 1, 1)",
        );
    }
    all
}

async fn refusal(client: &Client, sql: &str) -> tokio_postgres::error::DbError {
    let outcome = if sql.starts_with("COPY") {
        let sink = client.copy_in::<_, &[u8]>(sql).await.unwrap();
        std::pin::pin!(sink).finish().await.map(drop)
    } else {
        client.batch_execute(sql).await
    };
    outcome.expect_err(sql).as_db_error().unwrap_or_else(|| panic!("{sql}: not the server's")).clone()
}

/// As an ordinary role, as a superuser, and as one whose session keeps ordinary triggers quiet.
async fn writers(stage: &Stage) -> Vec<(&'static str, Client)> {
    let quiet = stage.split.pair.monolith().await;
    quiet.batch_execute("SET session_replication_role = replica").await.unwrap();
    vec![("app", stage.app().await), ("superuser", stage.split.pair.monolith().await), ("replica", quiet)]
}

async fn every_way_is_refused(stage: &Stage) {
    stage
        .monolith
        .batch_execute(
            "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 INSERT INTO \"Orders\" VALUES (NEW.id, NEW.id); RETURN NULL; END $$; \
             CREATE TRIGGER follow AFTER INSERT ON \"Customers\" FOR EACH ROW EXECUTE FUNCTION follow(); \
             ALTER TABLE \"Customers\" ENABLE ALWAYS TRIGGER follow",
        )
        .await
        .unwrap();
    stage.fence().await;
    let version = strangler::cluster::Cluster::version_num(&stage.split.pair.monolith) / 10_000;
    for sql in writes(version) {
        // Sessions of their own: the client library loses step with the server when COPY fails.
        for (who, client) in writers(stage).await {
            let error = refusal(&client, sql).await;
            assert_eq!(*error.code(), SqlState::READ_ONLY_SQL_TRANSACTION, "{who}: {sql}: {error}");
            let hint = "slice one, epoch 2: retry the whole transaction on the owner, service";
            assert_eq!(error.hint(), Some(hint), "{who}: {sql}");
            assert!(error.message().ends_with("is owned by service"), "{who}: {sql}: {error}");
        }
    }
    let read = rows(&stage.monolith, "SELECT count(*) FROM lines").await;
    assert_eq!(read, ["3"], "reading is free");
    let locked = stage.app().await;
    locked.batch_execute("BEGIN; SELECT * FROM lines FOR UPDATE; COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_writing_a_fenced_table_fails_with_the_owner_in_the_hint() {
    every_way_is_refused(&Stage::armed().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_from_a_staying_table_meets_the_gate_when_its_key_came_back() {
    let stage = Stage::armed().await;
    // Somebody makes the key anew after arm dropped it.
    stage
        .monolith
        .batch_execute(
            "ALTER TABLE \"Orders\" ADD FOREIGN KEY (customer) REFERENCES \"Customers\" ON DELETE CASCADE",
        )
        .await
        .unwrap();
    stage.fence().await;
    let error = refusal(&stage.app().await, "DELETE FROM \"Customers\" WHERE id = 2").await;
    assert_eq!(*error.code(), SqlState::READ_ONLY_SQL_TRANSACTION, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_with_an_old_snapshot_get_40001_after_the_fence() {
    let stage = Stage::armed().await;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        for write in ["UPDATE lines SET product = 1", "INSERT INTO moves VALUES (60, '2024-01-01', 1)"] {
            stage
                .monolith
                .batch_execute("UPDATE strangler.gate_one SET state = 'OPEN', epoch = epoch + 1")
                .await
                .unwrap();
            let app = stage.app().await;
            app.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}; SELECT * FROM audit"))
                .await
                .unwrap();
            stage.fence().await;
            let error = refusal(&app, write).await;
            assert_eq!(*error.code(), SqlState::T_R_SERIALIZATION_FAILURE, "{isolation}: {write}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_and_the_newest_version_refuse_the_same() {
    let installed = strangler::cluster::Binaries::find_all().unwrap();
    for major in [14, 18] {
        if let Some(binaries) = installed.iter().find(|binaries| binaries.version.major == major) {
            let stage = Stage::on(binaries, binaries).await;
            stage.succeed("arm", &[]);
            every_way_is_refused(&stage).await;
        }
    }
}
