//! Servers that take the login and then owe an answer: no verb waits for them for ever, and each names them.

use tokio_postgres::Client;

use super::stage::{Stage, rows};
use crate::support::binary::{Ended, flat};
use crate::support::proxy::{Line, Proxy};
use crate::support::split::Background;
use crate::support::wait::{SOON, until, until_blocking};

/// Longer than any statement of these verbs takes on a machine that does other work.
const LIMIT: (&str, &str) = ("STRANGLER_ANSWER_MS", "1500");

/// A verb that waits no longer than [`LIMIT`] for an answer.
fn impatient(stage: &Stage, words: &[&str], links: &[(&str, &str)]) -> Background {
    let (verb, arguments) = words.split_first().unwrap();
    let mut command = stage.split.command(&[&[*verb, "plan.yaml"], arguments].concat());
    command.envs([LIMIT]).envs(links.iter().copied());
    stage.split.start_command(command)
}

/// It ends, and says which database owed an answer for how long, and what is to be typed.
fn names(mut running: Background, database: &str, verb: &str) -> Ended {
    until_blocking(&format!("{verb} ends"), SOON, || running.has_ended().then_some(()));
    let ended = running.ended();
    assert_eq!(ended.exit, Some(4), "{verb}: {}", ended.page());
    let said = format!("{} {}", ended.stdout, ended.stderr);
    let said = flat(&said);
    assert!(said.contains("no answer within 1.5 s") && said.contains(database), "{verb}: {}", ended.page());
    let next = ["then type the same command again", "then run check again"];
    assert!(next.iter().any(|next| said.contains(next)), "{verb}: {}", ended.page());
    ended
}

async fn waits(client: &Client, what: &str, sql: &str) {
    until(what, SOON, async || (rows(client, sql).await == ["1"]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_the_login_and_owes_an_answer_is_given_up_and_named_by_every_verb() {
    let stage = Stage::armed().await;
    for (side, database) in [(&stage.monolith, "monolith"), (&stage.service, "service service")] {
        // To whoever waits, a server that waits for a lock is like one whose processes are frozen.
        let silence = "BEGIN; LOCK TABLE strangler.slice, strangler.gate_one";
        // By itself, because it keeps `arm` away, and `arm` it.
        side.batch_execute(silence).await.unwrap();
        let stage_of_it = ["retire", "--slice", "one", "--stage", "revoke"];
        names(impatient(&stage, &stage_of_it, &[]), database, "retire --stage");
        side.batch_execute(&format!("ROLLBACK; {silence}")).await.unwrap();
        let verbs: [&[&str]; 7] = [
            &["check"],
            &["provision", "--dry-run"],
            &["arm"],
            &["disarm", "--dry-run"],
            &["reconcile"],
            &["ledger", "--verify"],
            &["retire", "--report"],
        ];
        let running = verbs.map(|words| (words[0], impatient(&stage, words, &[])));
        let shown = impatient(&stage, &["ledger"], &[]);
        for (verb, running) in running {
            names(running, database, verb);
        }
        // Whether verdicts stand is left out of what the ledger shows, where the monolith does not tell.
        let exit = if database == "monolith" { Some(0) } else { Some(4) };
        let ended = shown.ended();
        assert_eq!(ended.exit, exit, "{}", ended.page());
        side.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Makes the proof of one key take so long, and every other change of a table no time.
async fn slow_proof(stage: &Stage, seconds: f64) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF current_query() ~ 'VALIDATE.*fk_product' THEN PERFORM pg_sleep({seconds}); END IF; END $$"
    );
    stage.monolith.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn the_proof_of_a_key_may_take_any_time_while_its_server_answers_others() {
    let stage = Stage::armed().await;
    slow_proof(&stage, 600.0).await;
    let on =
        "CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION slow()";
    stage.monolith.batch_execute(on).await.unwrap();
    let (proxy, through) = Proxy::before(&stage.split.pair.monolith_url()).await;
    let disarm = impatient(&stage, &["disarm"], &[("MONOLITH", &through)]);
    let proving = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    waits(&stage.monolith, "the key is being proven", proving).await;
    proxy.set(Line::Silent);
    let ended = names(disarm, "monolith", "disarm");
    assert!(ended.stderr.contains("prove foreign key fk_product"), "{}", ended.page());
    // What was under way goes with its session.
    let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity \
               WHERE application_name = 'strangler disarm'";
    rows(&stage.monolith, end).await;
    slow_proof(&stage, 3.0).await;
    let ended = impatient(&stage, &["disarm"], &[]).ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert!(stage.succeed("disarm", &[]).contains("nothing was armed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_goes_silent_while_its_new_slot_waits_is_given_up() {
    let stage = Stage::mirrored().await;
    let other = stage.split.pair.service().await;
    other.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let (proxy, through) = Proxy::before(&stage.split.pair.service_url()).await;
    let arm = impatient(&stage, &["arm"], &[("SERVICE", &through)]);
    waits(&stage.service, "the slot waits", "SELECT count(*) FROM pg_replication_slots").await;
    proxy.set(Line::Silent);
    names(arm, "service service", "arm");
    other.batch_execute("COMMIT").await.unwrap();
    // What is left of its sessions ends.
    proxy.set(Line::Cut);
    stage.succeed("arm", &[]);
}
