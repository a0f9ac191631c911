//! Old tables are taken away a stage at a time, only when everything speaks for it, and come back as they were.

mod again;
mod archive;
mod dropped;
mod dropped_references;
mod dropping;
mod dropping_meanwhile;
mod meanwhile;
mod periods;
mod quarantine;
mod rights;
mod set_back;
#[cfg(feature = "s3")]
mod store;

use std::collections::BTreeSet;

use strangler::cluster::Cluster;
use strangler::failpoint;
use tokio_postgres::Client;

use crate::flip::{flip_to_service, mirrored_and_armed};
use crate::support::binary::Ended;
use crate::support::cluster::{Pair, connect};
use crate::support::every_third;
use crate::support::prepared::prepared;
use crate::support::privilege;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until, until_blocking};

/// Says among the tests that were run that this one was not.
#[cfg(not(feature = "s3"))]
#[test]
#[ignore = "needs a store: cargo test --features failpoints,s3, with moto_server installed"]
fn an_archive_in_a_store_is_read_back_and_comes_back_as_it_was() {
    panic!("this build has no way to a store");
}

const TABLES: &str = "{ accounts: {}, moves: {} }";

/// Made as their owner, whom nobody logs in as. A column that was dropped keeps its rights before PostgreSQL 17.
const SETUP: &str = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, \"odd \"\"name\" text);
    ALTER TABLE accounts ADD old int; GRANT SELECT (old) ON accounts TO shop_read; ALTER TABLE accounts DROP COLUMN old;
    CREATE TABLE moves (id int PRIMARY KEY, amount bigint) PARTITION BY RANGE (id);
    CREATE TABLE moves_1 PARTITION OF moves FOR VALUES FROM (0) TO (100);
    CREATE TABLE moves_2 PARTITION OF moves FOR VALUES FROM (100) TO (200);
    INSERT INTO accounts (id) SELECT generate_series(1, 50); INSERT INTO moves SELECT i, i FROM generate_series(1, 150) i;
    GRANT SELECT ON accounts, moves TO shop_read; ANALYZE accounts, moves";

/// A partition of another owner, as which the administrator may act as well, and those who have rights.
const ROLES: &str = "CREATE ROLE steward; GRANT steward TO shop_admin; ALTER TABLE moves_2 OWNER TO steward;
    CREATE ROLE shop LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE gone; CREATE ROLE \"odd \"\"role\";";

/// Rights of several kinds: with grant option, of everybody, of a column, on a partition.
const RIGHTS: &str = "GRANT SELECT, UPDATE ON accounts TO shop WITH GRANT OPTION; GRANT SELECT ON accounts TO clerk;
    GRANT UPDATE (balance) ON accounts TO clerk; GRANT SELECT ON moves TO PUBLIC; GRANT INSERT ON moves TO shop, gone;
    GRANT SELECT (id) ON moves_2 TO clerk; REVOKE TRUNCATE ON moves FROM retail_owner;";

/// Every right on a relation outside our schema, the owners' among them, as the catalog has it.
const ALL_RIGHTS: &str = "SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (\
    SELECT concat_ws(' ', x.name, x.attname, a.privilege_type, CASE WHEN a.is_grantable THEN 'WITH GRANT OPTION' END, \
        'of', CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, 'by', a.grantor::regrole) AS line \
    FROM (SELECT c.relname::text AS name, NULL::text AS attname, coalesce(c.relacl, acldefault('r', c.relowner)) AS acl \
            FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') \
        UNION ALL SELECT c.relname, '(' || t.attname || ')', t.attacl FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid \
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT t.attisdropped) AS x, LATERAL aclexplode(x.acl) AS a) AS l";

async fn rights(monolith: &Client) -> String {
    monolith.query_one(ALL_RIGHTS, &[]).await.unwrap().get(0)
}

/// Whoever has a right, but for the owners and the tool.
async fn others(monolith: &Client) -> BTreeSet<String> {
    let kept = ["retail_owner", "steward", "strangler_apply", "shop_read", "shop_admin"];
    let all = rights(monolith).await;
    let of =
        all.lines().map(|line| line.rsplit_once(" of ").unwrap().1.split(" by ").next().unwrap().to_owned());
    of.filter(|role| !kept.contains(&role.as_str())).collect()
}

fn revoke(split: &Split, arguments: &[&str]) -> Ended {
    split.run("retire", &[&["--stage", "revoke"], arguments].concat())
}

/// The token that a preview names.
fn token(preview: &Ended) -> String {
    let (_, after) = preview.stderr.split_once("--confirm ").unwrap_or_else(|| panic!("{}", preview.page()));
    after.split_whitespace().next().unwrap().to_owned()
}

