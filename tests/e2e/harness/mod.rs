//! What the tests start and talk to: [`process`] a child, [`consortium`] a coordinator with its sites, [`study`] what they
//! train, [`intruder`] a client that does what no program of ours would.

pub(crate) mod consortium;
pub(crate) mod federation;
pub(crate) mod intruder;
pub(crate) mod process;
pub(crate) mod study;
