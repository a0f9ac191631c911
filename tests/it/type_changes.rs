//! Types of the user's that change under a running mirror: no value is put together otherwise on the other side, and no
//! verdict calls such sides equal.

use strangler::dualwrite::gate::Hinge;
use tokio_postgres::Client;

use crate::reverse::stage::{Stage, Way};
use crate::support::binary::flat;
use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const PEOPLE: &str = "CREATE TYPE fullname AS (first text, last text);
    CREATE TABLE people (id int PRIMARY KEY, n fullname);
    INSERT INTO people SELECT i, ROW('Grace', 'Hopper ' || i)::fullname FROM generate_series(1, 20) i;
    ANALYZE";

/// Every way in which a type can lead to an enum.
const DEEP: &str = "CREATE TYPE mood AS ENUM ('ok', 'sad');
    CREATE DOMAIN inner_mood AS mood; CREATE DOMAIN outer_mood AS inner_mood;
    CREATE TYPE holder AS (n int, m mood); CREATE TYPE span AS RANGE (subtype = mood);
    CREATE TABLE twice (id int PRIMARY KEY, v outer_mood);
    CREATE TABLE listed (id int PRIMARY KEY, v inner_mood[]);
    CREATE TABLE held (id int PRIMARY KEY, v holder);
    CREATE TABLE holders (id int PRIMARY KEY, v holder[]);
    CREATE TABLE spans (id int PRIMARY KEY, v span);
    CREATE TABLE multis (id int PRIMARY KEY, v span_multirange);";
const DEEP_ROWS: &str = "INSERT INTO twice VALUES (1, 'ok'); INSERT INTO listed VALUES (1, '{ok}');
    INSERT INTO held VALUES (1, '(1,ok)'); INSERT INTO holders VALUES (1, ARRAY['(1,ok)'::holder]);
    INSERT INTO spans VALUES (1, '[ok,sad]'); INSERT INTO multis VALUES (1, '{[ok,sad]}')";

fn assert_stopped(mirror: &Mirror, words: &[&str]) -> String {
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    for word in words {
        assert!(log.contains(word), "{word} is missing: {log}");
    }
    log
}

/// The statements that a refusal says to run in the service.
fn advised(log: &str) -> String {
    let (_, after) = log.split_once("run in the service: ").unwrap();
    after.split_once("; then strangler").unwrap().0.to_owned()
}

async fn assert_people(monolith: &Client, service: &Client) {
    let query = "SELECT id, (n).first, (n).last FROM people";
    assert_same(Side { client: monolith, query }, Side { client: service, query }).await;
}

/// A mirror that copies `table` again, once it has caught up: an earlier one's table was live, too.
async fn copied_again(split: &Split, table: &str, monolith: &Client, service: &Client) -> Mirror {
    let number = "SELECT copy_number FROM strangler.mirror_table WHERE source_table = $1";
    let copy = async || -> i32 { service.query_one(number, &[&table]).await.unwrap().get(0) };
    let before = copy().await;
    let mirror = split.mirror_with(None, &["--retry", table]);
    until("the table is copied again", SOON, async || (copy().await > before).then_some(())).await;
    mirror.caught_up(monolith, service).await;
    mirror
}

