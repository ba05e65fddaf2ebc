//! Carriers between sites and coordinator: TLS configuration, QUIC, framing, chunk transfer. No domain decision.
