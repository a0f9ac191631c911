//! What a monitoring system is told of reconciliations, in Prometheus' text format 0.0.4. Numbers and names only: no
//! value of any row.
//!
//! Moments are told as timestamps and not as ages, so that they grow old also when this process is gone.

mod listener;

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use listener::serve;

use super::finding::FindingKind;
use super::verdict::{Outcome, Verdict};

/// The `outcome` of a run that ended with an error and without a verdict.
const FAILED: &str = "failed";

const OUTCOMES: [Outcome; 3] = [Outcome::Clean, Outcome::Differs, Outcome::Incomplete];

/// Labels of a series: the slice.
type OfSlice = [(&'static str, String); 1];

/// Labels of a series: the slice, and its outcome or a kind of findings.
type OfTwo = [(&'static str, String); 2];

type Number = Gauge<f64, AtomicU64>;

/// All series. It is shared between whoever reconciles and whoever serves them; every method takes a moment and never
/// waits.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    runs: Family<OfTwo, Counter>,
    last_verdict: Family<OfTwo, Gauge>,
    last_verdict_at: Family<OfSlice, Number>,
    last_proof_at: Family<OfSlice, Number>,
    findings: Family<OfTwo, Gauge>,
    rows_per_second: Family<OfSlice, Number>,
    duration: Family<OfSlice, Number>,
    lag: Family<OfSlice, Number>,
}

impl Metrics {
    /// No run so far. The slices' counters begin at 0, because a series that begins at 1 has no increase.
    #[must_use]
    pub fn new<'a>(slices: impl IntoIterator<Item = &'a str>) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            runs: Family::default(),
            last_verdict: Family::default(),
            last_verdict_at: Family::default(),
            last_proof_at: Family::default(),
            findings: Family::default(),
            rows_per_second: Family::default(),
            duration: Family::default(),
            lag: Family::default(),
        };
        metrics.register();
        for slice in slices {
            for outcome in OUTCOMES.map(Outcome::as_str).into_iter().chain([FAILED]) {
                drop(metrics.runs.get_or_create(&with(slice, "outcome", outcome)));
            }
        }
        metrics
    }

    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register(
            "strangler_reconcile_runs",
            "Runs since this process started, by how they ended; failed is a run without a verdict",
            self.runs.clone(),
        );
        registry.register(
            "strangler_reconcile_last_verdict",
            "1 for the outcome of the last verdict, 0 for the others",
            self.last_verdict.clone(),
        );
        registry.register(
            "strangler_reconcile_last_verdict_timestamp_seconds",
            "When the last verdict was given, by the clock of the machine that compared",
            self.last_verdict_at.clone(),
        );
        registry.register(
            "strangler_reconcile_last_proof_timestamp_seconds",
            "When the last verdict was given that is clean and covers every row, by the clock of the machine that compared",
            self.last_proof_at.clone(),
        );
        registry.register(
            "strangler_reconcile_findings",
            "Findings of the last verdict by kind, listed or not",
            self.findings.clone(),
        );
        registry.register(
            "strangler_reconcile_rows_per_second",
            "Rows of the authority that the last run compared, per second of its wall time",
            self.rows_per_second.clone(),
        );
        registry.register(
            "strangler_reconcile_duration_seconds",
            "Wall time of the last run",
            self.duration.clone(),
        );
        registry.register(
            "strangler_mirror_lag_seconds",
            "Age of the mirrored data by the clock of the side that has the authority",
            self.lag.clone(),
        );
    }

    /// A run has given its verdict.
    pub fn record(&self, verdict: &Verdict) {
        let slice = verdict.slice.as_str();
        self.runs.get_or_create(&with(slice, "outcome", verdict.outcome.as_str())).inc();
        for outcome in OUTCOMES {
            let is_it = i64::from(outcome == verdict.outcome);
            self.last_verdict.get_or_create(&with(slice, "outcome", outcome.as_str())).set(is_it);
        }
        let counts = verdict.counts();
        for kind in FindingKind::ALL {
            let count = counts.get(&kind).copied().unwrap_or(0);
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.findings.get_or_create(&with(slice, "kind", kind.as_str())).set(count);
        }
        self.record_times(verdict);
    }

    fn record_times(&self, verdict: &Verdict) {
        let labels = of(&verdict.slice);
        let Ok(end) = verdict.finished_at.parse::<Timestamp>() else { return };
        let end_s = end.as_duration().as_secs_f64();
        self.last_verdict_at.get_or_create(&labels).set(end_s);
        if verdict.is_full() && verdict.outcome == Outcome::Clean {
            self.last_proof_at.get_or_create(&labels).set(end_s);
        }
        let Ok(start) = verdict.started_at.parse::<Timestamp>() else { return };
        let took_s = end.duration_since(start).as_secs_f64();
        self.duration.get_or_create(&labels).set(took_s);
        if took_s > 0.0 {
            let rows: u64 = verdict.tables.iter().map(|table| table.rows_authority).sum();
            self.rows_per_second.get_or_create(&labels).set(float(rows) / took_s);
        }
    }

    /// A run ended with an error. What is known of the last verdict stays.
    pub fn record_failure(&self, slice: &str) {
        self.runs.get_or_create(&with(slice, "outcome", FAILED)).inc();
    }

    /// How old a slice's mirrored data is. Without a value the series is not there: an unknown lag is no small one.
    pub fn set_lag(&self, slice: &str, seconds: Option<f64>) {
        match seconds {
            Some(seconds) => {
                self.lag.get_or_create(&of(slice)).set(seconds);
            }
            None => {
                self.lag.remove(&of(slice));
            }
        }
    }

    /// All series as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail; should a series refuse, the ones before it are still told.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