/// Takes the stage as it is shown.
fn take(split: &Split) -> Ended {
    let done = revoke(split, &["--confirm", &token(&revoke(split, &[]))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    done
}

fn refused(ended: &Ended, codes: &[&str]) {
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    for code in codes {
        assert!(ended.stderr.contains(&format!("({code})")), "{code}: {}", ended.page());
    }
}

/// A service with the authority, whose plan asks for little before retirement, and a proof that both sides are equal. The links may do
/// what they need and no more.
async fn ripe() -> (Split, Client, Client, Mirror) {
    let pair = prepared("ripe", async || {
        let (split, _, _, mirror) = ripe_of(TABLES, (SETUP, "")).await;
        mirror.stop();
        split.pair
    });
    let plan = format!("{}policy: {{ min_mirror_time: 0s, {RIPE} }}\n", privilege::plan(TABLES));
    let (mut split, monolith, service) = Split::between(pair.await, &plan, "").await;
    privilege::lead(&mut split);
    let mirror = split.mirror(None);
    let looked = "SELECT bool_and(sampled_at > pg_postmaster_start_time()) FROM strangler.table_use";
    until("a mirror has looked at the old tables again", SOON, async || {
        monolith.query_one(looked, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    are_watched(&monolith).await;
    (split, monolith, service, mirror)
}

/// What the plan says once the authority is at the service.
const RIPE: &str = "write_pause_budget: 2s, safety_period: 0s, quiet_period: 0s, clean_runs_before_retire: 1";

/// The old tables are watched, and have been for long.
async fn are_watched(monolith: &Client) {
    watch_begins(monolith).await;
    monolith.batch_execute("UPDATE strangler.table_use SET since = now() - interval '1 hour'").await.unwrap();
}

async fn watch_begins(monolith: &Client) {
    let watched = "SELECT count(*) >= 2 AND count(*) = (SELECT count(*) FROM strangler.mirror_table) FROM strangler.table_use";
    until("the old tables are watched", SOON, async || {
        monolith.query_one(watched, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

/// The same with other tables, which are set up so; the other text is run in the service before anything is made there.
async fn ripe_of(tables: &str, (setup, prepared): (&str, &str)) -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = privilege::open(tables, setup).await;
    service.batch_execute(prepared).await.unwrap();
    monolith.batch_execute(ROLES).await.unwrap();
    let mirror = ripen(&split, &monolith, &service).await;
    (split, monolith, service, mirror)
}

/// From a plan that was never provisioned on.
async fn ripen(split: &Split, monolith: &Client, service: &Client) -> Mirror {
    let policy = "policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";
    split.write_plan(&format!("{}{policy}", split.plan_text()));
    split.provision();
    let mirror = mirrored_and_armed(split, monolith, service).await;
    monolith.batch_execute(RIGHTS).await.unwrap();
    refused(&revoke(split, &[]), &["not-flipped"]);
    flip_to_service(split, &mirror);
    refused(&revoke(split, &[]), &["safety-period", "clean-runs", "no-evidence"]);
    split.change_plan("write_pause_budget: 2s", RIPE);
    watch_begins(monolith).await;
    refused(&revoke(split, &[]), &["quiet-period", "clean-runs"]);
    are_watched(monolith).await;
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    mirror
}

async fn may_read(split: &Split) -> bool {
    let shop = connect(&split.pair.monolith.url_as("shop", "", Pair::MONOLITH)).await;
    shop.query("SELECT FROM accounts", &[]).await.is_ok()
}

fn entries(split: &Split, kind: &str) -> Vec<serde_json::Value> {
    let told = split.run("ledger", &["--kind", kind, "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    document["services"][0]["entries"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_taken_away_as_shown_and_given_back_as_they_were() {
    let (split, monolith, service, mirror) = ripe().await;
    let before = rights(&monolith).await;
    let preview = revoke(&split, &[]);
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    let statement = "SET LOCAL ROLE \"retail_owner\";\nREVOKE SELECT, UPDATE (\"balance\") ON TABLE \"public\".\"accounts\" FROM \"clerk\";\n";
    assert!(preview.stdout.contains(statement), "{}", preview.page());
    assert_eq!(rights(&monolith).await, before, "a preview changes nothing");
    refused(&revoke(&split, &["--confirm", "00000000"]), &[]);
    assert!(may_read(&split).await);

    take(&split);
    assert!(!may_read(&split).await);
    assert_eq!(others(&monolith).await, BTreeSet::new(), "{}", rights(&monolith).await);
    // The way back goes on, what was proven stands, and both sides can still be compared.
    service
        .batch_execute(
            "UPDATE sales.accounts SET balance = 7 WHERE id = 1; INSERT INTO sales.moves VALUES (199, 1)",
        )
        .await
        .unwrap();
    let back = "SELECT (SELECT balance FROM accounts WHERE id = 1) = 7 AND EXISTS (SELECT FROM moves WHERE id = 199)";
    until("the way back brings it", SOON, async || {
        monolith.query_one(back, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    let compared = split.run("reconcile", &["--strict"]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    told(&split);
    assert!(revoke(&split, &[]).stderr.contains("taken away before"));

    // What somebody gives by hand meanwhile, weaker than it was, is one right with what was noted, and what stays is left alone.
    monolith.batch_execute("GRANT SELECT ON accounts TO shop; DROP ROLE gone").await.unwrap();
    take(&split);
    monolith
        .batch_execute("GRANT DELETE ON accounts TO shop; ALTER TABLE moves_1 OWNER TO steward;
            ALTER ROLE clerk RENAME TO scribe; CREATE ROLE clerk; CREATE ROLE gone; ALTER TABLE moves_2 RENAME TO moves_last")
        .await
        .unwrap();
    let dry = split.run("unretire", &["--dry-run"]);
    let statement = "GRANT SELECT, UPDATE ON TABLE \"public\".\"accounts\" TO \"shop\" WITH GRANT OPTION;\n";
    assert!(dry.stdout.contains(statement), "{}", dry.page());
    assert!(!may_read(&split).await);
    let restored = split.run("unretire", &[]);
    assert_eq!(restored.exit, Some(1), "{}", restored.page());
    let left = "not given back: INSERT on moves of gone: the role is not there any more; what is called so now is another one";
    assert!(restored.stderr.contains(left), "{}", restored.page());
    assert!(may_read(&split).await);
    let found = rights(&monolith).await;
    assert!(found.contains("accounts SELECT of scribe by retail_owner"), "{found}");
    assert!(found.contains("moves_last (id) SELECT of scribe by steward"), "{found}");
    monolith
        .batch_execute(
            "REVOKE DELETE ON accounts FROM shop; ALTER TABLE moves_1 OWNER TO retail_owner; DROP ROLE clerk;
             ALTER ROLE scribe RENAME TO clerk; ALTER TABLE moves_last RENAME TO moves_2",
        )
        .await
        .unwrap();
    let expected: Vec<&str> = before.lines().filter(|line| !line.contains(" gone ")).collect();
    assert_eq!(rights(&monolith).await.lines().collect::<Vec<_>>(), expected);
    given_up(&split, left);
    let taken = entries(&split, "retire");
    let first = "take SELECT, UPDATE (balance) away from clerk";
    assert_eq!(taken[0]["body"]["taken"][0]["action"], first, "{taken:#?}");
    assert_eq!((taken.len(), entries(&split, "unretire").len()), (2, 2), "{taken:#?}");

    frozen(&split, &monolith).await;
    untold(&split, &monolith, &service).await;
    outdated(&split, &monolith).await;
    mirror.stop();
}

/// Whatever would need the rights, and whoever asks, is told that they are away and how they come back.
fn told(split: &Split) {
    let undo = "strangler unretire plan.yaml --slice one";
    let back = split.run("flip", &["--back"]);
    refused(&back, &["retired"]);
    assert!(back.stderr.contains(undo), "{}", back.page());
    let disarmed = split.run("disarm", &[]);
    refused(&disarmed, &["authority"]);
    assert!(disarmed.stderr.contains(&format!("{undo}; then strangler flip --back")), "{}", disarmed.page());
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(document["slices"][0]["retirement"]["stage"], "revoked", "{document:#}");
    assert_eq!(document["slices"][0]["retirement"]["undo"], undo, "{document:#}");
    assert_eq!(document["slices"][0]["evidence"]["stands"], true, "{document:#}");
    let [(slice, code, next)] = doctors_rights(split).try_into().unwrap();
    assert_eq!((slice.as_str(), code.as_str()), ("one", "rights-away"));
    assert!(next.starts_with(undo), "{next}");
}

/// Where the slice is retired as `status` tells, with the command that undoes it.
fn undo_that_status_names(split: &Split) -> Option<String> {
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    document["slices"][0]["retirement"]["undo"].as_str().map(str::to_owned)
}

/// What `doctor` says of rights on the monolith: the code and what is to be typed, by slice.
fn doctors_rights(split: &Split) -> Vec<(String, String, String)> {
    let report = split.run("doctor", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let objects = document["databases"][0]["objects"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let rights = objects.iter().filter(|object| object["kind"] == "rights");
    rights
        .map(|object| {
            (text(&object["name"]), text(&object["problem"]["code"]), text(&object["problem"]["next"]))
        })
        .collect()
}

/// What could not be given back stays written down until somebody says that it may be forgotten.
fn given_up(split: &Split, left: &str) {
    let again = split.run("unretire", &[]);
    assert!(again.exit == Some(1) && again.stderr.contains(left), "{}", again.page());
    assert!(again.stderr.contains("strangler unretire plan.yaml --slice one --give-up"), "{}", again.page());
    let status = split.run("status", &[]);
    assert!(status.stdout.contains("[rights-left]"), "{}", status.page());
    assert_eq!(doctors_rights(split)[0].1, "rights-left");
    let told = entries(split, "unretire");
    let steps = told[0]["body"]["taken"].as_array().unwrap();
    let of_gone =
        |step: &serde_json::Value| step["action"].as_str().unwrap().starts_with("leave out INSERT of gone: ");
    assert!(told.len() == 1 && steps.iter().any(of_gone), "{told:#?}");
    let forgotten = split.run("unretire", &["--give-up"]);
    assert!(
        forgotten.exit == Some(0) && forgotten.stderr.contains("given up: INSERT on moves of gone"),
        "{}",
        forgotten.page()
    );
    let again = split.run("unretire", &[]);
    assert!(again.exit == Some(0) && again.stderr.contains("nothing is retired"), "{}", again.page());
}

/// Behind the COMMIT nobody says that nothing was done: the ledger's entry is missing, and the next command writes it.
async fn untold(split: &Split, monolith: &Client, service: &Client) {
    service
        .batch_execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
             CREATE TRIGGER no BEFORE INSERT ON strangler.ledger FOR EACH ROW EXECUTE FUNCTION no()",
        )
        .await
        .unwrap();
    let failed = revoke(split, &["--confirm", &token(&revoke(split, &[]))]);
    assert_eq!(failed.exit, Some(5), "{}", failed.page());
    for words in ["error[retire-untold]", "the rights are taken away; only the ledger's entry is missing"] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.page());
    }
    assert!(!may_read(split).await);
    service.batch_execute("DROP TRIGGER no ON strangler.ledger; DROP FUNCTION no").await.unwrap();

    // So it is where the session is lost.
    let mut command = split.command(&["unretire", "plan.yaml"]);
    command.env("STRANGLER_FREEZE", "unretire-committed");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'strangler unretire'";
    monolith.query(end, &[]).await.unwrap();
    frozen.signal(rustix::process::Signal::CONT);
    let ended = frozen.ended();
    assert_eq!(ended.exit, Some(5), "{}", ended.page());
    assert!(ended.stderr.contains("the rights are given back; only the ledger's entry"), "{}", ended.page());
    assert!(may_read(split).await);
    assert_eq!(split.run("unretire", &[]).exit, Some(0));
    assert_eq!((entries(split, "retire").len(), entries(split, "unretire").len()), (3, 3));
}

/// Notes that the rights are away, as the stage does.
const TAKEN: &str = "INSERT INTO strangler.retirement (slice, stage, epoch) VALUES ('one', 'revoked', 2)";

/// A flip back that stands still at this point while the rights are noted as taken away, and goes on.
async fn flipped_back_while_rights_go(split: &Split, monolith: &Client, point: &str) -> Ended {
    let going = until_blocking("a flip back is under way", SOON, || {
        let mut command = split.command(&["flip", "plan.yaml", "--back", "--accept-no-evidence", "a test"]);
        command.env("STRANGLER_FREEZE", point);
        let mut going = split.start_command(command);
        going.stands_still().then_some(going)
    });
    monolith.batch_execute(TAKEN).await.unwrap();
    going.signal(rustix::process::Signal::CONT);
    going.ended()
}

/// A flip back that looked before the rights went does not open the monolith, and where it is open without them `status` says so.
async fn opened_without_rights(split: &Split, monolith: &Client) {
    let ended = flipped_back_while_rights_go(split, monolith, "flip-before-fence").await;
    assert_ne!(ended.exit, Some(0), "{}", ended.page());
    assert!(ended.stderr.contains("strangler unretire plan.yaml --slice one"), "{}", ended.page());
    let state = "SELECT state = 'OPEN' FROM strangler.gate_one";
    assert!(!monolith.query_one(state, &[]).await.unwrap().get::<_, bool>(0), "{}", ended.page());

    monolith.batch_execute("DELETE FROM strangler.retirement").await.unwrap();
    until("the monolith is open", SOON, async || {
        split.run("flip", &["--back", "--accept-no-evidence", "a test"]);
        monolith.query_one(state, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    monolith.batch_execute(TAKEN).await.unwrap();
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(document["slices"][0]["next"], "strangler unretire plan.yaml --slice one", "{document:#}");
    assert!(document["slices"][0]["alarms"].to_string().contains("[retired]"), "{document:#}");
    let another = "INSERT INTO strangler.retirement (slice, stage, epoch) VALUES ('ghost', 'revoked', 2)";
    monolith.batch_execute(another).await.unwrap();
    let said: Vec<_> = doctors_rights(split).into_iter().map(|(slice, code, _)| (slice, code)).collect();
    let expected = [("ghost", "rights-without-slice"), ("one", "retired")];
    assert_eq!(said, expected.map(|(slice, code)| (slice.to_owned(), code.to_owned())));
}

/// Tables and roles of a clone or a restored copy have other numbers, so nothing is given to them.
async fn elsewhere(split: &Split, monolith: &Client) {
    let moved = "UPDATE strangler.database SET database_oid = (database_oid::int8 + 1)::oid";
    monolith.batch_execute(moved).await.unwrap();
    for ended in [split.run("unretire", &[]), revoke(split, &[])] {
        refused(&ended, &["database-cloned"]);
    }
}

/// Where an earlier version has provisioned, nothing can be taken, and nothing stands in the way of a flip back.
async fn outdated(split: &Split, monolith: &Client) {
    let back_to_v5 = "DROP TABLE strangler.retirement, strangler.revoked_right; \
        DELETE FROM strangler.schema_history WHERE version = 6";
    monolith.batch_execute(back_to_v5).await.unwrap();
    let refused = revoke(split, &[]);
    assert_eq!(refused.exit, Some(5), "{}", refused.page());
    assert!(refused.stderr.contains("hint: strangler provision plan.yaml"), "{}", refused.page());
    until_blocking("the monolith is opened", SOON, || {
        let back = split.run("flip", &["--back", "--accept-no-evidence", "a test"]);
        assert!(matches!(back.exit, Some(0 | 3)), "{}", back.page());
        (back.exit == Some(0)).then_some(())
    });
}

/// A process that is frozen in the middle holds the rights for a second, and takes away nothing.
async fn frozen(split: &Split, monolith: &Client) {
    let before = rights(monolith).await;
    let shown = token(&revoke(split, &[]));
    let mut command = split.command(&["retire", "plan.yaml", "--stage", "revoke", "--confirm", &shown]);
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
    assert_eq!(rights(monolith).await, before);
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
    let points: Vec<&&str> = failpoint::RETIRE.iter().chain(&["steps-taken", "steps-recorded"]).collect();
    let points = every_third(&points);
    for point in &points {
        let taking = !point.starts_with("unretire");
        let shown = token(&revoke(&split, &[]));
        let confirm = ["--stage", "revoke", "--confirm", &shown];
        if taking {
            killed("retire", point, &confirm);
            let nothing = **point == "retire-before-commit";
            assert_eq!(may_read(&split).await, nothing, "{point}");
            assert_eq!(undo_that_status_names(&split).is_none(), nothing, "{point}");
        }
        let again = revoke(&split, &confirm[2..]);
        assert_eq!(again.exit, Some(0), "{point}: {}", again.page());
        assert!(!may_read(&split).await, "{point}");
        if !taking {
            killed("unretire", point, &[]);
            assert_eq!(may_read(&split).await, **point == "unretire-committed", "{point}");
        }
        let named = undo_that_status_names(&split);
        assert_eq!(named.is_some(), **point != "unretire-committed", "{point}");
        let undo = named.unwrap_or_else(|| "strangler unretire plan.yaml --slice one".to_owned());
        let words: Vec<&str> = undo.split(' ').skip(1).collect();
        let back = Ended::of(split.command(&words).output().unwrap());
        assert_eq!(back.exit, Some(0), "{point}: {}", back.page());
        assert_eq!(rights(&monolith).await, before, "{point}");
    }
    for (kind, last) in [("retire", "take stage revoked"), ("unretire", "undo stage revoked")] {
        let entries = entries(&split, kind);
        let taken = entries.iter().flat_map(|one| one["body"]["taken"].as_array().unwrap());
        let told = taken.filter(|step| step["action"] == last).count();
        assert_eq!(told, points.len(), "each is told once: {entries:#?}");
    }
    opened_without_rights(&split, &monolith).await;
    mirror.stop();
    elsewhere(&split, &monolith).await;
}
