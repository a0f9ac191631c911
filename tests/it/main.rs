//! The one integration test binary. Tests start their own PostgreSQL servers and fail loudly without one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets the unexpected must stop")]

mod replication;
mod sessions;
