//! Links, logins and the settings of sessions against a real server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use strangler::postgres::{ConnectError, SessionRole};

use crate::replication::server::{OneServer, PASSWORD, server, value};
use crate::support::proxy::{Line, Proxy};

/// Runs openssl in a directory.
fn openssl(directory: &Path, arguments: &str) {
    let run = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output();
    let run = run.expect("openssl on the path");
    assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
}

/// An authority, a server certificate for `localhost` signed by it, and a certificate that signs itself.
fn certificates(pg: &OneServer) {
    let directory = pg.path("");
    let new = "req -x509 -newkey rsa:2048 -nodes -days 2 -sha256";
    openssl(&directory, &format!("{new} -keyout ca.key -out ca.crt -subj /CN=authority"));
    openssl(&directory, "req -newkey rsa:2048 -nodes -keyout signed.key -out signed.csr -subj /CN=localhost");
    pg.write("signed.ext", "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n");
    let sign = "x509 -req -in signed.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -sha384";
    openssl(&directory, &format!("{sign} -extfile signed.ext -out signed.crt"));
    let own = "-keyout own.key -out own.crt -subj /CN=localhost -addext subjectAltName=DNS:localhost";
    openssl(&directory, &format!("{new} {own}"));
}

/// Makes the server present a certificate, or none.
async fn present(pg: &OneServer, name: Option<&str>) {
    let Some(name) = name else {
        pg.run("ALTER SYSTEM SET ssl = off").await;
        pg.run("SELECT pg_reload_conf()").await;
        return pg.wait_until("SELECT current_setting('ssl') = 'off'").await;
    };
    for ending in ["crt", "key"] {
        let text = std::fs::read_to_string(pg.path(&format!("{name}.{ending}"))).unwrap();
        pg.write(&format!("data/server.{ending}"), &text);
    }
    pg.run("ALTER SYSTEM SET ssl = on").await;
    pg.run("SELECT pg_reload_conf()").await;
    pg.wait_until("SELECT current_setting('ssl') = 'on'").await;
}

/// A server that asks for SCRAM on TCP, has TLS, and roles for other kinds of password.
async fn secured() -> OneServer {
    let pg = OneServer::start();
    certificates(&pg);
    pg.run(&format!(
        "CREATE ROLE scram LOGIN REPLICATION PASSWORD '{PASSWORD}';
         CREATE ROLE clear LOGIN REPLICATION PASSWORD '{PASSWORD}';
         SET password_encryption = md5;
         CREATE ROLE md5 LOGIN REPLICATION PASSWORD '{PASSWORD}';"
    ))
    .await;
    pg.write(
        "data/pg_hba.conf",
        "local all all trust
         host all md5 127.0.0.1/32 md5
         host all clear 127.0.0.1/32 password
         hostssl all all 127.0.0.1/32 scram-sha-256\n",
    );
    present(&pg, Some("signed")).await;
    pg
}

fn tls(pg: &OneServer, mode: &str, root: &str) -> String {
    format!("user=scram password='{PASSWORD}' sslmode={mode} sslrootcert={}", pg.path(root).display())
}

