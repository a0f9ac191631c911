//! Whether `status` and the detector see every hole in the fence.

use strangler::dualwrite::guard;
use strangler::name::TableName;

use super::stage::Stage;
use crate::support::binary::flat;
use crate::support::wait::{SOON, until};

fn armed_field(stage: &Stage, slice: &str) -> serde_json::Value {
    let ended = stage.run("status", &["--format", "json", "--slice", slice]);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    document["slices"][0].clone()
}

fn state(stage: &Stage, slice: &str) -> String {
    armed_field(stage, slice)["armed"]["state"].as_str().unwrap_or("none").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_whether_a_slice_is_armed() {
    let stage = Stage::mirrored().await;
    assert_eq!(state(&stage, "one"), "not_armed");
    stage.succeed("arm", &["--slice", "one"]);
    assert_eq!(state(&stage, "one"), "armed");
    assert_eq!(state(&stage, "two"), "not_armed");
    let text = stage.run("status", &["--slice", "one"]).stdout;
    assert!(text.contains("armed      yes"), "{text}");
    stage.succeed("disarm", &[]);
    assert_eq!(state(&stage, "one"), "not_armed");
}

/// Holes, each with what must be said about it.
const HOLES: &[(&str, &str)] = &[
    (
        "CREATE TABLE moves_2025 PARTITION OF moves FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
        "table moves_2025 has no trigger aa_strangler_gate_truncate",
    ),
    ("DROP TRIGGER aa_strangler_gate ON lines", "table lines has no trigger aa_strangler_gate"),
    (
        "ALTER TABLE lines DISABLE TRIGGER aa_strangler_gate",
        "trigger aa_strangler_gate of table lines is disabled, or does not fire always",
    ),
    (
        "ALTER TABLE lines ENABLE TRIGGER aa_strangler_gate",
        "trigger aa_strangler_gate of table lines is disabled, or does not fire always",
    ),
    (
        "ALTER TABLE moves_2024 DISABLE TRIGGER aa_strangler_gate",
        "trigger aa_strangler_gate of table moves_2024 is disabled, or does not fire always",
    ),
    (
        "DROP TRIGGER aa_strangler_gate ON lines; CREATE TRIGGER aa_strangler_gate BEFORE INSERT ON lines \
         FOR EACH STATEMENT EXECUTE FUNCTION strangler.gate_one(); ALTER TABLE lines ENABLE ALWAYS TRIGGER aa_strangler_gate",
        "trigger aa_strangler_gate of table lines is not the gate's",
    ),
    (
        "DROP TRIGGER aa_strangler_gate ON moves; CREATE TRIGGER aa_strangler_gate BEFORE INSERT OR UPDATE OR DELETE ON moves \
         FOR EACH ROW WHEN (false) EXECUTE FUNCTION strangler.gate_one(); \
         ALTER TABLE moves ENABLE ALWAYS TRIGGER aa_strangler_gate",
        "trigger aa_strangler_gate of table moves is not the gate's",
    ),
    (
        "CREATE OR REPLACE FUNCTION strangler.gate_one() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "the function strangler.gate_one is not as provision made it",
    ),
    (
        "ALTER TABLE audit ADD CONSTRAINT again FOREIGN KEY (id) REFERENCES lines",
        "the foreign key again of audit crosses the cut",
    ),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn every_hole_turns_status_red_and_arm_closes_it_on_either_side_of_a_flip() {
    let stage = Stage::armed().await;
    for (sql, words) in HOLES {
        stage.monolith.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let slice = armed_field(&stage, "one");
        let alarms = slice["alarms"].to_string();
        assert!(alarms.contains(words), "{sql}: {alarms}");
        assert_eq!(slice["armed"]["state"], "partly_armed", "{sql}");
        assert_eq!(slice["next"], "strangler arm plan.yaml --slice one", "{sql}");
        let tables = ["Orders", "lines", "moves"].map(|name| TableName::new("public", name));
        let guard = guard::read(&stage.monolith, "one", &tables).await.unwrap();
        let expected = !words.contains("foreign key");
        assert_eq!(
            guard.faults.iter().any(|fault| fault.to_string() == *words),
            expected,
            "{:?}",
            guard.faults
        );
        // After a flip the hole is as dangerous, and the command is the same.
        if words.contains("moves_2025") {
            stage.flip().await;
        }
        stage.succeed("arm", &["--slice", "one"]);
        let closed = armed_field(&stage, "one");
        assert_eq!(closed["armed"]["state"], "armed", "{sql}: {closed}");
        stage
            .monolith
            .batch_execute("UPDATE strangler.gate_one SET state = 'OPEN', epoch = 1, owner = 'monolith'")
            .await
            .unwrap();
        stage
            .service
            .batch_execute("UPDATE strangler.gate_one SET state = 'FENCED', epoch = 1, owner = 'monolith'")
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_later_is_guarded_by_its_root_at_once() {
    let stage = Stage::armed().await;
    stage
        .monolith
        .batch_execute(
            "CREATE TABLE moves_2027 PARTITION OF moves FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
        )
        .await
        .unwrap();
    stage.fence().await;
    let refused = stage.app().await;
    stage.monolith.batch_execute("GRANT ALL ON moves_2027 TO app").await.unwrap();
    let error = refused.batch_execute("INSERT INTO moves_2027 VALUES (1, '2027-05-05')").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_subscription_into_moved_tables_is_told_by_status_arm_and_flip_until_it_is_dropped() {
    let stage = Stage::armed().await;
    let mirror = stage.split.mirror(None);
    mirror.caught_up(&stage.monolith, &stage.service).await;
    for (here, there, there_url, database) in [
        (&stage.monolith, &stage.service, stage.split.pair.service_url(), "monolith"),
        (&stage.service, &stage.monolith, stage.split.pair.monolith_url(), "service"),
    ] {
        there.batch_execute("CREATE PUBLICATION feed FOR TABLE lines").await.unwrap();
        here.batch_execute(&format!(
            "CREATE SUBSCRIPTION \"Feed\" CONNECTION '{there_url}' PUBLICATION feed \
             WITH (enabled = false, create_slot = false, slot_name = NONE, copy_data = false)"
        ))
        .await
        .unwrap();
        let fact = "it writes into table lines";
        let cure = format!("run on the {database}");
        let armed = stage.run("arm", &["--slice", "one"]);
        assert_eq!(armed.exit, Some(3), "{}", armed.page());
        assert!(armed.stderr.contains(fact) && armed.stderr.contains(&cure), "{}", armed.page());
        let flip = stage.run("flip", &["--slice", "one"]);
        assert_eq!(flip.exit, Some(3), "{}", flip.page());
        assert!(flip.stderr.contains(fact) && flip.stderr.contains("(subscription)"), "{}", flip.page());
        if database == "monolith" {
            let slice = armed_field(&stage, "one");
            let words = "the subscription Feed writes into table lines past its gate";
            assert!(slice["alarms"].to_string().contains(words), "{slice:#}");
            assert_eq!(slice["armed"]["state"], "partly_armed", "{slice:#}");
            assert_eq!(
                slice["next"], "run on the monolith: DROP SUBSCRIPTION \"Feed\";",
                "arm refuses until then"
            );
            stage.succeed("arm", &["--slice", "two"]);
        }
        here.batch_execute("DROP SUBSCRIPTION \"Feed\"").await.unwrap();
        there.batch_execute("DROP PUBLICATION feed").await.unwrap();
        stage.succeed("arm", &["--slice", "one"]);
    }
    assert_eq!(state(&stage, "one"), "armed");
    fires_on_mirrored_rows(&stage).await;
    published_without_identity(&stage).await;
    mirror.stop();
}

/// A trigger or a rule that was made after the verdict changes rows on their way, on either side.
async fn fires_on_mirrored_rows(stage: &Stage) {
    stage.succeed("reconcile", &["--slice", "one"]);
    let shout = "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
        CREATE TRIGGER shout BEFORE UPDATE ON lines FOR EACH ROW EXECUTE FUNCTION shout(); \
        ALTER TABLE lines ENABLE REPLICA TRIGGER shout";
    let hush =
        "CREATE RULE hush AS ON DELETE TO lines DO ALSO NOTHING; ALTER TABLE lines ENABLE ALWAYS RULE hush";
    for (client, database, make, (kind, name, when)) in [
        (&stage.monolith, "monolith", hush, ("rule", "hush", "ALWAYS")),
        (&stage.service, "service", shout, ("trigger", "shout", "REPLICA")),
    ] {
        client.batch_execute(make).await.unwrap();
        let fact = format!("its {kind} {name} is enabled {when}");
        let cure = format!(": ALTER TABLE \"public\".\"lines\" ENABLE {} \"{name}\";", kind.to_uppercase());
        for verb in ["arm", "flip"] {
            let refused = stage.run(verb, &["--slice", "one"]);
            assert_eq!(refused.exit, Some(3), "{}", refused.page());
            let said = flat(&refused.stderr);
            assert!(said.contains("(target-trigger)") && said.contains(&fact), "{}", refused.page());
            assert!(
                said.contains(&format!("run on the {database}")) && said.contains(&cure),
                "{}",
                refused.page()
            );
        }
        let slice = armed_field(stage, "one");
        let words = format!(
            "the {kind} {name} of table lines is enabled {when}, so it fires on rows that the mirror writes"
        );
        assert!(slice["alarms"].to_string().contains(&words), "{slice:#}");
        assert_eq!(slice["next"], format!("run on the {database}{cure}"), "{slice:#}");
        if database == "service" {
            // What was proven before does not stand when it is gone again.
            let noted =
                "SELECT EXISTS (SELECT FROM strangler.journal WHERE action = 'fired-on-mirrored-rows')";
            until("the mirror has noted it", SOON, async || {
                client.query_one(noted, &[]).await.unwrap().get::<_, bool>(0).then_some(())
            })
            .await;
        }
        client.batch_execute(&format!("DROP {kind} {name} ON lines")).await.unwrap();
    }
    let slice = armed_field(stage, "one");
    assert_eq!(slice["evidence"]["stands"], false, "{slice:#}");
    assert_eq!(slice["next"], "strangler reconcile plan.yaml --slice one", "{slice:#}");
}

/// A published table without a replica identity takes no UPDATE and no DELETE: nobody but the application would notice.
async fn published_without_identity(stage: &Stage) {
    stage.service.batch_execute("ALTER TABLE lines REPLICA IDENTITY NOTHING").await.unwrap();
    let flip = stage.run("flip", &["--slice", "one"]);
    assert!(flip.stderr.contains("(no-replica-identity)"), "{}", flip.page());
    assert!(flip.stderr.contains("published and without a replica identity: lines"), "{}", flip.page());
    let check = stage.run("check", &[]);
    assert!(check.stdout.contains("(no-replica-identity)"), "{}", check.page());
    let slice = armed_field(stage, "one");
    let words = "the service is closed, and table lines is published and has no replica identity";
    assert!(slice["alarms"].to_string().contains(words), "{slice:#}");
    assert_eq!(slice["next"], "strangler arm plan.yaml --slice one");
    stage.succeed("arm", &["--slice", "one"]);
    let slice = armed_field(stage, "one");
    assert!(!slice["alarms"].to_string().contains("replica identity"), "{slice:#}");
}
