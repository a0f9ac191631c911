//! Hooks around a flip: what they are told, what their failure means, and that nothing of them is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use strangler::authority::Side;
use strangler::dualwrite::hooks::{Executor, Moving, Occasion, Outcome, Report};
use strangler::plan::{Plan, Variables, parse};
use strangler::problem::{Problem, Severity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::wait::{SOON, until, within};

#[derive(Debug, Default)]
struct Known(BTreeMap<String, String>);

impl Variables for Known {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn file(&self, _: &str) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// A plan of two slices: hooks of the plan, and hooks of the slice `two`.
fn plan(hooks: &str, of_two: &str) -> Plan {
    // Tests run with CARGO_PKG_NAME in their environment; here it stands for a link with a password.
    let text = format!(
        "version: 1\nplan: shop\nmonolith: {{ url: \"${{CARGO_PKG_NAME}}\" }}\n\
         services: {{ books: {{ url: \"${{BOOKS}}\" }} }}\n\
         slices:\n  one: {{ service: books, tables: {{ A: {{}} }} }}\n  \
         two:\n    service: books\n    tables: {{ B: {{}} }}\n    policy: {{ hooks: {of_two} }}\n\
         policy: {{ hooks: {hooks} }}\n"
    );
    parse(text.as_bytes(), "plan.yaml").unwrap_or_else(|found| panic!("{}", found.render(false))).plan
}

fn executor(plan: &Plan, slices: &[&str], variables: &Known) -> Result<Executor, Box<Problem>> {
    let slices: Vec<String> = slices.iter().map(|name| (*name).to_owned()).collect();
    Executor::new(plan, &slices, variables)
}

fn occasion() -> Occasion {
    let moving = |slice: &str, epoch| Moving { slice: slice.to_owned(), service: "books".to_owned(), epoch };
    Occasion { plan: "shop".to_owned(), to: Side::Service, slices: vec![moving("one", 2), moving("two", 4)] }
}

async fn before(executor: &Executor) -> (Vec<Report>, Result<(), Vec<Problem>>) {
    let mut told = Vec::new();
    let done = executor.before(&occasion(), &mut |report| told.push(report.clone())).await;
    (told, done)
}

async fn after(executor: &Executor, outcome: Outcome) -> (Vec<Report>, Vec<Problem>) {
    let mut told = Vec::new();
    let warnings = executor.after(&occasion(), outcome, &mut |report| told.push(report.clone())).await;
    (told, warnings)
}

#[tokio::test]
async fn a_command_gets_the_document_on_its_input_and_the_environment_without_the_links() {
    let plan = plan(
        "{ before: [{ command: [sh, -c, 'cat; echo; echo ${CARGO_PKG_NAME-hidden} ${PATH:+path}'] }] }",
        "{}",
    );
    let (told, done) = before(&executor(&plan, &["one"], &Known::default()).unwrap()).await;
    assert_eq!(done, Ok(()));
    let output: Vec<&str> = told[0].output.lines().collect();
    assert_eq!(
        output,
        [
            r#"{"version":1,"plan":"shop","phase":"before","direction":"to_service","slices":[{"slice":"one","service":"books","epoch":2},{"slice":"two","service":"books","epoch":4}]}"#,
            "hidden path",
        ]
    );
    assert_eq!((told[0].name.as_str(), &told[0].failure), ("before hook 1 (sh)", &None));
}

#[tokio::test]
async fn after_hooks_are_told_what_came_of_the_flip_and_how_long_writers_paused() {
    let plan = plan("{ after: [{ command: [cat] }] }", "{}");
    let executor = executor(&plan, &["one"], &Known::default()).unwrap();
    for (outcome, end) in [
        (
            Outcome::Moved { pause: Some(Duration::from_micros(11_412)) },
            r#""outcome":"moved","pause_ms":11.41}"#,
        ),
        (Outcome::Moved { pause: None }, r#""outcome":"moved","pause_ms":null}"#),
        (Outcome::Unfinished, r#""outcome":"unfinished","pause_ms":null}"#),
    ] {
        let (told, warnings) = after(&executor, outcome).await;
        assert!(told[0].output.ends_with(end), "{}", told[0].output);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[tokio::test]
async fn a_failing_before_hook_refuses_the_flip_and_lets_go_of_what_was_held() {
    let plan = plan(
        "{ before: [{ command: [\"true\"] }, { command: [sh, -c, 'echo no pool >&2; exit 3'] }, { command: [\"true\"] }], \
           after: [{ command: [cat] }, { command: [\"false\"] }, { command: [\"true\"] }] }",
        "{}",
    );
    let (told, done) = before(&executor(&plan, &["one"], &Known::default()).unwrap()).await;
    let names: Vec<&str> = told.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "before hook 1 (true)",
            "before hook 2 (sh)",
            "after hook 1 (cat)",
            "after hook 2 (false)",
            "after hook 3 (true)"
        ]
    );
    assert_eq!((told[1].output.as_str(), told[1].failure.as_deref()), ("no pool", Some("ended with code 3")));
    assert!(told[2].output.contains(r#""outcome":"not_moved""#), "{}", told[2].output);
    let problems = done.unwrap_err();
    let codes: Vec<(Severity, &str)> = problems.iter().map(|found| (found.severity, found.code)).collect();
    assert_eq!(codes, [(Severity::Error, "hook-refused"), (Severity::Warning, "hook-failed")]);
    assert_eq!(problems[0].fact, "it ended with code 3");
}

/// State of a process by its number, `None` when there is none: proc(5).
fn state(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[tokio::test]
async fn a_time_limit_ends_the_whole_process_group() {
    let plan = plan("{ before: [{ command: [sh, -c, 'sleep 600 & echo $!; wait'], timeout: 300ms }] }", "{}");
    let (told, done) = before(&executor(&plan, &["one"], &Known::default()).unwrap()).await;
    let failure = told[0].failure.as_deref().unwrap();
    assert_eq!(failure, "did not end within 300 ms, and its process group was killed");
    assert_eq!(done.unwrap_err()[0].code, "hook-refused");
    let child = told[0].output.trim().to_owned();
    assert!(!child.is_empty(), "the hook did not come so far");
    until("the grandchild is gone", SOON, async || matches!(state(&child), None | Some('Z')).then_some(()))
        .await;
}

#[tokio::test]
async fn an_interrupted_flip_leaves_no_hook_behind() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("pid");
    let script = format!("'sleep 600 & echo $! > {}; wait'", note.display());
    let plan = plan(&format!("{{ before: [{{ command: [sh, -c, {script}], timeout: 5m }}] }}"), "{}");
    let executor = executor(&plan, &["one"], &Known::default()).unwrap();
    let running = tokio::spawn(async move { before(&executor).await });
    let pid = until("the hook runs", SOON, async || {
        std::fs::read_to_string(&note).ok().filter(|text| text.ends_with('\n'))
    })
    .await;
    running.abort();
    until("the grandchild is gone", SOON, async || {
        matches!(state(pid.trim()), None | Some('Z')).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_hook_prints_is_cut_and_never_holds_it_up() {
    let plan = plan(
        "{ before: [{ command: [sh, -c, 'yes | head -c 1000000; exec sleep 600 >&2 & exit 0'] }] }",
        "{}",
    );
    let (told, done) = within(
        "the hook ends",
        SOON,
        Box::pin(before(&executor(&plan, &["one"], &Known::default()).unwrap())),
    )
    .await;
    assert_eq!(done, Ok(()), "what it left running does not count");
    assert!(told[0].output.ends_with("… and more, which is cut") && told[0].output.len() < 9_000);
}

#[tokio::test]
async fn a_program_that_is_not_there_refuses_the_flip() {
    let plan = plan("{ before: [{ command: [no-such-program-anywhere] }] }", "{}");
    let (told, done) = before(&executor(&plan, &["one"], &Known::default()).unwrap()).await;
    assert!(told[0].failure.as_deref().unwrap().starts_with("could not be started"), "{:?}", told[0]);
    assert!(done.is_err());
}

#[tokio::test]
async fn hooks_of_the_plan_come_first_and_a_shared_hook_runs_once() {
    let own = "{ before: [{ command: [echo, own] }, { command: [echo, all] }] }";
    let plan = plan("{ before: [{ command: [echo, all] }] }", own);
    for (slices, outputs) in [
        (vec!["one"], vec!["all"]),
        (vec!["two"], vec!["all", "own"]),
        (vec!["one", "two"], vec!["all", "own"]),
    ] {
        let (told, done) = before(&executor(&plan, &slices, &Known::default()).unwrap()).await;
        assert_eq!(done, Ok(()));
        assert_eq!(told.iter().map(|report| report.output.as_str()).collect::<Vec<_>>(), outputs);
    }
}

/// Answers one request; what it heard is the result.
async fn answer(listener: TcpListener, answer: String) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"}]}") {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "the request breaks off");
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn a_webhook_gets_the_document_by_post_and_has_to_answer_2xx() {
    for (status, failure) in
        [("200 OK", None), ("503 Busy", Some("answered 503")), ("302 Found", Some("answered 302"))]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/flags/shop?token=a1", listener.local_addr().unwrap());
        let known = Known([("FLAGS".to_owned(), url)].into());
        let plan = plan("{ before: [{ webhook: \"${FLAGS}\", timeout: 1m }] }", "{}");
        let executor = executor(&plan, &["one"], &known).unwrap();
        assert!(!format!("{executor:?}").contains("token"), "{executor:?}");
        let server =
            tokio::spawn(answer(listener, format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nwell")));
        let (told, done) = before(&executor).await;
        let heard = server.await.unwrap();
        assert!(heard.starts_with("POST /flags/shop?token=a1 HTTP/1.1\r\n"), "{heard}");
        assert!(heard.contains("content-type: application/json\r\n"), "{heard}");
        assert!(heard.contains(r#""phase":"before""#), "{heard}");
        assert_eq!((told[0].failure.as_deref(), told[0].output.as_str()), (failure, "well"));
        assert_eq!(done.is_err(), failure.is_some());
    }
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let known = Known([("FLAGS".to_owned(), url)].into());
    let plan = plan("{ after: [{ webhook: \"${FLAGS}\", timeout: 200ms }] }", "{}");
    let (_, warnings) = after(&executor(&plan, &["one"], &known).unwrap(), Outcome::NotMoved).await;
    assert_eq!(warnings[0].fact, "it got no answer within 200 ms");
    drop(listener);
    let (_, warnings) = after(&executor(&plan, &["one"], &known).unwrap(), Outcome::NotMoved).await;
    assert!(warnings[0].fact.starts_with("it could not be reached"), "{}", warnings[0].fact);
}

#[test]
fn a_url_that_can_not_be_filled_in_is_found_before_anything_runs() {
    let plan = plan("{ before: [{ command: [\"true\"] }], after: [{ webhook: \"${FLAGS}\" }] }", "{}");
    let problem = executor(&plan, &["one"], &Known::default()).unwrap_err();
    assert_eq!((problem.code, problem.object.as_str()), ("hook-not-ready", "after hook 1 (webhook)"));
    assert_eq!(problem.fact, "the environment variable FLAGS is not set");
}
