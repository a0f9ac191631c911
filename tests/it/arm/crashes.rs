//! Killed at every durable step, and typed again.

use strangler::failpoint;

use super::stage::{Stage, rows};
use crate::support::binary::Ended;
use crate::support::{every_third, soak};

/// What is typed after a kill: both verbs in `make soak`, else one of them, by turns.
fn typed_next(number: usize, verbs: [&'static str; 2]) -> Vec<&'static str> {
    let turn = |(at, _): &(usize, &'static str)| soak() || at % 2 == number % 2;
    verbs.into_iter().enumerate().filter(turn).map(|(_, verb)| verb).collect()
}

/// Runs a verb until a kill point ends it.
fn killed_at(stage: &Stage, verb: &str, arguments: &[&str], name: &str) {
    let mut command = stage.split.command(&[&[verb, "plan.yaml"], arguments].concat());
    command.env("STRANGLER_FAILPOINT", name);
    let output = command.output().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(killed, "{verb} never came to {name}: {}", Ended::of(output).page());
}

/// What only some runs meet is brought about first.
async fn prepare(stage: &Stage, name: &str) {
    let (client, sql) = match name {
        "arm-rights-granted" => (&stage.monolith, "REVOKE ALL ON lines FROM strangler_apply"),
        "arm-identity-set" => (&stage.service, "ALTER TABLE orders REPLICA IDENTITY NOTHING"),
        "arm-function-restored" => (
            &stage.monolith,
            "CREATE OR REPLACE FUNCTION strangler.gate_one() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        ),
        "arm-old-slot-dropped" => {
            stage.succeed("arm", &[]);
            (&stage.service, "DROP PUBLICATION strangler_split_one")
        }
        _ => return,
    };
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn arm_killed_at_any_step_is_finished_by_the_next_and_taken_back_by_disarm() {
    let stage = Stage::mirrored().await;
    let bare = stage.fingerprint().await;
    stage.succeed("arm", &[]);
    let armed = stage.fingerprint().await;
    stage.succeed("disarm", &[]);
    for (number, name) in every_third(failpoint::ARM).iter().enumerate() {
        for verb in typed_next(number, ["arm", "disarm"]) {
            prepare(&stage, name).await;
            killed_at(&stage, "arm", &[], name);
            let said = stage.succeed(verb, &[]);
            if verb == "arm" {
                assert_eq!(stage.fingerprint().await, armed, "{name}: {said}");
                assert!(stage.succeed("arm", &[]).contains("nothing was missing"), "{name}");
                stage.succeed("disarm", &[]);
            }
            if *name == "arm-function-restored" {
                // Disarm leaves the function to whoever provisions, and looks at no identity.
                stage.split.provision();
            }
            assert_eq!(stage.fingerprint().await, bare, "{name}, then {verb}: {said}");
        }
    }
    let slots = "SELECT slot_name FROM pg_replication_slots";
    assert_eq!(rows(&stage.service, slots).await, [""; 0], "no attempt leaves a slot behind");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn disarm_killed_at_any_step_is_finished_by_the_next_and_made_good_by_arm() {
    let stage = Stage::mirrored().await;
    let bare = stage.fingerprint().await;
    stage.succeed("arm", &[]);
    let armed = stage.fingerprint().await;
    for (number, name) in every_third(failpoint::DISARM).iter().enumerate() {
        let arguments: &[&str] = if *name == "disarm-key-handed-over" { &["--slice", "one"] } else { &[] };
        for verb in typed_next(number, ["disarm", "arm"]) {
            killed_at(&stage, "disarm", arguments, name);
            let said = stage.succeed(verb, &[]);
            if verb == "disarm" {
                assert_eq!(stage.fingerprint().await, bare, "{name}: {said}");
                assert!(stage.succeed("disarm", &[]).contains("nothing was armed"), "{name}");
                stage.succeed("arm", &[]);
            }
            let mut now = stage.fingerprint().await;
            if *name == "disarm-key-handed-over" {
                now = now.into_iter().map(|line| line.replace("cut|one|", "cut|two|")).collect();
                let was: Vec<String> =
                    armed.iter().map(|line| line.replace("cut|one|", "cut|two|")).collect();
                assert_eq!(now, was, "{name}, then {verb}: {said}");
                stage.succeed("disarm", &[]);
                stage.succeed("arm", &[]);
                continue;
            }
            assert_eq!(now, armed, "{name}, then {verb}: {said}");
        }
    }
}
