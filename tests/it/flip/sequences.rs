//! Sequences that run short: before the fence that is a refusal, and after it authority goes back.

use rustix::process::Signal;
use tokio_postgres::Client;

use super::bank::Side;
use super::crash::frozen;
use super::{UNPROVEN, armed_with, complete, killed, owner};
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const TABLES: &str = "{ drawn: {}, others: {}, things: {} }";
const SETUP: &str = "CREATE TABLE things (id smallserial PRIMARY KEY, v text); \
    CREATE TABLE drawn (id bigint PRIMARY KEY); CREATE SEQUENCE drawn_seq INCREMENT 50 OWNED BY drawn.id; \
    INSERT INTO drawn VALUES (nextval('drawn_seq')), (nextval('drawn_seq')); \
    CREATE TABLE others (id bigserial PRIMARY KEY, v text); INSERT INTO things (v) VALUES ('a'); INSERT INTO others (v) VALUES ('a')";

async fn last(client: &Client, sequence: &str) -> i64 {
    let sql = format!("SELECT last_value FROM {sequence}");
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

fn margin_of_100(split: &Split) {
    split.change_plan("min_mirror_time: 0s", "min_mirror_time: 0s, sequence_margin: 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_writers_use_up_while_a_flip_waits_is_a_refusal_and_no_outage() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    margin_of_100(&split);
    monolith.batch_execute("SELECT setval('things_id_seq', 32655)").await.unwrap();
    let late = frozen(&split, "flip-looked", Side::Service, &[]);
    monolith.batch_execute("INSERT INTO things (v) SELECT 'b' FROM generate_series(1, 20)").await.unwrap();
    late.signal(Signal::CONT);
    let ended = late.ended();
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("(sequence-short)"), "{}", ended.page());
    assert!(
        ended.stderr.contains("no room for 1 more move of sequence_margin 100: things.id"),
        "{}",
        ended.page()
    );
    assert!(ended.stderr.contains("authority was not moved"), "{}", ended.page());
    assert_eq!(owner(&monolith).await.0, "OPEN");
    assert_eq!(owner(&service).await.0, "FENCED");
    monolith.batch_execute("INSERT INTO things (v) VALUES ('c')").await.unwrap();
    // With CYCLE there is always room.
    for client in [&monolith, &service] {
        client.batch_execute("ALTER SEQUENCE things_id_seq CYCLE").await.unwrap();
    }
    complete(&split, &mirror, &UNPROVEN);
    assert_eq!(last(&service, "things_id_seq").await, 32_676 + 100 - 32_767, "it began anew");
    // The application calls nextval by itself, and the column has no default.
    assert_eq!(last(&service, "drawn_seq").await, 51 + 100 * 50);
    let may = "SELECT has_sequence_privilege('service_app', 'drawn_seq', 'USAGE') \
               AND pg_get_serial_sequence('drawn', 'id') = 'public.drawn_seq'";
    assert!(service.query_one(may, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_side_that_can_not_be_opened_costs_no_numbers_and_everybody_is_sent_to_the_abort() {
    let (split, monolith, service, mirror) = armed_with(TABLES, SETUP, "").await;
    killed(&split, "flip-fenced", &[]);
    mirror.kill();
    assert_eq!(owner(&service).await.0, "FENCED", "the mirror was quicker than two seconds");
    service.batch_execute("ALTER SEQUENCE things_id_seq MAXVALUE 500").await.unwrap();
    for _ in 0..3 {
        let ended = split.run("flip", &UNPROVEN);
        assert_eq!(ended.exit, Some(5), "{}", ended.page());
        assert!(ended.stderr.contains("flip-unfinished"), "{}", ended.page());
        let abort = "hint: strangler flip --abort plan.yaml --slice one gives authority back";
        assert!(ended.stderr.contains(abort), "{}", ended.page());
        assert_eq!(last(&service, "others_id_seq").await, 1001, "the same value each time");
    }
    let mirror = split.mirror(None);
    until("the mirror gives up", SOON, async || mirror.log().contains("could not be finished").then_some(()))
        .await;
    mirror.looked_twice(&service).await;
    assert_eq!(mirror.log().matches("it is finished now").count(), 1, "{}", mirror.log());
    assert_eq!(mirror.log().matches("could not be finished").count(), 1, "{}", mirror.log());
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    assert!(
        status.stdout.contains("next       strangler flip plan.yaml --slice one --abort"),
        "{}",
        status.page()
    );
    assert!(!status.stdout.contains("A running mirror ends it"), "{}", status.page());
    let aborted = split.run("flip", &["--abort"]);
    assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
    monolith.batch_execute("INSERT INTO things (v) VALUES ('c')").await.unwrap();
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("has no room"), "{}", status.page());
}
