//! `strangler reconcile` tells the truth: through the real binary, between two real servers, with a real mirror, while
//! the application writes.

mod adopted;
mod casts;
mod classified;
mod collated;
mod composite_keys;
mod corruptions;
mod emptied;
mod extension_keys;
mod fallback;
mod found;
mod generated;
mod lopsided;
mod many;
mod neighbours;
mod never_clean;
mod nothing;
mod parts;
mod planted;
mod privileges;
mod race;
mod repeated;
mod resumed;
mod reverse;
pub mod stage;
mod storm;
mod swapped;
mod type_schemas;
mod versions;
mod widest;
mod zeros;
