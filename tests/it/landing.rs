//! The landing rule on real servers, in deterministic cases. Each known wrong form of the rule is shown to lose data
//! or to raise a false alarm in a case that the rule itself passes.

mod barriers;
mod keys;
mod model;
mod rounds;
mod wholes;

use std::time::Instant;

use strangler::failpoint::hooks::Mutant;

use crate::support::scenario::Scenario;

/// 40 rows in four ranges of ten, without 5, 6, 25 and 26; `big` is stored out of line, so that an update that does
/// not touch it leaves it out of the stream.
const THINGS: &str = "CREATE TABLE things (id int PRIMARY KEY, v int NOT NULL, big text); \
    ALTER TABLE things ALTER big SET STORAGE EXTERNAL; \
    INSERT INTO things SELECT n, n, repeat('x', 3000) || n FROM generate_series(1, 44) n \
    WHERE n NOT IN (5, 6, 25, 26)";
const TABLES: &str = "      things: {}\n";
const ALL: &str = "TABLE things";

async fn things() -> Scenario {
    Scenario::new(THINGS, TABLES).await
}

/// Runs a case under the rule and under a mutant of it: the rule passes, the mutant is found out. A case gives what
/// is wrong on the service in the end.
async fn tell_apart<F: Future<Output = Option<String>>>(mutant: Mutant, case: impl Fn(Vec<Mutant>) -> F) {
    assert_eq!(case(Vec::new()).await, None, "the rule");
    let fault = case(vec![mutant]).await;
    assert!(fault.is_some(), "{mutant:?} went unnoticed");
}

/// Prints how long a case took without the start of its servers: each is meant to stay under a second.
struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }
}

#[expect(clippy::print_stdout, reason = "a time to read, with `cargo test -- --nocapture`; no condition")]
impl Drop for Stopwatch {
    fn drop(&mut self) {
        println!("case: {} ms", self.0.elapsed().as_millis());
    }
}