/// Logs in both for SQL and for replication with one link; both must agree.
async fn log_in(link: &str) -> Result<(), ConnectError> {
    let server = server(link, SessionRole::Read);
    let sql = server.connect("test").await.map(|_session| ());
    let wal = match server.replicate("test").await {
        Ok(mut connection) => connection.identify_system().await.map(|_| Ok(())).unwrap(),
        Err(error) => Err(error),
    };
    match (&sql, &wal) {
        (Ok(()), Ok(())) => {}
        (Err(a), Err(b)) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{a:?} {b:?}"),
        _ => panic!("SQL {sql:?}, replication {wal:?}"),
    }
    if let Err(error) = &sql {
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error:?}");
    }
    sql
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_over_a_verified_tls_session_logs_in() {
    let pg = secured().await;
    let link = pg.tcp_link("localhost", &format!("hostaddr=127.0.0.1 {}", tls(&pg, "verify-full", "ca.crt")));
    log_in(&link).await.unwrap();
    log_in(&format!("{link} channel_binding=require")).await.unwrap();
    let session = server(&link, SessionRole::Read).connect("test").await.unwrap();
    assert_eq!(value(&session, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, "t");
    let token = session.cancel_token();
    let (slept, cancelled) = tokio::join!(session.batch_execute("SELECT pg_sleep(60)"), async {
        pg.wait_until("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").await;
        token.cancel().await
    });
    cancelled.unwrap();
    assert_eq!(slept.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sslmode_trusts_what_it_promises_and_no_more() {
    let pg = secured().await;
    let at = |host: &str, more: &str| pg.tcp_link(host, &format!("hostaddr=127.0.0.1 {more}"));
    for (host, mode, root, accepted) in [
        ("localhost", "verify-full", "ca.crt", true),
        ("elsewhere", "verify-full", "ca.crt", false),
        ("elsewhere", "verify-ca", "ca.crt", true),
        ("localhost", "verify-ca", "own.crt", false),
        ("localhost", "require", "own.crt", false),
    ] {
        match (log_in(&at(host, &tls(&pg, mode, root))).await, accepted) {
            (Ok(()), true) => {}
            (Err(error @ ConnectError::Tls { .. }), false) => assert!(!error.is_retryable(), "{error:?}"),
            (result, _) => panic!("{host} {mode} {root}: {result:?}"),
        }
    }
    let plain = format!("user=scram password='{PASSWORD}'");
    log_in(&at("elsewhere", &format!("{plain} sslmode=require"))).await.unwrap();
    log_in(&at("elsewhere", &format!("{plain} sslmode=prefer"))).await.unwrap();
    log_in(&at("elsewhere", &format!("{plain} sslmode=allow"))).await.unwrap();
    let refused = log_in(&at("localhost", &format!("{plain} sslmode=disable"))).await;
    assert!(matches!(refused, Err(ConnectError::Authentication { .. })), "{refused:?}");

    // The certificate that PostgreSQL's documentation tells people to make is its own authority.
    present(&pg, Some("own")).await;
    log_in(&at("localhost", &tls(&pg, "verify-full", "own.crt"))).await.unwrap();
    log_in(&at("elsewhere", &tls(&pg, "verify-ca", "own.crt"))).await.unwrap();
    let wrong_name = log_in(&at("elsewhere", &tls(&pg, "verify-full", "own.crt"))).await;
    assert!(matches!(wrong_name, Err(ConnectError::Tls { .. })), "{wrong_name:?}");

    present(&pg, None).await;
    let none = log_in(&at("localhost", &tls(&pg, "verify-full", "ca.crt"))).await.unwrap_err();
    assert!(matches!(none, ConnectError::NoTls { .. }), "{none:?}");
    assert!(none.to_string().starts_with("a TLS session was required and monolith (localhost:"), "{none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_password_works_and_every_refusal_is_told_apart() {
    let pg = secured().await;
    let link = |more: &str| pg.tcp_link("127.0.0.1", more);
    for user in ["scram", "md5", "clear"] {
        log_in(&link(&format!("user={user} password='{PASSWORD}'"))).await.unwrap();
        let wrong = log_in(&link(&format!("user={user} password=wrong"))).await.unwrap_err();
        assert!(matches!(wrong, ConnectError::Authentication { .. }), "{wrong:?}");
        assert_eq!((wrong.sqlstate(), wrong.is_retryable()), (Some("28P01"), false));
        let none = log_in(&link(&format!("user={user}"))).await.unwrap_err();
        assert!(matches!(none, ConnectError::NoPassword { .. }), "{none:?}");
    }
    let database = log_in(&pg.link("user=scram dbname=nowhere")).await.unwrap_err();
    assert!(matches!(database, ConnectError::NoDatabase { .. }) && !database.is_retryable(), "{database:?}");
    pg.run("ALTER ROLE clear CONNECTION LIMIT 0").await;
    let full = server(&pg.link("user=clear"), SessionRole::Read).connect("test").await.unwrap_err();
    assert_eq!((full.sqlstate(), full.is_retryable()), (Some("53300"), true), "{full:?}");
    let nobody = format!("host={} port=1 user=scram", pg.path("").display());
    let unreachable = log_in(&nobody).await.unwrap_err();
    assert!(matches!(unreachable, ConnectError::Unreachable { .. }) && unreachable.is_retryable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts_are_tried_in_order_and_a_silent_one_is_given_up() {
    let pg = OneServer::start();
    pg.superuser().await;
    let directory = pg.path("");
    // Accepts connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let more = "user=postgres dbname=postgres connect_timeout=1";
    let alone = server(&format!("host=127.0.0.1 port={port} {more}"), SessionRole::Read);
    let error = alone.connect("test").await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Timeout { after, .. } if after == Duration::from_secs(1)),
        "{error:?}"
    );
    assert!(error.is_retryable());

    let hosts = format!("host=127.0.0.1,{} port={port},{}", directory.display(), pg.port());
    let both = server(&format!("{hosts} {more} target_session_attrs=read-write"), SessionRole::Read);
    both.connect("test").await.unwrap();
    let expected = format!("monolith (127.0.0.1,{}/postgres as postgres)", directory.display());
    assert_eq!(both.describe().unwrap(), expected);

    // One that answers the login and owes the next answer is given up as well; one that was not asked may be silent.
    let (proxy, through) =
        Proxy::before(&format!("postgresql://postgres@127.0.0.1:{}/postgres", pg.port())).await;
    let patient = server(&through, SessionRole::Read);
    let short = patient.clone().answering_within(Duration::from_millis(400));
    let (asked, idle) = (short.connect("test").await.unwrap(), short.connect("test").await.unwrap());
    asked.query_one("SELECT repeat('x', 100000), pg_sleep(0.2)", &[]).await.unwrap();
    patient.connect("test").await.unwrap().query_one("SELECT pg_sleep(0.6)", &[]).await.unwrap();
    for session in [&asked, &idle] {
        session.query_one("SELECT 1", &[]).await.unwrap();
    }
    // Nor does the answer to a statement that was sent before it end the wait for one that is owed.
    let piped = short.connect("test").await.unwrap();
    let (first, second) =
        tokio::join!(piped.batch_execute("SELECT 1"), piped.batch_execute("SELECT pg_sleep(600)"));
    first.unwrap();
    assert!(strangler::postgres::sqlstate::is_connection_lost(&second.unwrap_err()));
    proxy.set(Line::Silent);
    let lost = asked.query_one("SELECT 1", &[]).await.unwrap_err();
    assert!(strangler::postgres::sqlstate::is_connection_lost(&lost), "{lost:?}");
    assert_eq!(short.clone().owed_an_answer(), Some(Duration::from_millis(400)));
    assert_eq!(patient.owed_an_answer(), None);

    let standby = server(&pg.link("user=postgres target_session_attrs=standby"), SessionRole::Read);
    let wrong = standby.connect("test").await.unwrap_err();
    assert!(matches!(wrong, ConnectError::WrongServer { wanted: "standby", .. }), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_prints_values_in_the_same_way_whatever_its_role_was_given() {
    let pg = OneServer::start();
    pg.run(
        "CREATE ROLE odd LOGIN; CREATE ROLE owner; GRANT owner TO odd; ALTER ROLE odd SET role = 'owner';
         ALTER ROLE odd SET default_transaction_read_only = on; GRANT CREATE ON SCHEMA public TO odd;
         ALTER ROLE odd SET DateStyle = 'German, DMY'; ALTER ROLE odd SET IntervalStyle = 'iso_8601';
         ALTER ROLE odd SET TimeZone = 'Asia/Tokyo'; ALTER ROLE odd SET bytea_output = 'escape';
         ALTER ROLE odd SET extra_float_digits = -5; ALTER ROLE odd SET search_path = 'public';
         ALTER ROLE odd SET statement_timeout = '1ms'; ALTER ROLE odd SET client_encoding = 'LATIN1'",
    )
    .await;
    let session = server(&pg.link("user=odd"), SessionRole::Read).connect("strangler: test").await.unwrap();
    let shown = "SELECT concat_ws('|', '2026-01-31 00:00+00'::timestamptz, interval '1 day 2 h',
        '\\x00ff'::bytea, 0.1::float8 + 0.2, current_setting('search_path'), current_setting('statement_timeout'),
        current_setting('application_name'), current_setting('client_encoding'))";
    assert_eq!(
        value(&session, shown).await,
        "2026-01-31 00:00:00+00|1 day 02:00:00|\\x00ff|0.30000000000000004|pg_catalog|0|strangler: test|UTF8"
    );
    assert!(session.server_major() >= 14);
    session.batch_execute("CREATE TABLE public.written ()").await.unwrap();
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'written'";
    assert_eq!(value(&session, owner).await, "odd", "it works as whom it logs in as");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_connection_waits_for_its_stream_longer_than_idle_sessions_may() {
    let pg = OneServer::start();
    pg.run(
        "CREATE ROLE wal LOGIN REPLICATION; ALTER ROLE wal SET idle_session_timeout = '20ms';
         CREATE ROLE owner; GRANT owner TO wal; ALTER ROLE wal SET role = 'owner'",
    )
    .await;
    let mut connection = server(&pg.link("user=wal"), SessionRole::Read).replicate("waits").await.unwrap();
    pg.wait_until(
        "SELECT bool_or(clock_timestamp() - backend_start > interval '300 ms') FROM pg_stat_activity \
         WHERE application_name = 'waits'",
    )
    .await;
    connection.identify_system().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_session_is_the_applier_or_says_what_is_missing() {
    let pg = OneServer::start();
    pg.superuser().await;
    let apply = |user: &str| server(&pg.link(&format!("user={user}")), SessionRole::Apply);
    let who = "SELECT session_user || ' ' || current_setting('session_replication_role')";
    let session = apply("postgres").connect("test").await.unwrap();
    assert_eq!(value(&session, who).await, "postgres replica", "before provision has made the role");

    pg.run("CREATE ROLE strangler_apply LOGIN; CREATE ROLE somebody LOGIN").await;
    let session = apply("postgres").connect("test").await.unwrap();
    assert_eq!(value(&session, who).await, "strangler_apply replica");
    let stranger = apply("somebody").connect("test").await.unwrap_err();
    assert!(matches!(&stranger, ConnectError::NotApplier { user, .. } if user == "somebody"), "{stranger:?}");

    let missing = apply("strangler_apply").connect("test").await.unwrap_err();
    let ConnectError::ReplicaRole { grant, .. } = missing else { panic!("{missing:?}") };
    pg.run(grant).await;
    let session = apply("strangler_apply").connect("test").await.unwrap();
    assert_eq!(value(&session, who).await, "strangler_apply replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_recognised() {
    let mut pg = OneServer::start();
    let session = pg.superuser().await;
    let killed = session.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    assert!(strangler::postgres::sqlstate::is_connection_lost(&killed), "{killed:?}");
    let session = pg.superuser().await;
    pg.crash();
    let lost = session.batch_execute("SELECT 1").await.unwrap_err();
    assert!(strangler::postgres::sqlstate::is_connection_lost(&lost), "{lost:?}");
    let late = session.batch_execute("SELECT 1").await.unwrap_err();
    assert!(strangler::postgres::sqlstate::is_connection_lost(&late) && session.is_closed(), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_in_words_hold_no_row_value() {
    let pg = OneServer::start();
    pg.run("CREATE TABLE public.t (id text PRIMARY KEY, n int); INSERT INTO public.t VALUES ('secret')")
        .await;
    let session = pg.superuser().await;
    for (sql, expected) in [
        (
            "INSERT INTO public.t VALUES ('secret')",
            "duplicate key value violates unique constraint \"t_pkey\" (SQLSTATE 23505, table t, constraint t_pkey)",
        ),
        ("SELECT 'secret'::int", "a value can't be read as its type (SQLSTATE 22P02)"),
    ] {
        let error = session.batch_execute(sql).await.unwrap_err();
        assert_eq!(strangler::postgres::sqlstate::words(&error), expected);
    }
}
