//! How far an archive is, on stderr: a line every so often, with rate and time left.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::ui::Ui;
use crate::archive::Progress;
use crate::words;

/// Lines are for logs as well: more often they say nothing new.
const EVERY: Duration = Duration::from_secs(5);

/// Shows progress as it comes.
pub(super) struct Display<'a> {
    ui: RefCell<&'a mut Ui>,
    /// Of what is being done: since when, and when it was last said.
    phase: Cell<Option<(&'static str, Instant, Instant)>>,
}

impl<'a> Display<'a> {
    pub(super) fn new(ui: &'a mut Ui) -> Self {
        Self { ui: RefCell::new(ui), phase: Cell::new(None) }
    }

    pub(super) fn show(&self, progress: Progress) {
        let now = Instant::now();
        let (begun, said) = match self.phase.get() {
            Some((what, begun, said)) if what == progress.what => (begun, said),
            // What takes less than a moment is not worth a line.
            Some(_) | None => (now, now),
        };
        let due = now.duration_since(said) >= EVERY;
        self.phase.set(Some((progress.what, begun, if due { now } else { said })));
        if due && let Ok(mut ui) = self.ui.try_borrow_mut() {
            ui.words(&line(progress, now.duration_since(begun)));
        }
    }

    /// Words of another kind, in between.
    pub(super) fn words(&self, text: &str) {
        self.ui.borrow_mut().words(text);
    }
}

/// `1.2 GB of about 5.0 GB written, 120.0 MB/s, about 31.7 s left`.
#[expect(clippy::cast_precision_loss, reason = "a rate in words")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive, and far below the limit"
)]
fn line(progress: Progress, took: Duration) -> String {
    let Progress { what, done, total } = progress;
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    let left = total.saturating_sub(done) as f64 / rate.max(1.0);
    let about = if what == "written" { "about " } else { "" };
    format!(
        "{} of {about}{} {what}, {}/s, about {} left",
        words::bytes(done),
        words::bytes(total),
        words::bytes(rate as u64),
        words::seconds(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_time_left() {
        let progress = Progress { what: "written", done: 1_200_000_000, total: 5_000_000_000 };
        assert_eq!(
            line(progress, Duration::from_secs(10)),
            "1.2 GB of about 5.0 GB written, 120.0 MB/s, about 31.7 s left"
        );
    }
}
