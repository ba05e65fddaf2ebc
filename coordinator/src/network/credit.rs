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
            let budget = budget(mib);
            let held = std::iter::from_fn(|| match poll(pin!(budget.turn())) {
                Poll::Ready(turn) => Some(turn),
                Poll::Pending => None,
            });
            assert_eq!(held.collect::<Vec<_>>().len(), turns, "{mib} MiB");
        }
        // 50 sites: the budget, and the small windows of all.
        let settings = QuicSettings::coordinator();
        let small = 50 * u64::from(settings.receive_window + settings.send_window);
        assert!(64 * MIB + small <= 90 * MIB);
        // And at the worst, what whole transfers leave.
        let left = 50 * (CHUNK_BYTES - u64::from(settings.receive_window));
        assert!(64 * MIB + small + left <= 128 * MIB);
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

    fn begin(budget: &Budget, window: &mut Window) -> OwnedSemaphorePermit {
        let Poll::Ready(share) = poll(pin!(budget.turn())) else { panic!("a turn is free") };
        window.widen(budget);
        share
    }

    /// Whether the connection may stay.
    fn end(budget: &Budget, window: &mut Window, mut share: OwnedSemaphorePermit) -> bool {
        window.close();
        window.keep(&mut share, budget)
    }

    fn free(budget: &Budget) -> usize {
        budget.free.available_permits()
    }

    #[test]
    fn a_turn_is_wider_while_nobody_waits_and_another_has_room() {
        let budget = budget(64);
        let mut windows = [0; 3].map(|_| budget.window(Direction::Receive));
        let mut shares = Vec::new();
        for (window, wide) in windows.iter_mut().zip([16, 16, 4]) {
            shares.push(begin(&budget, window));
            assert_eq!(u64::from(window.granted()), wide * MIB);
        }
        assert_eq!(free(&budget), 4);
        let mut waits = pin!(budget.turn());
        assert!(poll(waits.as_mut()).is_pending());
        // The first is over: its place goes to who waits, and the rest is not free before that one has all.
        assert!(end(&budget, &mut windows[0], shares.remove(0)));
        let Poll::Ready(_share) = poll(waits.as_mut()) else { panic!("its turn") };
        let mut window = budget.window(Direction::Receive);
        window.widen(&budget);
        assert_eq!((u64::from(window.granted()), free(&budget)), (8 * MIB, 12), "one more turn has room");
    }

    #[test]
    fn while_somebody_waits_no_turn_is_wider() {
        let budget = budget(30);
        let (mut one, mut other) = (budget.window(Direction::Send), budget.window(Direction::Send));
        let first = begin(&budget, &mut one);
        assert_eq!(u64::from(one.granted()), 10 * MIB, "another turn has room");
        let _second = begin(&budget, &mut other);
        let mut third = pin!(budget.turn());
        assert!(poll(third.as_mut()).is_pending());
        other.widen(&budget);
        assert_eq!(u64::from(other.granted()), 4 * MIB);
        assert!(end(&budget, &mut one, first));
        assert_eq!(free(&budget), 6, "the rest goes to who waits");
        other.widen(&budget);
        assert_eq!(u64::from(other.granted()), 4 * MIB, "there is no room for one more turn");
        assert!(poll(third.as_mut()).is_ready());
    }

    #[test]
    fn what_a_broken_transfer_was_given_stays_taken_until_it_is_paid() {
        let budget = budget(64);
        let mut window = budget.window(Direction::Receive);
        let share = begin(&budget, &mut window);
        window.raise(u64::MAX);
        assert!(end(&budget, &mut window, share));
        assert_eq!(free(&budget), 49, "the other side may still send 16 MiB, a chunk of which is nobody's");
        let share = begin(&budget, &mut window);
        window.raise(16 * MIB);
        assert_eq!(window.now, window.idle, "it has the rest already");
        window.read(16 * MIB, 0);
        assert!(end(&budget, &mut window, share));
        assert_eq!(free(&budget), 64);

        let mut window = budget.window(Direction::Send);
        let share = begin(&budget, &mut window);
        window.raise(u64::MAX);
        assert!(end(&budget, &mut window, share));
        assert_eq!(free(&budget), 64, "what we send ahead is for us to say");
    }

    #[test]
    fn a_turn_that_begins_while_the_one_before_is_going_keeps_its_window() {
        let budget = budget(64);
        let mut window = budget.window(Direction::Send);
        window.open();
        window.raise(u64::MAX);
        window.open();
        window.raise(u64::MAX);
        window.close();
        assert_eq!(window.now, window.granted());
        window.close();
        assert_eq!(window.now, window.idle);
    }

    #[test]
    fn broken_transfers_stay_in_the_budget_and_leave_room_for_one_turn_however_many() {
        for mib in [12, 24, 64] {
            let budget = budget(mib);
            let mut windows: Vec<_> = (0..50).map(|_| budget.window(Direction::Receive)).collect();
            // Who is closed has no credit any more.
            windows.retain_mut(|window| {
                let share = begin(&budget, window);
                window.raise(u64::MAX);
                end(&budget, window, share)
            });
            let under_way: u64 = windows.iter().map(|window| u64::from(window.now + window.debt)).sum();
            let kept = mib - free(&budget) as u64;
            assert!(under_way <= kept * MIB + windows.len() as u64 * CHUNK_BYTES, "{mib} MiB: {under_way}");
            let Poll::Ready(turn) = poll(pin!(budget.turn())) else { panic!("one is always possible") };
            drop((turn, windows));
            assert_eq!(free(&budget) as u64, mib, "what a connection keeps ends with it");
        }
    }

    #[test]
    fn who_has_kept_something_keeps_no_more_than_it_owes() {
        let budget = budget(24);
        let mut window = budget.window(Direction::Receive);
        let share = begin(&budget, &mut window);
        window.raise(4 * MIB);
        assert!(end(&budget, &mut window, share));
        assert_eq!((free(&budget), budget.keepable.available_permits()), (21, 9));
        let share = begin(&budget, &mut window);
        window.read(2 * MIB, MIB);
        assert!(end(&budget, &mut window, share));
        assert_eq!((free(&budget), budget.keepable.available_permits()), (23, 11));
        assert!(window.debt > 0, "less than a chunk is nobody's");
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
                peer.change(|window| window.raise(chunks * MIB));
                for left in (0..chunks).rev().map(|left| left * MIB) {
                    peer.send(MIB as i64);
                    peer.change(|window| window.read(MIB, left));
                    assert!(peer.credit <= i64::from(granted), "{chunks} chunks: {}", peer.credit);
                }
                peer.change(Window::close);
                assert_eq!(peer.window.now, idle);
                assert_eq!(peer.debt, i64::from(peer.window.debt));
                assert_eq!(peer.credit, i64::from(idle) + peer.debt);
                assert_eq!(peer.window.owed(), 0, "{chunks} chunks: a whole transfer leaves {}", peer.debt);
            }
        }
    }

    #[test]
    fn a_long_transfer_has_the_whole_window_though_a_short_one_left_a_debt() {
        let mut window = Window::new(Direction::Receive, 256 << 10, 4 << 20);
        window.raise(u64::MAX);
        window.lower();
        window.raise(u64::MAX);
        assert!(window.now < window.granted(), "the other side has the rest already");
        for _ in 0..4 {
            window.read(MIB, u64::MAX);
        }
        assert_eq!(window.now, window.granted());
        let mut window = Window::new(Direction::Send, 256 << 10, 4 << 20);
        window.raise(u64::MAX);
        window.lower();
        window.raise(u64::MAX);
        assert_eq!(window.now, window.granted(), "what we send ahead is for us to say");
    }
}
