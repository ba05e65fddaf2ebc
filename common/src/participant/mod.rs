//! (participant)
