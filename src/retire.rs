//! The last act: old tables of the monolith that a service has taken over, and who still uses them.
//!
//! [`gather()`] asks the databases, [`judge()`] decides without I/O what stands in the way of retiring the tables, [`text()`] says it.
//! [`preview()`] shows what a stage would do, word for word, and [`revoke()`] does exactly that; [`restore()`] takes it back. Who calls
//! it: `strangler retire` and `strangler unretire`.

mod dependents;
mod facts;
mod gather;
mod judge;
mod revoke;
mod rights;
mod run;
mod stage;
mod text;

pub use dependents::{Dependent, Kind};
pub use facts::{Authority, SliceFacts, StrayWrites};
pub use gather::{Asked, RetireError, gather};
pub use judge::{Met, SliceReport, TableReport, judge};
pub use revoke::{Rights, words};
pub use rights::{Relation, Unstoppable};
pub use run::{Job, Preview, Restored, Undo, preview, preview_restore, restore, revoke};
pub use stage::Grounds;
pub use text::text;
