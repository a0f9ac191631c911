//! The last act: old tables of the monolith that a service has taken over, and who still uses them.
//!
//! [`gather()`] asks the databases, [`judge()`] decides without I/O what stands in the way of retiring the tables, [`text()`] says it.
//! Who calls it: `strangler retire --report`.

mod dependents;
mod facts;
mod gather;
mod judge;
mod text;

pub use dependents::{Dependent, Kind};
pub use facts::{SliceFacts, StrayWrites};
pub use gather::{Asked, RetireError, gather};
pub use judge::{Met, SliceReport, TableReport, judge};
pub use text::text;
