//! Windows, timers, congestion control and socket buffers.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Once};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::udp::{UdpSockRef, UdpSocketState};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion::Bbr2Config;
use crate::error::LinkError;

/// Congestion control. Measured over 50 ms and 1 % loss, BBR moved 35 to 140 times what cubic did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Version 2: models the path's bandwidth; indifferent to random loss, and heeds what fills a queue.
    #[default]
    Bbr,
    /// Backs off at each loss; fairer to other traffic.
    Cubic,
}

/// Settings of an endpoint. Worst-case memory of a coordinator: connections × (`receive_window` + `send_window`), which are
/// small, and the budget of the transfers under way, which alone are granted more ([`Connection::grant_receiving`],
/// [`Connection::grant_sending`]). With 50 sites that is 50 × 512 KiB + 64 MiB = 89 MiB; at the worst 127, for a transfer may
/// leave its site credit for up to a chunk.
///
/// [`Connection::grant_receiving`]: super::Connection::grant_receiving
/// [`Connection::grant_sending`]: super::Connection::grant_sending
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicSettings {
    /// Congestion control.
    pub congestion: Congestion,
    /// Bytes that a peer may send on one stream ahead of our reading.
    pub stream_window: u32,
    /// Bytes that a peer may send on all streams ahead of our reading.
    pub receive_window: u32,
    /// Bytes that we send ahead of the peer's acknowledgement.
    pub send_window: u32,
    /// What a coordinator makes of `receive_window` or `send_window` at most while a transfer in that direction has its turn.
    pub granted_window: u32,
    /// Exchanges that a peer may have open at once; 0 on the side that opens them.
    pub max_exchanges: u32,
    /// Asked of the operating system for each direction of the UDP socket, bytes; it may grant less.
    pub socket_buffer: usize,
    /// How often a silent connection is kept alive.
    pub keep_alive: Duration,
    /// How long a silent peer is taken for alive. Independent of training: keep-alive goes on meanwhile.
    pub idle_timeout: Duration,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Coordinator: handshakes under way at once, over all addresses. More are refused.
    pub handshakes: usize,
    /// Coordinator: handshakes under way at once from one address that was proved. More are refused. A hospital is one address.
    pub handshakes_per_address: usize,
}

const MIB: u32 = 1 << 20;

/// What one stream has under way at most. A packet that is lost holds up its stream alone, for a round trip or two, and the more
/// may come meanwhile the better; but quinn ends a connection when more than 1024 gaps of a stream are open (`MAX_CHUNKS`). With this
/// a line may lose an eighth of its packets (`tests/line.rs`); with twice as much, half of that.
const STREAM_WINDOW: u32 = 8 * MIB;

/// Largest UDP payload that we take and probe paths for; an Ethernet carries 1472. Where jumbo frames or the loopback carry more,
/// the same bytes are fewer packets, and most of the work is by the packet. Nothing begins above what every path carries, a
/// probe that is too large is lost without counting as congestion, and a path that shrinks is noticed (RFC 8899).
///
/// Not larger: quinn hands the kernel up to [`SEGMENTS`] packets at once and does not look at their sum, and beyond
/// [`LARGEST_SEND`] the kernel refuses them, which quinn takes for a probe that was too large. All would be lost.
const LARGEST_PACKET: u16 = 6500;
/// Packets that quinn 0.11 hands over at once (`MAX_TRANSMIT_SEGMENTS`).
const SEGMENTS: usize = 10;
/// UDP payload of the largest IPv4 packet.
const LARGEST_SEND: usize = 65_507;
const _: () = assert!(SEGMENTS * LARGEST_PACKET as usize <= LARGEST_SEND);

/// `config`, taking packets as large as we send.
pub(crate) fn with_large_packets(mut config: EndpointConfig) -> Result<EndpointConfig, LinkError> {
    let taken = config.max_udp_payload_size(LARGEST_PACKET);
    taken.map_err(|_| LinkError::Setting { name: "max_udp_payload_size" })?;
    Ok(config)
}

