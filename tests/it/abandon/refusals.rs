//! What is refused, with who or what stands in the way and what to type: nothing is done then.

use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::{abandon, flat, refused, succeed, token};
use crate::flip::{flip_to_service, mirrored_and_armed};
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::cluster::{Pair, connect};
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: { orders: {} } } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')";

async fn running() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    (split, monolith, service, mirror)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whoever_is_at_work_is_named() {
    let (split, monolith, service, mirror) = running().await;
    let before = (catalogs(&monolith).await, catalogs(&service).await);
    refused(&abandon(&split, "one", &[]), "mirror-runs", &["a mirror of it runs on", "end it with Ctrl-C"]);
    mirror.signal(rustix::process::Signal::STOP);
    until("the mirror is taken for frozen", SOON, async || {
        let sql = "SELECT now() - seen_at > interval '11 seconds' FROM strangler.mirror_process";
        service.query_one(sql, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    refused(&abandon(&split, "one", &[]), "mirror-runs", &["holds its lock in the service"]);
    mirror.signal(rustix::process::Signal::CONT);
    mirror.stop();
    let other = connect(&split.pair.monolith_url()).await;
    other
        .batch_execute("SET application_name = 'another'; SELECT pg_advisory_lock(1398035026, 0)")
        .await
        .unwrap();
    refused(&abandon(&split, "one", &[]), "databases-busy", &["another"]);
    drop(other);
    let run = connect(&split.pair.service_url()).await;
    let lock = "SELECT pg_advisory_lock(1398035028, lock_key) FROM strangler.slice";
    run.query(lock, &[]).await.unwrap();
    refused(&abandon(&split, "one", &[]), "comparison-runs", &["it is being compared"]);
    drop(run);
    assert_untouched(&before.0, &catalogs(&monolith).await);
    assert_untouched(&before.1, &catalogs(&service).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_armed_or_the_services_stays() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    split.provision();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    let armed = abandon(&split, "one", &[]);
    refused(&armed, "armed", &["its gate hangs on orders", "strangler disarm plan.yaml --slice one"]);
    flip_to_service(&split, &mirror);
    mirror.stop();
    let flipped = abandon(&split, "one", &[]);
    refused(&flipped, "service-has-authority", &["strangler flip plan.yaml --slice one --back"]);
    // As a flip leaves it that died behind its fence.
    service
        .batch_execute("UPDATE strangler.gate_one SET state = 'FENCED', epoch = 3, cause = 'fence'")
        .await
        .unwrap();
    let moving = abandon(&split, "one", &[]);
    refused(&moving, "move-unfinished", &["strangler status plan.yaml --slice one"]);
    let rows: i64 = service.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0);
    assert_eq!(rows, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_services_own_people_built_and_wrote_is_named() {
    let (split, _monolith, service, mirror) = running().await;
    mirror.stop();
    let own = "CREATE VIEW short AS SELECT id FROM orders; CREATE TABLE notes (id int REFERENCES orders);
        ALTER TABLE orders ADD COLUMN remark text;
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER note BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note()";
    service.batch_execute(own).await.unwrap();
    let stays = abandon(&split, "one", &[]);
    refused(
        &stays,
        "depends-on-table",
        &["view public.short", "table constraint notes_id_fkey on public.notes"],
    );
    service.batch_execute("DROP VIEW short; DROP TABLE notes").await.unwrap();
    let preview = abandon(&split, "one", &[]);
    token(&preview);
    for words in ["own column: remark", "own trigger: note", "(table-dropped)"] {
        assert!(flat(&preview.stderr).contains(words), "{words}: {}", preview.page());
    }
    let stray =
        "ALTER TABLE orders DISABLE TRIGGER aa_strangler_gate; INSERT INTO orders VALUES (99, 'stray');
        ALTER TABLE orders ENABLE ALWAYS TRIGGER aa_strangler_gate;
        INSERT INTO strangler.alarm (slice, dir, epoch, lsn, xid, source_table, operation, key)
            VALUES ('one', 'reverse', 1, '0/1', 1, 'orders', 'insert', '{99}')";
    service.batch_execute(stray).await.unwrap();
    let preview = abandon(&split, "one", &[]);
    assert!(flat(&preview.stderr).contains("(stray-writes)"), "{}", preview.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_on_what_the_schema_offers_keeps_the_schema_and_is_named() {
    let (split, monolith, service, mirror) = running().await;
    mirror.stop();
    monolith
        .batch_execute("CREATE VIEW owners AS SELECT slice, owner FROM strangler.authority")
        .await
        .unwrap();
    let preview = abandon(&split, "one", &[]);
    assert!(flat(&preview.stderr).contains("needed by view public.owners"), "{}", preview.page());
    let done = abandon(&split, "one", &["--confirm", &token(&preview)]);
    assert_eq!(done.exit, Some(1), "{}", done.page());
    assert!(done.stderr.contains("(schema-stays)"), "{}", done.page());
    let slices = "SELECT count(*) FROM strangler.slice";
    assert_eq!(monolith.query_one(slices, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(monolith.query("TABLE owners", &[]).await.unwrap().len(), 0, "it goes on to answer");
    assert_eq!(service.query_one(slices, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_itself_and_a_slice_of_another_plan_are_refused() {
    let (split, monolith, _service, mirror) = running().await;
    mirror.stop();
    split.change_plan("plan: split", "plan: other");
    let taken = abandon(&split, "one", &[]);
    refused(&taken, "slice-taken", &["by plan split for service service"]);
    split.change_plan("plan: other", "plan: split");
    drop(monolith);
    let admin = connect(&split.pair.monolith.admin_url()).await;
    let copy = format!("CREATE DATABASE copied TEMPLATE {}", Pair::MONOLITH);
    let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    until("nobody uses the monolith", SOON, async || admin.batch_execute(&copy).await.ok()).await;
    let mut split = split;
    let link = split.pair.monolith.url("copied");
    split.lead("MONOLITH", &link);
    refused(&abandon(&split, "one", &[]), "database-cloned", &["a clone or a restored copy"]);
    admin.batch_execute(slots).await.unwrap();
    let link = split.pair.monolith_url();
    split.lead("MONOLITH", &link);
    succeed(&split, "abandon", &["--confirm", &token(&abandon(&split, "one", &[]))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_arm_that_died_has_left_in_the_service_keeps_the_slice() {
    let (split, _monolith, service, mirror) = running().await;
    let published = "SELECT count(*) FROM pg_publication";
    let published = async || service.query_one(published, &[]).await.unwrap().get::<_, i64>(0);
    let mut command = split.command(&["arm", "plan.yaml"]);
    command.env("STRANGLER_FAILPOINT", "arm-published");
    split.start_command(command).ended();
    assert_eq!(published().await, 1);
    mirror.stop();
    let words = [
        "its tables are published in the service, for the way back",
        "strangler disarm plan.yaml --slice one",
    ];
    refused(&abandon(&split, "one", &[]), "armed", &words);
    succeed(&split, "disarm", &[]);
    super::take_back(&split, "one", &[]);
    assert_eq!(published().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whoever_types_another_verb_beside_it_is_refused_and_told_what_to_wait_for() {
    let (split, _monolith, _service, mirror) = running().await;
    mirror.stop();
    let mut command = split.command(&[
        "abandon",
        "plan.yaml",
        "--slice",
        "one",
        "--confirm",
        &token(&abandon(&split, "one", &[])),
    ]);
    command.env("STRANGLER_FREEZE", "abandon-begun");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    for verb in ["arm", "disarm"] {
        let ended = split.run(verb, &["--slice", "one"]);
        refused(&ended, "databases-busy", &["wait until it has ended"]);
    }
    frozen.signal(rustix::process::Signal::CONT);
    assert_eq!(frozen.ended().exit, Some(0));
}
