//! How work is ended that somebody asked to stop: one way for everything that a comparison and a repair do.
//!
//! Between two steps work looks whether it is to end; where it waits, the wait ends; and what does neither, as a
//! statement that takes long, is dropped with its sessions after a grace.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long work may take to end by itself once it is to be stopped: what is settled by then is settled.
const GRACE: Duration = Duration::from_secs(3);

/// Work ended because somebody asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// Whether work may go on.
///
/// # Errors
/// [`Stopped`] when it may not.
pub fn look(stop: &CancellationToken) -> Result<(), Stopped> {
    if stop.is_cancelled() { Err(Stopped) } else { Ok(()) }
}

/// Waits for something that may be dropped at any moment.
///
/// # Errors
/// [`Stopped`] as soon as that is asked for.
pub async fn wait<T>(stop: &CancellationToken, waited: impl Future<Output = T>) -> Result<T, Stopped> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped),
        done = waited => Ok(done),
    }
}

/// Does work that looks at `stop` by itself, and drops it when it has not ended 3 s after that was asked for, as
/// while it waits for a mirror or for a statement.
///
/// # Errors
/// [`Stopped`] when it was dropped.
pub async fn work<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Stopped> {
    let given_up = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        done = work => Ok(done),
        () = given_up => Err(Stopped),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn a_wait_ends_at_once_and_work_may_end_by_itself() {
        let stop = CancellationToken::new();
        assert_eq!((look(&stop), wait(&stop, ready(1)).await), (Ok(()), Ok(1)));
        stop.cancel();
        assert_eq!((look(&stop), wait(&stop, ready(1)).await), (Err(Stopped), Err(Stopped)));
        assert_eq!(work(&stop, tokio::task::yield_now()).await, Ok(()));
    }
}
