//! A connection, its exchanges and the two ends of a stream, over either lane.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::wire::Words;
use quinn::VarInt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::close::CloseCode;
use crate::error::LinkError;
use crate::framing::{FrameReader, FrameWriter};
use crate::identity::PeerIdentity;
use crate::tcp::{Line, Session};

/// What carries a connection. The frames are the same on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// One QUIC connection over UDP, an exchange being a stream.
    Quic,
    /// TLS 1.3 over TCP, an exchange being a TCP connection of its own.
    Tcp,
}

impl Lane {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        }
    }
}

/// A connection to the other party; clones are the same connection. Over QUIC it ends when the last clone and exchange
/// are gone, over TCP with the last exchange; on both at [`Connection::close`].
#[derive(Clone, Debug)]
pub struct Connection {
    carrier: Carrier,
}

#[derive(Clone, Debug)]
enum Carrier {
    Quic(quinn::Connection),
    Tcp(Arc<Session>),
}

/// Bytes moved so far: over QUIC of UDP payload, all overhead included; over TCP of frames and chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Connection {
    pub(crate) fn quic(inner: quinn::Connection) -> Self {
        Self { carrier: Carrier::Quic(inner) }
    }

    pub(crate) fn tcp(session: Arc<Session>) -> Self {
        Self { carrier: Carrier::Tcp(session) }
    }

    /// What carries it.
    pub fn lane(&self) -> Lane {
        match self.carrier {
            Carrier::Quic(_) => Lane::Quic,
            Carrier::Tcp(_) => Lane::Tcp,
        }
    }

    /// Whether this is another handle of the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.carrier, &other.carrier) {
            (Carrier::Quic(one), Carrier::Quic(other)) => one.stable_id() == other.stable_id(),
            (Carrier::Tcp(one), Carrier::Tcp(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Site: opens an exchange. The other side learns of it with the first frame. Over TCP this dials, and waits while
    /// as many exchanges are open as may be at once.
    ///
    /// # Errors
    /// Why the connection ended, or why it cannot be dialled.
    pub async fn open(&self) -> Result<Exchange, LinkError> {
        match &self.carrier {
            Carrier::Quic(inner) => Ok(Exchange::quic(inner.open_bi().await?)),
            Carrier::Tcp(session) => session.open().await.map(Exchange::tcp),
        }
    }

    /// Coordinator: the next exchange that the site opens. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn accept(&self) -> Result<Exchange, LinkError> {
        match &self.carrier {
            Carrier::Quic(inner) => Ok(Exchange::quic(inner.accept_bi().await?)),
            Carrier::Tcp(session) => session.accept().await.map(Exchange::tcp),
        }
    }

    /// Ends the connection; all its exchanges fail at both sides. The words are for the other side's operator.
    ///
    /// TCP has no close codes: there the watch stream gets a Goodbye, and an exchange that was not answered yet a
    /// refusal, before they end.
    pub fn close(&self, code: CloseCode, words: &Words) {
        match &self.carrier {
            Carrier::Quic(inner) => inner.close(VarInt::from_u32(code.number()), words.as_str().as_bytes()),
            Carrier::Tcp(session) => session.close(code, words),
        }
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) -> LinkError {
        match &self.carrier {
            Carrier::Quic(inner) => inner.closed().await.into(),
            Carrier::Tcp(session) => session.closed().await,
        }
    }

    /// Why the connection has ended, if it has.
    pub fn close_reason(&self) -> Option<LinkError> {
        match &self.carrier {
            Carrier::Quic(inner) => inner.close_reason().map(LinkError::from),
            Carrier::Tcp(session) => session.close_reason(),
        }
    }

    /// The other side's address; over TCP that of the first exchange, or of the proxy.
    pub fn remote_address(&self) -> SocketAddr {
        match &self.carrier {
            Carrier::Quic(inner) => inner.remote_address(),
            Carrier::Tcp(session) => session.remote_address(),
        }
    }

    /// How long the way there and back takes, as estimated last. TCP keeps it to itself: nothing.
    pub fn round_trip(&self) -> Duration {
        match &self.carrier {
            Carrier::Quic(inner) => inner.rtt(),
            Carrier::Tcp(_) => Duration::ZERO,
        }
    }

    /// Lets the other side send so many bytes ahead of our reading, over all exchanges. What was let go before cannot be
    /// taken back: a smaller window takes hold as that much is read. TCP bounds what is ahead by itself.
    pub fn grant_receiving(&self, bytes: u32) {
        if let Carrier::Quic(inner) = &self.carrier {
            inner.set_receive_window(VarInt::from_u32(bytes));
        }
    }

    /// Lets us send so many bytes ahead of the other side's acknowledgement, over all exchanges; TCP bounds it by itself.
    pub fn grant_sending(&self, bytes: u32) {
        if let Carrier::Quic(inner) = &self.carrier {
            inner.set_send_window(u64::from(bytes));
        }
    }

    /// Bytes moved so far.
    pub fn traffic(&self) -> Traffic {
        match &self.carrier {
            Carrier::Quic(inner) => {
                let stats = inner.stats();
                Traffic { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
            }
            Carrier::Tcp(session) => session.traffic(),
        }
    }

    /// Exchanges that are open over TCP, the watch stream among them; over QUIC nobody counts them.
    pub fn open_exchanges(&self) -> Option<usize> {
        match &self.carrier {
            Carrier::Quic(_) => None,
            Carrier::Tcp(session) => Some(session.open_exchanges()),
        }
    }
}

/// Who came in at the coordinator's door.
#[derive(Debug)]
pub enum Admitted {
    /// Showed a certificate of the consortium that names a site. Whether the site is known, not revoked and of the
    /// right consortium and role is for the coordinator to say.
    Site(Connection, PeerIdentity),
    /// Wants to enrol: nobody yet. One exchange, small, soon over.
    Stranger(Connection),
    /// Over TCP: one more exchange of a connection that came in before, which gives it to its
    /// [`Connection::accept`].
    Joined,
}

/// Reads frames from a stream of ours.
pub type Reader = FrameReader<RecvEnd>;
/// Writes frames to a stream of ours.
pub type Writer = FrameWriter<SendEnd>;

/// One bidirectional stream: a request and what follows.
#[derive(Debug)]
pub struct Exchange {
    /// What the other side says.
    pub reader: Reader,
    /// What we say. Dropping it says that nothing more will come.
    pub writer: Writer,
}

impl Exchange {
    fn quic((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self::of(RecvEnd(Receiving::Quic(recv)), SendEnd(Sending::Quic(send)))
    }

    fn tcp(line: Arc<Line>) -> Self {
        Self::of(RecvEnd(Receiving::Tcp(line.clone())), SendEnd(Sending::Tcp(line)))
    }

    fn of(recv: RecvEnd, send: SendEnd) -> Self {
        Self { reader: FrameReader::new(recv), writer: FrameWriter::new(send) }
    }

    /// Coordinator: this is the watch stream, which hears why the connection is closed. QUIC tells it by itself.
    pub fn hears_goodbye(&self) {
        if let Sending::Tcp(line) = &self.writer.stream().0 {
            line.hears_goodbye();
        }
    }

    /// Waits until the other side has what was written and finished, or takes no more of it: then none of it is in our memory.
    /// Over TCP the kernel has it, and this does not wait.
    pub async fn delivered(&self) {
        if let Sending::Quic(stream) = &self.writer.stream().0 {
            // An error is the connection's end, which frees it too.
            let _ = stream.stopped().await;
        }
    }

    /// Coordinator: waits until the other side of this exchange has gone, when nothing is read from it any more. Over
    /// QUIC that is known of the connection as a whole ([`Connection::closed`]), and this waits for ever.
    pub async fn hung_up(&self) {
        match &self.reader.stream().0 {
            Receiving::Quic(_) => std::future::pending().await,
            Receiving::Tcp(line) => line.hung_up().await,
        }
    }

    /// Coordinator: waits until the other side of this exchange has gone, while nothing is read from it yet: what it said stays
    /// to be read. Over QUIC this waits for ever, as [`Exchange::hung_up`] does. Cancel-safe.
    pub async fn gone(&self) {
        match &self.reader.stream().0 {
            Receiving::Quic(_) => std::future::pending().await,
            Receiving::Tcp(line) => line.gone().await,
        }
    }
}

/// The sending end of a stream.
#[derive(Debug)]
pub struct SendEnd(Sending);

#[derive(Debug)]
enum Sending {
    Quic(quinn::SendStream),
    Tcp(Arc<Line>),
}

impl AsyncWrite for SendEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Sending::Quic(stream) => AsyncWrite::poll_write(Pin::new(stream), cx, bytes),
            Sending::Tcp(line) => line.poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Sending::Quic(stream) => AsyncWrite::poll_flush(Pin::new(stream), cx),
            Sending::Tcp(line) => line.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Sending::Quic(stream) => AsyncWrite::poll_shutdown(Pin::new(stream), cx),
            Sending::Tcp(line) => line.poll_finish(cx),
        }
    }
}

/// The receiving end of a stream. Dropping it tells the other side to stop sending; over TCP, dropping both ends does.
#[derive(Debug)]
pub struct RecvEnd(Receiving);

#[derive(Debug)]
enum Receiving {
    Quic(quinn::RecvStream),
    Tcp(Arc<Line>),
}

impl AsyncRead for RecvEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Receiving::Quic(stream) => AsyncRead::poll_read(Pin::new(stream), cx, buffer),
            Receiving::Tcp(line) => line.poll_read(cx, buffer),
        }
    }
}
