//! The consortium's server: invites sites, runs rounds, aggregates updates, reports generalisation.
