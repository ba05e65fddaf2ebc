//! The site side of the protocol: one loop around `ParticipantMachine`.
