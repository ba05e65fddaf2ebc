//! Who may move bulk now: a budget of memory, given out in order of asking.
//!
//! A connection's windows are small until a transfer of it has its turn, larger while it has, and small again after. One
//! turn is for one connection and one direction, however many streams it takes; so the memory of all transfers is bounded
//! by the budget, however many sites there are. A site that waits is not failing: its bytes wait for flow control, and
//! keep-alive goes on.
//!
//! ```text
//! 50 sites ─► 5 turns of 12 MiB (window 4 MiB, and two chunks for each of four streams) = 60 MiB
//!             50 × (256 + 256) KiB of small windows                                  = 25 MiB
//! ```
//! Flow control cannot take credit back: a window is lowered by giving none for what is read next. So it is lowered when
//! no more is to come than the connection has credit for: the transfer loses nothing, and its last bytes pay the debt.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::artifact::CHUNK_BYTES;
use link::LinkError;
use link::quic::{Connection, QuicSettings};
use link::transfer::MAX_STREAMS;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Memory for transfers under way; clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    /// First come, first served.
    turns: Arc<Semaphore>,
    receive: Window,
    send: Window,
}

impl Budget {
    /// So many bytes; one transfer is always possible.
    pub fn new(bytes: u64, settings: &QuicSettings) -> Self {
        let buffers = 2 * CHUNK_BYTES * MAX_STREAMS as u64;
        let turns = (bytes / (u64::from(settings.granted_window) + buffers)).clamp(1, 1 << 16);
        Self {
            turns: Arc::new(Semaphore::new(usize::try_from(turns).unwrap_or(1))),
            receive: Window::new(Direction::Receive, settings.receive_window, settings.granted_window),
            send: Window::new(Direction::Send, settings.send_window, settings.granted_window),
        }
    }

    async fn turn(&self) -> OwnedSemaphorePermit {
        // Invariant: the semaphore lives as long as this and nobody closes it.
        self.turns.clone().acquire_owned().await.expect("never closed")
    }
}

/// Which way the bytes go, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Receive,
    Send,
}

/// The window of one connection in one direction. What the other side has credit for is `now + debt`, never more than
/// `granted`.
#[derive(Clone, Copy, Debug)]
struct Window {
    direction: Direction,
    idle: u32,
    granted: u32,
    now: u32,
    /// Credit given beyond the window, until so many bytes more were read.
    debt: u32,
}

impl Window {
    fn new(direction: Direction, idle: u32, granted: u32) -> Self {
        let granted = granted.max(idle);
        Self { direction, idle, granted, now: idle, debt: 0 }
    }

    /// As much as is granted, but for the debt.
    fn raise(&mut self) {
        self.now = (self.granted - self.debt.min(self.granted)).max(self.idle);
    }

    fn lower(&mut self) {
        if self.direction == Direction::Receive {
            self.debt += self.now - self.idle;
        }
        self.now = self.idle;
    }

    /// So many bytes were read.
    fn read(&mut self, bytes: u64) {
        self.debt = self.debt.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

/// What the exchanges of one connection share in one direction: a turn, a window, and the number of streams.
pub(super) struct Bulk {
    turn: tokio::sync::Mutex<Weak<Turn>>,
    window: Arc<Mutex<Window>>,
    streams: Semaphore,
}

impl Bulk {
    pub(super) fn new(direction: Direction, budget: &Budget) -> Self {
        let window = match direction {
            Direction::Receive => budget.receive,
            Direction::Send => budget.send,
        };
        Self {
            turn: tokio::sync::Mutex::default(),
            window: Arc::new(Mutex::new(window)),
            streams: Semaphore::new(MAX_STREAMS),
        }
    }

    /// Waits for the connection's turn, or joins it when it has one already; then the window is open.
    ///
    /// # Errors
    /// Why the connection ended meanwhile: who is gone does not wait.
    pub(super) async fn join(
        &self,
        budget: &Budget,
        connection: &Connection,
    ) -> Result<Stream<'_>, LinkError> {
        tokio::select! {
            stream = self.wait(budget, connection) => Ok(stream),
            error = connection.closed() => Err(error),
        }
    }

    async fn wait(&self, budget: &Budget, connection: &Connection) -> Stream<'_> {
        // Invariant: as in `Budget::turn`.
        let place = self.streams.acquire().await.expect("never closed");
        let mut held = self.turn.lock().await;
        let turn = match held.upgrade() {
            Some(turn) => turn,
            None => {
                // The lock is held meanwhile: other streams of this connection wait for the same turn, not for another.
                let permit = budget.turn().await;
                let (connection, window) = (connection.clone(), self.window.clone());
                let turn = Arc::new(Turn { connection, window, _permit: permit });
                *held = Arc::downgrade(&turn);
                turn
            }
        };
        turn.change(Window::raise);
        Stream { turn, _place: place }
    }
}

/// One stream's share in its connection's turn.
pub(super) struct Stream<'a> {
    turn: Arc<Turn>,
    _place: SemaphorePermit<'a>,
}

