//! (orientation)
