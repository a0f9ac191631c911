//! The whole journey between different versions of PostgreSQL: whatever of the majors is installed. A machine with one
//! version goes through it with that one on both sides.

use strangler::cluster::Binaries;

use crate::crash::{finish, killed_at, load};
use crate::support::bench::Bench;
use crate::support::writers::Workload;

/// Monolith and services of the quick pairs, by major version: both ends of what is supported, each way, and two that
/// are near.
const PAIRS: &[(u32, u32)] = &[(14, 18), (18, 14), (16, 17), (15, 15)];

/// Of the pairs those whose servers are installed. Where that is none, the version that every other test uses, with
/// itself; `make soak` adds each version with itself.
fn pairs<'a>(
    installed: &'a [Binaries],
    usual: &'a Binaries,
    soak: bool,
) -> Vec<(&'a Binaries, &'a Binaries)> {
    let of = |major| installed.iter().find(|binaries| binaries.version.major == major);
    let mut pairs: Vec<_> =
        PAIRS.iter().filter_map(|(monolith, service)| Some((of(*monolith)?, of(*service)?))).collect();
    if soak {
        pairs.extend(installed.iter().filter(|one| one.version.major != 15).map(|one| (one, one)));
    }
    if pairs.is_empty() {
        pairs.push((usual, usual));
    }
    pairs
}

/// Provisions, copies under writers, is killed in the copy and once more in the stream, and ends equal.
async fn journey(monolith: &Binaries, service: &Binaries) {
    let bench = Bench::launch_on(monolith, service, &[]).await;
    let workload = Workload::start(&bench.application(), &load()).await;
    bench.succeed(&["check", "plan.yaml"]);
    bench.succeed(&["provision", "plan.yaml"]);
    let left = bench.succeed(&["provision", "plan.yaml", "--dry-run"]);
    assert_eq!(left, "", "a second run has nothing to do");
    for name in ["range-landed", "apply-committed:40"] {
        assert!(killed_at(&bench, &workload, name, &[]).await, "{name} was not reached");
    }
    let mirror = bench.mirror(None, &[]);
    bench.caught_up().await;
    bench.succeed(&["status", "plan.yaml"]);
    finish(&bench, workload, mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_the_way_from_any_version_to_any_other() {
    let (installed, usual) = (Binaries::find_all().unwrap(), Binaries::find().unwrap());
    for (monolith, service) in pairs(&installed, &usual, crate::support::soak()) {
        // Not captured, so that a green run says what it went through.
        crate::support::say(&format!("the journey from {} to {}", monolith.version, service.version));
        journey(monolith, service).await;
    }
}

#[test]
fn at_least_one_pair_always_runs_and_a_full_machine_runs_all() {
    let one = |major: u32| Binaries {
        bin: format!("/{major}").into(),
        version: strangler::cluster::Version { major, minor: 1 },
    };
    let majors = |installed: &[u32], soak| {
        let installed: Vec<_> = installed.iter().copied().map(one).collect();
        let found = pairs(&installed, installed.first().unwrap(), soak);
        found.iter().map(|(a, b)| (a.version.major, b.version.major)).collect::<Vec<_>>()
    };
    assert_eq!(majors(&[17], false), [(17, 17)]);
    assert_eq!(majors(&[15], false), [(15, 15)]);
    assert_eq!(majors(&[18, 14], false), [(14, 18), (18, 14)]);
    assert_eq!(majors(&[18, 17, 16, 15, 14], false), PAIRS);
    let all = [(14, 18), (18, 14), (16, 17), (15, 15), (18, 18), (17, 17), (16, 16), (14, 14)];
    assert_eq!(majors(&[18, 17, 16, 15, 14], true), all);
}