impl Stream<'_> {
    /// Says that so many bytes came, and how many are still to come on all streams of the transfer.
    pub(super) fn came(&self, bytes: u64, left: u64) {
        self.turn.change(|window| {
            window.read(bytes);
            if left > u64::from(window.granted) { window.raise() } else { window.lower() }
        });
    }
}

/// A connection's turn: over when the last of its streams is.
struct Turn {
    connection: Connection,
    window: Arc<Mutex<Window>>,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    fn change(&self, change: impl FnOnce(&mut Window)) {
        // A poisoned lock guards numbers that are right before and after each change.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let before = window.now;
        change(&mut window);
        if window.now == before {
            return;
        }
        match window.direction {
            Direction::Receive => self.connection.grant_receiving(window.now),
            Direction::Send => self.connection.grant_sending(window.now),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.change(Window::lower);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(mib: u64) -> Budget {
        Budget::new(mib * MIB, &QuicSettings::coordinator())
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_budget_says_how_many_transfers_are_under_way() {
        for (mib, turns) in [(0, 1), (12, 1), (23, 1), (24, 2), (64, 5), (1200, 100)] {
            assert_eq!(budget(mib).turns.available_permits(), turns, "{mib} MiB");
        }
        // 50 sites: the budget, and the small windows of all.
        let settings = QuicSettings::coordinator();
        let small = 50 * u64::from(settings.receive_window + settings.send_window);
        assert!(64 * MIB + small <= 90 * MIB);
    }

    #[test]
    fn who_asked_first_has_the_next_turn() {
        let budget = budget(12);
        let first = pin!(budget.turn());
        let mut second = pin!(budget.turn());
        let mut third = pin!(budget.turn());
        let Poll::Ready(held) = poll(first) else { panic!("a turn is free") };
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        drop(held);
        assert!(poll(third.as_mut()).is_pending(), "the second asked before");
        let Poll::Ready(held) = poll(second.as_mut()) else { panic!("its turn") };
        drop(held);
        assert!(poll(third.as_mut()).is_ready());
    }

    #[test]
    fn who_stops_waiting_keeps_nobody_up() {
        let budget = budget(12);
        let held = pin!(budget.turn());
        let Poll::Ready(held) = poll(held) else { panic!("a turn is free") };
        let mut second = Box::pin(budget.turn());
        assert!(poll(second.as_mut()).is_pending());
        let mut third = pin!(budget.turn());
        assert!(poll(third.as_mut()).is_pending());
        drop(second);
        drop(held);
        assert!(poll(third.as_mut()).is_ready());
    }

    /// What the other side may send ahead of our reading, as QUIC counts it: a lowered window takes nothing back.
    struct Peer {
        window: Window,
        credit: i64,
        debt: i64,
    }

    impl Peer {
        fn change(&mut self, change: impl FnOnce(&mut Window)) {
            let before = i64::from(self.window.now);
            change(&mut self.window);
            let more = i64::from(self.window.now) - before;
            if more > 0 { self.credit += more } else { self.debt -= more }
        }

        /// It sends, we read.
        fn send(&mut self, bytes: i64) {
            assert!(bytes <= self.credit, "it has the credit");
            let paid = bytes.min(self.debt);
            self.debt -= paid;
            self.credit -= paid;
        }
    }

    #[test]
    fn credit_never_exceeds_what_is_granted_however_often_a_site_comes() {
        let (idle, granted) = (256 << 10, 4 << 20);
        for chunks in [1u64, 2, 5, 40] {
            let window = Window::new(Direction::Receive, idle, granted);
            let mut peer = Peer { window, credit: i64::from(idle), debt: 0 };
            for _ in 0..50 {
                peer.change(Window::raise);
                for left in (0..chunks).rev().map(|left| left * MIB) {
                    peer.send(MIB as i64);
                    peer.change(|window| {
                        window.read(MIB);
                        if left > u64::from(window.granted) { window.raise() } else { window.lower() }
                    });
                    assert!(peer.credit <= i64::from(granted), "{chunks} chunks: {}", peer.credit);
                }
                peer.change(Window::lower);
                assert_eq!(peer.window.now, idle);
                assert_eq!(peer.debt, i64::from(peer.window.debt));
                assert_eq!(peer.credit, i64::from(idle) + peer.debt);
            }
            // After a long transfer little is left over.
            assert!(chunks < 40 || peer.debt <= MIB as i64, "{}", peer.debt);
        }
    }

    #[test]
    fn a_long_transfer_has_the_whole_window_though_a_short_one_left_a_debt() {
        let mut window = Window::new(Direction::Receive, 256 << 10, 4 << 20);
        window.raise();
        window.lower();
        window.raise();
        assert!(window.now < window.granted, "the other side has the rest already");
        for _ in 0..4 {
            window.read(MIB);
            window.raise();
        }
        assert_eq!(window.now, window.granted);
        let mut window = Window::new(Direction::Send, 256 << 10, 4 << 20);
        window.raise();
        window.lower();
        window.raise();
        assert_eq!(window.now, window.granted, "what we send ahead is for us to say");
    }
}
