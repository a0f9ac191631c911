//! `strangler` splits a shared PostgreSQL database, the monolith, into one database per service while the
//! application keeps running.
//!
//! The way of the data: a plan file is read ([`plan`]), joined with what the databases look like ([`catalog`]) into
//! a [`mapping`]; the mirror ([`cdc`]) copies tables and follows the monolith's logical stream through that mapping,
//! deciding about every event with the landing rule ([`landing`]). Whether both sides then hold the same rows is proven
//! by [`reconcile`], while the application writes and the mirror runs; its verdicts are in the ledger ([`journal`]).
//!
//! Modules stand on rungs and import only from lower ones, or from the same rung to their left; a test holds this.
//!
//! | rung | modules | what they may do |
//! |---|---|---|
//! | 0 | [`lsn`] [`name`] [`change`] [`snapshot`] [`clock`] [`failpoint`] [`problem`] [`words`] [`ink`] | words; no I/O |
//! | 1 | [`catalog`] [`plan`] [`mapping`] [`landing`] | decisions; no I/O |
//! | 2 | [`postgres`] [`journal`] [`cluster`] | hands: servers, connections and the statements on them |
//! | 3 | [`authority`] [`cdc`] | who may write, decided without I/O; the mirror |
//! | 4 | [`reconcile`] | proof that both sides are equal, and the repair of rows that are not |
//! | 5 | [`dualwrite`] [`provision`] [`arm`] [`check`] [`archive`] [`retire`] [`doctor`] [`abandon`] | who may write; what must be there, also before a flip; what stands in the way, also of the end of old tables, and what is kept of them; what is there |
//! | 6 | [`status`] [`demo`] | what the operator is shown |
//! | 7 | [`cli`] | the command line; the only place that prints or reads the environment |

pub mod change;
pub mod clock;
pub mod failpoint;
pub mod ink;
pub mod lsn;
pub mod name;
pub mod problem;
pub mod snapshot;
pub mod words;

pub mod catalog;
pub mod landing;
pub mod mapping;
pub mod plan;

pub mod cluster;
pub mod journal;
pub mod postgres;

pub mod authority;
pub mod cdc;

pub mod reconcile;

pub mod abandon;
pub mod archive;
pub mod arm;
pub mod check;
pub mod doctor;
pub mod dualwrite;
pub mod provision;
pub mod retire;

pub mod demo;
pub mod status;

pub mod cli;