impl QuicSettings {
    /// For a site: one connection, windows for 1 Gbit/s over 50 ms and more.
    pub const fn site() -> Self {
        Self {
            congestion: Congestion::Bbr,
            stream_window: STREAM_WINDOW,
            receive_window: 64 * MIB,
            send_window: 16 * MIB,
            granted_window: 64 * MIB,
            max_exchanges: 0,
            socket_buffer: 4 << 20,
            keep_alive: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            handshakes: 0,
            handshakes_per_address: 0,
        }
    }

    /// For a coordinator: many connections, so small windows, and larger ones for those whose turn it is. A packet that is lost
    /// holds up what came after it for a round trip or two: 16 MiB is about two and a half times what 1 Gbit/s has under way in
    /// 50 ms.
    pub const fn coordinator() -> Self {
        Self {
            receive_window: MIB / 4,
            send_window: MIB / 4,
            granted_window: 16 * MIB,
            max_exchanges: 32,
            handshakes: 128,
            handshakes_per_address: 32,
            ..Self::site()
        }
    }

    /// The transport's configuration.
    pub(crate) fn transport(&self) -> Result<Arc<TransportConfig>, LinkError> {
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| LinkError::Setting { name: "idle_timeout" })?;
        if self.keep_alive >= self.idle_timeout {
            return Err(LinkError::Setting { name: "keep_alive" });
        }
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LARGEST_PACKET);
        // As they are: segmentation offload is on; streams take turns packet by packet, so that a notice does not wait for a
        // model; and the other side acknowledges what it read together at once, so that asking for fewer gains nothing.
        let mut transport = TransportConfig::default();
        transport
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.receive_window))
            .send_window(u64::from(self.send_window))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.max_exchanges))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(Some(idle));
        match self.congestion {
            Congestion::Bbr => transport.congestion_controller_factory(Arc::new(Bbr2Config)),
            Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        };
        Ok(Arc::new(transport))
    }

    /// A bound UDP socket with the buffers that the operating system grants.
    pub(crate) fn bind(&self, address: SocketAddr) -> Result<(UdpSocket, SocketBuffers), LinkError> {
        let socket = UdpSocket::bind(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Refused or cut short is not fatal: what was granted is reported.
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), self.socket_buffer);
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), self.socket_buffer);
        let buffers = SocketBuffers {
            asked: self.socket_buffer,
            send: state.send_buffer_size(UdpSockRef::from(&socket))?,
            receive: state.recv_buffer_size(UdpSockRef::from(&socket))?,
        };
        static SAID: Once = Once::new();
        if let Some(shortfall) = buffers.shortfall() {
            SAID.call_once(|| tracing::warn!("{shortfall}"));
        }
        Ok((socket, buffers))
    }
}

/// UDP buffers of a socket in bytes; Linux reports twice what it grants, for its own bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// Asked for, each direction.
    pub asked: usize,
    /// Reported for sending.
    pub send: usize,
    /// Reported for receiving.
    pub receive: usize,
}

impl SocketBuffers {
    /// What is missing, and what the machine's administrator can do about it; `None` when all was granted.
    pub fn shortfall(&self) -> Option<String> {
        let doubled = if cfg!(target_os = "linux") { 2 } else { 1 };
        let (asked, send, receive) = (self.asked, self.send / doubled, self.receive / doubled);
        (send < asked || receive < asked).then(|| {
            format!(
                "UDP buffers of {send} bytes for sending and {receive} for receiving were granted, {asked} asked for: \
                 large transfers will be slower; hint: sysctl -w net.core.wmem_max={asked} net.core.rmem_max={asked}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_smaller_buffer_than_asked_for_is_told_with_the_remedy() {
        let granted = SocketBuffers { asked: 4 << 20, send: 8 << 20, receive: 8 << 20 };
        assert_eq!(granted.shortfall(), None);
        let words = SocketBuffers { receive: 425_984, ..granted }.shortfall().unwrap();
        assert!(words.contains("212992 for receiving") && words.contains("rmem_max=4194304"), "{words}");
    }

    #[test]
    fn a_connection_without_a_transfer_is_small() {
        let settings = QuicSettings::coordinator();
        assert!(settings.receive_window + settings.send_window <= MIB / 2);
        assert!(settings.granted_window >= settings.stream_window);
    }
}
