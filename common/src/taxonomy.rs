//! (taxonomy)
