//! Only the databases that the slice was provisioned in are touched, or said to have nothing of it.

use strangler::cluster::Cluster;

use super::{abandon, refused, succeed, token};
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::cluster::connect;
use crate::support::split::Split;

const SETUP: &str = "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')";

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_an_empty_database_is_not_one_that_has_nothing_of_the_slice() {
    let (mut split, monolith, service) = Split::launch("{ orders: {} }", SETUP).await;
    refused(&abandon(&split, "one", &[]), "slice-unknown", &["neither monolith nor service"]);
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.stop();
    let shown = token(&abandon(&split, "one", &[]));
    let admin = connect(&split.pair.service.admin_url()).await;
    admin.batch_execute("CREATE DATABASE empty").await.unwrap();
    let own = connect(&split.pair.monolith.admin_url()).await;
    own.batch_execute("CREATE DATABASE other").await.unwrap();
    let (empty, right) = (split.pair.service.url("empty"), split.pair.service_url());
    let before = (catalogs(&monolith).await, catalogs(&service).await);
    for confirm in [&[][..], &["--confirm", &shown]] {
        split.lead("SERVICE", &empty);
        let words =
            ["its link leads to database empty", "that was called service", "DELETE FROM strangler.home"];
        refused(&abandon(&split, "one", confirm), "other-home", &words);
    }
    split.lead("SERVICE", &right);
    let (other, monolith_link) = (split.pair.monolith.url("other"), split.pair.monolith_url());
    split.lead("MONOLITH", &other);
    refused(&abandon(&split, "one", &["--confirm", &shown]), "home-unknown", &["or a link leads elsewhere"]);
    split.lead("MONOLITH", &monolith_link);
    assert_untouched(&before.0, &catalogs(&monolith).await);
    assert_untouched(&before.1, &catalogs(&service).await);

    // Where the monolith has forgotten it already, the empty one still is not the service.
    super::crashes::killed_at(&split, "one", "abandon-schema-dropped", &[&shown]);
    split.lead("SERVICE", &empty);
    refused(&abandon(&split, "one", &["--confirm", &shown]), "slice-unknown", &["is in other databases"]);
    split.lead("SERVICE", &right);
    succeed(&split, "abandon", &["--confirm", &shown]);
    succeed(&split, "abandon", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_whose_database_nobody_wrote_down_waits_for_provision() {
    let (split, monolith, _service) = Split::launch("{ orders: {} }", SETUP).await;
    split.provision();
    // As an earlier version leaves it, and a provision that died behind its last step.
    monolith.batch_execute("DELETE FROM strangler.home").await.unwrap();
    refused(&abandon(&split, "one", &[]), "home-unknown", &["strangler provision plan.yaml --slice one"]);
    split.provision();
    succeed(&split, "abandon", &["--confirm", &token(&abandon(&split, "one", &[]))]);
}
