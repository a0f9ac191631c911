//! Memory stays flat, however large a table or a transaction is.

use crate::support::bench::Bench;
use crate::support::tables::{Side, assert_same};
use crate::support::writers::{Ledger, Options};

/// Peak resident memory of the mirror, whatever it mirrors: queues of the readers, one batch and the copy buffers of
/// two slices, and the program itself.
const PEAK_KB_MAX: u64 = 150_000;

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_for_large_tables_and_large_transactions() {
    // `make soak` takes a million of each.
    let rows = if crate::support::soak() { 1_000_000 } else { 150_000 };
    let bench = Bench::launch(&[("logical_decoding_work_mem", "1MB")]).await;
    Ledger::create(&bench.application(), &Options { rows: 10, ..Options::default() }).await;
    let source = bench.source().await;
    let insert = format!(
        "INSERT INTO events (writer, seq, n, payload) \
         SELECT 100, 1, n, md5(n::text) || md5((n + 1)::text) FROM generate_series(1, {rows}) AS g(n)"
    );
    source.batch_execute(&insert).await.unwrap();
    bench.succeed(&["provision", "plan.yaml"]);
    let mirror = bench.mirror_sized(None, &[]);
    bench.caught_up().await;
    let after_copy = mirror.peak_kb();
    source.batch_execute(&insert).await.unwrap();
    source.batch_execute("UPDATE events SET payload = payload || 'x' WHERE n % 3 = 0").await.unwrap();
    bench.caught_up().await;
    let after_stream = mirror.peak_kb();
    let target = bench.target("right").await;
    let query = "SELECT writer, seq, n, payload FROM events";
    assert_same(Side { client: &source, query }, Side { client: &target, query }).await;
    assert!(
        after_copy < PEAK_KB_MAX && after_stream < PEAK_KB_MAX,
        "{rows} rows: {after_copy} kB after the copy, {after_stream} kB after the transactions"
    );
    crate::support::say(&format!(
        "{rows} rows: peak {after_copy} kB after the copy, {after_stream} kB after the transactions"
    ));
    mirror.stop();
}
