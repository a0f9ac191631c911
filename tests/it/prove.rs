//! Proof of suspect keys, with a real mirror between two real servers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strangler::failpoint::hooks::Hooks;
use strangler::reconcile::finding::{Finding, FindingKind, RawKey, Shown};
use strangler::reconcile::form::TableForm;
use strangler::reconcile::prove::{Proof, ProveError, Prover};
use strangler::reconcile::redact::Redactor;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::scenario::{Run, Running, Scenario};

const SCHEMA: &str = r#"
CREATE TYPE "Mood" AS ENUM ('sad', 'fine');
CREATE TABLE "Orders" ("Id" int PRIMARY KEY, "Region" text NOT NULL, "Name" text, "Amount" numeric(9, 2),
    "Email" text, "Doc" jsonb, "Mood" "Mood");
ALTER TABLE "Orders" REPLICA IDENTITY FULL;
INSERT INTO "Orders" SELECT i, CASE WHEN i % 10 = 0 THEN 'US' ELSE 'EU' END, 'name ' || i, i,
    'mail' || i || '@example.org', '{"a": 1}', 'fine' FROM generate_series(1, 400) i;
CREATE TABLE "Days" ("At" date, "Mood" "Mood", "Count" int, PRIMARY KEY ("At", "Mood")) PARTITION BY RANGE ("At");
CREATE TABLE "Days_1" PARTITION OF "Days" FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE "Days_2" PARTITION OF "Days" FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO "Days" SELECT date '2026-01-01' + i, 'fine', i FROM generate_series(0, 50) i;
"#;

const TABLES: &str =
    "      Orders: { where: { Region: [EU] }, columns: { Name: { to: label } } }\n      Days: {}\n";

struct Bench {
    scenario: Scenario,
    running: Running,
    prover: Prover,
    stop: CancellationToken,
}

impl Bench {
    async fn new() -> Self {
        let scenario = Scenario::new(SCHEMA, TABLES).await;
        let running = scenario.start(&Run { hooks: Hooks::with(&[]), ..Run::new(&[]) });
        scenario.settled().await;
        // The test damages the copy as the mirror would write it: gates let nobody else.
        scenario.target.batch_execute("SET SESSION AUTHORIZATION strangler_apply").await.unwrap();
        let redactor = Arc::new(Redactor::new().unwrap());
        let (meeting, stop) = (scenario.meeting().await, CancellationToken::new());
        let prover = Prover::new(("one", &scenario.sides()), meeting, redactor, stop.clone()).await.unwrap();
        Self { scenario, running, prover, stop }
    }

    fn form(&self, table: &str) -> TableForm {
        let tables = &self.scenario.mapping.tables;
        let mut mapping = tables.iter().find(|mapping| mapping.source.name == table).unwrap().clone();
        for column in mapping.columns.iter_mut().filter(|column| column.source == "Email") {
            column.class = Some("personal".to_owned());
        }
        TableForm::new(mapping, false)
    }

    async fn damage(&self, sql: &str) {
        self.scenario.target.batch_execute(sql).await.unwrap();
    }

    async fn prove(&mut self, table: &str, keys: Vec<RawKey>) -> Proof {
        let form = self.form(table);
        self.prover.prove("things", &form, keys, 1_000).await.unwrap()
    }
}

fn keys(ids: impl IntoIterator<Item = i32>) -> Vec<RawKey> {
    ids.into_iter().map(|id| RawKey(vec![id.to_string()])).collect()
}

fn text(value: &str) -> Shown {
    Shown::Text(value.to_owned())
}

