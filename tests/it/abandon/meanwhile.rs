//! What others do between two steps of an abandonment, and what wakes up behind it.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::crashes::killed_at;
use super::{abandon, flat, refused, take_back, token};
use crate::support::cluster::connect;
use crate::support::split::{Background, Split};
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text);
    INSERT INTO orders SELECT i, 'v' || i FROM generate_series(1, 10) i;
    CREATE TABLE lines (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_else_has_taken_since_is_none_of_the_slices() {
    let (split, monolith, service) = Split::launch("{ orders: {}, lines: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let shown = token(&abandon(&split, "one", &[]));
    killed_at(&split, "one", "abandon-begun", &[&shown]);
    let others = "DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1);
        INSERT INTO strangler.mirror_table (slice, source_table, target_table, state) VALUES ('other', 'x', 'lines', 'pending')";
    service.batch_execute(others).await.unwrap();
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(1), "{}", ended.page());
    for words in [
        "nothing says that this is the table that provision made",
        "slice other has it for a table of its own",
        "DROP TABLE \"public\".\"orders\";",
    ] {
        assert!(flat(&ended.stderr).contains(words), "{words}: {}", ended.page());
    }
    let there = "SELECT (SELECT count(*) FROM orders), to_regclass('lines') IS NOT NULL";
    let there = service.query_one(there, &[]).await.unwrap();
    assert!(there.get::<_, i64>(0) == 1 && there.get::<_, bool>(1));
    let ledger = split.run("ledger", &["--kind", "abandon"]);
    assert!(
        !ledger.stdout.contains("drop table"),
        "it tells of nothing that was not done: {}",
        ledger.page()
    );
}

/// A mirror that stands still at a point, whose sessions in the service are gone, and that which reads the stream.
async fn frozen_at(split: &Split, (monolith, service): (&Client, &Client), point: &str) -> Background {
    let mut command = split.command(&["mirror", "plan.yaml"]);
    command.env("STRANGLER_FREEZE", point);
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still(), "{point}");
    taken_for_gone(split, (monolith, service)).await;
    frozen
}

/// Ends the sessions of a mirror that stands still, and waits until a slice of that mirror may be taken back. Returns the token.
async fn taken_for_gone(split: &Split, (monolith, service): (&Client, &Client)) -> String {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'strangler mirror%'";
    service.query(end, &[]).await.unwrap();
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    monolith.query(end, &[]).await.unwrap();
    until("the frozen mirror is taken for gone", SOON, async || {
        let ended = abandon(split, "one", &[]);
        if ended.exit != Some(0) {
            refused(&ended, "mirror-runs", &[]);
        }
        (ended.exit == Some(0)).then(|| token(&ended))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_wakes_up_behind_it_leaves_no_slot_and_says_why_it_ends() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    for (point, anew) in [
        ("stream-row-inserted", false),
        ("nonce-taken", false),
        ("slot-wanted", false),
        ("slot-asked-for", false),
        ("slot-asked-for", true),
        ("round-ended", false),
    ] {
        split.provision();
        let frozen = frozen_at(&split, (&monolith, &service), point).await;
        take_back(&split, "one", &[]);
        if anew {
            split.provision();
        }
        frozen.signal(Signal::CONT);
        if anew {
            begins_anew(&monolith, &service).await;
            frozen.signal(Signal::TERM);
        }
        let ended = frozen.ended();
        assert!(ended.exit != Some(0), "{point}: {}", ended.page());
        if anew {
            take_back(&split, "one", &[]);
        }
        let slots: i64 = monolith
            .query_one("SELECT count(*) FROM pg_replication_slots WHERE NOT temporary", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(slots, 0, "{point}, {anew}: {}", ended.page());
        let rows =
            "SELECT (SELECT count(*) FROM strangler.stream) + (SELECT count(*) FROM strangler.lineage)";
        let rows: i64 = service.query_one(rows, &[]).await.unwrap().get(0);
        assert_eq!(rows, 0, "{point}: {}", ended.page());
    }
}

/// It takes up the slice that was provisioned anew, and has left nothing of the one before.
async fn begins_anew(monolith: &Client, service: &Client) {
    until("the slice's new life is mirrored", SOON, async || {
        let live = "SELECT count(*) FROM strangler.mirror_table WHERE state = 'live'";
        (service.query_one(live, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    let row = service.query_one("SELECT slot FROM strangler.stream", &[]).await.unwrap();
    let slots = monolith
        .query("SELECT slot_name::text FROM pg_replication_slots WHERE NOT temporary", &[])
        .await
        .unwrap();
    let slots: Vec<String> = slots.iter().map(|row| row.get(0)).collect();
    assert_eq!(slots, [row.get::<_, String>(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_slice_goes_while_it_stands_still_says_so() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mut command = split.command(&["mirror", "plan.yaml"]);
    command.env("STRANGLER_FREEZE", "nonce-taken");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    // Its sessions live: so it holds its lock, and abandon would refuse. What is left of the slice goes by hand.
    let gone =
        "DELETE FROM strangler.stream; DELETE FROM strangler.mirror_table; DELETE FROM strangler.slice";
    service.batch_execute(gone).await.unwrap();
    frozen.signal(Signal::CONT);
    let ended = frozen.ended();
    assert!(
        flat(&ended.stderr).contains("it was taken back while this mirror stood still"),
        "{}",
        ended.page()
    );
    let slots: i64 =
        monolith.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 0);
}

/// Its marks are gone from the monolith, and the service is still to forget them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_mirror_that_wakes_up_half_way_does_not_say_that_the_monolith_was_set_back() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let marks = "SELECT count(*) FROM strangler.lineage WHERE slice = 'one'";
    until("a mark has come down the stream", SOON, async || {
        (service.query_one(marks, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    mirror.signal(Signal::STOP);
    let shown = taken_for_gone(&split, (&monolith, &service)).await;
    killed_at(&split, "one", "abandon-monolith-cleared", &[&shown]);
    assert_eq!(monolith.query_one(marks, &[]).await.unwrap().get::<_, i64>(0), 0);
    mirror.signal(Signal::CONT);
    let (status, log) = mirror.ended();
    assert!(status.code() != Some(0) && !log.contains("set back"), "{log}");
    assert!(
        flat(&log).contains("strangler abandon PLAN") || flat(&log).contains("strangler abandon plan.yaml"),
        "{log}"
    );
    let ended = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whoever_is_waited_for_in_vain_is_named() {
    let (split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let shown = token(&abandon(&split, "one", &[]));
    let frozen = connect(&split.pair.service_url()).await;
    frozen
        .batch_execute(
            "SET application_name = 'strangler mirror one'; BEGIN; SELECT FROM strangler.stream FOR SHARE",
        )
        .await
        .unwrap();
    let waited = abandon(&split, "one", &["--confirm", &shown]);
    assert_eq!(waited.exit, Some(4), "{}", waited.page());
    for words in
        ["abandon-waited", "(strangler mirror one)", "whose transaction is open for", "strangler.stream"]
    {
        assert!(flat(&waited.stderr).contains(words), "{words}: {}", waited.page());
    }
    frozen.batch_execute("ROLLBACK").await.unwrap();
    take_back(&split, "one", &[]);
}
