//! Old tables are taken away a stage at a time, only when everything speaks for it, and come back as they were.

use strangler::failpoint;
use tokio_postgres::Client;

use crate::flip::{armed, flip_to_service};
use crate::support::binary::Ended;
use crate::support::cluster::connect;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

/// Rights of all kinds: with grant option and what came of it, of everybody, of a column, of the tool.
const RIGHTS: &str = "CREATE ROLE shop LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE gone; CREATE ROLE steward;
    GRANT SELECT, UPDATE ON accounts TO shop WITH GRANT OPTION;
    SET ROLE shop; GRANT SELECT ON accounts TO clerk WITH GRANT OPTION; GRANT UPDATE (balance) ON accounts TO clerk;
    SET ROLE clerk; GRANT SELECT ON accounts TO steward; RESET ROLE;
    GRANT SELECT ON moves TO PUBLIC; GRANT INSERT ON moves TO shop, gone;
    GRANT UPDATE (id) ON moves TO clerk;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO shop;";

/// Every right on a relation outside our schema, as the catalog has it.
const ALL_RIGHTS: &str = "SELECT coalesce(string_agg(format('%s %s %s %s %s', x.name, x.attname, a.grantee::regrole, \
        a.grantor::regrole, a.privilege_type || a.is_grantable), E'\n' ORDER BY x.name, x.attname, a::text), '') \
    FROM (SELECT c.relname::text AS name, NULL::text AS attname, c.relacl AS acl FROM pg_class c \
            WHERE c.relnamespace = 'public'::regnamespace \
        UNION ALL SELECT c.relname, t.attname, t.attacl FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid \
            WHERE c.relnamespace = 'public'::regnamespace) AS x, LATERAL aclexplode(x.acl) AS a \
    WHERE a.grantee <> a.grantor AND a.grantee::regrole::text <> 'strangler_apply'";

async fn rights(monolith: &Client) -> String {
    monolith.query_one(ALL_RIGHTS, &[]).await.unwrap().get(0)
}

fn revoke(split: &Split, arguments: &[&str]) -> Ended {
    split.run("retire", &[&["--stage", "revoke"], arguments].concat())
}

/// The token that a preview names.
fn token(preview: &Ended) -> String {
    let (_, after) = preview.stderr.split_once("--confirm ").unwrap_or_else(|| panic!("{}", preview.page()));
    after.split_whitespace().next().unwrap().to_owned()
}

fn refused(ended: &Ended, codes: &[&str]) {
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    for code in codes {
        assert!(ended.stderr.contains(&format!("({code})")), "{code}: {}", ended.page());
    }
}

