//! The commands of `site-agent`.
