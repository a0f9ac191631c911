//! Ctrl-C and SIGTERM, as something that can be waited for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

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
