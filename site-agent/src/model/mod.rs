//! The universal model in burn.
