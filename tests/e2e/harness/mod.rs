//! What the tests start and talk to: [`process`] a child, [`consortium`] a coordinator with its sites, [`study`] what they
//! train, [`federation`] two sites at it, [`disk`] what they lie on, [`network`] what lies between, [`intruder`] a client that does what no program of ours would.

pub(crate) mod consortium;
pub(crate) mod disk;
pub(crate) mod federation;
pub(crate) mod intruder;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod study;
