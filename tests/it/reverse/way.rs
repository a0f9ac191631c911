//! The way is proven before anybody relies on it.

use std::time::Duration;

use strangler::cdc::way::{WayError, prove_statements, prove_way};
use strangler::journal::streams::StreamOf;
use strangler::postgres::connect::SessionRole;

use super::inside::{Ways, mapping};
use super::stage::{Stage, Way};
use crate::support::wait::SOON;

const MOMENT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_goes_each_way_whoever_has_the_authority() {
    let stage = Stage::armed().await;
    let (forward, reverse) = (StreamOf::forward("one"), StreamOf::reverse("one"));
    let nobody = prove_way(&stage.service, &stage.monolith, reverse, MOMENT).await.unwrap_err();
    assert!(nobody.to_string().contains("what was written on the service did not arrive"), "{nobody}");
    let mirror = stage.mirror().await;
    for flipped in [false, true] {
        if flipped {
            stage.flip(2).await;
        }
        prove_way(&stage.monolith, &stage.service, forward, SOON).await.unwrap();
        prove_way(&stage.service, &stage.monolith, reverse, SOON).await.unwrap();
    }
    // Of two that are set out at once one takes the place of the other.
    for of in [forward, reverse] {
        let source = |other| if of == forward { &stage.monolith } else { other };
        let target = if of == forward { &stage.service } else { &stage.monolith };
        for _ in 0..20 {
            let ways = [0; 4].map(|_| prove_way(source(&stage.service), target, of, SOON));
            for proven in futures_util::future::join_all(ways).await {
                proven.unwrap();
            }
        }
    }
    stage.watched(Way::Forward).await;
    assert_eq!(stage.alarms().await, Vec::<String>::new(), "a canary is no stray write");
    // Rows that are not published don't arrive, though the stream runs.
    stage.on_service("ALTER PUBLICATION back_one SET (publish = 'delete')").await;
    let unpublished = prove_way(&stage.service, &stage.monolith, reverse, MOMENT).await;
    assert!(matches!(unpublished, Err(WayError::NotArrived { .. })), "{unpublished:?}");
    let none = prove_way(&stage.service, &stage.monolith, StreamOf::reverse("two"), MOMENT).await;
    assert!(matches!(none, Err(WayError::NoStream { .. })), "{none:?}");
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_of_the_way_back_is_tried_and_leaves_nothing() {
    let stage = Stage::armed().await;
    let ways = Ways::of(&stage);
    let apply = ways.monolith(SessionRole::Apply).connect("test").await.unwrap();
    let slice = mapping(&stage).await;
    prove_statements(&apply, &stage.service, &slice).await.unwrap();
    stage.assert_equal().await;
    stage.on_monolith("REVOKE UPDATE ON events FROM strangler_apply").await;
    let refused = prove_statements(&apply, &stage.service, &slice).await.unwrap_err().to_string();
    assert!(refused.starts_with("UPDATE on the monolith's table events is refused:"), "{refused}");
    stage.on_monolith("GRANT UPDATE ON events TO strangler_apply; ALTER TABLE pairs RENAME v TO w").await;
    let refused = prove_statements(&apply, &stage.service, &slice).await.unwrap_err().to_string();
    assert!(refused.contains("on the monolith's table pairs is refused:"), "{refused}");
}
