//! Local training with masked back-propagation.
