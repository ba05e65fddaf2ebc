//! The hospital's binary: reads partially labelled CT, trains locally, evaluates, and is the one way out.
