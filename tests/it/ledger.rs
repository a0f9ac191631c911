//! The ledger on real servers: entries that are chained, that nobody changes, and whose loss shows.

pub mod told;

use serde_json::{Value, json};
use strangler::cluster::Cluster;
use strangler::journal::ledger::{
    self, Anchored, Author, Broken, Entry, Fault, Filter, Head, NewEntry, VERDICT, Verified, VerifyError,
    anchor, append, entries, head, verify, verify_from,
};
use strangler::journal::migrate;
use strangler::lsn::Lsn;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::cluster::{Pair, connect, launch};
use crate::support::scenario::Scenario;
use crate::support::split::Split;

const SCHEMA: &str = r#"CREATE TABLE "Things" ("Id" int PRIMARY KEY, "Name" text)"#;

/// A scenario whose ledger holds nothing of what was done to make it.
async fn scenario() -> Scenario {
    let scenario = Scenario::new(SCHEMA, "      Things: {}\n").await;
    empty(&scenario.target).await;
    scenario
}

/// Empties a ledger as only its owner can, in a database that is another one from then on: the monolith remembers no head of it.
async fn empty(service: &Client) {
    service
        .batch_execute(
            "BEGIN; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; TRUNCATE strangler.ledger; \
             ALTER TABLE strangler.ledger ENABLE ALWAYS TRIGGER append_only; \
             UPDATE strangler.database SET uuid = gen_random_uuid(); COMMIT",
        )
        .await
        .unwrap();
}

fn author() -> Author {
    Author { operator: "Jörg".to_owned(), host: "box".to_owned() }
}

/// Appends an entry in a transaction of its own.
async fn one(client: &Client, slice: Option<&str>, body: &Value) -> Head {
    client.batch_execute("BEGIN").await.unwrap();
    let author = author();
    let entry = NewEntry {
        kind: VERDICT,
        plan: "retail",
        slice,
        author: &author,
        epoch: slice.map(|_| 3),
        lsn: slice.map(|_| Lsn(0x16_0000_0A00)),
        plan_hash: slice.map(|_| "abc"),
        body,
    };
    let head = append(client, &entry).await.unwrap_or_else(|error| panic!("{error:?}"));
    client.batch_execute("COMMIT").await.unwrap();
    head
}

async fn fill(client: &Client, count: i64) {
    for number in 0..count {
        let slice = (number % 3 != 0).then_some("ordering");
        one(client, slice, &json!({ "number": number, "words": "π and \"quotes\"\n" })).await;
    }
}

async fn all(client: &Client) -> Vec<Entry> {
    let (mut all, mut filter) = (Vec::new(), Filter::default());
    loop {
        let page = entries(client, &filter).await.unwrap();
        let Some(last) = page.last() else { return all };
        filter.after = last.id;
        all.extend(page);
    }
}

async fn fault(service: &Client, monolith: Option<&Client>) -> Broken {
    match verify(service, monolith).await {
        Err(VerifyError::Broken(broken)) => broken,
        other => panic!("{other:?}"),
    }
}

