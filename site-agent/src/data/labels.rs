//! (labels)