/// What is listed, by key.
fn listed(proof: &Proof) -> BTreeMap<String, &Finding> {
    proof.listed.iter().map(|finding| (finding.raw_key.0.join(","), finding)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_is_proven_with_its_columns() {
    let mut bench = Bench::new().await;
    let admin = bench.scenario.pair.service().await;
    admin.batch_execute(r#"ALTER TABLE "Orders" DROP CONSTRAINT "Orders_pkey""#).await.unwrap();
    bench
        .damage(
            r#"
        UPDATE "Orders" SET label = 'other', "Amount" = 0.01 WHERE "Id" = 1;
        UPDATE "Orders" SET "Email" = 'eve@example.org' WHERE "Id" = 2;
        UPDATE "Orders" SET label = NULL WHERE "Id" = 3;
        UPDATE "Orders" SET label = '' WHERE "Id" = 4;
        UPDATE "Orders" SET "Mood" = 'sad', "Doc" = '{"a": 2}' WHERE "Id" = 5;
        UPDATE "Orders" SET label = repeat('x', 3000) WHERE "Id" = 6;
        DELETE FROM "Orders" WHERE "Id" IN (11, 12);
        INSERT INTO "Orders" SELECT 9001, "Region", label FROM "Orders" WHERE "Id" = 21;
        INSERT INTO "Orders" SELECT 10, "Region", label FROM "Orders" WHERE "Id" = 21;
        INSERT INTO "Orders" ("Id", "Region") VALUES (9002, 'US');
        INSERT INTO "Orders" SELECT * FROM "Orders" WHERE "Id" = 31;
        UPDATE "Orders" SET "Amount" = 7 WHERE "Id" = 7;
        DELETE FROM "Days" WHERE "At" = '2026-02-05'; UPDATE "Days" SET "Count" = -1 WHERE "At" = '2026-01-05'"#,
        )
        .await;
    // Untouched rows, rows of nobody, and rows that are named twice are suspects, too.
    let suspects = (1..=40).chain(1..=10).chain(9_000..9_005);
    let proof = bench.prove("Orders", keys(suspects)).await;
    assert_eq!(proof.unsettled, Vec::<String>::new());
    use FindingKind::{Differs, Duplicate, Extra, Misplaced, Missing};
    let expected = [
        ("1", Differs, vec!["label", "Amount"]),
        ("10", Misplaced, vec![]),
        ("11", Missing, vec![]),
        ("12", Missing, vec![]),
        ("2", Differs, vec!["Email"]),
        ("3", Differs, vec!["label"]),
        ("31", Duplicate, vec![]),
        ("4", Differs, vec!["label"]),
        ("5", Differs, vec!["Doc", "Mood"]),
        ("6", Differs, vec!["label"]),
        ("9001", Extra, vec![]),
        ("9002", Misplaced, vec![]),
    ];
    let found = listed(&proof);
    let told: Vec<_> = found
        .iter()
        .map(|(key, finding)| {
            let columns: Vec<&str> = finding.columns.iter().map(|diff| diff.column.as_str()).collect();
            (key.as_str(), finding.kind, columns)
        })
        .collect();
    assert_eq!(told, expected);
    assert_eq!((proof.counts[&Differs], proof.counts.values().sum::<u64>()), (6, 12));
    assert_eq!(proof.keys.len(), 12);
    assert_eq!(found["1"].key, [("Id".to_owned(), text("1"))]);
    let amount = &found["1"].columns[1];
    assert_eq!((&amount.authority, &amount.copy), (&text("1.00"), &text("0.01")));
    let (null, empty) = (&found["3"].columns[0], &found["4"].columns[0]);
    assert_eq!((&null.authority, &null.copy), (&text("name 3"), &Shown::Null));
    assert_eq!(empty.copy, text(""));
    assert_eq!(found["31"].detail.as_deref(), Some("the copy has the key 2 times"));
    let long = format!("{} ... (the first 2000 of 3000 characters)", "x".repeat(2_000));
    assert_eq!(found["6"].columns[0].copy, text(&long));
    let (Shown::Digest(mail), Shown::Digest(other)) =
        (&found["2"].columns[0].authority, &found["2"].columns[0].copy)
    else {
        panic!("a classified value is shown in clear")
    };
    assert!(mail.len() == 16 && mail != other && !format!("{proof:?}").contains("example.org"));

    let day = |at: &str| RawKey(vec![at.to_owned(), "fine".to_owned()]);
    let proof = bench.prove("Days", vec![day("2026-01-05"), day("2026-02-05"), day("2026-02-06")]).await;
    assert_eq!(proof.counts, [(Missing, 1), (Differs, 1)].into());
    assert_eq!(listed(&proof)["2026-01-05,fine"].columns[0].copy, text("-1"));
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_cut_and_everything_is_counted() {
    let mut bench = Bench::new().await;
    bench.damage(r#"UPDATE "Orders" SET "Amount" = -1; DELETE FROM "Orders" WHERE "Id" > 300"#).await;
    let form = bench.form("Orders");
    bench.prover.prove("things", &form, keys([399]), 0).await.unwrap();
    let began = Instant::now();
    let proof = bench.prover.prove("things", &form, keys(1..=400), 3).await.unwrap();
    let took = began.elapsed();
    assert_eq!(proof.counts, [(FindingKind::Differs, 270), (FindingKind::Missing, 90)].into());
    assert_eq!((proof.listed.len(), proof.keys.len()), (3, 360));
    assert!(took < Duration::from_secs(2), "{took:?}");
    let began = Instant::now();
    bench.prover.prove("things", &form, keys(1..=100), 100).await.unwrap();
    eprintln!("400 suspects {took:?}, 100 suspects {:?}", began.elapsed());
    bench.running.stop().await;
}

/// Hammers ten keys with everything that may happen to a row, and notes how long a statement took at most.
async fn hammer(writer: Client, seed: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Duration {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut longest = Duration::ZERO;
    // A mirror that can't keep up would only show that it can't.
    let mut pace = interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let (id, other) = (random.u32(1..=10), random.u32(1..=10));
        let sql = match random.u32(0..6) {
            0 | 1 => format!(r#"UPDATE "Orders" SET "Amount" = "Amount" + 1 WHERE "Id" = {id}"#),
            2 => format!(
                r#"BEGIN; DELETE FROM "Orders" WHERE "Id" = {id}; INSERT INTO "Orders" ("Id", "Region", "Amount")
                   VALUES ({id}, 'EU', 1) ON CONFLICT DO NOTHING; COMMIT"#
            ),
            3 => format!(r#"DELETE FROM "Orders" WHERE "Id" = {id}"#),
            4 => format!(
                r#"INSERT INTO "Orders" ("Id", "Region", "Amount") VALUES ({id}, 'EU', 0)
                   ON CONFLICT ("Id") DO UPDATE SET "Region" = CASE "Orders"."Region" WHEN 'EU' THEN 'US' ELSE 'EU' END"#
            ),
            _ => format!(
                r#"UPDATE "Orders" SET "Id" = {other} WHERE "Id" = {id}
                   AND NOT EXISTS (SELECT FROM "Orders" WHERE "Id" = {other})"#
            ),
        };
        let began = Instant::now();
        if writer.batch_execute(&sql).await.is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
        } else {
            // A unique violation or a deadlock, which are the application's own.
            let _ = writer.batch_execute("ROLLBACK").await;
        }
        longest = longest.max(began.elapsed());
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn hammered_keys_are_never_findings_and_settle() {
    let mut bench = Bench::new().await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for seed in 0..8 {
        let writer = bench.scenario.writer().await;
        writer.batch_execute("SET deadlock_timeout = '20ms'").await.unwrap();
        writers.spawn(hammer(writer, seed, Arc::clone(&stop), Arc::clone(&done)));
    }
    let (began, mut proofs, mut unsettled) = (Instant::now(), 0, 0);
    while began.elapsed() < Duration::from_secs(8) {
        let proof = bench.prove("Orders", keys(1..=10)).await;
        assert!(proof.counts.is_empty(), "{proof:?}");
        proofs += 1;
        unsettled += proof.unsettled.len();
    }
    stop.store(true, Ordering::Relaxed);
    let longest = writers.join_all().await.into_iter().max().unwrap();
    eprintln!("{proofs} proofs, {unsettled} unsettled, {done:?} writes, longest {longest:?}");
    assert!(done.load(Ordering::Relaxed) > 500, "the writers did not get on: {done:?}");
    assert!(longest < Duration::from_secs(2), "a writer waited {longest:?}");
    let proof = bench.prove("Orders", keys(1..=10)).await;
    assert_eq!(proof, Proof::default());
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_commit_that_nobody_sees_yet_makes_no_extra_row() {
    let mut bench = Bench::new().await;
    bench.scenario.lose_the_standby().await;
    bench.scenario.commit_invisibly(r#"INSERT INTO "Orders" ("Id", "Region") VALUES (5000, 'EU')"#).await;
    bench.scenario.until_target(r#"SELECT count(*) = 1 FROM "Orders" WHERE "Id" = 5000"#).await;
    let proof = bench.prove("Orders", keys([5_000])).await;
    assert!(proof.counts.is_empty(), "{proof:?}");
    let [reason] = proof.unsettled.as_slice() else { panic!("{proof:?}") };
    assert!(reason.starts_with("1 row of Orders are only on the copy"), "{reason}");
    bench.scenario.forget_the_standby().await;
    assert_eq!(bench.prove("Orders", keys([5_000])).await, Proof::default());
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn open_transactions_elsewhere_do_not_keep_extra_rows_from_being_proven() {
    let mut bench = Bench::new().await;
    bench.damage(r#"INSERT INTO "Orders" ("Id", "Region") VALUES (9001, 'EU')"#).await;
    let idle = bench.scenario.writer().await;
    idle.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let began = Instant::now();
    let proof = bench.prove("Orders", keys([9_001])).await;
    assert_eq!(proof.counts, [(FindingKind::Extra, 1)].into());
    assert!(began.elapsed() < Duration::from_secs(1), "an idle transaction is not waited for");
    // What is busy might be committing; it is believed not to after some seconds.
    let busy = tokio::spawn(async move { idle.batch_execute("SELECT pg_sleep(60)").await });
    let proof = bench.prove("Orders", keys([9_001])).await;
    assert_eq!(proof.counts, [(FindingKind::Extra, 1)].into(), "{proof:?}");
    busy.abort();
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_holds_that_was_opened_after_the_meeting_proves_nothing() {
    let mut bench = Bench::new().await;
    bench.damage(r#"UPDATE "Orders" SET "Amount" = -1 WHERE "Id" = 1"#).await;
    let (first, second) = (bench.scenario.pair.service().await, bench.scenario.pair.service().await);
    let lock = r#"BEGIN; LOCK TABLE "Orders""#;
    let waits = |count: u32| {
        format!(
            r#"SELECT count(*) = {count} FROM pg_locks WHERE NOT granted AND relation = '"Orders"'::regclass"#
        )
    };
    first.batch_execute(lock).await.unwrap();
    let (form, scenario) = (bench.form("Orders"), &bench.scenario);
    let (proof, ()) = tokio::join!(bench.prover.prove("things", &form, keys([1]), 10), async {
        // The opening gets its lock right behind the look without locks, and so stands between the meeting under the
        // lock and the look that follows it.
        scenario.until_target(&waits(1)).await;
        let queued = tokio::spawn(async move {
            second.batch_execute(lock).await.unwrap();
            second
        });
        scenario.until_target(&waits(2)).await;
        first.batch_execute("ROLLBACK").await.unwrap();
        let second = queued.await.unwrap();
        scenario.until_target(&waits(1)).await;
        let open = r#"SET SESSION AUTHORIZATION strangler_apply;
            UPDATE strangler.stream SET mode = 'TRIPWIRE', epoch = epoch + 1;
            UPDATE "Orders" SET "Amount" = 8 WHERE "Id" = 1; COMMIT"#;
        second.batch_execute(open).await.unwrap();
    });
    let error = proof.expect_err("the copy is the authority now").to_string();
    assert!(error.starts_with("no mirror writes this side: "), "{error}");
    bench.running.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_holds_is_unsettled_and_the_others_are_proven() {
    let mut bench = Bench::new().await;
    bench.damage(r#"UPDATE "Orders" SET "Amount" = -1 WHERE "Id" IN (1, 2)"#).await;
    let holder = bench.scenario.writer().await;
    holder.batch_execute(r#"BEGIN; SELECT FROM "Orders" WHERE "Id" = 1 FOR UPDATE"#).await.unwrap();
    let proof = bench.prove("Orders", keys(1..=20)).await;
    assert_eq!(proof.counts, [(FindingKind::Differs, 1)].into());
    assert_eq!(proof.keys[0].0.0, ["2"]);
    let expected = "1 row of Orders could not be locked on the monolith within 50 ms in 4 attempts: other \
                    transactions hold them";
    assert_eq!(proof.unsettled, [expected]);
    holder.batch_execute("ROLLBACK").await.unwrap();
    let proof = bench.prove("Orders", keys(1..=20)).await;
    assert_eq!((proof.counts[&FindingKind::Differs], proof.unsettled.len()), (2, 0));
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_is_stopped_ends_between_its_looks() {
    let mut bench = Bench::new().await;
    bench.damage(r#"UPDATE "Orders" SET "Amount" = -1 WHERE "Id" = 1"#).await;
    let holder = bench.scenario.writer().await;
    holder.batch_execute(r#"BEGIN; SELECT FROM "Orders" WHERE "Id" = 1 FOR UPDATE"#).await.unwrap();
    let (form, stop) = (bench.form("Orders"), bench.stop.clone());
    let proving = bench.prover.prove("things", &form, keys([1]), 10);
    let stopping = async {
        // One that reads, one that sends markers, and once a row is to be locked one that does that.
        let sessions =
            "SELECT count(*) > 2 FROM pg_stat_activity WHERE application_name = 'strangler reconcile'";
        bench.scenario.until_source(sessions).await;
        stop.cancel();
        Instant::now()
    };
    let (proof, stopped_at) = tokio::join!(proving, stopping);
    assert!(matches!(proof, Err(ProveError::Stopped(_))), "{proof:?}");
    // Four looks take more than six seconds.
    assert!(stopped_at.elapsed() < Duration::from_secs(2), "it took {:?}", stopped_at.elapsed());
    let locked = r#"SELECT count(*) = 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE a.application_name = 'strangler reconcile' AND l.mode = 'RowShareLock'"#;
    bench.scenario.until_source(locked).await;
    bench.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn without_the_right_to_lock_nothing_is_clean_and_the_grant_is_named() {
    let mut bench = Bench::new().await;
    bench.damage(r#"UPDATE "Orders" SET "Amount" = -1 WHERE "Id" = 1"#).await;
    let role = r#"CREATE ROLE strangler_apply LOGIN; GRANT SELECT ON "Orders" TO strangler_apply"#;
    bench.scenario.write(role).await;
    let proof = bench.prove("Orders", keys(1..=5)).await;
    assert!(proof.counts.is_empty(), "{proof:?}");
    let [reason] = proof.unsettled.as_slice() else { panic!("{proof:?}") };
    let (_, grant) = reason.split_once("run on the monolith: ").unwrap();
    bench.scenario.write(grant).await;
    let proof = bench.prove("Orders", keys(1..=5)).await;
    assert_eq!(proof.counts, [(FindingKind::Differs, 1)].into(), "after {grant}");
    bench.running.stop().await;
}
