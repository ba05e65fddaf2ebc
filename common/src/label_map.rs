//! (label_map)
