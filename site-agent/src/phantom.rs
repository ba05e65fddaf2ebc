//! CT-like phantoms with known labels.
