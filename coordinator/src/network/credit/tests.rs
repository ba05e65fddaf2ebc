//! Turns, windows and debts, in virtual time.

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
