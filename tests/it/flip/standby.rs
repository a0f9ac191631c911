//! A side is opened only when the standbys of the one that was closed have its fence.

use rustix::process::Signal;
use strangler::postgres::SessionRole;

use super::{UNPROVEN, armed, killed, owner};
use crate::replication::server::server;
use crate::support::follower::Follower;
use crate::support::soak;
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_opened_before_a_standby_of_the_closed_side_has_flushed_the_fence() {
    let (split, monolith, service, mirror) = armed().await;
    let standby = Follower::standby(&split.pair.monolith, &monolith).await;
    killed(&split, "flip-fenced", &[]);
    mirror.kill();
    assert_eq!(owner(&service).await.0, "FENCED", "the mirror was quicker than two seconds");
    standby.signal(Signal::STOP);
    // Whoever may decode a database and has not begun to is no standby.
    let _idle = server(&split.pair.monolith_url(), SessionRole::Read).replicate("idle").await.unwrap();
    let mirror = split.mirror(None);
    let flip = split.start("flip", &UNPROVEN);
    let asks = "SELECT FROM pg_stat_activity WHERE application_name = 'strangler flip' \
                AND query LIKE '%flush_lsn >= here.lsn%'";
    until("the flip waits for the standby", SOON, async || monolith.query_opt(asks, &[]).await.unwrap())
        .await;
    assert_eq!(owner(&service).await.0, "FENCED", "a standby that is promoted now has an open gate");
    let flip = if soak() {
        // It waits for close to a minute, and names who keeps it.
        let ended = flip.ended();
        assert_eq!(ended.exit, Some(5), "{}", ended.page());
        let said = "standbys have not flushed what closed the other side: pg_receivewal\n";
        assert!(ended.stderr.contains(said), "{}", ended.page());
        split.start("flip", &UNPROVEN)
    } else {
        flip
    };
    standby.signal(Signal::CONT);
    let ended = flip.ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert_eq!(owner(&service).await, ("OPEN".to_owned(), "service".to_owned()));
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_whose_standby_has_stopped_flushing_is_refused_before_any_gate_is_closed() {
    let (split, monolith, service, _mirror) = armed().await;
    let standby = Follower::standby(&split.pair.monolith, &monolith).await;
    standby.signal(Signal::STOP);
    let ended = split.run("flip", &UNPROVEN);
    assert_eq!(ended.exit, Some(3), "{}", ended.page());
    assert!(ended.stderr.contains("(standby-late)"), "{}", ended.page());
    assert_eq!(owner(&monolith).await.0, "OPEN");
    split.change_plan("min_mirror_time: 0s", "min_mirror_time: 0s, fence_standbys: none");
    let ended = split.run("flip", &UNPROVEN);
    assert!(ended.stderr.contains("warning  monolith (unfenced-standby)"), "{}", ended.page());
    standby.signal(Signal::CONT);
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    assert_eq!(owner(&service).await.0, "OPEN");
}
