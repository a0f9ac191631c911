//! A run's verdicts as people and programs read them. Every form is a pure function of the verdicts: the same verdicts
//! give the same text, byte for byte.
//!
//! | form | for |
//! |---|---|
//! | [`text`] | a terminal, with colours or without |
//! | [`json`] | programs; a contract, documented in docs/json-output.md |
//! | [`junit`] | CI systems that show test reports |
//! | [`markdown`] | a comment on a pull request |
//! | [`html`] | a file that is kept or sent around |
//!
//! Values come as [`Shown`](super::finding::Shown), so that no form ever holds the value of a classified column.

mod diff;
mod facts;
#[cfg(test)]
pub(crate) mod fixture;
pub mod html;
pub mod json;
pub mod junit;
pub mod markdown;
pub mod repairs;
pub mod text;
mod visible;

#[cfg(test)]
mod every_form;