/// A service with the authority, whose plan asks for little before retirement, and a proof that both sides are equal.
async fn ripe() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service, mirror) = armed().await;
    monolith.batch_execute(RIGHTS).await.unwrap();
    refused(&revoke(&split, &[]), &["not-flipped"]);
    flip_to_service(&split, &mirror);
    refused(&revoke(&split, &[]), &["safety-period", "clean-runs", "no-evidence"]);
    let policy = "write_pause_budget: 2s, safety_period: 0s, quiet_period: 0s, clean_runs_before_retire: 1";
    split.change_plan("write_pause_budget: 2s", policy);
    let watched = "SELECT count(*) = 5 FROM strangler.table_use";
    until("the old tables are watched", SOON, async || {
        monolith.query_one(watched, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    refused(&revoke(&split, &[]), &["quiet-period", "clean-runs"]);
    monolith.batch_execute("UPDATE strangler.table_use SET since = now() - interval '1 hour'").await.unwrap();
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    (split, monolith, service, mirror)
}

async fn may_read(split: &Split) -> bool {
    let shop = connect(&split.pair.monolith_url()).await;
    shop.batch_execute("SET ROLE shop").await.unwrap();
    shop.query("SELECT FROM accounts", &[]).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_taken_away_as_shown_and_given_back_as_they_were() {
    let (split, monolith, service, mirror) = ripe().await;
    let before = rights(&monolith).await;
    let preview = revoke(&split, &[]);
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    let statement = "SET LOCAL ROLE \"shop\";\nREVOKE SELECT ON TABLE \"public\".\"accounts\" FROM \"clerk\";\nRESET ROLE;";
    assert!(preview.stdout.contains(statement), "{}", preview.page());
    assert_eq!(rights(&monolith).await, before, "a preview changes nothing");
    refused(&revoke(&split, &["--confirm", "00000000"]), &[]);
    assert!(may_read(&split).await);

    let done = revoke(&split, &["--confirm", &token(&preview)]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert!(!may_read(&split).await, "{}", rights(&monolith).await);
    for role in ["shop", "clerk", "gone", "-"] {
        assert!(!rights(&monolith).await.lines().any(|line| line.split(' ').nth(2) == Some(role)), "{role}");
    }
    // The way back goes on, what was proven stands, and both sides can still be compared.
    service.batch_execute("UPDATE accounts SET balance = balance WHERE id = 1").await.unwrap();
    let compared = split.run("reconcile", &["--strict"]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    let back = split.run("flip", &["--back"]);
    refused(&back, &["retired"]);
    assert!(back.stderr.contains("strangler unretire plan.yaml --slice one"), "{}", back.page());
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(document["slices"][0]["retirement"]["stage"], "revoked", "{document:#}");
    assert_eq!(document["slices"][0]["evidence"]["stands"], true, "{document:#}");
    assert!(revoke(&split, &[]).stderr.contains("taken away before"));

    // What somebody gave by hand meanwhile, weaker than it was, is one right with what was noted.
    monolith.batch_execute("GRANT SELECT ON accounts TO shop; DROP ROLE gone").await.unwrap();
    let again = revoke(&split, &[]);
    let again = revoke(&split, &["--confirm", &token(&again)]);
    assert_eq!(again.exit, Some(0), "{}", again.page());
    monolith.batch_execute("ALTER TABLE moves OWNER TO steward").await.unwrap();
    let restored = split.run("unretire", &[]);
    assert_eq!(restored.exit, Some(1), "{}", restored.page());
    assert!(restored.stderr.contains("not given back: INSERT on moves of gone, by"), "{}", restored.page());
    monolith.batch_execute("ALTER TABLE moves OWNER TO SESSION_USER").await.unwrap();
    let lost = |line: &&str| !line.contains(" gone ");
    let expected: Vec<&str> = before.lines().filter(lost).collect();
    assert_eq!(rights(&monolith).await.lines().collect::<Vec<_>>(), expected);
    assert!(may_read(&split).await);
    assert!(split.run("unretire", &[]).stderr.contains("nothing was taken away"));
    let before = rights(&monolith).await;
    // A process that is frozen in the middle holds the tables for a second, and takes away nothing.
    let token = token(&revoke(&split, &[]));
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "revoke", "--confirm", &token]);
    command.env("STRANGLER_FREEZE", "retire-before-commit");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    let sessions = "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name LIKE 'strangler%'";
    until("the server has ended it", SOON, async || {
        monolith.query(sessions, &[]).await.unwrap().is_empty().then_some(())
    })
    .await;
    frozen.signal(rustix::process::Signal::CONT);
    let ended = frozen.ended();
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    assert!(ended.stderr.contains("type the same command again"), "{}", ended.page());
    assert_eq!(rights(&monolith).await, before);
    let told = split.run("ledger", &["--kind", "retire", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let entries = document["services"][0]["entries"].as_array().unwrap();
    let actions: Vec<&str> =
        entries.iter().map(|one| one["body"]["taken"][0]["action"].as_str().unwrap()).collect();
    let (take, give) = ("take away the rights on old tables", "give back the rights on old tables");
    assert_eq!(actions, [take, take, give]);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_is_killed_at_any_step_is_whole_or_nothing_and_is_told_once() {
    let (split, monolith, _service, mirror) = ripe().await;
    let before = rights(&monolith).await;
    let killed = |verb: &str, point: &str, arguments: &[&str]| {
        let mut command = split.command(&[&[verb, "plan.yaml"], arguments].concat());
        let ended = Ended::of(command.env("STRANGLER_FAILPOINT", point).output().unwrap());
        assert_eq!(ended.exit, None, "{point} was not reached: {}", ended.page());
    };
    for point in failpoint::RETIRE.iter().chain(&["steps-taken", "steps-recorded"]) {
        let taking = !point.starts_with("unretire");
        let token = token(&revoke(&split, &[]));
        let confirm = ["--stage", "revoke", "--confirm", &token];
        if taking {
            killed("retire", point, &confirm);
            assert_eq!(may_read(&split).await, *point == "retire-before-commit", "{point}");
        }
        let again = revoke(&split, &confirm[2..]);
        assert_eq!(again.exit, Some(0), "{point}: {}", again.page());
        assert!(!may_read(&split).await, "{point}");
        if !taking {
            killed("unretire", point, &[]);
            assert_eq!(may_read(&split).await, *point == "unretire-committed", "{point}");
        }
        let back = split.run("unretire", &[]);
        assert_eq!(back.exit, Some(0), "{point}: {}", back.page());
        assert_eq!(rights(&monolith).await, before, "{point}");
    }
    let told = split.run("ledger", &["--kind", "retire", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let entries = document["services"][0]["entries"].as_array().unwrap();
    let steps: i64 = entries.iter().map(|one| one["body"]["steps"].as_i64().unwrap()).sum();
    assert_eq!(steps, 2 * 6, "each taking and giving is told once: {document:#}");
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_no_right_can_stop_is_named() {
    let (split, monolith, _service, mirror) = ripe().await;
    split.change_plan("monolith: { url", "monolith: { app_roles: [shop, clerk], url");
    monolith
        .batch_execute("ALTER TABLE accounts OWNER TO shop; GRANT pg_read_all_data TO clerk")
        .await
        .unwrap();
    let shown = revoke(&split, &[]);
    refused(&shown, &["app-role-unstoppable"]);
    for words in ["role shop owns tables of it", "role clerk is a member of pg_read_all_data"] {
        assert!(shown.stderr.contains(words), "{words}: {}", shown.page());
    }
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_while_a_stage_waits_is_not_lost_and_what_would_stay_is_named() {
    let (split, monolith, _service, mirror) = ripe().await;
    let token = token(&revoke(&split, &[]));
    let other = connect(&split.pair.monolith_url()).await;
    other.batch_execute("BEGIN; SELECT FROM strangler.gate_one FOR UPDATE").await.unwrap();
    let stage = split.start("retire", &["--stage", "revoke", "--confirm", &token]);
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'strangler retire' \
        AND wait_event_type = 'Lock')";
    until("the stage waits", SOON, async || {
        monolith.query_one(waits, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    monolith.batch_execute("GRANT DELETE ON moves TO shop").await.unwrap();
    let before = rights(&monolith).await;
    other.batch_execute("COMMIT").await.unwrap();
    let ended = stage.ended();
    refused(&ended, &["right-stays"]);
    assert_eq!(rights(&monolith).await, before, "nothing was done");
    refused(&revoke(&split, &["--confirm", &token]), &[]);

    // A link that reads by way of everybody's right would stand still.
    monolith
        .batch_execute("REVOKE ALL ON notes FROM strangler_apply; GRANT SELECT ON notes TO PUBLIC")
        .await
        .unwrap();
    refused(&revoke(&split, &[]), &["link-loses-right"]);
    assert_eq!(split.run("retire", &["--stage", "revoke", "--approved-by", ""]).exit, Some(2));
    mirror.stop();
}
