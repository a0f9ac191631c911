//! Moving authority between the sides, under live writes that are all accounted for afterwards.

mod bank;

use bank::{Bank, ON_SERVICE, SETUP, Side, TABLES};
use tokio_postgres::Client;

use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

const UNPROVEN: [&str; 2] = ["--accept-no-evidence", "a test looks at every row afterwards"];

/// A budget for machines that do other work; how long a pause is belongs to benchmarks.
const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: TABLES } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s }\n";

/// A split whose slice is mirrored and armed, with the mirror running.
async fn armed() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::with_plan(&PLAN.replace("TABLES", TABLES), SETUP).await;
    split.provision();
    service.batch_execute(ON_SERVICE).await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let arm = split.run("arm", &[]);
    assert_eq!(arm.exit, Some(0), "{}", arm.page());
    (split, monolith, service, mirror)
}

fn flip(split: &Split, to: Side) {
    let back: &[&str] = if to == Side::Monolith { &["--back"] } else { &[] };
    let ended = split.run("flip", &[back, &UNPROVEN].concat());
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
}

/// Both streams have brought everything.
async fn quiet(monolith: &Client, service: &Client) {
    let position = async |client: &Client| -> String {
        client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0)
    };
    let reached = async |client: &Client, direction: &str, position: &str| -> bool {
        let sql = "SELECT applied_lsn >= $2::text::pg_lsn FROM strangler.stream WHERE dir = $1";
        client.query_one(sql, &[&direction, &position]).await.unwrap().get(0)
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
        flip(&split, to);
        bank.advances(to, 50).await;
    }
    bank.close(async || quiet(&monolith, &service).await).await;
    assert!(mirror.exited().is_none(), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_lost_or_doubled_when_authority_goes_there_and_back_twenty_times() {
    there_and_back(20, 8).await;
}
