//! Who may write: the gates that let exactly one side of a slice take the application's writes.

pub mod exclusion;
pub mod flip;
pub mod gate;
pub mod guard;
pub mod hooks;
pub mod identified;
pub mod keys;
pub mod readiness;
pub mod together;
