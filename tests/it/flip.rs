//! Moving authority between the sides, under live writes that are all accounted for afterwards.

mod bank;
mod crash;
mod ends;
mod gates;
mod group;
mod judged;
mod looked_back;
mod lost;
mod outside;
mod partitions;
mod recorded;
mod sequences;
mod standby;
mod watched;

use bank::{Bank, ON_SERVICE, SETUP, Side, TABLES};
use tokio_postgres::Client;

use crate::support::binary::Ended;
use crate::support::prepared::prepared;
use crate::support::soak;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until, until_blocking};

const UNPROVEN: [&str; 2] = ["--accept-no-evidence", "a test looks at every row afterwards"];

/// A budget for machines that do other work; how long a pause is belongs to benchmarks.
const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: TABLES } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";

/// A split whose slice is mirrored and armed, with the mirror running.
pub async fn armed() -> (Split, Client, Client, Mirror) {
    let pair = prepared("flip", async || {
        let (split, _, _, mirror) = armed_with(TABLES, SETUP, ON_SERVICE).await;
        mirror.stop();
        split.pair
    });
    let (split, monolith, service) = Split::between(pair.await, &PLAN.replace("TABLES", TABLES), "").await;
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    way_back_is_read(&monolith).await;
    (split, monolith, service, mirror)
}

/// The same for tables of a test's own, and with what the service gets after it is provisioned.
async fn armed_with(tables: &str, setup: &str, on_service: &str) -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::with_plan(&PLAN.replace("TABLES", tables), setup).await;
    split.provision();
    service.batch_execute(on_service).await.unwrap();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    (split, monolith, service, mirror)
}

/// Arms the slice of a split that is provisioned, with the mirror running.
pub async fn mirrored_and_armed(split: &Split, monolith: &Client, service: &Client) -> Mirror {
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    let arm = split.run("arm", &[]);
    assert_eq!(arm.exit, Some(0), "{}", arm.page());
    way_back_is_read(monolith).await;
    mirror
}

