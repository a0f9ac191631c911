//! What the ledger is told of: every change once, by whoever made it or came after.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::binary::{Ended, command};
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g";

/// An entry, as far as tests look at it.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub slice: Option<String>,
    pub epoch: Option<i64>,
    pub has_lsn: bool,
    pub body: Value,
}

/// The entries of a kind.
pub async fn told(service: &Client, kind: &str) -> Vec<Told> {
    let sql =
        "SELECT slice, epoch, lsn IS NOT NULL, body::text FROM strangler.ledger WHERE kind = $1 ORDER BY id";
    let rows = service.query(sql, &[&kind]).await.unwrap();
    let told = rows.iter().map(|row| Told {
        slice: row.get(0),
        epoch: row.get(1),
        has_lsn: row.get(2),
        body: serde_json::from_str(row.get(3)).unwrap(),
    });
    told.collect()
}

async fn count(service: &Client, kind: &str) -> usize {
    told(service, kind).await.len()
}

fn succeed(split: &Split, verb: &str, arguments: &[&str]) -> Ended {
    let ended = split.run(verb, arguments);
    assert_eq!(ended.exit, Some(0), "{verb}: {}", ended.page());
    ended
}

/// Runs a verb that kills itself at this point.
fn killed(split: &Split, verb: &str, point: &str) {
    let mut command = split.command(&[verb, "plan.yaml"]);
    let ended = Ended::of(command.env("STRANGLER_FAILPOINT", point).output().unwrap());
    assert_eq!(ended.exit, None, "{point} was not reached: {}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn provision_arm_and_disarm_are_told_with_their_steps_and_told_nothing_when_nothing_changed() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    for _ in 0..2 {
        split.provision();
        let made = told(&service, "provision").await;
        assert_eq!(made.iter().map(|one| one.slice.as_deref()).collect::<Vec<_>>(), [Some("one"), None]);
        assert_eq!((made[0].epoch, made[0].has_lsn), (Some(1), true));
        let role = json!({ "side": "service", "action": "create role", "object": "strangler_apply" });
        assert!(made[1].body["taken"].as_array().unwrap().contains(&role), "{:?}", made[1]);
        let taken = made[0].body["taken"].as_array().unwrap();
        assert_eq!(made[0].body["steps"], json!(taken.len()));
        for side in ["monolith", "service"] {
            let step = json!({ "side": side, "action": "set up slice", "object": "one" });
            assert!(taken.contains(&step), "{taken:?}");
        }
    }
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let copied = told(&service, "copy").await;
    let ended =
        |bytes: &Value| json!({ "action": "ended", "table": "t", "rows": 300, "bytes": bytes, "copy": 1 });
    assert_eq!((copied.len(), copied[0].has_lsn), (1, true));
    assert_eq!(copied[0].body, ended(&copied[0].body["bytes"]));
    for (verb, action) in [("arm", "hang gate on table"), ("disarm", "take gate off table")] {
        for _ in 0..2 {
            succeed(&split, verb, &[]);
            let changed = told(&service, verb).await;
            assert_eq!((changed.len(), changed[0].has_lsn), (1, true), "{changed:?}");
            let taken = changed[0].body["taken"].as_array().unwrap();
            let gate = json!({ "side": "monolith", "action": action, "object": "t" });
            assert!(taken.contains(&gate), "{taken:?}");
            let slot = if verb == "arm" { "create the reverse slot" } else { "drop the reverse slot" };
            let told = taken.iter().filter(|step| step["action"] == slot).count();
            assert_eq!(told, 1, "{slot}: {taken:?}");
        }
    }
    let whole = succeed(&split, "ledger", &["--verify"]);
    assert!(whole.stdout.contains("the monolith's journal confirms all of them"), "{}", whole.page());
    for kind in ["plan", "provision", "copy", "arm", "disarm"] {
        let shown = succeed(&split, "ledger", &["--kind", kind]);
        assert_eq!(shown.stdout.lines().count(), 1 + count(&service, kind).await, "{}", shown.page());
    }
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_a_run_that_was_killed_are_told_by_the_next_one_and_no_step_is_told_twice() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    killed(&split, "provision", "steps-taken");
    assert_eq!(count(&service, "provision").await, 0);
    split.provision();
    assert_eq!(count(&service, "provision").await, 2, "one of the slice, one of the service");
    let steps = told(&service, "provision").await[0].body["steps"].clone();
    assert!(steps.as_u64() > Some(2), "{steps}");

    service.batch_execute("REVOKE INSERT ON strangler.ledger FROM strangler_apply").await.unwrap();
    killed(&split, "provision", "steps-recorded");
    let made = told(&service, "provision").await;
    let again = json!([{ "side": "service", "action": "grant", "object": "rights" }]);
    assert_eq!((made.len(), &made[2].slice, &made[2].body["taken"]), (3, &None, &again));
    split.provision();
    assert_eq!(count(&service, "provision").await, 3);

    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    killed(&split, "arm", "arm-gate-hung");
    assert_eq!(count(&service, "arm").await, 0);
    // Whoever takes it back tells of both.
    succeed(&split, "disarm", &[]);
    assert_eq!((count(&service, "arm").await, count(&service, "disarm").await), (1, 1));
    // What is told of a killed one comes before what was done after it.
    succeed(&split, "arm", &[]);
    killed(&split, "disarm", "disarm-gate-off");
    succeed(&split, "arm", &[]);
    let kinds =
        "SELECT string_agg(kind, ' ' ORDER BY id) FROM strangler.ledger WHERE kind IN ('arm', 'disarm')";
    let order: String = service.query_one(kinds, &[]).await.unwrap().get(0);
    assert_eq!(order, "arm disarm arm disarm arm");
    mirror.stop();
    succeed(&split, "ledger", &["--verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_policy_is_told_by_the_verb_that_meets_it_first_with_both_hashes() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let first = told(&service, "plan").await;
    assert_eq!((first.len(), &first[0].body["verb"]), (1, &json!("provision")));
    assert_eq!(first[0].body["policy"]["old"], Value::Null);
    let plan = split.plan_text();
    split.write_plan(&format!("{plan}policy: {{ min_mirror_time: 0s }}\n"));
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    succeed(&split, "reconcile", &[]);
    split.write_plan(&format!("{plan}policy: {{ min_mirror_time: 1s }}\n"));
    succeed(&split, "reconcile", &[]);
    succeed(&split, "arm", &[]);
    let told = told(&service, "plan").await;
    assert_eq!(
        told.iter().map(|one| one.body["verb"].as_str().unwrap()).collect::<Vec<_>>(),
        ["provision", "mirror", "reconcile"]
    );
    for (before, after) in told.iter().zip(&told[1..]) {
        assert_eq!(before.body["policy"]["new"], after.body["policy"]["old"]);
        assert_eq!(after.body["mapping"], Value::Null, "the mapping is the same");
    }
    // Another mapping, before anything is copied through it.
    mirror.stop();
    let (split, _, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    split.write_plan(&Split::plan("{ t: { columns: { v: w } } }"));
    split.provision();
    let told = self::told(&service, "plan").await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].body["mapping"]["new"], told[1].body["mapping"]["old"]);
    assert_eq!(told[1].body["policy"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_diverges_and_each_new_copy_are_told_with_the_number_of_the_copy() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    service
        .batch_execute(
            "BEGIN; ALTER TABLE t DISABLE TRIGGER USER; DELETE FROM t WHERE id = 7; ALTER TABLE t ENABLE TRIGGER USER; \
             ALTER TABLE t ENABLE ALWAYS TRIGGER aa_strangler_gate; COMMIT",
        )
        .await
        .unwrap();
    monolith.batch_execute("UPDATE t SET v = 'w' WHERE id = 7").await.unwrap();
    until("the table diverges", SOON, async || (count(&service, "alarm").await == 1).then_some(())).await;
    monolith.batch_execute("UPDATE t SET v = 'x' WHERE id = 7").await.unwrap();
    mirror.stop();
    let alarm = &told(&service, "alarm").await[0];
    assert_eq!((&alarm.body["alarm"], &alarm.body["table"]), (&json!("diverged"), &json!("t")));
    // An earlier mirror's table was live, too, so each copy's entry is what is waited for.
    for (again, entries) in [(&["--retry", "t"][..], 3), (&["--rebuild"], 5)] {
        let mirror = split.mirror_with(None, again);
        until("the copy is told", SOON, async || (count(&service, "copy").await == entries).then_some(()))
            .await;
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
    }
    let copies: Vec<Value> = told(&service, "copy").await.into_iter().map(|one| one.body).collect();
    let brief = |body: &Value| (body["action"].clone(), body["cause"].clone(), body["copy"].clone());
    let expected = [
        (json!("ended"), Value::Null, json!(1)),
        (json!("again"), json!("retry"), json!(3)),
        (json!("ended"), Value::Null, json!(3)),
        (json!("again"), json!("rebuild"), json!(4)),
        (json!("ended"), Value::Null, json!(4)),
    ];
    assert_eq!(copies.iter().map(brief).collect::<Vec<_>>(), expected);
    assert_eq!(count(&service, "alarm").await, 1, "once, however often it is met");
    succeed(&split, "ledger", &["--verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_told_once_on_either_way_also_when_a_mirror_died_between() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    succeed(&split, "arm", &[]);
    mirror.stop();
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    service.batch_execute(drop).await.unwrap();
    // The row of the way back is in the monolith: its ledger is told after it.
    let died = split.mirror(Some("fault-recorded"));
    assert_eq!(died.ended().0.code(), None, "{}", died.log());
    assert_eq!(count(&service, "alarm").await, 0);
    for _ in 0..2 {
        let died = split.mirror(Some("alarm-told"));
        assert_eq!(died.ended().0.code(), None, "{}", died.log());
        assert_eq!(count(&service, "alarm").await, 1);
    }
    monolith.batch_execute(drop).await.unwrap();
    let died = split.mirror_with(Some("fault-recorded"), &["--take-over"]);
    assert_eq!(died.ended().0.code(), None, "{}", died.log());
    for _ in 0..2 {
        assert_eq!(split.mirror_with(None, &["--take-over"]).ended().0.code(), Some(3));
    }
    let alarms = told(&service, "alarm").await;
    let brief = |one: &Told| (one.body["alarm"].clone(), one.body["direction"].clone());
    let expected = [(json!("gap"), json!("reverse")), (json!("gap"), json!("forward"))];
    assert_eq!(alarms.iter().map(brief).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_something_voids_is_marked_with_the_reason() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for _ in 0..2 {
        succeed(&split, "reconcile", &[]);
    }
    let verdicts = async || -> Vec<Value> {
        let shown = succeed(&split, "ledger", &["--kind", "verdict", "--format", "json"]);
        let document: Value = serde_json::from_str(&shown.stdout).unwrap();
        document["services"][0]["entries"].as_array().unwrap().iter().map(|one| one["void"].clone()).collect()
    };
    assert_eq!(verdicts().await, [Value::Null, json!([])], "only the last full one proves anything");
    service.batch_execute("ALTER TABLE t ADD later int").await.unwrap();
    let reason = "the definition of table t changed on the service's side";
    assert_eq!(verdicts().await, [Value::Null, json!([reason])]);
    let text = succeed(&split, "ledger", &["--kind", "verdict", "--last", "1"]);
    assert!(text.stdout.contains(&format!("void: {reason}")), "{}", text.page());

    // Whoever has all rights takes the last verdict away: nothing but the monolith remembers it.
    succeed(&split, "reconcile", &[]);
    succeed(&split, "status", &[]);
    let cut = "BEGIN; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; DELETE FROM strangler.ledger \
               WHERE id = (SELECT max(id) FROM strangler.ledger WHERE kind = 'verdict'); \
               ALTER TABLE strangler.ledger ENABLE ALWAYS TRIGGER append_only; COMMIT";
    service.batch_execute(cut).await.unwrap();
    let red = split.run("status", &[]);
    assert_eq!(red.exit, Some(1), "{}", red.page());
    assert!(
        red.stdout.contains("is missing at the end: the monolith's journal remembers it"),
        "{}",
        red.page()
    );
    assert!(red.stdout.contains("next       strangler ledger plan.yaml --verify"), "{}", red.page());
    // The next verdict takes its number, and is no evidence either.
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(5), "{}", compared.page());
    assert!(
        compared.stdout.contains("until a human accepts it no verdict is evidence"),
        "{}",
        compared.page()
    );
    assert_eq!(split.run("status", &[]).exit, Some(1));
    let accept = ["--accept-broken", "a test"];
    let mut command = split.command(&["ledger", "plan.yaml", "--accept-broken", "a test"]);
    let ended = Ended::of(command.env("STRANGLER_FAILPOINT", "ledger-accepted").output().unwrap());
    assert_eq!(ended.exit, None, "{}", ended.page());
    assert_eq!(split.run("ledger", &["--verify"]).exit, Some(1), "nothing is accepted without the monolith");
    let accepted = succeed(&split, "ledger", &accept);
    assert!(accepted.stdout.contains("whole: ") && accepted.stdout.contains("by which a human accepted"));
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    succeed(&split, "reconcile", &[]);
    let proven = succeed(&split, "status", &[]);
    assert!(proven.stdout.contains("both sides are proven equal"), "{}", proven.page());
    assert_eq!(count(&service, "accepted").await, 2);
    mirror.stop();

    // It is cut off below the entry from which on it is looked at.
    let first = "SELECT min(id) - 1 FROM strangler.ledger WHERE kind = 'accepted'";
    let first: i64 = service.query_one(first, &[]).await.unwrap().get(0);
    let cut = format!(
        "BEGIN; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; DELETE FROM strangler.ledger WHERE id >= {first}; \
         ALTER TABLE strangler.ledger ENABLE ALWAYS TRIGGER append_only; COMMIT"
    );
    service.batch_execute(&cut).await.unwrap();
    let broken = split.run("ledger", &["--verify"]);
    let told = format!("broken: entry {first} is missing at the end");
    assert!(broken.exit == Some(1) && broken.stdout.contains(&told), "{first}: {}", broken.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_that_says_nothing_is_no_reason() {
    let folder = tempfile::tempdir().unwrap();
    let asks: [&[&str]; 3] = [
        &["ledger", "plan.yaml", "--accept-broken"],
        &["flip", "plan.yaml", "--accept-no-evidence"],
        &["reconcile", "plan.yaml", "--repair", "--accept-no-rows"],
    ];
    for (ask, reason) in asks.iter().flat_map(|ask| ["", " \t"].map(|reason| (*ask, reason))) {
        let typed = [ask, &[reason]].concat();
        let ended = Ended::of(command(folder.path(), &typed).output().unwrap());
        assert_eq!(ended.exit, Some(2), "{typed:?}: {}", ended.page());
        assert!(ended.stderr.contains("that is no reason"), "{typed:?}: {}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_from_before_is_read_verified_and_gone_on_with() {
    let (split, _, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    // As a version that knew verdicts, repairs and moves alone has left it.
    super::empty(&service).await;
    super::one(&service, Some("one"), &json!({ "outcome": "clean" })).await;
    succeed(&split, "ledger", &["--verify"]);
    split.provision();
    let kinds = "SELECT kind, slice FROM strangler.ledger ORDER BY id";
    let rows = service.query(kinds, &[]).await.unwrap();
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(kinds, ["verdict", "plan", "provision", "provision"], "what the journal has is told once");
    split.provision();
    assert_eq!(count(&service, "provision").await, 2);
    let whole = succeed(&split, "ledger", &["--verify"]);
    assert!(whole.stdout.contains("whole: 4 entries"), "{}", whole.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_stops_the_mirror_is_told_once_and_again_when_it_happens_again() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for number in 1..=2 {
        monolith
            .batch_execute("ALTER TABLE t RENAME v TO w; UPDATE t SET w = 'x' WHERE id = 1")
            .await
            .unwrap();
        assert_eq!(mirror.ended().0.code(), Some(3), "{}", mirror.log());
        // A supervisor starts it again and again.
        for _ in 0..2 {
            let (status, log) = split.mirror(None).ended();
            assert_ne!(status.code(), Some(0), "{log}");
        }
        let alarms = told(&service, "alarm").await;
        assert_eq!(alarms.len(), number, "{alarms:?}");
        assert_eq!(alarms[number - 1].body["alarm"], json!("stopped"));
        monolith.batch_execute("ALTER TABLE t RENAME w TO v").await.unwrap();
        mirror = split.mirror_with(None, &["--rebuild"]);
        mirror.caught_up(&monolith, &service).await;
    }
    mirror.stop();
}
