//! Reading configuration: text → raw (`serde`, unknown keys refused) → a domain type valid by construction, with every
//! mistake reported at once.
//!
//! A file passes three doors. [`Document::parse`] finds all syntax errors, [`Document::read`] all unknown keys and wrong
//! types, and the domain's own check fills [`Problems`], each under its dotted key. [`Document::locate`] then turns keys
//! into lines. Nothing here opens a file: the binaries read the text and give its name.

mod document;
mod report;
mod suggest;

pub use document::Document;
pub use report::{Diagnostic, Diagnostics, Problem, Problems};
pub use suggest::did_you_mean;

#[cfg(test)]
mod tests;
