//! A service's table that would not take its rows keeps those that it has, whatever is asked to be copied again.

use tokio_postgres::Client;

use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};

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
         ALTER TABLE t ADD extra int NOT NULL DEFAULT 0; ALTER TABLE t ALTER extra DROP DEFAULT;
         ALTER TABLE t ALTER n TYPE smallint; ALTER TABLE t DROP v; CREATE UNIQUE INDEX mine ON t ((n % 2000))")
        .await;
    let grant = "GRANT INSERT, TRUNCATE ON \"public\".\"t\" TO \"strangler_apply\"";
    let loud = "ALTER TABLE \"public\".\"t\" ENABLE TRIGGER \"no\"";
    let statements = [
        grant,
        "ALTER ROLE strangler_apply BYPASSRLS",
        loud,
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