async fn refusal(client: &Client, sql: &str) -> SqlState {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_many_that_append_at_once_make_one_chain_without_gaps() {
    let scenario = scenario().await;
    let writers = (0..6).map(|writer| {
        let url = scenario.pair.service.url_as("strangler_apply", "", Pair::SERVICE);
        tokio::spawn(async move {
            let client = connect(&url).await;
            for number in 0..10 {
                if number % 4 == 3 {
                    client.batch_execute("BEGIN").await.unwrap();
                    let author = author();
                    let lost = NewEntry {
                        kind: "lost",
                        plan: "retail",
                        slice: None,
                        author: &author,
                        epoch: None,
                        lsn: None,
                        plan_hash: None,
                        body: &json!({}),
                    };
                    append(&client, &lost).await.unwrap();
                    client.batch_execute("ROLLBACK").await.unwrap();
                }
                one(&client, Some("ordering"), &json!({ "writer": writer, "number": number })).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let found = all(&scenario.target).await;
    assert_eq!(found.iter().map(|entry| entry.id).collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    let head = head(&scenario.target).await.unwrap().unwrap();
    assert_eq!((head.id, head.hash), (60, found[59].hash));
    let verified = verify(&scenario.target, None).await.unwrap();
    assert_eq!(verified, Verified { head: Some(head), confirmed: None, accepted: None });
    let bodies: Vec<Value> = found.iter().map(|entry| serde_json::from_str(&entry.body).unwrap()).collect();
    for writer in 0..6 {
        let own: Vec<&Value> =
            bodies.iter().filter(|body| body["writer"] == writer).map(|b| &b["number"]).collect();
        assert_eq!(own, (0..10).map(Value::from).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_entry_comes_back_as_it_was_written_and_filters_choose() {
    let scenario = scenario().await;
    let client = &scenario.target;
    fill(client, 40).await;
    let found = all(client).await;
    assert_eq!(found.len(), 40);
    assert_eq!(
        serde_json::from_str::<Value>(&found[1].body).unwrap(),
        json!({ "number": 1, "words": "π and \"quotes\"\n" })
    );
    assert_eq!((found[1].slice.as_deref(), found[0].slice.as_deref()), (Some("ordering"), None));
    assert_eq!((&found[1].author, found[1].epoch), (&author(), Some(3)));
    assert_eq!((found[1].lsn, found[1].plan_hash.as_deref()), (Some(Lsn(0x16_0000_0A00)), Some("abc")));
    let of = |slice: &str, after| Filter { slice: Some(slice.to_owned()), kind: None, after };
    let page = entries(client, &of("ordering", 37)).await.unwrap();
    assert_eq!(page.iter().map(|entry| entry.id).collect::<Vec<_>>(), [38, 39]);
    assert_eq!(entries(client, &of("other", 0)).await.unwrap(), []);
    let repairs = Filter { kind: Some("repair".to_owned()), ..Filter::default() };
    assert_eq!(entries(client, &repairs).await.unwrap(), []);
}

/// The hash of an entry as docs/protocol.md describes it, written in SQL: it shares nothing with the code.
const SQL_HASH: &str = r"
CREATE FUNCTION field(value text) RETURNS bytea LANGUAGE sql AS $$
    SELECT CASE WHEN value IS NULL THEN '\x00'::bytea
        ELSE '\x01'::bytea || int4send(length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8') END $$;
CREATE FUNCTION entry_hash(e strangler.ledger) RETURNS bytea LANGUAGE sql AS $$
    SELECT sha256(convert_to(E'strangler-ledger 1\n', 'UTF8') || field(e.id::text)
        || field(((extract(epoch FROM e.at) * 1000000)::bigint)::text) || field(e.kind) || field(e.plan)
        || field(e.slice) || field(e.operator) || field(e.host) || field(e.epoch::text)
        || field((e.lsn - '0/0'::pg_lsn)::text) || field(e.plan_hash) || field(e.body::text) || e.previous) $$;";

#[tokio::test]
async fn anybody_can_compute_the_hashes_by_the_documentation() {
    let scenario = scenario().await;
    fill(&scenario.target, 20).await;
    scenario.target.batch_execute(SQL_HASH).await.unwrap();
    let wrong = "SELECT count(*) FROM strangler.ledger l WHERE entry_hash(l) <> hash";
    assert_eq!(scenario.target.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn nobody_changes_or_removes_an_entry() {
    let scenario = scenario().await;
    fill(&scenario.target, 2).await;
    let apply = connect(&scenario.pair.service.url_as("strangler_apply", "", Pair::SERVICE)).await;
    one(&apply, None, &json!({})).await;
    for setting in ["origin", "replica"] {
        let set = format!("SET session_replication_role = {setting}");
        for client in [&scenario.target, &apply] {
            client.batch_execute(&set).await.unwrap();
        }
        for table in ["ledger", "journal"] {
            let writes =
                ["UPDATE strangler.{} SET at = at", "DELETE FROM strangler.{}", "TRUNCATE strangler.{}"];
            for sql in writes.map(|sql| sql.replace("{}", table)) {
                assert_eq!(refusal(&apply, &sql).await, SqlState::INSUFFICIENT_PRIVILEGE, "{setting}: {sql}");
                // The tables' owner, and a superuser besides.
                let owner = refusal(&scenario.target, &sql).await;
                assert_eq!(owner, SqlState::READ_ONLY_SQL_TRANSACTION, "{setting}: {sql}");
            }
        }
    }
    let beside = "INSERT INTO strangler.ledger SELECT * FROM strangler.ledger WHERE id = 1 \
                  ON CONFLICT (id) DO UPDATE SET plan = 'x'";
    assert_eq!(refusal(&apply, beside).await, SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(all(&apply).await.len(), 3);
}

/// Changes the ledger as somebody could who has all rights, and takes the change back after `then`.
async fn tampered<T>(client: &Client, sql: &str, then: impl AsyncFnOnce() -> T) -> T {
    client
        .batch_execute(&format!(
            "CREATE TABLE saved AS TABLE strangler.ledger; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; {sql}"
        ))
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let seen = then().await;
    client
        .batch_execute(
            "DELETE FROM strangler.ledger; INSERT INTO strangler.ledger TABLE saved; DROP TABLE saved; \
             ALTER TABLE strangler.ledger ENABLE ALWAYS TRIGGER append_only",
        )
        .await
        .unwrap();
    seen
}

#[tokio::test]
async fn every_change_of_an_entry_is_found() {
    let scenario = scenario().await;
    let (service, monolith) = (&scenario.target, &scenario.source);
    fill(service, 40).await;
    assert!(matches!(anchor(service, Some(monolith), "other").await, Anchored::Recorded(_)));
    for change in [
        "at = at + interval '1 microsecond'",
        "kind = 'repair'",
        "plan = 'other'",
        "slice = NULL",
        "slice = 'catalog'",
        "operator = 'somebody'",
        "host = 'elsewhere'",
        "epoch = 4",
        "epoch = NULL",
        "lsn = lsn + 1",
        "plan_hash = 'abd'",
        "body = replace(body::text, 'number', 'Number')::json",
        // The same value in other letters.
        "body = (' ' || body::text)::json",
        "hash = sha256('forged')",
        "previous = sha256('forged')",
    ] {
        let sql = format!("UPDATE strangler.ledger SET {change} WHERE id = 20");
        let broken = tampered(service, &sql, async || fault(service, Some(monolith)).await).await;
        assert_eq!(broken, Broken { id: 20, fault: Fault::Changed }, "{change}");
    }
    let verified = verify(service, Some(monolith)).await.unwrap();
    assert_eq!((verified.head.unwrap().id, verified.confirmed), (40, Some(40)));
}

#[tokio::test]
async fn entries_that_are_gone_or_in_another_order_are_found() {
    let scenario = scenario().await;
    let (service, monolith) = (&scenario.target, &scenario.source);
    fill(service, 40).await;
    service.batch_execute(SQL_HASH).await.unwrap();
    anchor(service, Some(monolith), "other").await;
    for (sql, id, fault_is) in [
        ("DELETE FROM strangler.ledger WHERE id = 20", 20, Fault::Missing),
        ("DELETE FROM strangler.ledger WHERE id = 1", 1, Fault::Missing),
        ("DELETE FROM strangler.ledger WHERE id > 38", 39, Fault::CutOff),
        ("DELETE FROM strangler.ledger", 1, Fault::CutOff),
        (
            "UPDATE strangler.ledger SET id = -1 WHERE id = 20; UPDATE strangler.ledger SET id = 20 WHERE id = 21; \
             UPDATE strangler.ledger SET id = 21 WHERE id = -1",
            20,
            Fault::Changed,
        ),
        // An entry with a right hash of its own that follows nothing.
        (
            "UPDATE strangler.ledger SET previous = sha256('forged') WHERE id = 20; \
             UPDATE strangler.ledger l SET hash = entry_hash(l) WHERE id = 20",
            20,
            Fault::Unchained,
        ),
        // A change with every later hash made anew: only the monolith knows better.
        (
            "UPDATE strangler.ledger SET operator = 'somebody' WHERE id = 40; \
             UPDATE strangler.ledger l SET hash = entry_hash(l) WHERE id = 40",
            40,
            Fault::Replaced,
        ),
    ] {
        let broken = tampered(service, sql, async || fault(service, Some(monolith)).await).await;
        assert_eq!(broken, Broken { id, fault: fault_is }, "{sql}");
    }
    let cut = "DELETE FROM strangler.ledger WHERE id > 38";
    let alone = tampered(service, cut, async || verify(service, None).await.unwrap()).await;
    assert_eq!((alone.head.unwrap().id, alone.confirmed), (38, None), "alone it looks whole, and says so");
    let anchored = tampered(service, cut, async || anchor(service, Some(monolith), "other").await).await;
    assert!(matches!(anchored, Anchored::Contradicted { recorded: 40, .. }), "{anchored:?}");
    verify(service, Some(monolith)).await.unwrap();

    tampered(service, cut, async || go_on_over_a_cut(service, monolith).await).await;
}

/// Entries that get the numbers of those cut off are no evidence, and no head is written for them, until a human accepts it.
async fn go_on_over_a_cut(service: &Client, monolith: &Client) {
    fill(service, 5).await;
    let anchored = anchor(service, Some(monolith), "other").await;
    assert!(matches!(anchored, Anchored::Contradicted { recorded: 40, .. }), "{anchored:?}");
    let behind = async |entry| match verify_from(service, Some(monolith), entry).await {
        Err(VerifyError::Broken(broken)) => Some(broken),
        other => panic!("{other:?}"),
    };
    assert_eq!(behind(42).await, Some(Broken { id: 40, fault: Fault::Replaced }));
    let (author, body) = (author(), json!({}));
    let entry = NewEntry {
        kind: ledger::ACCEPTED,
        plan: "retail",
        slice: None,
        author: &author,
        epoch: None,
        lsn: None,
        plan_hash: None,
        body: &body,
    };
    ledger::accept(service, ledger::Memory::Monolith(monolith), ("other", &entry)).await.unwrap();
    let verified = verify(service, Some(monolith)).await.unwrap();
    assert_eq!((verified.head.unwrap().id, verified.confirmed, verified.accepted), (44, Some(44), Some(44)));
    assert_eq!(behind(43).await, Some(Broken { id: 44, fault: Fault::Accepted }));
    let head = one(service, None, &json!({})).await;
    let anchored = anchor(service, Some(monolith), "other").await;
    assert!(matches!(anchored, Anchored::Recorded(recorded) if recorded == head), "{anchored:?}");
    verify_from(service, Some(monolith), head.id).await.unwrap();
    let later = "DELETE FROM strangler.ledger WHERE id = 45";
    service.batch_execute(later).await.unwrap();
    assert_eq!(fault(service, Some(monolith)).await, Broken { id: 45, fault: Fault::CutOff });
}

#[tokio::test]
async fn a_head_that_the_monolith_did_not_get_is_written_by_the_next_one() {
    let scenario = scenario().await;
    let (service, monolith) = (&scenario.target, &scenario.source);
    assert!(matches!(anchor(service, Some(monolith), "other").await, Anchored::Empty));
    one(service, None, &json!({})).await;
    let owed = anchor(service, None, "other").await;
    assert!(matches!(&owed, Anchored::Owed { head: Some(head), .. } if head.id == 1), "{owed:?}");
    let apart = scenario.writer().await;
    apart.batch_execute("SET statement_timeout = 1; ").await.unwrap();
    monolith.batch_execute("BEGIN; LOCK strangler.journal").await.unwrap();
    let owed = anchor(service, Some(&apart), "other").await;
    assert!(matches!(&owed, Anchored::Owed { why, .. } if why.contains("statement timeout")), "{owed:?}");
    monolith.batch_execute("COMMIT").await.unwrap();
    assert_eq!(verify(service, Some(monolith)).await.unwrap().confirmed, None);

    one(service, None, &json!({})).await;
    for _ in 0..2 {
        let anchored = anchor(service, Some(monolith), "other").await;
        assert!(matches!(&anchored, Anchored::Recorded(head) if head.id == 2), "{anchored:?}");
    }
    assert_eq!(verify(service, Some(monolith)).await.unwrap().confirmed, Some(2));
    let uuid: String =
        service.query_one("SELECT uuid::text FROM strangler.database", &[]).await.unwrap().get(0);
    let rows = "SELECT detail::text FROM strangler.journal WHERE action = 'ledger-head' AND detail ->> 'database' = $1";
    let rows = monolith.query(rows, &[&uuid]).await.unwrap();
    assert_eq!(rows.len(), 1, "a head is written once");
    let detail: Value = serde_json::from_str(rows[0].get(0)).unwrap();
    assert_eq!((&detail["service"], &detail["id"]), (&json!("other"), &json!(2)));
}

#[tokio::test]
async fn a_ledger_in_another_encoding_verifies() {
    let server = launch();
    let admin = connect(&server.admin_url()).await;
    let create = "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    admin.batch_execute(create).await.unwrap();
    let mut client = connect(&server.url("latin")).await;
    migrate::run(&mut client).await.unwrap();
    one(&client, Some("ordering"), &json!({ "reason": "a thumb 👍 up, and \\ \u{1}" })).await;
    assert_eq!(verify(&client, None).await.unwrap().head.unwrap().id, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_entries_and_proves_that_nobody_changed_one() {
    let (split, monolith, service) =
        Split::launch("{ t: {} }", "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let none = split.run("ledger", &[]);
    assert_eq!(none.exit, Some(5), "{}", none.page());
    assert!(none.stderr.contains("strangler provision plan.yaml makes it"), "{}", none.page());
    split.provision();
    let empty = split.run("ledger", &["--kind", "verdict"]);
    assert_eq!((empty.exit, empty.stdout.as_str()), (Some(0), "service\n  no entries\n"), "{}", empty.page());
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for _ in 0..3 {
        assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    }
    let shown = split.run("ledger", &["--last", "2", "--kind", "verdict", "--slice", "one"]);
    assert_eq!((shown.exit, shown.stdout.lines().count()), (Some(0), 3), "{}", shown.page());
    for line in shown.stdout.lines().skip(1) {
        assert!(line.contains("verdict    one, epoch 1: clean"), "{line}");
    }
    let flips = split.run("ledger", &["--kind", "flip", "--format", "json"]);
    let document: Value = serde_json::from_str(&flips.stdout).unwrap();
    assert_eq!(document["services"], json!([{ "service": "service", "entries": [] }]));
    let document = split.run("ledger", &["--format", "json"]);
    let document: Value = serde_json::from_str(&document.stdout).unwrap();
    let entries = document["services"][0]["entries"].as_array().unwrap();
    let kinds: Vec<&str> = entries.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["plan", "provision", "provision", "copy", "verdict", "verdict", "verdict"]);
    assert_eq!((&entries[4]["entry"], &entries[4]["body"]["outcome"]), (&json!(5), &json!("clean")));
    assert_eq!(entries[1]["previous"], entries[0]["hash"]);

    let whole = split.run("ledger", &["--verify"]);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());
    assert!(whole.stdout.contains("whole: 7 entries, the last one's hash is "), "{}", whole.page());
    assert!(whole.stdout.contains("the monolith's journal confirms all of them"), "{}", whole.page());
    let change = "UPDATE strangler.ledger SET operator = 'somebody' WHERE id = 2";
    let broken = tampered(&service, change, async || split.run("ledger", &["--verify"])).await;
    assert_eq!(broken.exit, Some(1), "{}", broken.page());
    assert!(broken.stdout.contains("broken: entry 2 was changed"), "{}", broken.page());
    // Who relies on a verdict does not take a changed one for evidence.
    let forged = "UPDATE strangler.ledger SET body = replace(body::text, '\"strict\":false', '\"strict\":true')::json WHERE id = 7";
    let relied = tampered(&service, forged, async || split.run("status", &[])).await;
    assert_eq!(relied.exit, Some(1), "{}", relied.page());
    assert!(relied.stdout.contains("entry 7 of the ledger was changed"), "{}", relied.page());
    assert!(!relied.stdout.contains("both sides are proven equal"), "{}", relied.page());
    assert_eq!(split.run("status", &[]).exit, Some(0));
    let cut = "DELETE FROM strangler.ledger WHERE id = 7";
    let cut = tampered(&service, cut, async || split.run("ledger", &["--verify", "--format", "json"])).await;
    let document: Value = serde_json::from_str(&cut.stdout).unwrap();
    assert_eq!((cut.exit, &document["services"][0]["verification"]["broken_entry"]), (Some(1), &json!(7)));
    mirror.stop();
}