async fn way_back_is_read(monolith: &Client) {
    let read =
        "SELECT EXISTS (SELECT FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NULL)";
    until("the way back is read", SOON, async || {
        monolith.query_one(read, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

/// Moves the authority to the service.
pub fn flip_to_service(split: &Split, mirror: &Mirror) {
    flip(split, mirror, Side::Service);
}

fn flip(split: &Split, mirror: &Mirror, to: Side) {
    complete(split, mirror, &[back(to), &UNPROVEN].concat());
}

fn back(to: Side) -> &'static [&'static str] {
    if to == Side::Monolith { &["--back"] } else { &[] }
}

/// Reasons to type a flip again: on a machine that does other work the mirror may lag for a moment, or come back seconds after
/// the servers, or take back or finish what a killed operator began two seconds ago.
const AGAIN: [&str; 5] = [
    "(mirror-lags)",
    "(authority-superseded)",
    "(authority-group-aborted)",
    "(stream-not-applying)",
    "(way-back-unproven)",
];

/// Runs a flip to its end.
pub fn complete(split: &Split, mirror: &Mirror, arguments: &[&str]) {
    until_blocking("the flip is made", SOON, || {
        let ended = split.run("flip", arguments);
        let again = AGAIN.iter().any(|reason| ended.stderr.contains(reason));
        if ended.exit != Some(0) && !again {
            // It says why a stream of it stopped when it ends.
            mirror.stop();
            panic!("{}\nthe mirror: {}", ended.page(), mirror.log());
        }
        (ended.exit == Some(0)).then_some(())
    });
}

/// Both streams of slice `one` have brought everything.
async fn quiet(monolith: &Client, service: &Client) {
    quiet_of("one", monolith, service).await;
}

/// Both streams of a slice have brought everything.
async fn quiet_of(slice: &str, monolith: &Client, service: &Client) {
    let position = async |client: &Client| -> String {
        client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0)
    };
    let reached = async |client: &Client, direction: &str, position: &str| -> bool {
        let sql =
            "SELECT applied_lsn >= $3::text::pg_lsn FROM strangler.stream WHERE slice = $1 AND dir = $2";
        client.query_one(sql, &[&slice, &direction, &position]).await.unwrap().get(0)
    };
    let (there, here) = (position(monolith).await, position(service).await);
    until("both streams catch up", SOON, async || {
        (reached(service, "forward", &there).await && reached(monolith, "reverse", &here).await).then_some(())
    })
    .await;
}

async fn there_and_back(flips: usize, clients: i32) {
    let (split, monolith, service, mirror) = armed().await;
    let bank = Bank::open(&split, clients);
    bank.advances(Side::Monolith, 50).await;
    for number in 0..flips {
        let to = if number % 2 == 0 { Side::Service } else { Side::Monolith };
        flip(&split, &mirror, to);
        bank.advances(to, 50).await;
    }
    bank.close(async || quiet(&monolith, &service).await).await;
    assert!(mirror.exited().is_none(), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_lost_or_doubled_when_authority_goes_there_and_back() {
    there_and_back(if soak() { 200 } else { 20 }, 8).await;
}

/// Runs a flip that kills itself at this point.
fn killed(split: &Split, point: &str, arguments: &[&str]) {
    until_blocking("the flip gets there", SOON, || {
        let mut command = split.command(&[&["flip", "plan.yaml"], arguments, &UNPROVEN].concat());
        let ended = Ended::of(command.env("STRANGLER_FAILPOINT", point).output().unwrap());
        let again = AGAIN.iter().any(|reason| ended.stderr.contains(reason));
        assert!(ended.exit.is_none() || again, "{point} was not reached: {}", ended.page());
        ended.exit.is_none().then_some(())
    });
}

async fn owner(client: &Client) -> (String, String) {
    owner_of(client, "one").await
}

async fn owner_of(client: &Client, slice: &str) -> (String, String) {
    let sql = "SELECT state, owner FROM strangler.authority WHERE slice = $1";
    let row = client.query_one(sql, &[&slice]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_that_is_killed_at_any_step_is_finished_by_typing_it_again() {
    let (split, monolith, service, mirror) = armed().await;
    let bank = Bank::open(&split, 4);
    bank.advances(Side::Monolith, 20).await;
    let steps = ["set-out", "held", "drained", "before", "fenced", "open", "opened", "swapped", "recorded"];
    let points =
        strangler::failpoint::FLIP.iter().filter(|point| steps.iter().any(|step| point.ends_with(step)));
    let points: Vec<&&str> = points.filter(|point| !point.contains("reopen")).collect();
    assert_eq!(points.len(), 8, "{points:?}");
    for (number, point) in points.iter().enumerate() {
        let to = if number % 2 == 0 { Side::Service } else { Side::Monolith };
        killed(&split, point, back(to));
        flip(&split, &mirror, to);
        bank.advances(to, 20).await;
    }
    bank.close(async || quiet(&monolith, &service).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_that_nobody_finishes_is_finished_by_the_mirror() {
    let (split, monolith, service, _mirror) = armed().await;
    killed(&split, "flip-fenced", &[]);
    until("the mirror opens the service", SOON, async || {
        (owner(&service).await == ("OPEN".to_owned(), "service".to_owned())).then_some(())
    })
    .await;
    assert_eq!(owner(&monolith).await.0, "FENCED");
    let refused = monolith.execute("UPDATE accounts SET balance = 0", &[]).await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "25006");
    let hint = refused.hint().unwrap();
    assert!(hint.contains("slice one, epoch 2: retry the whole transaction on the owner"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_service_that_was_opened_by_an_operator_who_died_is_mirrored_back_without_a_new_command() {
    let (split, monolith, service, _mirror) = armed().await;
    killed(&split, "flip-opened", &[]);
    service.execute("UPDATE accounts SET touched = touched + 7 WHERE id = 7", &[]).await.unwrap();
    let arrived = "SELECT touched = 7 FROM accounts WHERE id = 7";
    until("the service's write arrives in the monolith", SOON, async || {
        monolith.query_one(arrived, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_gives_authority_back_wherever_it_is_cut_off() {
    let (split, monolith, service, mirror) = armed().await;
    mirror.stop();
    for point in ["flip-before-bump", "flip-bumped", "flip-before-reopen", "flip-reopened"] {
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        killed(&split, "flip-fenced", &[]);
        // Without a mirror nobody finishes it.
        mirror.kill();
        assert_eq!(owner(&service).await.0, "FENCED", "the mirror was quicker than two seconds");
        killed(&split, point, &["--abort"]);
        let aborted = split.run("flip", &["--abort"]);
        assert_eq!(aborted.exit, Some(0), "{}", aborted.page());
        assert_eq!(owner(&monolith).await, ("OPEN".to_owned(), "monolith".to_owned()), "{point}");
        assert_eq!(owner(&service).await.0, "FENCED");
        monolith.execute("UPDATE accounts SET touched = touched + 1", &[]).await.unwrap();
    }
}
