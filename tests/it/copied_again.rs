//! A service's table that would not take its rows keeps those that it has, whatever is asked to be copied again.

use strangler::cluster::{Binaries, Options};
use tokio_postgres::Client;

use crate::support::binary::flat;
use crate::support::cluster::{Pair, launch_with, options};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const SETUP: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int); CREATE TABLE u (id int PRIMARY KEY);
    INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 1000) g; INSERT INTO u VALUES (1)";

/// Both orders are refused with all these words, name the command, and leave every row where it is.
async fn assert_kept(split: &Split, service: &Client, words: &[&str]) {
    for order in [&["--retry", "t"][..], &["--rebuild"]] {
        let (status, log) = split.mirror_with(None, order).ended();
        assert_eq!(status.code(), Some(3), "{order:?}: {log}");
        let again = format!("strangler mirror plan.yaml --slice one {}", order.join(" "));
        for word in words.iter().chain(&[again.as_str()]) {
            assert!(log.contains(word), "{order:?}: {word} is not in:\n{log}");
        }
        let kept: i64 = service.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(kept, 1000, "{order:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_that_would_not_take_its_rows_is_told_with_all_reasons_and_keeps_what_it_has() {
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let run = async |sql: &str| service.batch_execute(sql).await.unwrap();
    run("REVOKE INSERT, TRUNCATE ON t FROM strangler_apply; ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
         CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no;
         CREATE RULE gone AS ON DELETE TO t DO INSTEAD NOTHING; ALTER TABLE t ENABLE REPLICA RULE gone;
         ALTER TABLE t ADD extra int NOT NULL DEFAULT 0; ALTER TABLE t ALTER extra DROP DEFAULT;
         ALTER TABLE t ALTER n TYPE smallint; ALTER TABLE t DROP v; CREATE UNIQUE INDEX mine ON t ((n % 2000))")
        .await;
    let grant = "GRANT INSERT, TRUNCATE ON \"public\".\"t\" TO \"strangler_apply\"";
    let loud = "ALTER TABLE \"public\".\"t\" ENABLE TRIGGER \"no\"";
    let statements = [
        grant,
        "ALTER ROLE strangler_apply BYPASSRLS",
        loud,
        "ALTER TABLE \"public\".\"t\" ENABLE RULE \"gone\"",
        "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"extra\" DROP NOT NULL",
        "ALTER TABLE \"public\".\"t\" ADD COLUMN \"v\" text",
        "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"n\" TYPE integer",
        "DROP INDEX \"public\".\"mine\"",
    ];
    assert_kept(&split, &service, &statements).await;
    for statement in statements {
        run(statement).await;
    }

    // None of these is about the first rows, and the monolith can't work the last one out.
    run("ALTER TABLE t ADD CONSTRAINT fits CHECK (n <> 900) NOT VALID;
         ALTER TABLE u ADD w int NOT NULL DEFAULT 1")
    .await;
    assert_kept(&split, &service, &["its constraint fits refuses rows", "DROP CONSTRAINT \"fits\""]).await;
    run("ALTER TABLE t DROP CONSTRAINT fits; CREATE FUNCTION good(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 5';
         ALTER TABLE t ADD CONSTRAINT fits CHECK (good(n)) NOT VALID")
        .await;
    assert_kept(&split, &service, &["t refuses rows", "constraint fits", "none was emptied"]).await;
    monolith.batch_execute("UPDATE t SET n = NULL WHERE id = 950").await.unwrap();
    run("ALTER TABLE t DROP CONSTRAINT fits; ALTER TABLE t ALTER n SET NOT NULL").await;
    assert_kept(&split, &service, &["its column n is NOT NULL", "DROP NOT NULL"]).await;
    run("ALTER TABLE t ALTER n DROP NOT NULL").await;

    for order in [&["--retry", "t"][..], &["--rebuild"]] {
        let mirror = split.mirror_with(None, order);
        mirror.caught_up(&monolith, &service).await;
        let query = "SELECT id, v, n FROM t";
        assert_same(Side { client: &monolith, query }, Side { client: &service, query }).await;
        mirror.stop();
    }

    // A right that is missed while the mirror runs is told with the statement that grants it, by check as well.
    let check = split.run("check", &[]);
    assert!(!check.stdout.contains("no-apply-rights"), "{}", check.page());
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    run("REVOKE INSERT, DELETE ON u FROM strangler_apply").await;
    monolith.batch_execute("INSERT INTO u VALUES (2)").await.unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(5), "{log}");
    let grant = "GRANT INSERT, DELETE ON \"public\".\"u\" TO \"strangler_apply\"";
    assert!(
        log.contains(&format!(
            "hint: run on the service: {grant}; then strangler mirror plan.yaml --slice one"
        )),
        "{log}"
    );
    let check = split.run("check", &[]);
    assert!(check.stdout.contains("(no-apply-rights)"), "{}", check.page());
    assert!(check.stdout.contains("GRANT INSERT, DELETE ON \"public\".\"u\""), "{}", check.page());
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}

const TYPED: &str =
    "CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE DOMAIN small AS int; CREATE DOMAIN part AS int;
    CREATE TABLE t (id int PRIMARY KEY, v text, n int UNIQUE, m mood[], s small, p part[]);
    INSERT INTO t SELECT g, 'v' || g, g, '{ok}', g, ARRAY[g] FROM generate_series(1, 1000) g";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_the_service_asks_of_rows_is_known_before_a_table_is_emptied_and_does_nothing_on_the_monolith() {
    let (split, monolith, service) = Split::launch("{ t: {} }", TYPED).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let run = async |sql: &str| service.batch_execute(sql).await.unwrap();
    let kept = async |made: &str, words: &[&str], undo: &str| {
        run(made).await;
        assert_kept(&split, &service, words).await;
        run(undo).await;
    };
    let drop = "ALTER TABLE t DROP CONSTRAINT fits";
    kept(
        "ALTER TABLE t ADD CONSTRAINT fits CHECK (1000 / (n - 500) IS NOT NULL) NOT VALID",
        &["constraint fits"],
        drop,
    )
    .await;
    let good = "CREATE FUNCTION good(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 990';
                ALTER TABLE t ADD CONSTRAINT fits CHECK (good(id)) NOT VALID";
    kept(good, &["t refuses rows", "constraint fits"], drop).await;
    let undo = "ALTER DOMAIN small DROP CONSTRAINT few";
    kept(
        "ALTER DOMAIN small ADD CONSTRAINT few CHECK (VALUE <> 600) NOT VALID",
        &["ALTER DOMAIN", "\"few\""],
        undo,
    )
    .await;
    let undo = "ALTER DOMAIN part DROP NOT NULL";
    let stricter =
        "ALTER TABLE t ALTER p TYPE int[]; ALTER DOMAIN part SET NOT NULL; ALTER TABLE t ALTER p TYPE part[]";
    kept(stricter, &["the domain public.part of its column p", "DROP NOT NULL"], undo).await;
    let version = service.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap();
    if version.get::<_, i32>(0) >= 150_000 {
        let nulls = "CREATE UNIQUE INDEX mine ON t (n) NULLS NOT DISTINCT";
        kept(nulls, &["DROP INDEX \"public\".\"mine\""], "DROP INDEX mine").await;
    }
    let icu =
        service.query_one("SELECT EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i')", &[]).await;
    if icu.unwrap().get(0) {
        run("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)").await;
        let cased =
            "CREATE UNIQUE INDEX mine ON t (id, v COLLATE ci); CREATE UNIQUE INDEX other ON t (v COLLATE ci)";
        monolith.batch_execute("CREATE UNIQUE INDEX ON t (v)").await.unwrap();
        kept(cased, &["DROP INDEX \"public\".\"other\""], "DROP INDEX mine, other").await;
    }
    monolith.batch_execute("ALTER TYPE mood ADD VALUE 'new'").await.unwrap();
    let undo = "ALTER TYPE mood ADD VALUE 'new'";
    kept("", &["ALTER TYPE public.mood ADD VALUE 'new' AFTER 'sad'"], undo).await;

    // What both have alike stands in nobody's way, and what would write on the monolith is not worked out there.
    for client in [&monolith, &service] {
        client.batch_execute("CREATE UNIQUE INDEX alike ON t ((n % 2000)) WHERE n > 5").await.unwrap();
    }
    run("ALTER TABLE t ADD CONSTRAINT fits CHECK (lo_create(0) > 0) NOT VALID").await;
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    mirror.caught_up(&monolith, &service).await;
    let made = monolith.query_one("SELECT count(*) FROM pg_largeobject_metadata", &[]).await.unwrap();
    assert_eq!(made.get::<_, i64>(0), 0, "the service's check wrote on the monolith");
    mirror.stop();
    run(drop).await;
    assert_own_tables_are_asked(&split, &monolith, &service).await;
}

/// A right on the mirror's own tables, and what a later version has made of them.
async fn assert_own_tables_are_asked(split: &Split, monolith: &Client, service: &Client) {
    service.batch_execute("REVOKE UPDATE ON strangler.stream FROM strangler_apply").await.unwrap();
    let (_, log) = split.mirror_with(None, &["--retry", "t"]).ended();
    assert!(log.contains("hint: strangler provision plan.yaml, which gives"), "{log}");
    assert!(log.contains("then strangler mirror plan.yaml --slice one --retry t\n"), "{log}");
    split.provision();

    for (client, place) in [(service, "service service"), (monolith, "monolith")] {
        client
            .batch_execute("INSERT INTO strangler.schema_history (version, name) VALUES (999, 'later')")
            .await
            .unwrap();
        for (verb, arguments) in [("mirror", &["--retry", "t"][..]), ("provision", &[]), ("arm", &[])] {
            let page = split.run(verb, arguments).page();
            assert!(
                page.contains("of a later version than this program knows"),
                "{verb} with a later {place}: {page}"
            );
        }
        client.batch_execute("DELETE FROM strangler.schema_history WHERE version = 999").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_emptied_in_nobodys_way_and_only_once_they_can_be_filled() {
    let (split, monolith, service) = Split::launch("{ t: {}, u: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let (reader, other) = (split.pair.service().await, split.pair.monolith().await);
    reader.batch_execute("SET application_name = 'slow report'; BEGIN; SELECT FROM t").await.unwrap();
    let mirror = split.mirror_with(None, &["--retry", "t"]);
    let says = async |mirror: &crate::support::split::Mirror, word: &str| {
        until("it says whom it waits for", SOON, async || mirror.log().contains(word).then_some(())).await;
    };
    says(&mirror, "in use: process").await;
    says(&mirror, "slow report").await;
    let kept = async || -> i64 { service.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0) };
    assert_eq!(kept().await, 1000, "another reader is not held up");
    reader.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();

    other.batch_execute("SET application_name = 'night job'; BEGIN; UPDATE u SET id = id").await.unwrap();
    let mirror = split.mirror_with(None, &["--rebuild"]);
    says(&mirror, "no table is emptied before").await;
    says(&mirror, "night job").await;
    assert_eq!(kept().await, 1000);
    other.batch_execute("COMMIT").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
}

/// From PostgreSQL 18 on.
#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_key_that_both_sides_have_is_in_no_ones_way_and_not_null_for_new_rows_is_no_promise() {
    let Some(newest) = Binaries::find_all().unwrap().into_iter().find(|one| one.version.major >= 18) else {
        return;
    };
    let server = || launch_with(Options { binaries: Some(newest.clone()), ..options() });
    let setup = "CREATE TABLE t (id int4range, at daterange, n int, PRIMARY KEY (id, at WITHOUT OVERLAPS));
        INSERT INTO t SELECT int4range(g, g + 1), daterange('2026-01-01', '2026-02-01'), g FROM generate_series(1, 1000) g;
        CREATE TABLE u (id int PRIMARY KEY, w int CONSTRAINT written NOT NULL, z int); INSERT INTO u VALUES (1, 1, NULL);
        COMMENT ON CONSTRAINT written ON u IS 'always'; ALTER TABLE u ADD CONSTRAINT later NOT NULL z NOT VALID";
    let pair = Pair::of(server(), server(), "").await;
    let (split, monolith, service) = Split::between(pair, &Split::plan("{ t: {}, u: {} }"), setup).await;
    for verb in ["check", "provision"] {
        let said = flat(&split.run(verb, &[]).page());
        for words in ["constraint later of u", "ALTER TABLE \"public\".\"u\" VALIDATE CONSTRAINT \"later\""] {
            assert!(said.contains(words), "{verb}: {words}: {said}");
        }
    }
    let named = "SELECT string_agg(conname || ' ' || coalesce(obj_description(oid, 'pg_constraint'), ''), ',' ORDER BY conname) \
                 FROM pg_constraint WHERE conrelid = 'u'::regclass AND contype = 'n'";
    let named: String = service.query_one(named, &[]).await.unwrap().get(0);
    assert_eq!(named, "u_id_not_null ,written always");
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    for order in [&["--retry", "t"][..], &["--rebuild"]] {
        let mirror = split.mirror_with(None, order);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
    }
    monolith.batch_execute("UPDATE t SET n = NULL WHERE n = 500").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    for client in [&monolith, &service] {
        client.batch_execute("ALTER TABLE t ADD CONSTRAINT filled NOT NULL n NOT VALID").await.unwrap();
    }
    assert_kept(&split, &service, &["its column n is NOT NULL"]).await;
}
