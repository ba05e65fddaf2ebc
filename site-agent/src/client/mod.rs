//! The site side of the protocol: one loop around `ParticipantMachine`.

pub mod address;
pub mod enroll;
pub mod files;
pub mod identity;
