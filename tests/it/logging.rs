//! The log, and that no secret ever leaves the process.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use strangler::cluster::{Auth, Cluster, LocalCluster, Options};

use crate::help::{NOBODY, PLAN, plan_dir};
use crate::support::binary::{Ended, run};
use crate::support::cluster::launch;
use crate::support::split::Split;

/// Every character of it survives a URL as it is, so that one search finds it in any form.
const SECRET: &str = "Xq7-secret-Zw9";

fn assert_hidden(what: &str, ended: &Ended) {
    let page = ended.page();
    assert!(!page.contains(SECRET), "{what} shows the password:\n{page}");
}

/// A peer that takes connections and answers each with these bytes, or with silence.
fn peer(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let _ = stream.write_all(answer);
                // Held open until the other side has had enough.
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    port
}

/// Links that fail, one for each way of failing.
fn failing_links(cluster: &LocalCluster, open: &LocalCluster) -> Vec<(&'static str, String)> {
    let (port, open_port) = (cluster.port(), open.port());
    let at = |rest: &str| format!("postgresql://postgres:{SECRET}@{rest}");
    vec![
        ("refused", at("127.0.0.1:1/postgres")),
        ("no such host", at("no-such-host.invalid/postgres")),
        ("no such socket", format!("postgresql://postgres:{SECRET}@%2Fnowhere/postgres")),
        ("wrong password", at(&format!("127.0.0.1:{port}/postgres"))),
        ("no such role", format!("postgresql://nobody:{SECRET}@127.0.0.1:{port}/postgres")),
        ("no such database", at(&format!("127.0.0.1:{open_port}/nowhere"))),
        ("no TLS", at(&format!("127.0.0.1:{port}/postgres?sslmode=require"))),
        (
            "no certificate file",
            at(&format!("127.0.0.1:{port}/postgres?sslmode=verify-ca&sslrootcert=/nowhere")),
        ),
        ("not PostgreSQL", at(&format!("127.0.0.1:{}/postgres", peer(b"HTTP/1.1 400 Bad Request\r\n\r\n")))),
        ("silence", at(&format!("127.0.0.1:{}/postgres?connect_timeout=1", peer(b"")))),
        ("standby wanted", at(&format!("127.0.0.1:{open_port}/postgres?target_session_attrs=standby"))),
        ("key and value", format!("host=127.0.0.1 port=1 user=postgres password={SECRET} dbname=postgres")),
        ("unknown parameter", at("127.0.0.1:1/postgres?colour=red")),
        ("bad port", at("127.0.0.1:port/postgres")),
        ("password with an @", format!("postgresql://postgres:a@{SECRET}@127.0.0.1:1/postgres")),
        ("password where the port is", format!("postgresql://postgres:127.0.0.1:{SECRET}/postgres")),
        ("unquoted space", format!("host=127.0.0.1 password=a {SECRET} user=postgres")),
        ("another scheme", format!("mysql://postgres:{SECRET}@127.0.0.1/postgres")),
        ("no link at all", SECRET.to_owned()),
    ]
}

#[test]
fn a_password_appears_in_no_output_log_or_error_however_connecting_fails() {
    let cluster = LocalCluster::launch(Options { auth: Auth::Scram, ..Options::default() }).unwrap();
    let open = launch();
    let dir = plan_dir(PLAN);
    let failing = failing_links(&cluster, &open);
    let formats = [("human", "text"), ("human", "json"), ("json", "text"), ("json", "json")];
    thread::scope(|threads| {
        for (what, link) in &failing {
            let dir = dir.path();
            threads.spawn(move || {
                let links = [("MONOLITH_URL", link.as_str()), ("ORDERS_URL", link.as_str())];
                for (log_format, format) in formats {
                    let words =
                        ["status", "plan.yaml", "--format", format, "--log-level", "trace", "--log-format"];
                    let ended = run(dir, &links, &[&words[..], &[log_format]].concat());
                    assert_hidden(what, &ended);
                    assert!(matches!(ended.exit, Some(2 | 4)), "{what}: {}", ended.page());
                }
            });
        }
    });
}

#[test]
fn a_password_in_the_plan_itself_is_not_shown_with_its_problems() {
    let clear = format!("postgresql://postgres:{SECRET}@127.0.0.1:1/postgres");
    let plan = PLAN.replace("${MONOLITH_URL}", &clear).replace("${ORDERS_URL}", &clear);
    for text in
        [plan.clone(), plan.replace("version: 1", "version: 9 # url"), plan.replace("slices:", "slices: [")]
    {
        let dir = plan_dir(&text);
        assert_hidden("a plan", &run(dir.path(), &[], &["status", "plan.yaml", "--log-level", "trace"]));
    }
}

#[test]
fn a_password_in_a_file_that_cannot_be_a_secret_is_not_shown() {
    let dir = plan_dir(
        &PLAN.replace("${ORDERS_URL}", "${file:secret}").replace("${MONOLITH_URL}", "${file:secret}"),
    );
    for contents in
        [format!("postgresql://a:{SECRET}@127.0.0.1:1/b\n"), SECRET.repeat(10_000), format!("{SECRET}\0")]
    {
        std::fs::write(dir.path().join("secret"), contents).unwrap();
        let ended = run(dir.path(), &[], &["status", "plan.yaml", "--log-level", "trace"]);
        assert_hidden("a secret file", &ended);
        assert!(matches!(ended.exit, Some(2 | 4)), "{}", ended.page());
    }
}

#[test]
fn log_lines_are_json_objects_when_asked_for_and_keep_off_stdout() {
    let cluster = launch();
    let dir = plan_dir(PLAN);
    let monolith = cluster.url("postgres");
    // The session to the monolith ends with the process, which its driver tells at debug level.
    let links = [("MONOLITH_URL", monolith.as_str()), ("ORDERS_URL", NOBODY)];
    let words = ["status", "plan.yaml", "--log-level", "trace", "--log-format", "json", "--format", "json"];
    let ended = run(dir.path(), &links, &words);
    let lines: Vec<serde_json::Value> =
        ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()),
        "{}",
        ended.stderr
    );
    assert!(!lines.is_empty(), "nothing was logged at trace level");
    serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap();
}

/// Every line as the JSON object that it is.
fn events(stderr: &str) -> Vec<serde_json::Value> {
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let events: Vec<serde_json::Value> = stderr.lines().map(parsed).collect();
    assert!(events.iter().all(|one| one["level"].is_string() && one["message"].is_string()), "{stderr}");
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_log_lines_nothing_else_is_on_stderr_whatever_a_verb_says() {
    let json = ["--log-format", "json"];
    let (split, monolith, service) = Split::launch("{ t: {} }", "CREATE TABLE t (id int PRIMARY KEY)").await;
    let said = |verb: &str, exit: i32| {
        let ended = split.run(verb, &json);
        assert_eq!(ended.exit, Some(exit), "{}", ended.page());
        events(&ended.stderr)
    };
    let refused = said("flip", 3);
    let error = refused.iter().find(|one| one["level"] == "ERROR").unwrap();
    assert_eq!(error["code"], "flip-refused");
    assert!(!said("provision", 0).is_empty());
    let mirror = split.mirror_as(None, &json);
    mirror.caught_up(&monolith, &service).await;
    said("reconcile", 0);
    mirror.stop();
    let told = events(&mirror.log());
    let live = |one: &serde_json::Value| one["message"] == "progress" && one["tables_live"] == 1;
    assert!(told.iter().any(|one| live(one) && one["slice"] == "one"), "{told:?}");
}
