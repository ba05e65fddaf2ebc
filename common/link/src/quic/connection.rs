//! A connection, its exchanges and the two ends of a stream.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use common::wire::Words;
use quinn::VarInt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::close::CloseCode;
use crate::error::LinkError;
use crate::framing::{FrameReader, FrameWriter};

/// A connection to the other party; clones are the same connection. It ends when the last clone and exchange are gone,
/// or at [`Connection::close`].
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
}

/// Bytes of UDP payload so far, all overhead included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Connection {
    pub(crate) fn new(inner: quinn::Connection) -> Self {
        Self { inner }
    }

    /// Site: opens an exchange. The other side learns of it with the first frame.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn open(&self) -> Result<Exchange, LinkError> {
        Ok(Exchange::new(self.inner.open_bi().await?))
    }

    /// Coordinator: the next exchange that the site opens.
    ///
    /// # Errors
    /// Why the connection ended.
    pub async fn accept(&self) -> Result<Exchange, LinkError> {
        Ok(Exchange::new(self.inner.accept_bi().await?))
    }

    /// Ends the connection; all its exchanges fail at both sides. The words are for the other side's operator.
    pub fn close(&self, code: CloseCode, words: &Words) {
        self.inner.close(VarInt::from_u32(code.number()), words.as_str().as_bytes());
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) -> LinkError {
        self.inner.closed().await.into()
    }

    /// Why the connection has ended, if it has.
    pub fn close_reason(&self) -> Option<LinkError> {
        self.inner.close_reason().map(LinkError::from)
    }

    /// The other side's address.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Lets the other side send so many bytes ahead of our reading, over all exchanges. What was let go before cannot be
    /// taken back: a smaller window takes hold as that much is read. TCP bounds what is ahead by itself.
    pub fn grant_receiving(&self, bytes: u32) {
        self.inner.set_receive_window(VarInt::from_u32(bytes));
    }

    /// Lets us send so many bytes ahead of the other side's acknowledgement, over all exchanges.
    pub fn grant_sending(&self, bytes: u32) {
        self.inner.set_send_window(u64::from(bytes));
    }

    /// Bytes moved so far.
    pub fn traffic(&self) -> Traffic {
        let stats = self.inner.stats();
        Traffic { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
    }
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
    fn new((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self { reader: FrameReader::new(RecvEnd(recv)), writer: FrameWriter::new(SendEnd(send)) }
    }
}

/// The sending end of a stream.
#[derive(Debug)]
pub struct SendEnd(quinn::SendStream);

impl AsyncWrite for SendEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.0), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

/// The receiving end of a stream. Dropping it tells the other side to stop sending.
#[derive(Debug)]
pub struct RecvEnd(quinn::RecvStream);

impl AsyncRead for RecvEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buffer)
    }
}
