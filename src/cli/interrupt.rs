//! Ctrl-C and SIGTERM, as something that can be waited for.

use std::io;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::report::CliError;

/// Requests to stop. From the first call on, the process no longer dies of these signals by itself.
#[derive(Debug)]
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Takes the signals over.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next request.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Does the work, unless Ctrl-C or SIGTERM comes first: then the work is dropped where it stands, and `state` says what
/// that leaves behind.
///
/// # Errors
/// Those of the work, and [`CliError::Interrupted`].
pub(super) async fn unless<T>(
    state: &str,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    tokio::select! {
        outcome = work => outcome,
        () = interrupts.next() => Err(CliError::Interrupted { state: state.to_owned() }),
    }
}

/// Does work that ends by itself once `stop` is told: at the first Ctrl-C or SIGTERM. A second one drops it where it stands.
///
/// # Errors
/// Those of the work, and [`CliError::Interrupted`].
pub(super) async fn asking<T>(
    (state, stop): (&str, &CancellationToken),
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let mut interrupts = Interrupts::listen().map_err(CliError::Start)?;
    let mut work = pin!(work);
    tokio::select! {
        outcome = &mut work => return outcome,
        () = interrupts.next() => stop.cancel(),
    }
    tokio::select! {
        outcome = work => outcome,
        () = interrupts.next() => Err(CliError::Interrupted { state: state.to_owned() }),
    }
}
