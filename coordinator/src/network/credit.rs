//! Who may move bulk now: a budget of memory, given out in order of asking.
//!
//! A connection's windows are small until a transfer of it has its turn, larger while it has, and small again after. One
//! turn is for one connection and one direction, however many streams it takes; so the memory of all transfers is bounded
//! by the budget, however many sites there are. A site that waits is not failing: its bytes wait for flow control, and
//! keep-alive goes on.
//!
//! A turn has a window of 4 MiB; and up to 16 on a long way, if nobody waits when it begins and one more turn has room beside it.
//!
//! ```text
//! 50 sites ─► 5 turns of 12 MiB (window 4 MiB, and two chunks for each of four streams) = 60 MiB
//!             50 × (256 + 256) KiB of small windows                                  = 25 MiB
//!             50 × 768 KiB that a whole transfer may leave, for peers that use it    = 38 MiB
//!  2 sites ─► 2 turns of 24 MiB (window 16 MiB), if they are far away               = 48 MiB
//! ```
//! Flow control cannot take credit back: a window is lowered by giving none for what is read next. So it is lowered when
//! no more is to come than the connection has credit for: the transfer loses nothing, and its last bytes pay the debt, but for
//! what comes to a chunk with the small window. Where a transfer is broken off with a larger debt, its connection keeps as
//! much of the budget until a later transfer has paid. All of them keep so much at most that one more turn has room, however
//! long they are silent. A connection whose debt has no place in that is closed: its credit ends with it. So what is under
//! way is bounded by the budget and 1.25 MiB for each connection.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use common::artifact::CHUNK_BYTES;
use link::quic::{Connection, QuicSettings};
use link::transfer::MAX_STREAMS;
use link::{CloseCode, Lane, LinkError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// The window of a turn when others wait: 640 Mbit/s over 50 ms where nothing is lost.
const SHARED_WINDOW: u32 = 4 << 20;
/// There and back, from which on a turn may have more: on a shorter way, 4 MiB are 1.6 Gbit/s and more.
const LONG_WAY: Duration = Duration::from_millis(20);
/// What the budget is counted in.
const UNIT: u32 = 1 << 20;

/// Memory for transfers under way; clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Units that nobody has. First come, first served.
    free: Arc<Semaphore>,
    /// Units that connections without a turn may still keep: one turn has room beside all that they keep.
    keepable: Arc<Semaphore>,
    /// Held while a turn takes more than its share.
    widening: Arc<Mutex<()>>,
    /// Units of every turn: its window when others wait, and its buffers.
    share: u32,
    /// Units beyond it that make a window as wide as it may be.
    more: u32,
    idle_receive: u32,
    idle_send: u32,
    least: u32,
}

impl Budget {
    /// So many bytes; one transfer is always possible.
    pub fn new(bytes: u64, settings: &QuicSettings) -> Self {
        let least = SHARED_WINDOW.min(settings.granted_window);
        let buffers = 2 * CHUNK_BYTES * MAX_STREAMS as u64;
        // Some MiB: they fit.
        let share = u32::try_from((u64::from(least) + buffers).div_ceil(UNIT.into())).unwrap_or(u32::MAX);
        let units = u32::try_from(bytes / u64::from(UNIT)).unwrap_or(u32::MAX).clamp(share, 1 << 20);
        Self {
            free: Arc::new(Semaphore::new(units as usize)),
            keepable: Arc::new(Semaphore::new((units - share) as usize)),
            widening: Arc::default(),
            share,
            more: (settings.granted_window - least) / UNIT,
            idle_receive: settings.receive_window,
            idle_send: settings.send_window,
            least,
        }
    }

    async fn turn(&self) -> OwnedSemaphorePermit {
        // Invariant: the semaphore lives as long as this and nobody closes it.
        self.free.clone().acquire_many_owned(self.share).await.expect("never closed")
    }

    /// What a turn may have beyond its share. Who waits has taken what was free, so nobody is passed over; and one more turn
    /// has room beside it.
    fn more(&self) -> Option<OwnedSemaphorePermit> {
        // It guards the order of two calls alone.
        let _alone = self.widening.lock().unwrap_or_else(PoisonError::into_inner);
        let free = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
        let more = free.saturating_sub(self.share).min(self.more);
        if more == 0 {
            return None;
        }
        self.free.clone().try_acquire_many_owned(more).ok()
    }

    fn window(&self, direction: Direction) -> Window {
        let idle = match direction {
            Direction::Receive => self.idle_receive,
            Direction::Send => self.idle_send,
        };
        Window::new(direction, idle, self.least)
    }
}

/// Which way the bytes go, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Receive,
    Send,
}

/// The window of one connection in one direction. What the other side has credit for is `now + debt`, never more than
/// is granted.
#[derive(Debug)]
struct Window {
    direction: Direction,
    idle: u32,
    /// Granted in every turn.
    least: u32,
    /// What of the budget grants more; without a turn, what stands for the debt.
    more: Option<OwnedSemaphorePermit>,
    /// The place of that in what all connections may keep.
    kept: Option<OwnedSemaphorePermit>,
    now: u32,
    /// Turns that have begun and not ended: one may begin while the last stream of the one before is going.
    turns: u32,
    /// Credit given beyond the window, until so many bytes more were read.
    debt: u32,
}

