//! The last act: old tables of the monolith that a service has taken over, and who still uses them.
//!
//! [`gather()`] asks the databases, [`judge()`] decides without I/O what stands in the way of retiring the tables, [`text()`] says it.
//! [`revoke()`] takes the first stage, or shows what that does, word for word; [`quarantine()`] the second; [`archive()`] keeps what is in the
//! tables, and takes nothing; [`drop_tables()`] is the last; [`restore()`] takes back what was taken. Who calls it: `strangler retire` and `strangler unretire`.

mod again;
mod archive;
mod called;
mod dependents;
mod dropping;
mod facts;
mod gather;
mod home;
mod judge;
mod leaving;
mod moving;
mod printed;
mod quarantine;
mod revoke;
mod rights;
mod run;
mod stage;
mod text;
mod unstoppable;

pub use archive::{Archived, Archiving, Kept, archive, kept};
pub use dependents::{Dependent, Kind};
pub use dropping::{Dropping, Gone, drop_tables, reconsider};
pub use facts::{SliceFacts, StrayWrites};
pub use gather::{Asked, RetireError, gather};
pub use judge::{Met, SliceReport, TableReport, judge};
pub use revoke::Restored;
pub use rights::words;
pub(crate) use run::shown;
pub use run::{Done, Job, Work, quarantine, restore, revoke};
pub use stage::Grounds;
pub use text::text;