fn of(slice: &str) -> OfSlice {
    [("slice", slice.to_owned())]
}

fn with(slice: &str, name: &'static str, value: &str) -> OfTwo {
    [("slice", slice.to_owned()), (name, value.to_owned())]
}

#[expect(clippy::cast_precision_loss, reason = "nobody reads the sixteenth digit of a speed")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::fixture;

    /// The series by name and labels, after the form of every line is checked.
    fn series(text: &str) -> std::collections::BTreeMap<String, f64> {
        let mut found = std::collections::BTreeMap::new();
        let (mut described, mut typed) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                described = rest.split(' ').next().unwrap().to_owned();
                assert!(rest.len() > described.len() + 10, "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                typed = rest.split(' ').next().unwrap().to_owned();
                assert_eq!(typed, described);
                assert_eq!(rest.ends_with(" counter"), typed.ends_with("_total"), "{line}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next().unwrap(), typed, "{line}");
                assert!(found.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
            }
        }
        found
    }

    #[test]
    fn everything_is_told_after_a_run() {
        let metrics = Metrics::new(["ordering"]);
        metrics.record(&fixture::differs());
        metrics.set_lag("ordering", Some(0.25));
        let text = metrics.text();
        series(&text);
        // The order of a family's series is not fixed.
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_by_key(|line| line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").to_owned());
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_later_verdict_takes_the_place_of_the_one_before_it() {
        let metrics = Metrics::new(["catalog"]);
        let get = |name: &str, labels: &str| {
            series(&metrics.text())
                .get(&format!("strangler_reconcile_{name}{{slice=\"catalog\"{labels}}}"))
                .copied()
        };
        assert_eq!(get("runs_total", ",outcome=\"clean\""), Some(0.0));
        assert_eq!(get("last_verdict", ",outcome=\"clean\""), None);
        metrics.record(&fixture::clean());
        let proof = get("last_proof_timestamp_seconds", "");
        assert!(proof.is_some());

        let mut later = fixture::clean();
        later.outcome = Outcome::Differs;
        later.tables[0].findings.insert(FindingKind::Missing, 3);
        later.finished_at = "2026-11-29T09:00:00Z".to_owned();
        metrics.record(&later);
        assert_eq!(get("last_verdict", ",outcome=\"clean\""), Some(0.0));
        assert_eq!(get("last_verdict", ",outcome=\"differs\""), Some(1.0));
        assert_eq!(get("findings", ",kind=\"missing\""), Some(3.0));
        assert_eq!(get("findings", ",kind=\"orphan\""), Some(0.0));
        assert_eq!(get("runs_total", ",outcome=\"clean\""), Some(1.0));
        assert_eq!(get("last_proof_timestamp_seconds", ""), proof);
        assert!(get("last_verdict_timestamp_seconds", "") > proof);

        metrics.record_failure("catalog");
        assert_eq!(get("runs_total", ",outcome=\"failed\""), Some(1.0));
        assert_eq!(get("last_verdict", ",outcome=\"differs\""), Some(1.0));
    }

    #[test]
    fn a_sample_or_some_tables_are_no_proof() {
        let metrics = Metrics::new([]);
        metrics.record(&fixture::sampled());
        let mut some = fixture::clean();
        some.every_table = false;
        metrics.record(&some);
        let text = metrics.text();
        assert!(!text.contains("last_proof_timestamp_seconds{"), "{text}");
        assert!(text.contains("last_verdict_timestamp_seconds{"), "{text}");
    }

    #[test]
    fn an_unknown_lag_is_not_told() {
        let metrics = Metrics::new([]);
        metrics.set_lag("a", Some(1.5));
        assert!(metrics.text().contains("strangler_mirror_lag_seconds{slice=\"a\"} 1.5"));
        metrics.set_lag("a", None);
        assert!(!metrics.text().contains("strangler_mirror_lag_seconds{"));
    }

    #[test]
    fn a_strange_name_stays_in_its_quotes() {
        let metrics = Metrics::new(["a\"} 1\nfalse_series{x=\"\\"]);
        assert!(metrics.text().contains(r#"{slice="a\"} 1\nfalse_series{x=\"\\","#), "{}", metrics.text());
    }
}
