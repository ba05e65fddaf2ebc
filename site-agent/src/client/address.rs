//! `host:port` of the coordinator.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

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

    /// Looks the host up.
    ///
    /// # Errors
    /// What the resolver says, or that it knows no address.
    pub async fn resolve(&self) -> std::io::Result<SocketAddr> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?.next();
        found.ok_or_else(|| std::io::Error::other(format!("no address is known for {}", self.host)))
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

#[cfg(test)]
mod tests {
    use super::*;

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
