//! Strangers who shook hands to enrol: none of them keeps out who holds an invite, be they silent or wrong.
//!
//! Beside the connections of sites there are [`PLACES`] for them. When all are taken, whoever has waited longest makes room, in the
//! network that most of them come from: an honest one has asked within two round trips, and a crowd displaces its own. Of those whose
//! invite does not count, so many a minute are told why. Nobody is counted before the invite was looked at: it has 256 bits, so that
//! there is nothing to guess.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::wire::{Refusal, RefusalCode};
use tokio_util::sync::CancellationToken;

/// How many are served at once.
const PLACES: usize = 64;

/// Those who are served, and how many were refused.
pub struct Strangers {
    served: Mutex<Served>,
    refusals: Mutex<RateLimit>,
}

#[derive(Default)]
struct Served {
    by_arrival: Vec<Stranger>,
    next: u64,
}

struct Stranger {
    number: u64,
    network: IpAddr,
    displaced: CancellationToken,
}

/// One of them, until it is dropped.
pub(super) struct Guest<'a> {
    strangers: &'a Strangers,
    number: u64,
    displaced: CancellationToken,
}

impl Strangers {
    /// So many refusals in a minute have their reason told.
    pub fn new(refusals_per_minute: u32) -> Self {
        let refusals = RateLimit { limit: refusals_per_minute, window: None };
        Self { served: Mutex::default(), refusals: Mutex::new(refusals) }
    }

    /// One more, in the place of another if need be.
    pub(super) fn enter(&self, address: IpAddr) -> Guest<'_> {
        let (network, displaced) = (link::network_of(address), CancellationToken::new());
        let mut served = self.lock();
        if served.by_arrival.len() >= PLACES {
            served.displace();
        }
        let number = served.next;
        served.next += 1;
        served.by_arrival.push(Stranger { number, network, displaced: displaced.clone() });
        Guest { strangers: self, number, displaced }
    }

    /// What to answer who is refused: the reason or, beyond so many in this minute, none.
    pub(super) fn answer(&self, refusal: Refusal, now: Instant) -> Refusal {
        // It guards two numbers: they are good whatever happened.
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.allow(now) {
            true => refusal,
            false => Refusal::new(RefusalCode::TooBusy, "too many enrolments were refused in this minute"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Served> {
        // Each change below the lock is one step.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    /// Sends one away.
    fn displace(&mut self) {
        let crowd = |one: &Stranger| self.by_arrival.iter().filter(|two| two.network == one.network).count();
        // Of equals the last is taken: backwards, that is who came first.
        let longest = self.by_arrival.iter().enumerate().rev().max_by_key(|&(_, one)| crowd(one));
        if let Some((at, _)) = longest {
            self.by_arrival.remove(at).displaced.cancel();
        }
    }
}

impl Guest<'_> {
    /// Waits until its place is another's.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.strangers.lock().by_arrival.retain(|one| one.number != self.number);
    }
}

/// So many in each minute that begins with the first of them.
struct RateLimit {
    limit: u32,
    window: Option<(Instant, u32)>,
}

impl RateLimit {
    fn allow(&mut self, now: Instant) -> bool {
        let window = self.window.filter(|(start, _)| now - *start < Duration::from_secs(60));
        let (start, count) = window.unwrap_or((now, 0));
        self.window = Some((start, count.saturating_add(1)));
        count < self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(guest: &Guest<'_>) -> bool {
        guest.displaced.is_cancelled()
    }

    #[test]
    fn a_crowd_displaces_its_own_who_waited_longest() {
        let [honest, crowd]: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let strangers = Strangers::new(1);
        let first = strangers.enter(honest);
        let mut silent: Vec<_> = (1..PLACES).map(|_| strangers.enter(crowd)).collect();
        assert!(!gone(&first) && silent.iter().all(|guest| !gone(guest)));

        silent.push(strangers.enter(crowd));
        silent.push(strangers.enter(crowd));
        let second = strangers.enter(honest);
        assert!(!gone(&first) && !gone(&second));
        let displaced: Vec<_> = silent.iter().map(gone).collect();
        assert!(displaced[..3].iter().all(|&gone| gone) && displaced[3..].iter().all(|&gone| !gone));

        drop((first, second, silent));
        assert!(strangers.lock().by_arrival.is_empty());
    }

    #[test]
    fn of_as_many_networks_as_there_are_places_the_one_that_waited_longest_goes() {
        let strangers = Strangers::new(1);
        let address = |number: usize| IpAddr::from([192, 0, 2, u8::try_from(number).unwrap()]);
        let guests: Vec<_> = (0..=PLACES).map(|number| strangers.enter(address(number))).collect();
        let displaced: Vec<_> = guests.iter().map(gone).collect();
        assert!(displaced[0] && displaced[1..].iter().all(|&gone| !gone));
    }

    #[test]
    fn a_new_minute_has_new_places() {
        let mut limit = RateLimit { limit: 2, window: None };
        let start = Instant::now();
        assert_eq!([0, 1, 2].map(|s| limit.allow(start + Duration::from_secs(s))), [true, true, false]);
        assert!(limit.allow(start + Duration::from_secs(60)));
    }
}
