//! Servers that begin where a preparation ended: what many tests need alike is made once in a run, and copied for each.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use strangler::cluster::{Cluster, StopMode};
use tokio::sync::OnceCell;

use super::cluster::Pair;

/// The servers that were prepared under a name, stopped. They go with the process.
static PREPARED: LazyLock<Mutex<HashMap<&'static str, Stopped>>> = LazyLock::new(Mutex::default);

type Stopped = Arc<OnceCell<Pair>>;

/// Two servers with the databases, roles, slots and settings of those that `prepare` left behind, which must hold no session any more.
/// It runs for the first who asks for this name; whoever asks meanwhile waits for it.
pub async fn prepared(name: &'static str, prepare: impl AsyncFnOnce() -> Pair) -> Pair {
    let cell = Arc::clone(PREPARED.lock().unwrap().entry(name).or_default());
    let stopped = cell
        .get_or_init(async || {
            let mut pair = prepare().await;
            for cluster in [&mut pair.monolith, &mut pair.service] {
                cluster.stop(StopMode::Fast).unwrap();
            }
            pair
        })
        .await;
    stopped.copied()
}
