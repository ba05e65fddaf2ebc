//! (study)
