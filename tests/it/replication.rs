//! The replication client against a real server.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for a few kinds of message among all of them"
)]

use bytes::Bytes;
use strangler::change::{RowChange, Value};
use strangler::lsn::Lsn;
use strangler::postgres::SessionRole;
use strangler::postgres::pgoutput::{Decoded, Message, decode};
use strangler::postgres::replication::{
    Connection, Frame, SlotOptions, Stream, StreamOptions, TimelineSwitch,
};

pub(crate) mod server;

use server::{OneServer, server};

use crate::support::wait::{SOON, within};

const PLAIN: SlotOptions = SlotOptions { temporary: false, failover: false };
const STREAMING: StreamOptions = StreamOptions { streaming: true };

async fn replication(pg: &OneServer, more: &str) -> Connection {
    pg.superuser().await;
    let link = pg.link(&format!("user=postgres {more}"));
    server(&link, SessionRole::Read).replicate("strangler test").await.unwrap()
}

/// A table, a publication named with care, and a slot.
async fn published(pg: &OneServer) -> Lsn {
    pg.run("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, body text)").await;
    pg.run("CREATE PUBLICATION \"Pub's\" FOR TABLE t").await;
    replication(pg, "").await.create_slot("s", PLAIN).await.unwrap()
}

async fn streaming(pg: &OneServer, more: &str, from: Lsn) -> Stream {
    replication(pg, more).await.start("s", from, "Pub's", STREAMING).await.unwrap()
}

/// Reads messages up to the end of the n-th transaction; keeps track of streamed parts. PostgreSQL 14 also sends the
/// transactions that hold nothing for the publication; they are passed over.
async fn transactions(stream: &mut Stream, count: usize) -> Vec<Decoded> {
    let (mut messages, mut in_block, mut ends) = (Vec::new(), false, 0);
    while ends < count {
        let frame = within("a frame", SOON, stream.next()).await.unwrap();
        let Frame::Data { body, .. } = frame else { continue };
        let decoded = decode(body, in_block).unwrap();
        match &decoded.message {
            Message::StreamStart { .. } => in_block = true,
            Message::StreamStop => in_block = false,
            Message::Commit { .. }
                if matches!(messages.last(), Some(Decoded { message: Message::Begin(_), .. })) =>
            {
                messages.pop();
                continue;
            }
            Message::Commit { .. } | Message::StreamCommit { .. } => ends += 1,
            _ => {}
        }
        messages.push(decoded);
    }
    messages
}

