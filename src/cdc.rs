//! The mirror: copies the tables of a slice in rounds, and follows the monolith's logical stream.
//!
//! One [`engine`] runs per slice: it owns the replication stream, decides about each event ([`route`]) with the
//! landing rule, collects operations into batches ([`batch`]) and applies them together with the position
//! ([`apply`]). Between batches, with the stream standing still, it runs rounds ([`round`]) that land pieces
//! ([`copy`]). [`mirror`] runs the engines of a plan and starts them again when a link breaks.

pub mod apply;
pub(crate) mod back;
pub mod batch;
mod beforehand;
pub mod borders;
mod collations;
pub mod contents;
pub mod copy;
pub(crate) mod copying;
mod emptying;
pub mod engine;
pub mod error;
pub mod finish;
pub mod generated;
pub mod headroom;
pub mod identities;
mod intake;
mod kept;
pub mod launch;
mod lineage;
mod located;
pub mod lookout;
pub mod meanings;
pub mod mirror;
pub mod progress;
pub mod publication;
pub mod pulse;
mod question;
pub mod record;
pub mod refetch;
pub(crate) mod repair;
mod retired;
mod rewatch;
mod rights;
pub mod round;
mod rounding;
pub mod route;
mod sample;
pub mod source;
pub mod spill;
mod stamp;
pub mod stand_ins;
pub mod start;
pub mod statements;
pub mod stream;
pub mod table;
pub mod tripwire;
pub mod truncate;
mod usage;
pub mod watch;
pub mod way;
