//! `host:port` of the coordinator, and which of the addresses behind it to dial.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use tokio::sync::OnceCell;

/// Where the coordinator answers. The host part is the name that its certificate must cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `host:port`, got `{got}`")]
pub struct ParseAddressError {
    got: String,
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseAddressError { got: text.chars().take(100).collect() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(wrong)?;
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl Address {
    /// The name that the coordinator's certificate must cover.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Looks the host up: all its addresses, in the order in which to try them.
    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which of the coordinator's addresses to dial: a name may have some that nothing answers at, such as those of IPv6 where the
/// coordinator listens on IPv4. The next one has its turn when one fails. The name is looked up when a lane first wants
/// the address; the other lane dials the same one.
#[derive(Debug, Default)]
pub(super) struct Remote {
    failures: usize,
    found: OnceCell<Vec<SocketAddr>>,
}

impl Remote {
    /// The address whose turn it is.
    ///
    /// # Errors
    /// What the resolver says, or that it knows no address.
    pub(super) async fn address(&self, coordinator: &Address) -> io::Result<SocketAddr> {
        let found = self.found.get_or_try_init(|| coordinator.resolve()).await?;
        let nothing = || io::Error::other(format!("no address is known for {}", coordinator.host));
        pick(found, self.failures).ok_or_else(nothing)
    }

    /// This one failed. Whether there is one that was not dialled before.
    pub(super) fn failed(&mut self) -> bool {
        self.failures = self.failures.wrapping_add(1);
        self.failures < self.found().len()
    }

    /// Looks the name up anew the next time: it may have got other addresses.
    pub(super) fn forget(&mut self) {
        self.found = OnceCell::new();
    }

    /// Which address has its turn, where the name has several.
    pub(super) fn one_of_several(&self) -> Option<String> {
        let found = self.found();
        let one = pick(found, self.failures).filter(|_| found.len() > 1)?;
        Some(format!("{one}, one of {} addresses, which are dialled in turn", found.len()))
    }

    /// All addresses, where the name has several.
    pub(super) fn all_of_several(&self) -> Option<String> {
        let all: Vec<_> = self.found().iter().map(ToString::to_string).collect();
        (all.len() > 1).then(|| all.join(", "))
    }

    fn found(&self) -> &[SocketAddr] {
        self.found.get().map_or(&[], Vec::as_slice)
    }

    /// As if a name server had said so.
    #[cfg(test)]
    pub(super) fn known(found: Vec<SocketAddr>) -> Self {
        Self { failures: 0, found: OnceCell::new_with(Some(found)) }
    }
}

/// The address whose turn it is after so many that failed: round and round.
fn pick(found: &[SocketAddr], failures: usize) -> Option<SocketAddr> {
    found.get(failures.checked_rem(found.len())?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_failure_turns_to_the_next_address_and_after_the_last_to_the_first() {
        let found = addresses(&["[2001:db8::1]:443", "192.0.2.1:443", "192.0.2.2:443"]);
        let dialled: Vec<_> = (0..5).map(|failures| pick(&found, failures).unwrap()).collect();
        assert_eq!(dialled, [found[0], found[1], found[2], found[0], found[1]]);
        assert_eq!(pick(&[], 3), None);
    }

    #[tokio::test]
    async fn every_address_has_a_turn_and_is_named() {
        let coordinator = "c.example.org:443".parse().unwrap();
        let found = addresses(&["[2001:db8::1]:443", "192.0.2.1:443"]);
        let mut remote = Remote::known(found.clone());
        assert_eq!(remote.address(&coordinator).await.unwrap(), found[0]);
        assert_eq!(remote.all_of_several().unwrap(), "[2001:db8::1]:443, 192.0.2.1:443");
        assert!(remote.failed());
        assert_eq!(remote.address(&coordinator).await.unwrap(), found[1]);
        let words = remote.one_of_several().unwrap();
        assert!(words.starts_with("192.0.2.1:443, one of 2 addresses"), "{words}");
        assert!(!remote.failed());
    }

    #[test]
    fn a_single_address_is_named_by_nobody() {
        let mut remote = Remote::known(addresses(&["192.0.2.1:443"]));
        assert_eq!((remote.one_of_several(), remote.all_of_several()), (None, None));
        assert!(!remote.failed());
    }

    #[test]
    fn addresses_read_back_what_they_show() {
        for text in ["consortium.example.org:443", "127.0.0.1:8443", "[::1]:443"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["", "host", "host:", ":443", "host:0", "host:70000", "https://host:443", "a b:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
