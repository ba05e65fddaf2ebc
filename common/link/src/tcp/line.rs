//! One exchange over TCP: a TLS stream that its two ends share.
//!
//! The lock is held for one poll at a time. The connection can take the stream away under the ends
//! ([`Line::part`]): they fail from then on.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use common::wire::Words;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::ending::{Ending, translate};
use super::farewell::Farewell;
use super::session::{Held, Session};
use crate::close::CloseCode;

pub(super) type Tls = TlsStream<TcpStream>;

/// Bytes that a site keeps of what is said to it while it speaks.
const EARLY_BYTES: usize = 64 << 10;

/// Bytes that a site says whatever it is told meanwhile: a coordinator may refuse a request before it has come, and then
/// its words are the answer, not the broken stream.
const REQUEST_BYTES: usize = 64 << 10;

/// One exchange.
pub(crate) struct Line {
    session: Arc<Session>,
    state: Mutex<State>,
}

struct State {
    tls: Option<Tls>,
    /// Said to us while we spoke.
    early: Vec<u8>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// What could still be told.
    farewell: Farewell,
    /// Bytes that we have said.
    said: usize,
    /// A message of ours is out in part.
    mid_frame: bool,
    /// We have said that nothing more will come.
    finished: bool,
    held: Option<Held>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    pub(super) fn new(session: Arc<Session>, tls: Tls, farewell: Farewell, held: Option<Held>) -> Self {
        let state = State {
            tls: Some(tls),
            early: Vec::new(),
            reader: None,
            writer: None,
            farewell,
            said: 0,
            mid_frame: false,
            finished: false,
            held,
        };
        Self { session, state: Mutex::new(state) }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        state.reader = None;
        if !state.early.is_empty() {
            let taken = state.early.len().min(buffer.remaining());
            buffer.put_slice(&state.early[..taken]);
            state.early.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(self.ended())) };
        let before = buffer.filled().len();
        match Pin::new(tls).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.session.count_received(buffer.filled().len() - before);
                Poll::Ready(read.map_err(translate))
            }
            Poll::Pending => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let over = self.session.is_site() && state.overhear(cx, &self.session)?;
        if over && state.said > REQUEST_BYTES {
            return Poll::Ready(Err(Ending::Reset.into_io()));
        }
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(self.ended())) };
        match Pin::new(tls).poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) => {
                state.mid_frame = written < bytes.len();
                if state.farewell != Farewell::Goodbye {
                    state.farewell = Farewell::None;
                }
                state.said += written;
                self.session.count_sent(written);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => Poll::Ready(self.excuse(&mut state, cx, error).map(|()| bytes.len())),
            Poll::Pending => {
                state.mid_frame = true;
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(self.ended())) };
        match Pin::new(tls).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(self.excuse(&mut state, cx, error)),
            Poll::Pending => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// What a stream that broke while we spoke comes to: the last that the other side said is a better reason, be it an
    /// alert or an answer that waits to be read.
    fn excuse(&self, state: &mut State, cx: &mut Context<'_>, error: io::Error) -> io::Result<()> {
        if self.session.is_site() {
            state.overhear(cx, &self.session)?;
            if !state.early.is_empty() && state.said <= REQUEST_BYTES {
                return Ok(());
            }
        }
        Err(translate(error))
    }

    /// Says within TLS that nothing more will come. The TCP connection stays whole: firewalls and proxies give one that
    /// is closed on one side a minute at most, and a watch stream lives for days.
    pub(crate) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.lock();
            if !state.finished {
                let Some(tls) = &mut state.tls else { return Poll::Ready(Err(self.ended())) };
                tls.get_mut().1.send_close_notify();
                state.finished = true;
            }
        }
        self.poll_flush(cx)
    }

    /// From now on a close of the connection is told as a notice.
    pub(crate) fn hears_goodbye(&self) {
        self.lock().farewell = Farewell::Goodbye;
    }

    /// Waits until the other side has gone, having said all that it had to say.
    pub(crate) async fn hung_up(&self) {
        std::future::poll_fn(|cx| self.poll_hung_up(cx)).await;
    }

    fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let Some(tls) = &mut state.tls else { return Poll::Ready(()) };
        let mut space = [0; 1];
        let mut buffer = ReadBuf::new(&mut space);
        let read = match Pin::new(&mut *tls).poll_read(cx, &mut buffer) {
            // The end within TLS was said: the end of TCP is still to come.
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                tls.get_ref().0.poll_peek(cx, &mut buffer).map(|_| ())
            }
            // An error, or words that nobody waits for.
            read => read.map(|_| ()),
        };
        if read.is_pending() {
            state.reader = Some(cx.waker().clone());
        }
        read
    }

    /// Waits until the other side has gone, whatever is still to be read of what it said; none of it is taken.
    pub(crate) async fn gone(&self) {
        let Ok(socket) = self.second_handle() else { return std::future::pending().await };
        // It fails only as the runtime ends.
        while let Ok(seen) = socket.ready(Interest::READABLE | Interest::ERROR).await {
            // Neither side closes half a TCP connection (`poll_finish`): who has closed it has gone.
            if seen.is_error() || seen.is_read_closed() {
                return;
            }
            // What came is not looked at: from here on the next that comes counts.
            let _: io::Result<()> =
                socket.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// The socket once more, to wait on beside the ends: their polls tell of an end only after all was read.
    fn second_handle(&self) -> io::Result<TcpStream> {
        let state = self.lock();
        let tls = state.tls.as_ref().ok_or_else(|| self.ended())?;
        let socket = tls.get_ref().0.as_fd().try_clone_to_owned()?;
        TcpStream::from_std(socket.into())
    }

    /// Takes the stream away from its ends, with the last words that fit.
    pub(super) fn part(&self, code: CloseCode, words: &Words) {
        let mut state = self.lock();
        let Some(tls) = state.tls.take() else { return };
        let told = if state.mid_frame || state.finished { None } else { state.farewell.frame(code, words) };
        let watching = state.farewell == Farewell::Goodbye && !state.mid_frame;
        let orderly = told.is_some() || state.finished || watching;
        let held = state.held.take();
        for waker in [state.reader.take(), state.writer.take()].into_iter().flatten() {
            waker.wake();
        }
        drop(state);
        self.session.see_off(tls, told, orderly, held);
    }

    fn ended(&self) -> io::Error {
        self.session.ending().unwrap_or(Ending::Here).into_io()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while polling leaves a stream that fails at the next poll.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Listens while we speak; whether the other side has said all. QUIC tells a sender that it is not wanted any more;
    /// over TCP that is the only sign.
    fn overhear(&mut self, cx: &mut Context<'_>, session: &Session) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        // Somebody who reads hears it all.
        if self.reader.is_some() {
            return Ok(false);
        }
        let mut space = [0; 2048];
        while self.early.len() < EARLY_BYTES {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut *tls).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(translate(error)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Ok(true),
                Poll::Ready(Ok(())) => {
                    session.count_received(buffer.filled().len());
                    self.early.extend_from_slice(buffer.filled());
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(tls) = state.tls.take() {
            let held = state.held.take();
            self.session.see_off(tls, None, state.finished, held);
        }
        self.session.line_ended();
    }
}
