//! `strangler` splits a shared PostgreSQL database, the monolith, into one database per service while the
//! application keeps running.
//!
//! The way of the data: a plan file is read ([`plan`]), joined with what the databases look like ([`catalog`]) into
//! a [`mapping`]; the mirror (`cdc`) copies tables and follows the monolith's logical stream through that mapping,
//! deciding about every event with the landing rule (`landing`).
//!
//! Modules stand on rungs and import only from lower ones, or from the same rung to their left; a test holds this.
//!
//! | rung | modules | what they may do |
//! |---|---|---|
//! | 0 | [`lsn`] [`name`] [`change`] [`snapshot`] [`clock`] [`failpoint`] [`problem`] | words; no I/O |
//! | 1 | [`catalog`] [`plan`] [`mapping`] `landing` | decisions; no I/O |
//! | 2 | [`postgres`] [`journal`] [`cluster`] | hands: I/O, without deciding |
//! | 5 | [`dualwrite`] [`provision`] [`check`] | what an operator asks for, step by step |

pub mod change;
pub mod clock;
pub mod failpoint;
pub mod lsn;
pub mod name;
pub mod problem;
pub mod snapshot;

pub mod catalog;
pub mod mapping;
pub mod plan;

pub mod cluster;
pub mod journal;
pub mod postgres;

pub mod check;
pub mod dualwrite;
pub mod provision;
