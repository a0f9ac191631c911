//! What arm and disarm refuse, and the command that they name.

use strangler::cluster::{Cluster, Options};

use super::stage::{Stage, rows};
use crate::support::binary::flat;
use crate::support::cluster::create_database;
use crate::support::split::Split;

fn refused(stage: &Stage, verb: &str, words: &[&str]) {
    let ended = stage.run(verb, &[]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    for word in words {
        assert!(ended.stderr.contains(word), "{word} is not in {}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_not_mirrored_is_not_armed() {
    let (split, monolith, _service) = Split::launch("{ t: {} }", "CREATE TABLE t (id int PRIMARY KEY)").await;
    let ended = split.run("arm", &[]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(
        ended.stderr.contains("not-provisioned") && ended.stderr.contains("strangler provision plan.yaml")
    );
    split.provision();
    let ended = split.run("arm", &[]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("not copied yet, or not live: t"), "{}", ended.page());
    assert!(ended.stderr.contains("strangler mirror plan.yaml --slice one"), "{}", ended.page());
    assert_eq!(rows(&monolith, "SELECT count(*) FROM strangler.stream").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn disarm_is_refused_while_the_service_has_the_authority_or_it_moves() {
    let stage = Stage::armed().await;
    let armed = stage.fingerprint().await;
    stage.flip().await;
    refused(
        &stage,
        "disarm",
        &[
            "(authority)",
            "FENCED in the monolith (epoch 2) and OPEN in the service (epoch 2)",
            "strangler flip --back plan.yaml --slice one",
        ],
    );
    stage.service.batch_execute("UPDATE strangler.gate_one SET state = 'FENCED'").await.unwrap();
    refused(&stage, "disarm", &["(authority)", "strangler status plan.yaml --slice one"]);
    refused(&stage, "arm", &["(authority)"]);
    assert_eq!(stage.fingerprint().await, armed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_fenced_meanwhile_stops_disarm_before_it_takes_anything_off() {
    let stage = Stage::armed().await;
    let dry = stage.run("disarm", &["--dry-run"]).stdout;
    stage.fence().await;
    // What disarm decided before the fence, by hand.
    let start = dry.find("-- monolith: take gate off table lines").unwrap();
    let step = dry[start..].split("\n\n").next().unwrap();
    let error = stage.monolith.batch_execute(step).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006");
    stage.monolith.batch_execute("ROLLBACK").await.unwrap();
    let guarded =
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'lines'::regclass AND tgname = 'aa_strangler_gate'";
    assert_eq!(rows(&stage.monolith, guarded).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_without_a_value_of_its_own_is_refused() {
    let stage = Stage::mirrored().await;
    stage
        .monolith
        .batch_execute("UPDATE \"Orders\" SET hidden = ''; ALTER TABLE \"Orders\" ALTER hidden SET NOT NULL")
        .await
        .unwrap();
    refused(
        &stage,
        "arm",
        &["(dropped-not-null)", "the plan drops hidden", "ALTER COLUMN \"hidden\" SET DEFAULT"],
    );
    stage.monolith.batch_execute("ALTER TABLE \"Orders\" ALTER hidden SET DEFAULT ''").await.unwrap();
    stage.succeed("arm", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_can_not_be_streamed_from_is_refused_with_the_setting() {
    let service = Options::default().set("wal_level", "replica").set("max_prepared_transactions", "2");
    let stage = Stage::with(Options::default(), service).await;
    stage.service.batch_execute("BEGIN; CREATE TABLE x (); PREPARE TRANSACTION 'left'").await.unwrap();
    refused(&stage, "arm", &["(wal-level)", "wal_level is replica", "(prepared-transactions)"]);
    assert_eq!(rows(&stage.monolith, "SELECT count(*) FROM strangler.stream").await, ["0"]);
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'aa_strangler%'";
    assert_eq!(rows(&stage.monolith, triggers).await, ["0"], "nothing is done by halves");
}

#[tokio::test(flavor = "multi_thread")]
async fn provision_and_arm_keep_each_other_away() {
    let stage = Stage::mirrored().await;
    let other = stage.split.pair.service().await;
    other.batch_execute("SELECT pg_advisory_lock(1398035026, 0)").await.unwrap();
    let ended = stage.run("arm", &[]);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("is at work there"), "{}", ended.page());
}

/// What works on a slice, with the arguments that tell its forms apart.
const VERBS: [(&str, &[&str], i32); 14] = [
    ("check", &[], 1),
    ("provision", &[], 3),
    ("mirror", &[], 3),
    ("reconcile", &[], 3),
    ("arm", &[], 3),
    ("arm", &["--dry-run"], 3),
    ("flip", &["--slice", "one"], 3),
    ("flip", &["--slice", "one", "--back"], 3),
    ("flip", &["--slice", "one", "--abort"], 3),
    ("flip", &["--slice", "one", "--rehearse"], 3),
    ("disarm", &[], 3),
    ("disarm", &["--dry-run"], 3),
    ("status", &[], 1),
    ("ledger", &[], 3),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn no_verb_obeys_a_plan_whose_slice_is_another_plans() {
    let mut stage = Stage::armed().await;
    let journal = "SELECT count(*) FROM strangler.journal";
    let before = (stage.fingerprint().await, rows(&stage.monolith, journal).await);
    let right = stage.split.pair.service_url();
    create_database(&stage.split.pair.service, "elsewhere").await;
    let elsewhere = stage.split.pair.service.url("elsewhere");
    stage.split.change_plan("plan: split", "plan: other");
    for link in [&right, &elsewhere] {
        stage.split.lead("SERVICE", link);
        for (verb, arguments, exit) in VERBS {
            let ended = stage.run(verb, arguments);
            assert_eq!(ended.exit, Some(exit), "{verb} {arguments:?}: {}", ended.page());
            let said = flat(&format!("{} {}", ended.stdout, ended.stderr));
            assert!(!said.contains("publication-gone"), "it never was: {verb}: {}", ended.page());
            let code = if verb == "status" { ":" } else { " (slice-taken)" };
            for word in
                [&format!("slice one on monolith{code}"), "provisioned by plan split for service service"]
            {
                assert!(said.contains(word), "{verb} {arguments:?}: {word} is not in {}", ended.page());
            }
        }
    }
    assert_eq!((stage.fingerprint().await, rows(&stage.monolith, journal).await), before);
    stage.split.lead("SERVICE", &right);
    stage.split.change_plan("plan: other", "plan: split");
    no_verb_takes_a_slice_for_another_services(&stage);
    stage.succeed("disarm", &[]);
}

fn no_verb_takes_a_slice_for_another_services(stage: &Stage) {
    let plan = stage.split.plan_text();
    let moved = plan.replace("  service:", "  inv:").replace("services: { service:", "services: { inv:");
    stage.split.write_plan(
        &moved.replace("service: service", "service: inv").replace("inv: service", "service: inv"),
    );
    for (verb, arguments, exit) in VERBS {
        let ended = stage.run(verb, arguments);
        assert_eq!(ended.exit, Some(exit), "{verb} {arguments:?}: {}", ended.page());
        let said = flat(&format!("{} {}", ended.stdout, ended.stderr));
        assert!(said.contains("for service service"), "{verb} {arguments:?}: {}", ended.page());
        assert!(!said.contains("not-provisioned"), "{verb} {arguments:?}: {}", ended.page());
    }
    stage.split.write_plan(&plan);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_with_other_tables_than_the_provisioned_ones_is_neither_armed_nor_disarmed_nor_flipped() {
    let stage = Stage::armed().await;
    let armed = stage.fingerprint().await;
    let plan = stage.split.plan_text();
    stage.split.change_plan("      lines: {}\n", "");
    for (verb, arguments) in [
        ("disarm", &[][..]),
        ("arm", &[][..]),
        ("flip", &["--slice", "one"][..]),
        ("flip", &["--slice", "one", "--back"][..]),
        ("flip", &["--slice", "one", "--rehearse"][..]),
    ] {
        let ended = stage.run(verb, arguments);
        assert_eq!(ended.exit, Some(3), "{verb}: {}", ended.page());
        assert!(ended.stderr.contains("(mapping-changed)"), "{verb}: {}", ended.page());
        assert!(ended.stderr.contains("bring the old mapping back"), "{verb}: {}", ended.page());
    }
    for (verb, exit) in [("check", 1), ("provision", 3), ("status", 1)] {
        let ended = stage.run(verb, &[]);
        assert_eq!(ended.exit, Some(exit), "{verb}: {}", ended.page());
        assert!(ended.page().contains("mapping-changed"), "{verb}: {}", ended.page());
        assert!(
            !ended.page().contains("publication-changed"),
            "its cure would harm the slice: {}",
            ended.page()
        );
    }
    let abort = stage.run("flip", &["--slice", "one", "--abort"]);
    assert_eq!(abort.exit, Some(0), "what takes a move back asks no mapping: {}", abort.page());
    assert_eq!(stage.fingerprint().await, armed);

    stage.split.write_plan(&plan.replace("      moves: {}\n", "      moves: {}\n      Customers: {}\n"));
    let arm = stage.run("arm", &[]);
    assert_eq!(arm.exit, Some(3), "{}", arm.page());
    assert!(arm.stderr.contains("without Customers, which the plan takes now"), "{}", arm.page());
    assert_eq!(stage.fingerprint().await, armed);
    let taken_off = stage.run("disarm", &["--dry-run"]);
    assert_eq!(taken_off.exit, Some(0), "it finds every gate: {}", taken_off.page());
    stage.split.write_plan(&plan);
    stage.succeed("disarm", &[]);
}