fn assert_not_proven(split: &Split) {
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_that_change_places_stop_the_mirror_and_what_it_says_to_run_brings_the_values_back() {
    let (split, monolith, service) = Split::launch("{ people: {} }", PEOPLE).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    let swap = "ALTER TYPE fullname DROP ATTRIBUTE first; ALTER TYPE fullname ADD ATTRIBUTE first text;
        INSERT INTO people VALUES (106, ROW('Lovelace', 'Ada')::fullname);
        UPDATE people SET n.first = 'Ada' WHERE id < 6";
    let retyped = "ALTER TYPE fullname DROP ATTRIBUTE last; ALTER TYPE fullname ADD ATTRIBUTE last int";
    for sql in [swap, retyped, "ALTER TYPE fullname RENAME ATTRIBUTE last TO age"] {
        monolith.batch_execute(sql).await.unwrap();
        assert_not_proven(&split);
        let log = assert_stopped(&mirror, &["ALTER TYPE", "fullname", "--retry people"]);
        let log = assert_stopped(&split.mirror_with(None, &["--retry", "people"]), &[&advised(&log)]);
        service.batch_execute(&advised(&log)).await.unwrap();
        mirror = copied_again(&split, "people", &monolith, &service).await;
        let query = "SELECT id, n::text, row_to_json(n)::text FROM people";
        assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
        let proven = split.run("reconcile", &[]);
        assert_eq!(proven.exit, Some(0), "{}", proven.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_type_whose_attributes_have_other_names_is_never_called_equal() {
    let (split, monolith, service) = Split::launch("{ people: {} }", PEOPLE).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    let swap =
        "ALTER TYPE fullname RENAME ATTRIBUTE first TO x; ALTER TYPE fullname RENAME ATTRIBUTE last TO first;
        ALTER TYPE fullname RENAME ATTRIBUTE x TO last";
    // It looks every two seconds, and has just looked.
    let beats = "SELECT seen_at::text FROM strangler.mirror_process";
    let seen: String = service.query_one(beats, &[]).await.unwrap().get(0);
    until("the mirror has looked", SOON, async || {
        let now: String = service.query_one(beats, &[]).await.unwrap().get(0);
        (now != seen).then_some(())
    })
    .await;
    service.batch_execute(swap).await.unwrap();
    let verdict = split.run("reconcile", &["--fresh"]);
    assert_eq!(verdict.exit, Some(5), "{}", verdict.page());
    let why = ["the attributes of the service's type public.fullname", "no mirror is running"];
    assert!(why.iter().any(|why| verdict.page().contains(why)), "{}", verdict.page());
    assert_not_proven(&split);
    let log = assert_stopped(&mirror, &["people.n", "--retry people"]);
    assert_stopped(&split.mirror(None), &["people.n"]);
    service.batch_execute(&advised(&log)).await.unwrap();
    let _mirror = copied_again(&split, "people", &monolith, &service).await;
    assert_people(&monolith, &service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_gets_another_name_is_noticed_through_every_type_over_its_enum() {
    let tables = ["twice", "listed", "held", "holders", "spans", "multis"];
    let plan = format!("{{ {} }}", tables.map(|table| format!("{table}: {{}}")).join(", "));
    // Ranges are not made by `provision`, but by the service's own migrations.
    let plan = Split::plan(&plan).replace("url: \"${SERVICE}\"", "url: \"${SERVICE}\", ddl: adopt");
    let (split, monolith, service) = Split::with_plan(&plan, &format!("{DEEP}{DEEP_ROWS}")).await;
    service.batch_execute(DEEP).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    monolith.batch_execute("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'").await.unwrap();
    assert_not_proven(&split);
    let log = assert_stopped(&mirror, &["RENAME VALUE 'ok' TO 'fine'"]);
    for table in tables {
        assert!(log.contains(&format!("{table}.v")), "{table}: {log}");
        assert!(log.contains(&format!("--retry {table}")), "{table}: {log}");
    }
    service.batch_execute(&advised(&log)).await.unwrap();
    let retries: Vec<&str> = tables.iter().flat_map(|&table| ["--retry", table]).collect();
    let mirror = split.mirror_with(None, &retries);
    mirror.caught_up(&monolith, &service).await;
    for table in tables {
        let query = format!("SELECT id, v::text FROM {table}");
        assert_same(Side { client: &monolith, query: &query }, Side { client: &service, query: &query })
            .await;
    }
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_type_of_the_service_that_changes_after_a_flip_stops_the_way_back_and_what_it_says_cures_the_monolith()
 {
    let setup = format!("CREATE ROLE strangler_apply LOGIN; {PEOPLE}");
    let split = Split::launch("{ people: {} }", &setup).await;
    let stage = Stage::armed_for(split, "people", &[("people", Hinge::Statement)]).await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    let (split, monolith, service) = (&stage.split, &stage.monolith, &stage.service);
    let swap = "ALTER TYPE fullname DROP ATTRIBUTE first; ALTER TYPE fullname ADD ATTRIBUTE first text;
        INSERT INTO people VALUES (106, ROW('Lovelace', 'Ada')::fullname); UPDATE people SET n.first = 'Ada' WHERE id < 6";
    service.batch_execute(swap).await.unwrap();
    let told = async || {
        let sql =
            "SELECT detail FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NOT NULL";
        until("the way back stops", SOON, async || {
            monolith.query_opt(sql, &[]).await.unwrap().and_then(|row| row.get::<_, Option<String>>(0))
        })
        .await
    };
    let why = told().await;
    assert!(
        why.contains("fullname") && why.contains("strangler reconcile PLAN --slice one --repair"),
        "{why}"
    );
    assert_not_proven(split);

    mirror.stop();
    let mirror = split.mirror(None);
    assert_eq!(told().await, why, "neither does another mirror begin");

    let (_, advice) = why.split_once("run on the monolith: ").unwrap();
    let (advice, _) = advice.split_once("; a running mirror goes on").unwrap();
    monolith.batch_execute(advice).await.unwrap();
    stage.streams_run(&mirror).await;
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    assert_people(monolith, service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    service.batch_execute("UPDATE people SET n = ROW('Hamilton', 'Margaret') WHERE id = 7").await.unwrap();
    stage.arrived(Way::Reverse).await;
    assert_people(monolith, service).await;
    stands_still_steadily(&stage).await;
    mirror.stop();
}

/// A value that the monolith's type can't read stops the way back before its next look at the types: what is said is why, from
/// the first word on, and it is said through the attempts that follow.
async fn stands_still_steadily(stage: &Stage) {
    let (monolith, service) = (&stage.monolith, &stage.service);
    let longer = "BEGIN; ALTER TYPE fullname ADD ATTRIBUTE title text;
        UPDATE people SET n = ROW('Hopper', 'Grace', 'Dr') WHERE id = 8; COMMIT";
    service.batch_execute(longer).await.unwrap();
    let sql = "SELECT phase, coalesce(detail, ''), stopped_at IS NOT NULL, started_at::text \
               FROM strangler.mirror_process WHERE dir = 'reverse'";
    let look = async || -> Option<(String, String, String)> {
        let row = monolith.query_one(sql, &[]).await.unwrap();
        row.get::<_, bool>(2).then(|| (row.get(0), row.get(1), row.get(3)))
    };
    let (phase, why, began) = until("the way back stops", SOON, look).await;
    assert_eq!(phase, "tried again");
    assert!(why.contains("fullname") && why.contains("run on the monolith: ALTER TYPE"), "{why}");
    until("it is tried again", SOON, async || {
        let (phase, still, since) = look().await.expect("it stands still all the time");
        assert_eq!((phase.as_str(), &still), ("tried again", &why));
        (since != began).then_some(())
    })
    .await;
    let status = stage.split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let told = &document["slices"][0];
    assert_eq!(told["way_back"]["process"]["doing"], "tried again", "{told:#}");
    assert!(told["alarms"].to_string().contains("the way back stands still: "), "{told:#}");
    let (_, advice) = why.split_once("run on the monolith: ").unwrap();
    let (advice, _) = advice.split_once("; a running mirror goes on").unwrap();
    monolith.batch_execute(advice).await.unwrap();
    until("it goes on", SOON, async || look().await.is_none().then_some(())).await;
    stage.arrived(Way::Reverse).await;
    assert_people(monolith, service).await;
}

/// Everything that a column of the monolith can ask of a value and that the service may stop asking.
const NARROW: &str = "CREATE ROLE strangler_apply LOGIN; CREATE TYPE mood AS ENUM ('ok', 'sad');
    CREATE DOMAIN pos AS int CHECK (VALUE > 0);
    CREATE TABLE t (id int PRIMARY KEY, m mood, p pos, v varchar(5) CONSTRAINT one_v UNIQUE);
    INSERT INTO t SELECT i, 'ok', i, 'v' || i FROM generate_series(1, 9) i; ANALYZE";

/// Why the way back stands still; `status` is red then.
async fn refused(stage: &Stage, word: &str) -> String {
    let sql = format!(
        "SELECT detail FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NOT NULL \
         AND detail LIKE '%{word}%'"
    );
    let why = until("the way back stands still", SOON, async || {
        stage.monolith.query_opt(&sql, &[]).await.unwrap().map(|row| row.get::<_, String>(0))
    })
    .await;
    // What was read may still be what a mirror that has ended left, while its successor starts.
    until("status says that the way back stands still", SOON, async || {
        let status = stage.split.run("status", &[]);
        let told = status.stdout.contains("the way back stands still");
        assert!(!told || status.exit == Some(1), "{}", status.page());
        told.then_some(())
    })
    .await;
    why
}

async fn goes_on(stage: &Stage) {
    stage.arrived(Way::Reverse).await;
    let query = "SELECT id, m::text, p, v FROM t";
    assert_same(Side { client: &stage.monolith, query }, Side { client: &stage.service, query }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_the_monolith_refuses_and_the_service_takes_is_named_and_the_way_back_goes_on_once_it_is_changed()
 {
    let split = Split::launch("{ t: {} }", NARROW).await;
    let stage = Stage::armed_for(split, "t", &[("t", Hinge::Statement)]).await;
    let mirror = stage.mirror().await;
    stage.flip(2).await;
    stage.on_service("ALTER TYPE mood ADD VALUE 'wild'; ALTER DOMAIN pos DROP CONSTRAINT pos_check").await;
    stage.on_service("INSERT INTO t VALUES (10, 'wild', 10, 'v10'), (11, 'ok', -4, 'v11')").await;
    let why = refused(&stage, "wild").await;
    let advice = "ALTER TYPE public.mood ADD VALUE 'wild' AFTER 'sad'; ALTER DOMAIN public.pos DROP CONSTRAINT \"pos_check\"";
    assert!(why.contains(&format!("run on the monolith: {advice}; a running mirror goes on")), "{why}");
    stage.on_monolith(advice).await;
    goes_on(&stage).await;

    stage
        .on_service(
            "ALTER TABLE t ALTER v TYPE varchar(20); INSERT INTO t VALUES (12, 'ok', 12, 'longer than five')",
        )
        .await;
    let why = refused(&stage, "22001").await;
    assert!(why.contains("the monolith refuses a row of t that the service took"), "{why}");
    assert!(why.contains("next: change on the monolith what refuses it"), "{why}");
    mirror.stop();
    let mirror = stage.split.mirror_with(None, &["--retry", "t"]);
    in_vain(&stage, 1).await;
    assert_eq!(refused(&stage, "22001").await, why, "reading the row again changes nothing");
    mirror.stop();
    stage.on_service("UPDATE t SET v = 'short' WHERE id = 12").await;
    let mirror = stage.split.mirror_with(None, &["--retry", "t"]);
    goes_on(&stage).await;

    stage.on_service("ALTER TABLE t DROP CONSTRAINT one_v; INSERT INTO t VALUES (13, 'ok', 13, 'v1')").await;
    let why = refused(&stage, "one_v").await;
    assert!(why.contains("--retry t"), "another row of the monolith may be what is wrong: {why}");
    mirror.stop();
    let mirror = stage.split.mirror_with(None, &["--retry", "t"]);
    in_vain(&stage, 2).await;
    assert_eq!(refused(&stage, "one_v").await, why);
    mirror.stop();
    stage.on_monolith("ALTER TABLE t DROP CONSTRAINT one_v").await;
    let mirror = stage.mirror().await;
    goes_on(&stage).await;
    nothing_is_green_that_is_not(&stage, mirror).await;
}

/// A row that was read again was refused.
async fn in_vain(stage: &Stage, times: i64) {
    let sql = "SELECT count(*) FROM strangler.repair WHERE state = 'refused'";
    until("a row is read again and refused", SOON, async || {
        (stage.count(&stage.monolith, sql).await == times).then_some(())
    })
    .await;
}

/// A mapping that changed, and a way back that lost its slot.
async fn nothing_is_green_that_is_not(stage: &Stage, mirror: Mirror) {
    let split = &stage.split;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(0), "{}", status.page());
    assert!(status.stdout.contains("both sides are proven equal"), "{}", status.page());

    split.change_plan("t: {}", "t: { columns: { v: { drop: true } } }");
    let status = split.run("status", &[]);
    assert_eq!(status.exit, Some(1), "{}", status.page());
    assert!(status.stdout.contains("another one than when it was provisioned"), "{}", status.page());
    assert!(status.stdout.contains("strangler check plan.yaml"), "{}", status.page());
    let disarm = split.run("disarm", &[]);
    assert_eq!(disarm.exit, Some(3), "{}", disarm.page());
    assert!(disarm.stderr.contains("(mapping-changed)"), "{}", disarm.page());
    assert!(!disarm.stderr.contains("strangler flip"), "which is refused as well: {}", disarm.page());
    split.change_plan("t: { columns: { v: { drop: true } } }", "t: {}");

    mirror.stop();
    stage.on_service("SELECT pg_drop_replication_slot('back_one')").await;
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    assert!(status.stdout.contains("the way back lost its slot"), "{}", status.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_exchange_their_names_are_brought_in_line_by_what_check_says() {
    let setup =
        "CREATE TYPE level AS ENUM ('low', 'mid', 'high'); CREATE TABLE t (id int PRIMARY KEY, v level);
        INSERT INTO t VALUES (1, 'low'), (2, 'mid'), (3, 'high')";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let exchange = "ALTER TYPE level RENAME VALUE 'low' TO 'x'; ALTER TYPE level RENAME VALUE 'mid' TO 'low';
        ALTER TYPE level RENAME VALUE 'x' TO 'mid'";
    monolith.batch_execute(exchange).await.unwrap();
    assert_stopped(&mirror, &["--retry t"]);
    let checked = split.run("check", &[]);
    assert_eq!(checked.exit, Some(1), "{}", checked.page());
    // A page wraps its lines.
    let page = flat(&checked.stdout);
    let (_, advice) = page.split_once("run in the service: ").unwrap();
    let (advice, after) =
        advice.split_once(" Then strangler mirror plan.yaml --slice one --retry TABLE").unwrap();
    assert!(after.starts_with(" for each table"), "{after}");
    service.batch_execute(advice).await.unwrap();
    let mirror = copied_again(&split, "t", &monolith, &service).await;
    let query = "SELECT id, v::text, rank() OVER (ORDER BY v) FROM t";
    assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_that_becomes_an_ordinary_one_is_not_called_new() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED);
        INSERT INTO t VALUES (1, 1)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    monolith
        .batch_execute("ALTER TABLE t ALTER g DROP EXPRESSION; INSERT INTO t VALUES (2, 2, 100)")
        .await
        .unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    let seen = ["column g is not generated any more", "the generated column g has another expression"];
    assert!(seen.iter().any(|words| log.contains(words)), "{log}");
    assert!(!log.contains("g is new") && !log.contains("drop: true }"), "{log}");
}
