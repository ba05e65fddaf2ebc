//! The site's endpoint: dials out, accepts nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{ClientConfig, Endpoint, EndpointConfig, TokioRuntime, VarInt};

use super::settings::{QuicSettings, SocketBuffers, with_large_packets};
use crate::close::CloseCode;
use crate::connection::Connection;
use crate::error::LinkError;
use crate::tls;

/// Makes connections to one coordinator.
#[derive(Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    config: ClientConfig,
    settings: QuicSettings,
    buffers: SocketBuffers,
}

impl Dialer {
    /// Binds `local` (port 0: any) and dials with `tls`, a configuration of [`tls`].
    ///
    /// # Errors
    /// [`LinkError::Io`] when the socket cannot be bound, [`LinkError::Setting`] for a setting out of range.
    pub fn bind(
        local: SocketAddr,
        tls: rustls::ClientConfig,
        settings: QuicSettings,
    ) -> Result<Self, LinkError> {
        let mut config = ClientConfig::new(tls::quic_client(tls)?);
        config.transport_config(settings.transport()?);
        let (socket, buffers) = settings.bind(local)?;
        let taken = with_large_packets(EndpointConfig::default())?;
        let endpoint = Endpoint::new(taken, None, socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, config, settings, buffers })
    }

    /// Connects to the coordinator at `remote`, whose certificate must cover `server_name`. Success means that we
    /// trust the coordinator, not yet that it takes us: that is its Welcome.
    ///
    /// # Errors
    /// [`LinkError::RefusedPeer`] when its certificate is not what it must be, [`LinkError::TimedOut`] when nobody
    /// answers.
    pub async fn dial(&self, remote: SocketAddr, server_name: &str) -> Result<Connection, LinkError> {
        let connecting = self.endpoint.connect_with(self.config.clone(), remote, server_name)?;
        let connected = tokio::time::timeout(self.settings.handshake_timeout, connecting).await;
        Ok(Connection::quic(connected.map_err(|_| LinkError::TimedOut)??))
    }

    /// The UDP buffers that the operating system granted.
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// Closes all connections and waits until the other sides were told.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(CloseCode::Done.number()), b"");
        self.endpoint.wait_idle().await;
    }
}