impl Window {
    fn new(direction: Direction, idle: u32, least: u32) -> Self {
        let least = least.max(idle);
        Self { direction, idle, least, more: None, kept: None, now: idle, turns: 0, debt: 0 }
    }

    fn granted(&self) -> u32 {
        let more = self.more.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.least.saturating_add(u32::try_from(more).unwrap_or(u32::MAX).saturating_mul(UNIT))
    }

    /// A turn begins.
    fn open(&mut self) {
        self.turns = self.turns.saturating_add(1);
    }

    /// Makes a turn wider, if there is room. What a broken transfer kept is its own.
    fn widen(&mut self, budget: &Budget) {
        if self.more.is_none() {
            self.more = budget.more();
        }
    }

    /// As much as is granted, but for the debt, and no more than is to come.
    fn raise(&mut self, left: u64) {
        let wanted = u32::try_from(left).unwrap_or(u32::MAX).min(self.granted());
        self.now = wanted.saturating_sub(self.debt).max(self.now);
    }

    fn lower(&mut self) {
        if self.direction == Direction::Receive {
            self.debt += self.now - self.idle;
        }
        self.now = self.idle;
    }

    /// So many bytes were read, and so many are still to come.
    fn read(&mut self, bytes: u64, left: u64) {
        self.debt = self.debt.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        if left > u64::from(self.granted()) { self.raise(left) } else { self.lower() }
    }

    /// A turn ends. The next may have the window already.
    fn close(&mut self) {
        self.turns = self.turns.saturating_sub(1);
        if self.turns == 0 {
            self.lower();
        }
    }

    /// Units that the debt takes, but for what a whole transfer may leave: no more than a chunk with the small window.
    fn owed(&self) -> u32 {
        let left_by_a_whole = CHUNK_BYTES.saturating_sub(self.idle.into());
        let beyond = u64::from(self.debt).saturating_sub(left_by_a_whole);
        u32::try_from(beyond.div_ceil(UNIT.into())).unwrap_or(u32::MAX)
    }

    /// After the last turn: keeps what the debt takes, out of the turn's `share` and what it had beyond; the rest is free with the
    /// share. Whether there was room for it in what connections may keep.
    fn keep(&mut self, share: &mut OwnedSemaphorePermit, budget: &Budget) -> bool {
        if self.turns > 0 {
            return true;
        }
        if let Some(more) = self.more.take() {
            share.merge(more);
        }
        self.kept = None;
        let owed = self.owed();
        if owed == 0 {
            return true;
        }
        self.kept = budget.keepable.clone().try_acquire_many_owned(owed).ok();
        if self.kept.is_some() {
            // Never more than the turn had: no credit was given beyond that.
            self.more = share.split(owed as usize);
        }
        self.kept.is_some()
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
        Self {
            turn: tokio::sync::Mutex::default(),
            window: Arc::new(Mutex::new(budget.window(direction))),
            streams: Semaphore::new(MAX_STREAMS),
        }
    }

    /// Waits for the connection's turn, or joins it when it has one already; then the window is open for the `left` bytes that
    /// are to come at most.
    ///
    /// # Errors
    /// Why the connection ended meanwhile: who is gone does not wait.
    pub(super) async fn join(
        &self,
        budget: &Budget,
        connection: &Connection,
        left: u64,
    ) -> Result<Stream<'_>, LinkError> {
        tokio::select! {
            stream = self.wait(budget, connection, left) => Ok(stream),
            error = connection.closed() => Err(error),
        }
    }

    async fn wait(&self, budget: &Budget, connection: &Connection, left: u64) -> Stream<'_> {
        // Invariant: as in `Budget::turn`.
        let place = self.streams.acquire().await.expect("never closed");
        let mut held = self.turn.lock().await;
        let turn = match held.upgrade() {
            Some(turn) => turn,
            None => {
                // The lock is held meanwhile: other streams of this connection wait for the same turn, not for another.
                let share = budget.turn().await;
                let (connection, window) = (connection.clone(), self.window.clone());
                let turn = Arc::new(Turn { connection, window, budget: budget.clone(), share });
                turn.change(Window::open);
                if turn.connection.round_trip() >= LONG_WAY {
                    turn.change(|window| window.widen(budget));
                }
                *held = Arc::downgrade(&turn);
                turn
            }
        };
        turn.change(|window| window.raise(left));
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
        self.turn.change(|window| window.read(bytes, left));
    }
}

/// A connection's turn: over when the last of its streams is.
struct Turn {
    connection: Connection,
    window: Arc<Mutex<Window>>,
    budget: Budget,
    share: OwnedSemaphorePermit,
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
        self.change(Window::close);
        let Self { connection, window, budget, share } = self;
        // As in `Turn::change`.
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        // Over TCP nothing was granted, and of a connection that has ended nothing comes.
        if connection.lane() == Lane::Tcp || connection.close_reason().is_some() {
            window.debt = 0;
        }
        if !window.keep(share, budget) {
            let words = "a transfer broke off, and there is no memory for what it may still send";
            tracing::warn!(remote = %connection.remote_address(), "closed: {words}");
            connection.close(CloseCode::TooBusy, &words.into());
        }
    }
}

#[cfg(test)]
mod tests;
