//! What changes rows without an event in the stream: it stops the mirror, also when it happened while none ran, and goes
//! on stopping it until the rows are copied again.

use serde_json::json;
use tokio_postgres::Client;

use crate::ledger::told::told;
use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const EVENTS: &str = "CREATE TABLE ev (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
    CREATE TABLE ev1 PARTITION OF ev FOR VALUES IN (1);
    CREATE TABLE ev2 PARTITION OF ev FOR VALUES IN (2);
    CREATE TABLE ev3 PARTITION OF ev FOR VALUES IN (3);
    INSERT INTO ev SELECT g, 1 + g % 3, 'v' FROM generate_series(1, 3000) g;
    CREATE TABLE apart (id int, d int, v text, PRIMARY KEY (id, d));
    INSERT INTO apart VALUES (1, 9, 'apart');
    ANALYZE;";

const EMPTIED_AND_COUNTED: &str = "TRUNCATE ev1;
    INSERT INTO ev1 SELECT g, 1, 'new' FROM generate_series(100001, 101000) g; ANALYZE ev1";
const MADE_FILLED_AND_ATTACHED: &str = "BEGIN; CREATE TABLE ev4 (LIKE ev INCLUDING ALL);
    INSERT INTO ev4 SELECT g, 4, 'unheard' FROM generate_series(1, 500) g;
    ALTER TABLE ev ATTACH PARTITION ev4 FOR VALUES IN (4); COMMIT";
const AWAY_AND_BACK: &str = "BEGIN; ALTER TABLE ev DETACH PARTITION ev1;
    UPDATE ev1 SET v = 'unheard'; INSERT INTO ev1 VALUES (200000, 1, 'unheard');
    ALTER TABLE ev ATTACH PARTITION ev1 FOR VALUES IN (1); COMMIT";

async fn assert_equal(monolith: &Client, service: &Client, query: &str) {
    assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
}

fn assert_stopped(mirror: &Mirror, words: &[&str]) {
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    for word in words {
        assert!(log.contains(word), "{word} is missing: {log}");
    }
}

