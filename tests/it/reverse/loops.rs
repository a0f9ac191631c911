//! Nothing goes round in circles: three safeguards, and any of them may fail.

use strangler::failpoint::hooks::{Hooks, Mutant};
use strangler::journal::streams::Direction;

use super::inside::Inside;
use super::stage::{Stage, Way, holds};
use crate::support::wait::{SOON, until};

/// Rows that a loop would multiply, or fail at.
const WRITES: &str = "INSERT INTO pairs SELECT i, 'loop', i FROM generate_series(5001, 5050) i; \
    UPDATE pairs SET v = v + 200000 WHERE a BETWEEN 5001 AND 5010; DELETE FROM pairs WHERE a = 5050";

/// Counts every row that anybody writes to a table, the mirror included, on both sides.
async fn armed_and_counted() -> Stage {
    let stage = Stage::armed().await;
    let count = "CREATE TABLE written (n int); \
        CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS \
            $$ BEGIN INSERT INTO public.written VALUES (1); RETURN NULL; END $$; \
        CREATE TRIGGER written AFTER INSERT OR UPDATE OR DELETE ON pairs FOR EACH ROW \
            EXECUTE FUNCTION note_written(); \
        ALTER TABLE pairs ENABLE ALWAYS TRIGGER written";
    stage.on_monolith(count).await;
    stage.on_service(count).await;
    stage
}

async fn written(stage: &Stage, way: Way) -> i64 {
    let client = match way {
        Way::Forward => &stage.service,
        Way::Reverse => &stage.monolith,
    };
    stage.count(client, "SELECT count(*) FROM written").await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tags_the_cut_and_the_one_direction_keep_changes_from_coming_back() {
    let stage = armed_and_counted().await;
    let inside = Inside::start(&stage, Hooks::with(&[Mutant::NoTag])).await;
    stage.on_monolith(WRITES).await;
    stage.arrived(Way::Forward).await;
    // The tripwire takes the mirror's own writes for stray ones now, and writes nothing.
    stage.watched(Way::Reverse).await;
    assert!(!stage.alarms().await.is_empty());
    let before = written(&stage, Way::Reverse).await;
    stage.flip(2).await;
    stage.on_service("UPDATE pairs SET v = v + 1000000 WHERE a = 5020").await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    // Only the service's own row: what had come from the monolith is before the cut.
    assert_eq!(written(&stage, Way::Reverse).await - before, 1);
    assert_eq!(inside.stop().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_began_before_the_cut_knows_the_mirrors_own_by_their_tag() {
    let stage = armed_and_counted().await;
    let start = "SELECT applied_lsn::text FROM strangler.stream WHERE dir = 'reverse'";
    let start: String = stage.monolith.query_one(start, &[]).await.unwrap().get(0);
    let mirror = stage.split.mirror(None);
    stage.on_monolith(WRITES).await;
    stage.arrived(Way::Forward).await;
    mirror.kill();
    let before = written(&stage, Way::Reverse).await;
    // The slot still holds everything from its start, as if nobody had looked at the cut.
    stage.on_monolith("UPDATE strangler.gate_one SET state = 'FENCED', epoch = 2, cause = 'fence'").await;
    stage.open_service(2).await;
    let slot = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'back_one'";
    let slot: String = stage.service.query_one(slot, &[]).await.unwrap().get(0);
    let from = if slot > start { slot } else { start };
    stage
        .on_monolith(&format!(
            "UPDATE strangler.stream SET mode = 'APPLY', epoch = 2, applied_lsn = '{from}' WHERE dir = 'reverse'"
        ))
        .await;
    let mirror = stage.mirror().await;
    stage.on_service("UPDATE pairs SET v = v + 1000000 WHERE a = 5020").await;
    stage.arrived(Way::Reverse).await;
    stage.assert_equal().await;
    assert_eq!(written(&stage, Way::Reverse).await - before, 1);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_direction_that_applies_in_the_same_epoch_is_refused_by_the_gate_beside_its_row() {
    let stage = armed_and_counted().await;
    // Tags are off, so that only the gate is left.
    let inside = Inside::start(&stage, Hooks::with(&[Mutant::NoTag])).await;
    stage.watched(Way::Reverse).await;
    let before = written(&stage, Way::Reverse).await;
    stage.on_monolith("UPDATE strangler.stream SET mode = 'APPLY' WHERE dir = 'reverse'").await;
    let refused = "SELECT coalesce(detail LIKE '%whose application may write there%', false) \
                   FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("it is refused", SOON, async || holds(&stage.monolith, refused).await.then_some(())).await;
    stage.on_monolith(WRITES).await;
    stage.arrived(Way::Forward).await;
    stage.assert_equal().await;
    let own = written(&stage, Way::Reverse).await - before;
    assert_eq!(own, 61, "the application's 50 inserts, 10 updates and 1 delete");
    let ends = inside.stop().await;
    assert!(matches!(ends.as_slice(), [(Direction::Reverse, _)]), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_opens_beside_a_running_stream_stops_its_next_transaction() {
    let stage = armed_and_counted().await;
    let inside = Inside::start(&stage, Hooks::default()).await;
    stage.arrived(Way::Forward).await;
    let before = written(&stage, Way::Forward).await;
    // As after a failover that lost a fence: both sides are open.
    stage.on_service("UPDATE strangler.gate_one SET state = 'OPEN', cause = 'open'").await;
    stage.on_monolith(WRITES).await;
    let refused = "SELECT coalesce(detail LIKE '%gate was opened beside it%' OR detail LIKE '%both sides take writes%', \
                       false) FROM strangler.mirror_process WHERE dir = 'forward'";
    until("it is refused", SOON, async || holds(&stage.service, refused).await.then_some(())).await;
    assert_eq!(written(&stage, Way::Forward).await, before, "nothing was written over");
    drop(inside);
}
