//! Who is at the door: handshakes under way from each address, so that one address cannot take all places. Of either lane.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes under way from each address.
#[derive(Debug)]
pub(crate) struct Callers {
    limit: usize,
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One handshake under way.
#[derive(Debug)]
pub(crate) struct Caller {
    callers: Arc<Callers>,
    address: IpAddr,
}

impl Callers {
    /// So many of each.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, by_address: Mutex::default() }
    }

    /// One more from this address, unless there are too many.
    pub(crate) fn enter(callers: &Arc<Self>, address: IpAddr) -> Option<Caller> {
        let address = network_of(address);
        let mut by_address = callers.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_insert(0);
        if *count >= callers.limit {
            return None;
        }
        *count += 1;
        Some(Caller { callers: callers.clone(), address })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut by_address = self.callers.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Whom a limit is for: in IPv6 whoever has one address has all of its /64.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_handshakes() {
        let callers = Arc::new(Callers::new(2));
        let [crowd, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let first = Callers::enter(&callers, crowd);
        let second = Callers::enter(&callers, crowd);
        assert!(first.is_some() && second.is_some());
        assert!(Callers::enter(&callers, crowd).is_none());
        assert!(Callers::enter(&callers, other).is_some());
        drop(first);
        assert!(Callers::enter(&callers, crowd).is_some());
        drop(second);
        assert!(callers.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn who_has_a_whole_network_counts_once() {
        let network = |address: &str| network_of(address.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
