//! From a scan to labels and metrics.
