//! What the service has of its own in a row is nowhere else: a repair of the row keeps it.

use strangler::journal::repairs::RepairState;

use super::{MINE, SCHEMA, TABLES, all_done, answered, corrupt, live, request};
use crate::support::scenario::{Run, Scenario};
use crate::support::tables::{Side, assert_same};

const COPY: &str = "SELECT id, kind, u, note, big FROM things";

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_keeps_what_the_service_has_of_its_own_in_a_row() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let running = scenario.start(&Run::new(&[]));
    live(&scenario).await;
    let target = &scenario.target;
    // The mirror runs already. Row 3 is set in place; values that rows hold from each other take that they go and come again.
    let own = "ALTER TABLE things ADD COLUMN svc_note text, ADD COLUMN seen int NOT NULL DEFAULT 0;
        ALTER TABLE things ALTER seen DROP DEFAULT";
    target.batch_execute(own).await.unwrap();
    corrupt(
        target,
        "UPDATE things SET svc_note = 'of ' || id, seen = id;
         UPDATE things SET note = 'wrong' WHERE id = 3;
         UPDATE things SET u = -5 WHERE id = 5; UPDATE things SET u = 5 WHERE id = 6; UPDATE things SET u = 6 WHERE id = 5",
    )
    .await;
    let key = |id: i32| (vec![id.to_string(), "in".to_owned()], "differs");
    for rows in [&[key(3)] as &[_], &[key(5), key(6)]] {
        let ids = request(target, "things", "things", rows).await;
        all_done(&answered(target, &ids).await);
    }
    let kept = "SELECT count(*) FROM things WHERE svc_note = 'of ' || id AND seen = id";
    assert_eq!(target.query_one(kept, &[]).await.unwrap().get::<_, i64>(0), 60);
    assert_same(Side { client: &scenario.source, query: MINE }, Side { client: target, query: COPY }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_row_that_hold_values_of_the_service_s_own_are_refused_by_the_column_s_name() {
    let scenario = Scenario::new(SCHEMA, TABLES).await;
    let running = scenario.start(&Run::new(&[]));
    live(&scenario).await;
    let target = &scenario.target;
    let own = "ALTER TABLE things DROP CONSTRAINT things_pkey; DROP INDEX things_u; ALTER TABLE things ADD COLUMN \"svc note\" text";
    target.batch_execute(own).await.unwrap();
    corrupt(
        target,
        "INSERT INTO things SELECT t.* FROM things t WHERE id < 4; UPDATE things SET \"svc note\" = 'only here' WHERE id = 1",
    )
    .await;
    let rows: Vec<_> = (1..4).map(|id| (vec![id.to_string(), "in".to_owned()], "duplicate")).collect();
    let ids = request(target, "things", "things", &rows).await;
    let outcomes = answered(target, &ids).await;
    assert_eq!(outcomes[0].state, RepairState::Refused, "{outcomes:?}");
    let why = outcomes[0].detail.as_deref().unwrap();
    assert!(why.contains("2 rows have its key, and column \"svc note\", which is not mapped"), "{why}");
    all_done(&outcomes[1..]);
    let left = "SELECT count(*) FROM things WHERE id = 1 AND \"svc note\" = 'only here'";
    assert_eq!(target.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 2);

    corrupt(
        target,
        "UPDATE things SET \"svc note\" = NULL WHERE ctid = (SELECT min(ctid) FROM things WHERE id = 1);
         DELETE FROM things WHERE id = 1 AND \"svc note\" IS NULL",
    )
    .await;
    let ids = request(target, "things", "things", &rows[..1]).await;
    all_done(&answered(target, &ids).await);
    assert_eq!(target.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_same(Side { client: &scenario.source, query: MINE }, Side { client: target, query: COPY }).await;
    running.stop().await;
}