/// Copies the table again, which must bring every row.
async fn copied_again(split: &Split, monolith: &Client, service: &Client) -> Mirror {
    let copy = "SELECT copy_number FROM strangler.mirror_table WHERE source_table = 'ev'";
    let before: i32 = service.query_one(copy, &[]).await.unwrap().get(0);
    let mirror = split.mirror_with(None, &["--retry", "ev"]);
    // Until the table is emptied it still counts as live, and the stream may be where the monolith is already.
    until("the table is emptied", SOON, async || {
        (service.query_one(copy, &[]).await.unwrap().get::<_, i32>(0) > before).then_some(())
    })
    .await;
    mirror.caught_up(monolith, service).await;
    assert_equal(monolith, service, "TABLE ev").await;
    mirror.looked_twice(service).await;
    mirror
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_change_without_an_event_stop_the_mirror_until_the_table_is_copied_again() {
    let (split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    let mut met = 0;
    for (statement, words) in [
        (EMPTIED_AND_COUNTED, "its partition public.ev1 was emptied"),
        (MADE_FILLED_AND_ATTACHED, "its partition public.ev4 was attached with rows"),
        ("TRUNCATE ev1, ev2, ev3, ev4", "was emptied"),
        ("INSERT INTO ev SELECT g, 1, 'again' FROM generate_series(1, 500) g", ""),
        (AWAY_AND_BACK, "its partition public.ev1 was detached and attached again"),
        ("ALTER TABLE ev DETACH PARTITION ev2", "its partition public.ev2 was detached or dropped"),
        (
            "ALTER TABLE ev ATTACH PARTITION apart FOR VALUES IN (9)",
            "its partition public.apart was attached with rows",
        ),
        ("ALTER TABLE ev1 SET UNLOGGED", "its partition public.ev1 is unlogged"),
        ("ALTER TABLE ev1 SET LOGGED", ""),
        ("ALTER TABLE ev ALTER v TYPE text USING v || '!'", "ALTER TABLE rewrote the rows of public.ev"),
    ] {
        monolith.batch_execute(statement).await.unwrap();
        if words.is_empty() {
            mirror.caught_up(&monolith, &service).await;
            continue;
        }
        assert_stopped(&mirror, &[words, "--retry ev"]);
        if words.contains("unlogged") {
            monolith.batch_execute("ALTER TABLE ev1 SET LOGGED").await.unwrap();
        }
        assert_stopped(&split.mirror(None), &["not in the stream", "--retry ev"]);
        mirror = copied_again(&split, &monolith, &service).await;
        met += 1;
        let told = told(&service, "alarm").await;
        assert_eq!(told.len(), met, "once, although a second start met it again: {told:?}");
        let body = &told[met - 1].body;
        assert_eq!((&body["alarm"], &body["table"]), (&json!("unheard"), &json!("ev")));
        assert!(body["detail"].as_str().unwrap().contains(words), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_the_stream_tells_of_partitions_is_nothing_to_stop_over() {
    let (split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    for sql in [
        "CREATE TABLE ev4 PARTITION OF ev FOR VALUES IN (4)",
        "INSERT INTO ev SELECT g, 4, 'new' FROM generate_series(1, 500) g",
        "CREATE TABLE ev5 (LIKE ev INCLUDING ALL)",
        "ALTER TABLE ev ATTACH PARTITION ev5 FOR VALUES IN (5)",
        "TRUNCATE ev",
        "INSERT INTO ev SELECT g, 1 + g % 5, 'later' FROM generate_series(1, 500) g",
        "ANALYZE",
    ] {
        monolith.batch_execute(sql).await.unwrap();
        if sql.contains("ATTACH") {
            // One that has rows when it is first seen might have had them before.
            mirror.looked_twice(&service).await;
        }
    }
    mirror.looked_twice(&service).await;
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE ev").await;
    mirror.stop();
    let quiet = "BEGIN; CREATE TABLE ev6 PARTITION OF ev FOR VALUES IN (6);
        INSERT INTO ev SELECT g, 6, 'sixth' FROM generate_series(1, 100) g; COMMIT";
    monolith.batch_execute(quiet).await.unwrap();
    monolith.batch_execute("TRUNCATE ev; INSERT INTO ev VALUES (1, 1, 'last'); ANALYZE").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    mirror.looked_twice(&service).await;
    assert_equal(&monolith, &service, "TABLE ev").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_changed_without_an_event_while_no_mirror_ran_are_told_by_the_next_start() {
    let setup = format!("{EVENTS} CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)");
    let (split, monolith, service) = Split::launch("{ ev: {}, t: {} }", &setup).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for (statement, words) in [
        ("TRUNCATE ev1", "its partition public.ev1 was emptied"),
        (MADE_FILLED_AND_ATTACHED, "its partition public.ev4 was attached with rows"),
        ("TRUNCATE ev1, ev2, ev3, ev4", "was emptied"),
        ("INSERT INTO ev SELECT g, 1, 'again' FROM generate_series(1, 500) g", ""),
        (AWAY_AND_BACK, "its partition public.ev1 was detached and attached again"),
        ("ALTER TABLE ev ALTER v TYPE text USING v || '!'", "ALTER TABLE rewrote the rows of public.ev"),
    ] {
        mirror.looked_twice(&service).await;
        mirror.stop();
        monolith.batch_execute(statement).await.unwrap();
        mirror = split.mirror(None);
        if words.is_empty() {
            mirror.caught_up(&monolith, &service).await;
            continue;
        }
        assert_stopped(&mirror, &[words, "--retry ev"]);
        mirror = copied_again(&split, &monolith, &service).await;
    }
    mirror.kill();
    monolith.batch_execute("ALTER TABLE t ALTER n TYPE int USING n + 1000").await.unwrap();
    assert_stopped(&split.mirror(None), &["ALTER TABLE rewrote the rows of public.t", "--retry t"]);
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&monolith, &service, "TABLE t").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_does_not_stand_over_rows_that_changed_without_an_event() {
    let (split, monolith, service) = Split::launch("{ ev: {} }", EVENTS).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    assert!(split.run("status", &[]).stdout.contains("both sides are proven equal"));
    monolith.batch_execute("TRUNCATE ev2").await.unwrap();
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "at once: {}", status.page());
    assert_stopped(&mirror, &["was emptied"]);
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    for words in
        ["table ev changed in a way that is not in the stream", "the mirror ended by itself", "--retry ev"]
    {
        assert!(status.stdout.contains(words), "{words}: {}", status.page());
    }
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_publication_that_left_changes_out_for_a_while_is_not_forgotten() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let set = |what: &str| format!("ALTER PUBLICATION strangler_split_one SET (publish = '{what}')");
    let whole = set("insert, update, delete, truncate");
    monolith.batch_execute(&set("insert")).await.unwrap();
    monolith.batch_execute("DELETE FROM t WHERE id = 1").await.unwrap();
    assert_stopped(&mirror, &["every kind of change"]);
    monolith.batch_execute(&whole).await.unwrap();
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    assert!(status.stdout.contains("--rebuild"), "{}", status.page());
    for between_two_starts in [false, true] {
        if between_two_starts {
            mirror.stop();
            for sql in [&set("insert"), "DELETE FROM t WHERE id = 2", &whole] {
                monolith.batch_execute(sql).await.unwrap();
            }
        }
        assert_stopped(&split.mirror(None), &["--rebuild"]);
        mirror = split.mirror_with(None, &["--rebuild"]);
        mirror.caught_up(&monolith, &service).await;
        assert_equal(&monolith, &service, "TABLE t").await;
        mirror.looked_twice(&service).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_filters_label_that_gets_another_name_stops_the_mirror_and_drops_no_row() {
    let setup =
        "CREATE TYPE kind AS ENUM ('in', 'out'); CREATE TABLE t (id int, kind kind, PRIMARY KEY (id, kind));
        INSERT INTO t VALUES (1, 'in'), (2, 'out')";
    let (split, monolith, service) = Split::launch("{ t: { where: { kind: in } } }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    monolith.batch_execute("ALTER TYPE kind RENAME VALUE 'in' TO 'inside'").await.unwrap();
    monolith.batch_execute("INSERT INTO t VALUES (3, 'inside')").await.unwrap();
    let words = "renamed the label in of an enum to inside";
    assert_stopped(&mirror, &[words, "--retry t"]);
    monolith.batch_execute("ALTER TYPE kind RENAME VALUE 'inside' TO 'in'").await.unwrap();
    assert_stopped(&split.mirror(None), &["not in the stream", "--retry t"]);
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    mirror.caught_up(&monolith, &service).await;
    let taken = "SELECT id FROM t WHERE kind::text = 'in'";
    assert_equal(&monolith, &service, taken).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_column_that_is_dropped_and_added_under_its_name_is_no_other_mapping_and_is_copied_again() {
    let setup = "CREATE TABLE bk (x xml, id int PRIMARY KEY, n text); \
        INSERT INTO bk SELECT '<a/>', i, 'n' || i FROM generate_series(1, 500) i; ANALYZE;";
    let (split, monolith, service) = Split::launch("{ bk: { where: { n: [n1, n2] } } }", setup).await;
    monolith.batch_execute("ALTER TABLE bk REPLICA IDENTITY FULL").await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.looked_twice(&service).await;
    monolith.batch_execute("ALTER TABLE bk DROP COLUMN x, ADD COLUMN x xml DEFAULT '<b/>'").await.unwrap();
    assert_stopped(&mirror, &["--retry bk"]);
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let next = document["slices"][0]["next"].as_str().unwrap();
    assert!(next.contains(" --retry bk, which copies"), "{next}");
    let mirror = split.mirror_with(None, &["--retry", "bk"]);
    mirror.caught_up(&monolith, &service).await;
    let columns = |from: &str| format!("SELECT id, n, x::text FROM bk {from}");
    let (here, there) = (columns("WHERE n IN ('n1', 'n2')"), columns(""));
    assert_same(Side { client: &monolith, query: &here }, Side { client: &service, query: &there }).await;
    mirror.stop();
}

const ADOPTED: &str = "CREATE TABLE ev (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
    CREATE UNLOGGED TABLE ev1 PARTITION OF ev FOR VALUES IN (1);
    CREATE TABLE ev2 PARTITION OF ev FOR VALUES IN (2); CREATE TABLE ev3 PARTITION OF ev FOR VALUES IN (3);";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn tables_of_the_service_that_lose_rows_without_an_event_stop_the_mirror_or_void_evidence() {
    let plan = Split::plan("{ ev: {} }").replace("\"${SERVICE}\"", "\"${SERVICE}\", ddl: adopt");
    let (split, monolith, service) = Split::with_plan(&plan, EVENTS).await;
    service.batch_execute(ADOPTED).await.unwrap();
    let refused = split.run("provision", &[]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    for words in ["ev1 is UNLOGGED", "run in the service: ALTER TABLE \"public\".\"ev1\" SET LOGGED"] {
        assert!(refused.stderr.contains(words), "{}", refused.page());
    }
    service.batch_execute("ALTER TABLE ev1 SET LOGGED").await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let proven = |wanted: bool| {
        let status = split.run("status", &[]);
        assert_eq!(status.stdout.contains("both sides are proven equal"), wanted, "{}", status.page());
    };
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    proven(true);

    service.batch_execute("ALTER TABLE ev2 SET UNLOGGED").await.unwrap();
    assert_stopped(
        &mirror,
        &["public.ev2 of the service is UNLOGGED", "in the service: ALTER TABLE public.ev2 SET LOGGED"],
    );
    proven(false);
    // Whether a crash came in between, nobody can tell.
    service.batch_execute("ALTER TABLE ev2 SET LOGGED").await.unwrap();
    assert_stopped(&split.mirror(None), &["not in the stream", "--retry ev"]);
    proven(false);
    let _mirror = copied_again(&split, &monolith, &service).await;
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    proven(true);
    service.batch_execute("ALTER TABLE ev3 DISABLE TRIGGER ALL; TRUNCATE ev3").await.unwrap();
    proven(false);
}
