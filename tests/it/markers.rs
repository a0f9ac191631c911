//! Markers: whoever waits for a position asks the mirror to make it durable.

use strangler::cdc::source::{MARKER_PREFIX, emit, marker_content};
use strangler::failpoint::hooks::Hooks;

use crate::support::scenario::{Run, Scenario};

const SCHEMA: &str = "CREATE TABLE things (id int PRIMARY KEY); INSERT INTO things VALUES (1)";

/// Every position that was made durable, in its order.
const WITNESS: &str = "CREATE TABLE moves (n serial, lsn pg_lsn);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        'BEGIN INSERT INTO public.moves (lsn) VALUES (NEW.applied_lsn); RETURN NULL; END';
    CREATE TRIGGER note AFTER UPDATE OF applied_lsn ON strangler.stream FOR EACH ROW EXECUTE FUNCTION note();
    ALTER TABLE strangler.stream ENABLE ALWAYS TRIGGER note";

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_makes_an_idle_mirror_note_its_position_and_one_of_another_slice_does_not() {
    let scenario = Scenario::new(SCHEMA, "      things: {}\n").await;
    let run = Run { hooks: Hooks::with(&[]), ..Run::new(&[]) };
    // Nothing is made durable because time has passed; whatever is, is because of a marker.
    run.hooks.close("stale", 0);
    let mut running = scenario.start(&run);
    scenario.until_target("SELECT bool_and(state = 'live') FROM strangler.mirror_table").await;
    running.until_phase("streaming").await;
    scenario.target.batch_execute(WITNESS).await.unwrap();
    for round in 0..20 {
        emit(&scenario.source, MARKER_PREFIX, &marker_content("other", "x")).await.unwrap();
        let position = scenario.position().await;
        emit(&scenario.source, MARKER_PREFIX, &marker_content("things", &format!("run:{round}")))
            .await
            .unwrap();
        scenario.until_target(&format!("SELECT applied_lsn > '{position}' FROM strangler.stream")).await;
    }
    let row =
        scenario.target.query_one("SELECT count(*), count(DISTINCT lsn) FROM moves", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (20, 20), "one for each marker of the slice");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_is_applied_with_what_its_transaction_and_those_before_it_wrote() {
    let scenario = Scenario::new(SCHEMA, "      things: {}\n").await;
    let run = Run { hooks: Hooks::with(&[]), ..Run::new(&[]) };
    run.hooks.close("stale", 0);
    let running = scenario.start(&run);
    scenario.until_target("SELECT bool_and(state = 'live') FROM strangler.mirror_table").await;
    for id in 2..12 {
        let position = scenario.position().await;
        scenario
            .write(&format!(
                "INSERT INTO things VALUES ({id}); \
                 BEGIN; SELECT pg_logical_emit_message(true, '{MARKER_PREFIX}', 'things:{id}'); \
                 UPDATE things SET id = -id WHERE id = {id}; COMMIT"
            ))
            .await;
        scenario.until_target(&format!("SELECT applied_lsn > '{position}' FROM strangler.stream")).await;
        let end = scenario.position().await;
        emit(&scenario.source, MARKER_PREFIX, "things:end").await.unwrap();
        scenario.until_target(&format!("SELECT applied_lsn >= '{end}' FROM strangler.stream")).await;
        scenario.assert_equal("TABLE things").await;
    }
    running.stop().await;
}
