//! (round)
