//! The one integration test binary. Tests start their own PostgreSQL servers and fail loudly without one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]
#![allow(unreachable_pub, reason = "nothing outside can reach anything here")]

mod support;

mod abandon;
mod architecture;
mod arm;
mod check;
mod claimed;
mod clients;
mod cluster;
mod copied_again;
mod crash;
mod demo;
mod doctor;
mod evidence;
mod failpoints;
mod flip;
mod help;
mod hooks;
mod in_use;
mod inheritance;
mod introspect;
mod journey;
mod landing;
mod ledger;
mod lineage;
mod logging;
mod markers;
mod memory;
mod model;
mod noted;
mod orphans;
mod partition_identities;
mod partition_ties;
mod plans;
mod prove;
mod provision;
mod readiness;
mod rebuilt;
mod reconcile;
mod refusals;
mod regression;
mod repairs;
mod replication;
mod retail;
mod retire;
mod reverse;
mod rights;
mod runbooks;
mod runs;
mod scheduling;
mod selftest;
mod service_side;
mod sessions;
mod status;
mod touched;
mod truth;
mod type_changes;
mod unheard;
mod upgrade;
mod versions;
mod walkthrough;
mod writers;