fn inserts(messages: &[Decoded]) -> usize {
    let insert =
        |decoded: &&Decoded| matches!(decoded.message, Message::Row { change: RowChange::Insert { .. }, .. });
    messages.iter().filter(insert).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_transaction_arrives_with_every_kind_of_message() {
    let pg = OneServer::start();
    let from = published(&pg).await;
    pg.run(
        "ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'; ALTER ROLE postgres SET DateStyle = 'German, DMY'",
    )
    .await;
    pg.run(
        "BEGIN;
         INSERT INTO t VALUES (1, '2026-01-31 12:00:00+00', NULL), (2, NULL, 'it''s é');
         UPDATE t SET id = 3 WHERE id = 2;
         DELETE FROM t WHERE id = 1;
         SELECT pg_catalog.pg_logical_emit_message(true, 'strangler', 'hello');
         TRUNCATE t;
         COMMIT",
    )
    .await;
    let mut stream = streaming(&pg, "", from).await;
    let messages: Vec<Message> = transactions(&mut stream, 1).await.into_iter().map(|d| d.message).collect();
    let [Message::Begin(frame), Message::Relation(relation), rest @ ..] = messages.as_slice() else {
        panic!("{messages:?}")
    };
    assert_eq!((relation.schema.as_str(), relation.name.as_str()), ("public", "t"));
    let columns: Vec<_> = relation.columns.iter().map(|c| (c.name.as_str(), c.key)).collect();
    assert_eq!(columns, [("id", true), ("at", false), ("body", false)]);
    // The shape comes again after anything that made the server forget that it was sent.
    let rest: Vec<_> = rest.iter().filter(|message| !matches!(message, Message::Relation(_))).collect();
    let [first, second, update, delete, logical, truncate, commit] = rest.as_slice() else {
        panic!("{messages:?}")
    };
    let row = |message: &Message| match message {
        Message::Row { relation: oid, change } if *oid == relation.oid => change.clone(),
        other => panic!("{other:?}"),
    };
    let at = Value::text("2026-01-31 12:00:00+00");
    assert_eq!(row(first), RowChange::Insert { new: vec![Value::text("1"), at, Value::Null] });
    let body = Value::Text(Bytes::from("it's é"));
    assert_eq!(row(second), RowChange::Insert { new: vec![Value::text("2"), Value::Null, body] });
    assert!(matches!(row(update), RowChange::Update { old: Some(_), .. }));
    assert!(matches!(row(delete), RowChange::Delete { .. }));
    let Message::Logical { transactional: true, prefix, content, .. } = logical else {
        panic!("{logical:?}")
    };
    assert_eq!((prefix.as_str(), content.as_ref()), ("strangler", &b"hello"[..]));
    let Message::Truncate { relations, cascade: false, restart_identity: false } = truncate else {
        panic!("{truncate:?}")
    };
    assert_eq!(relations, &[relation.oid]);
    let Message::Commit { commit_lsn, end_lsn, .. } = commit else { panic!("{commit:?}") };
    assert!(*commit_lsn == frame.commit_lsn && end_lsn > commit_lsn && *commit_lsn >= from);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_is_streamed_with_its_rolled_back_savepoint() {
    let pg = OneServer::start();
    let from = published(&pg).await;
    let mut stream = streaming(&pg, "options='-c logical_decoding_work_mem=64kB'", from).await;
    pg.run(
        "BEGIN;
         INSERT INTO t SELECT n, now(), repeat('x', 100) FROM generate_series(1, 5000) n;
         SAVEPOINT a;
         INSERT INTO t SELECT n, now(), repeat('y', 100) FROM generate_series(5001, 10000) n;
         ROLLBACK TO a;
         INSERT INTO t VALUES (20000);
         COMMIT;
         INSERT INTO t VALUES (20001)",
    )
    .await;
    let messages = transactions(&mut stream, 2).await;
    let started = messages.iter().find_map(|d| match d.message {
        Message::StreamStart { xid, first: true } => Some(xid),
        _ => None,
    });
    let top = started.expect("a streamed part");
    let aborted = messages.iter().find_map(|d| match d.message {
        Message::StreamAbort { xid, subxid } => Some((xid, subxid)),
        _ => None,
    });
    let (of, savepoint) = aborted.expect("an aborted savepoint");
    assert!(of == top && savepoint != top);
    let rows = |xid| {
        messages.iter().filter(|d| matches!(d.message, Message::Row { .. }) && d.xid == Some(xid)).count()
    };
    assert!(rows(savepoint) <= 5000, "{}", rows(savepoint));
    let kept = inserts(&messages) - rows(savepoint);
    assert_eq!(kept, 5002, "the rows that were committed, one of them in a transaction of its own");
    assert!(messages.iter().any(|d| matches!(d.message, Message::StreamCommit { xid, .. } if xid == top)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_reported_while_the_consumer_sleeps_longer_than_the_servers_patience() {
    let pg = OneServer::start();
    let from = published(&pg).await;
    // Random text, several times what the queue and the socket hold, so that the reader has to stop, too.
    pg.run(
        "ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         INSERT INTO t SELECT n, NULL, repeat(md5(n::text), 3000) FROM generate_series(1, 400) n",
    )
    .await;
    let mut stream = streaming(&pg, "options='-c wal_sender_timeout=1s'", from).await;
    pg.wait_until(
        "SELECT count(*) = 1 AND bool_and(reply_time > backend_start + interval '4 s') FROM pg_stat_replication
         WHERE sent_lsn < pg_current_wal_lsn()",
    )
    .await;
    assert_eq!(inserts(&transactions(&mut stream, 1).await), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_position_reaches_the_slot_and_stop_frees_it() {
    let pg = OneServer::start();
    let from = published(&pg).await;
    let mut stream = streaming(&pg, "", from).await;
    pg.run("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").await;
    let messages = transactions(&mut stream, 1).await;
    let Some(Message::Commit { end_lsn, .. }) = messages.last().map(|d| &d.message) else {
        panic!("{messages:?}")
    };
    stream.confirm(*end_lsn);
    stream.confirm(from);
    pg.wait_until(&format!("SELECT confirmed_flush_lsn = '{end_lsn}' FROM pg_replication_slots")).await;

    let last = Lsn(end_lsn.0 + 1);
    stream.confirm(last);
    stream.stop().await;
    let slot = "SELECT confirmed_flush_lsn::text || ' ' || active FROM pg_replication_slots";
    assert_eq!(pg.value(slot).await, format!("{last} false"), "stop reports the last position and waits");
    replication(&pg, "").await.drop_slot("s").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_keep_their_sqlstate_and_the_connection_stays_usable() {
    let pg = OneServer::start();
    let from = published(&pg).await;
    let mut connection = replication(&pg, "").await;
    let again = connection.create_slot("s", PLAIN).await.unwrap_err();
    assert_eq!((again.sqlstate(), again.is_retryable()), (Some("42710"), false), "{again}");
    let missing = connection.drop_slot("no such slot").await.unwrap_err();
    assert_eq!(missing.sqlstate(), Some("42704"), "{missing}");
    let missing = connection.start("other", from, "Pub's", STREAMING).await.unwrap_err();
    assert_eq!((missing.sqlstate(), missing.is_retryable()), (Some("42704"), false), "{missing}");

    let stream = streaming(&pg, "", from).await;
    let busy = replication(&pg, "").await.start("s", from, "Pub's", STREAMING).await.unwrap_err();
    assert_eq!((busy.sqlstate(), busy.is_retryable()), (Some("55006"), true), "{busy}");
    drop(stream);
    pg.wait_until("SELECT NOT active FROM pg_replication_slots").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_ends_the_stream_with_a_retryable_error() {
    let mut pg = OneServer::start();
    let from = published(&pg).await;
    pg.run("INSERT INTO t VALUES (1)").await;
    let mut stream = streaming(&pg, "", from).await;
    assert_eq!(inserts(&transactions(&mut stream, 1).await), 1);
    pg.crash();
    let error = loop {
        match within("the end", SOON, stream.next()).await {
            Ok(_frame) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable(), "{error}");
    assert!(stream.next().await.is_err(), "and nothing comes after it");
    assert!(stream.try_next().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_slot_goes_with_its_connection() {
    let pg = OneServer::start();
    let mut connection = replication(&pg, "").await;
    let options = SlotOptions { temporary: true, failover: true };
    connection.create_slot("Gone", options).await.unwrap_err();
    connection.create_slot("gone", options).await.unwrap();
    assert_eq!(pg.value("SELECT temporary FROM pg_replication_slots").await, "t");
    drop(connection);
    pg.wait_until("SELECT count(*) = 0 FROM pg_replication_slots").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_and_the_history_of_a_promoted_server_are_read() {
    let mut pg = OneServer::start();
    let before = replication(&pg, "").await.identify_system().await.unwrap();
    let named = "SELECT system_identifier FROM pg_control_system()";
    assert_eq!((before.timeline, before.database.as_deref()), (1, Some("postgres")));
    assert_eq!(before.system_identifier, pg.value(named).await);
    assert!(before.flush_lsn > Lsn::ZERO);
    assert_eq!(replication(&pg, "").await.timeline_history(1).await.unwrap(), []);

    // An archive recovery with an empty archive ends at once, on a new timeline.
    pg.crash();
    pg.append("data/postgresql.conf", "restore_command = 'false'\n");
    pg.write("data/recovery.signal", "");
    pg.launch();
    pg.superuser().await;
    pg.wait_until("SELECT NOT pg_is_in_recovery()").await;
    let mut connection = replication(&pg, "").await;
    let after = connection.identify_system().await.unwrap();
    assert_eq!((after.timeline, after.system_identifier), (2, before.system_identifier));
    let history = connection.timeline_history(2).await.unwrap();
    let [TimelineSwitch { timeline: 1, switch_lsn }] = history.as_slice() else { panic!("{history:?}") };
    assert!(*switch_lsn >= before.flush_lsn && *switch_lsn <= after.flush_lsn);
    assert_eq!(connection.timeline_history(9).await.unwrap_err().sqlstate(), Some("58P01"));
}
