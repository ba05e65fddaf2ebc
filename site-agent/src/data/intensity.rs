//! (intensity)
