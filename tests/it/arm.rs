//! `arm` and `disarm` on real servers: what is there afterwards, and that nothing is lost on the way.

mod crashes;
mod detector;
mod dry_run;
mod refusals;
mod silence;
mod stage;
mod unfit;
mod waits;
mod writes;

use strangler::cluster::Binaries;

use stage::{Stage, rows};

use crate::support::split::Split;

/// Clones on partitions count as internal up to PostgreSQL 14.
const TRIGGERS: &str = "SELECT tgrelid::regclass, tgname, tgenabled, tgtype & 1 = 1 FROM pg_trigger t \
    JOIN pg_class c ON c.oid = t.tgrelid WHERE tgname LIKE 'aa_strangler%' AND c.relnamespace = 'public'::regnamespace \
    ORDER BY c.relname, tgname";

/// Arms and disarms, and looks at everything in between.
async fn there_and_back(stage: &Stage) {
    let before = stage.fingerprint().await;
    stage.succeed("arm", &[]);
    assert_eq!(
        rows(&stage.monolith, TRIGGERS).await,
        [
            "\"Orders\"|aa_strangler_gate|A|f",
            "lines|aa_strangler_gate|A|f",
            "moves|aa_strangler_gate|A|t",
            "moves|aa_strangler_gate_truncate|A|f",
            "moves_2024|aa_strangler_gate|A|t",
            "moves_2024|aa_strangler_gate_truncate|A|f",
            "moves_rest|aa_strangler_gate|A|t",
            "moves_rest|aa_strangler_gate_truncate|A|f",
            "products|aa_strangler_gate|A|f",
        ]
    );
    let left =
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace";
    assert_eq!(rows(&stage.monolith, left).await, ["fk_order"], "inside the slice it stays");
    let published = "SELECT pubname, schemaname || '.' || tablename FROM pg_publication_tables ORDER BY 1, 2";
    assert_eq!(
        rows(&stage.service, published).await,
        [
            "strangler_split_one|public.lines",
            "strangler_split_one|public.moves",
            "strangler_split_one|public.orders",
            "strangler_split_one|strangler.canary",
            "strangler_split_two|public.products",
            "strangler_split_two|strangler.canary",
        ]
    );
    let streams = "SELECT slice, dir, epoch, mode, state, slot ~ '^strangler_split_(one|two)_rev_[a-z]{6}$', publication \
                   FROM strangler.stream ORDER BY 1";
    assert_eq!(
        rows(&stage.monolith, streams).await,
        [
            "one|reverse|1|TRIPWIRE|running|t|strangler_split_one",
            "two|reverse|1|TRIPWIRE|running|t|strangler_split_two"
        ]
    );
    let source =
        "SELECT src_system_identifier, src_database_oid, src_uuid, src_timeline FROM strangler.stream";
    let identity = "SELECT d.system_identifier, d.database_oid, d.uuid, c.timeline_id FROM strangler.database d, \
                    pg_control_checkpoint() c";
    assert_eq!(rows(&stage.monolith, source).await[0], rows(&stage.service, identity).await[0]);
    let starts = rows(&stage.monolith, "SELECT slot, applied_lsn FROM strangler.stream ORDER BY slot").await;
    let slots = "SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots ORDER BY 1";
    assert_eq!(starts, rows(&stage.service, slots).await, "the stream starts where its slot does");
    let armed = stage.fingerprint().await;
    let again = stage.succeed("arm", &[]);
    assert!(again.contains("nothing was missing"), "{again}");
    assert_eq!(stage.fingerprint().await, armed, "a second run changes nothing");
    let said = stage.succeed("disarm", &[]);
    assert_eq!(stage.fingerprint().await, before, "{said}");
    let again = stage.succeed("disarm", &[]);
    assert!(again.contains("nothing was armed"), "{again}");
    assert_eq!(stage.fingerprint().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn disarm_leaves_what_was_there_before_arm_to_the_byte() {
    there_and_back(&Stage::mirrored().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arm_and_disarm_do_the_same_on_the_oldest_and_on_the_newest_version() {
    let installed = Binaries::find_all().unwrap();
    let of = |major| installed.iter().find(|binaries| binaries.version.major == major);
    // A machine with the usual version only has the test above.
    for (monolith, service) in [(14, 18), (18, 14)] {
        if let (Some(monolith), Some(service)) = (of(monolith), of(service)) {
            crate::support::say(&format!("arming from {} to {}", monolith.version, service.version));
            there_and_back(&Stage::on(monolith, service).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slice_leaves_the_other_alone_and_a_shared_key_comes_back_with_the_last() {
    let stage = Stage::mirrored().await;
    let before = stage.keys().await;
    stage.succeed("arm", &["--slice", "two"]);
    let cut = "SELECT slice, name FROM strangler.cut_key WHERE restored_at IS NULL ORDER BY name";
    assert_eq!(rows(&stage.monolith, cut).await, ["two|fk_move_product", "two|fk_product"]);
    let guarded = "SELECT DISTINCT tgrelid::regclass FROM pg_trigger WHERE tgname LIKE 'aa_strangler%'";
    assert_eq!(rows(&stage.monolith, guarded).await, ["products"]);
    stage.succeed("arm", &["--slice", "one"]);
    stage.succeed("disarm", &["--slice", "two"]);
    assert_eq!(
        rows(&stage.monolith, cut).await,
        [
            "one|FK Customer",
            "one|fk_audit_move",
            "one|fk_audit_order",
            "one|fk_move_product",
            "one|fk_product"
        ],
        "slice one still needs the keys between the two gone"
    );
    stage.succeed("disarm", &["--slice", "one"]);
    assert_eq!(stage.keys().await, before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_key_that_rows_contradict_comes_back_unproven_with_the_query_that_finds_them() {
    let stage = Stage::armed().await;
    stage.monolith.batch_execute("INSERT INTO lines VALUES (90, 1, 77), (91, 1, 78)").await.unwrap();
    let ended = stage.run("disarm", &[]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    assert!(
        ended
            .stderr
            .contains("foreign key fk_product of lines: 2 rows refer to nothing; it stands as NOT VALID")
    );
    let query =
        ended.stderr.lines().find_map(|line| line.trim().strip_prefix("SELECT c.*")).unwrap().to_owned();
    let found = rows(&stage.monolith, &format!("SELECT c.id {query}")).await;
    assert_eq!(found, ["90", "91"]);
    let stands = "SELECT convalidated FROM pg_constraint WHERE conname = 'fk_product'";
    assert_eq!(rows(&stage.monolith, stands).await, ["f"], "new rows are checked");
    let status = stage.run("status", &[]);
    assert!(status.stdout.contains("disarm has begun and not finished"), "{}", status.page());
    assert!(!status.stdout.contains("strangler arm "), "{}", status.page());
    let again = stage.run("disarm", &[]);
    assert_eq!(again.exit, Some(1), "{}", again.page());
    stage.monolith.batch_execute("DELETE FROM lines WHERE id > 80").await.unwrap();
    stage.succeed("disarm", &[]);
    assert_eq!(rows(&stage.monolith, stands).await, ["t"]);
    stage.succeed("arm", &[]);
    stage.succeed("disarm", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_lost_its_slot_or_publication_gets_a_new_stream() {
    let stage = Stage::armed().await;
    let armed = stage.fingerprint().await;
    let slots = "SELECT slot_name FROM pg_replication_slots ORDER BY 1";
    let before = rows(&stage.service, slots).await;
    stage
        .service
        .batch_execute(&format!(
            "SELECT pg_drop_replication_slot('{}'); DROP PUBLICATION strangler_split_two",
            before[0]
        ))
        .await
        .unwrap();
    let said = stage.succeed("arm", &[]);
    assert!(said.contains("it is begun anew"), "{said}");
    assert_eq!(stage.fingerprint().await, armed);
    let after = rows(&stage.service, slots).await;
    assert!(before.iter().all(|slot| !after.contains(slot)), "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_tables_get_the_replica_identity_that_the_key_needs() {
    let stage = Stage::mirrored().await;
    stage
        .service
        .batch_execute(
            "ALTER TABLE orders REPLICA IDENTITY NOTHING; ALTER TABLE moves REPLICA IDENTITY NOTHING",
        )
        .await
        .unwrap();
    stage.succeed("arm", &[]);
    let identity = "SELECT relname, relreplident FROM pg_class WHERE relname IN ('orders', 'moves') AND relkind = 'r' ORDER BY 1";
    assert_eq!(rows(&stage.service, identity).await, ["moves|d", "orders|d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_not_armed_is_compared_as_before_once_another_one_is() {
    let plan = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }\n\
        services: { service: { url: \"${SERVICE}\" } }\n\
        slices: { one: { service: service, tables: { a: {} } }, two: { service: service, tables: { b: {} } } }\n";
    let setup = "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (n int, id int, v int, PRIMARY KEY (id, n));
        INSERT INTO b SELECT 1, i, i FROM generate_series(1, 50) i";
    let (split, monolith, service) = Split::with_plan(plan, setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let armed = split.run("arm", &["--slice", "one"]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    service
        .batch_execute(
            "SET SESSION AUTHORIZATION strangler_apply; UPDATE b SET v = 0 WHERE id = 7; DELETE FROM b WHERE id = 8; \
             RESET SESSION AUTHORIZATION",
        )
        .await
        .unwrap();
    let found = split.run("reconcile", &["--slice", "two"]);
    assert_eq!(found.exit, Some(1), "{}", found.page());
    assert!(found.stdout.contains("2 findings: 1 missing, 1 differs"), "{}", found.page());
    let provisioned = split.run("provision", &[]);
    assert!(provisioned.page().contains("nothing was missing"), "{}", provisioned.page());
    mirror.stop();
}
