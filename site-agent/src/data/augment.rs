//! (augment)
