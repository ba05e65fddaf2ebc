//! (resample)
