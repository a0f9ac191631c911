//! `doctor`: everything in the plan's databases that carries our names, which slice needs it, and what is wrong with it.
//!
//! [`judge()`] decides from facts alone. [`gather()`] reads them: what there is before what is written down of it, since whoever makes
//! something writes it down first. [`clean()`] removes what nobody needs, while no other verb of ours changes anything.

mod clean;
mod facts;
mod gather;
mod judge;
mod text;

pub use clean::{CleanError, Removed, clean};
pub use facts::{Facts, Place, Seen};
pub use gather::gather;
pub use judge::{Belongs, DatabaseReport, Kind, Object, Removal, judge};
pub use text::text;
