//! The one way out of a hospital: policy, limits, ledger, transport, in that order.
