//! Stateless resets (RFC 9000, 10.3): how a coordinator that was started again tells sites that their connections are
//! gone.
//!
//! A process that was killed says goodbye to nobody, and a site that waits would learn of it from its idle timeout. With
//! the key of the process before, the new one answers a packet of a connection that it does not know with a reset that
//! nobody else can make.

use std::sync::Arc;

use aws_lc_rs::{hmac, rand};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

/// The secret that resets are made with: the same at each start of one coordinator. Has no `Debug` on purpose.
#[derive(Clone)]
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// A key of 32 secret bytes.
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// An endpoint whose resets are those of every endpoint with this key.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.0)));
        config.cid_generator(|| Box::new(RandomIds));
        config
    }
}

/// Connection ids without structure. quinn's own carry a mark of the process that made them, and a packet without that
/// mark gets no answer: here the packets of the process before are to get one.
struct RandomIds;

const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        // Invariant: the operating system's generator is seeded before any process of ours can run; TLS needs it too.
        rand::fill(&mut id).expect("the operating system gives randomness");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
