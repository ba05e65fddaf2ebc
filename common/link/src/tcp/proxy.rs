//! HTTP CONNECT: asking a hospital's proxy for a way out.
//!
//! The proxy carries bytes between us and the coordinator; TLS runs inside, from end to end. A proxy that opens it shows
//! a certificate of its own and is recognised by that ([`crate::tls`]).

use std::fmt;
use std::io;
use std::str::FromStr;

use common::wire::Words;
use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::error::LinkError;

/// The longest head of an answer.
const HEAD_BYTES: usize = 8 << 10;

/// An HTTP proxy, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    login: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "http://[{}]:{}", self.host, self.port);
        }
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

/// Text that names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProxyError {
    /// Another scheme.
    #[error("expected `http://host:port`: TLS runs inside, and no other proxies are spoken to")]
    Scheme,
    /// A name or password in it.
    #[error("name and password do not belong here")]
    Login,
    /// No `host:port`.
    #[error("expected `http://host:port`")]
    Form,
}

impl FromStr for Proxy {
    type Err = ParseProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or(ParseProxyError::Scheme)?;
        if rest.contains('@') {
            return Err(ParseProxyError::Login);
        }
        let address = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = address.rsplit_once(':').ok_or(ParseProxyError::Form)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|&port| port != 0).ok_or(ParseProxyError::Form)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(ParseProxyError::Form);
        }
        Ok(Self { host: host.to_owned(), port, login: None })
    }
}

/// Why a proxy does not let us through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It does not answer.
    #[error("it cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// 407.
    #[error("it wants a name and password (407){}", not_these(*.shown))]
    Login {
        /// Whether it was shown some.
        shown: bool,
    },
    /// 403.
    #[error("it forbids the way to {target} (403)")]
    Forbidden {
        /// The coordinator.
        target: Words,
    },
    /// Another status.
    #[error("it does not make a way to {target}: {status}")]
    Status {
        /// The coordinator.
        target: Words,
        /// Its first line.
        status: Words,
    },
    /// No HTTP.
    #[error("its answer is no HTTP")]
    Garbage,
    /// Somebody takes the connection, and then nothing comes.
    #[error("{}", silence(*.opened, .target))]
    Silent {
        /// The coordinator.
        target: Words,
        /// Whether it had said that it made a way.
        opened: bool,
    },
}

fn silence(opened: bool, target: &Words) -> String {
    match opened {
        true => format!("it made a way to {target}, and nothing comes through it"),
        false => format!("it takes the connection, and does not answer `CONNECT {target}`"),
    }
}

const fn not_these(shown: bool) -> &'static str {
    if shown { ", and not the ones it was shown" } else { "" }
}

impl ProxyError {
    /// Short stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "proxy-unreachable",
            Self::Login { .. } => "proxy-login",
            Self::Forbidden { .. } => "proxy-forbidden",
            Self::Status { .. } => "proxy-refused",
            Self::Garbage => "proxy-garbage",
            Self::Silent { .. } => "proxy-silent",
        }
    }

    /// What the site's operator can do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "check `proxy` in site.toml",
            Self::Login { .. } => "set `proxy_user` and `proxy_password_file` in site.toml",
            Self::Forbidden { .. } => {
                "ask the network team to allow CONNECT through the proxy to the coordinator's host and port"
            }
            Self::Status { .. } => {
                "check the coordinator's address; ask the network team what the proxy's answer means"
            }
            Self::Garbage => "check that `proxy` in site.toml is an HTTP proxy, and its port",
            Self::Silent { opened: true, .. } => {
                "ask the network team whether the proxy reaches the coordinator's host and port, and whether something behind it drops TLS"
            }
            Self::Silent { opened: false, .. } => {
                "ask the network team whether `proxy` in site.toml is their HTTP proxy, with its port, and whether it takes CONNECT to the coordinator's host and port from this machine"
            }
        }
    }

    /// Whether trying again later can help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Status { .. } | Self::Silent { .. })
    }
}

impl Proxy {
    /// With name and password (RFC 7617). The proxy hears them in the clear.
    #[must_use]
    pub fn with_login(self, user: &str, password: &str) -> Self {
        Self { login: Some(BASE64.encode(format!("{user}:{password}").as_bytes())), ..self }
    }

    /// A way through to `target`, a `host:port`, if there is one by then.
    pub(super) async fn tunnel(&self, target: &str, deadline: Instant) -> Result<TcpStream, LinkError> {
        self.try_tunnel(target, deadline).await.map_err(|error| self.fails(error))
    }

    async fn try_tunnel(&self, target: &str, deadline: Instant) -> Result<TcpStream, ProxyError> {
        let connected = timeout_at(deadline, TcpStream::connect((self.host.as_str(), self.port))).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut stream = connected.map_err(ProxyError::Unreachable)?;
        let head = async {
            stream.write_all(self.request(target).as_bytes()).await.map_err(ProxyError::Unreachable)?;
            read_head(&mut stream).await
        };
        let silent = ProxyError::Silent { target: target.into(), opened: false };
        let head = timeout_at(deadline, head).await.unwrap_or(Err(silent))?;
        self.judge(&head, target)?;
        Ok(stream)
    }

    pub(super) fn fails(&self, error: ProxyError) -> LinkError {
        LinkError::Proxy { proxy: self.to_string().into(), error }
    }

    fn request(&self, target: &str) -> String {
        let login = self.login.as_ref();
        let login = login.map_or(String::new(), |login| format!("Proxy-Authorization: Basic {login}\r\n"));
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n")
    }

    fn judge(&self, head: &str, target: &str) -> Result<(), ProxyError> {
        let status = head.lines().next().unwrap_or_default();
        let code = match status.split(' ').collect::<Vec<_>>()[..] {
            ["HTTP/1.1" | "HTTP/1.0", code, ..] if code.len() == 3 => code,
            _ => return Err(ProxyError::Garbage),
        };
        match code.as_bytes() {
            [b'2', ..] => Ok(()),
            b"407" => Err(ProxyError::Login { shown: self.login.is_some() }),
            b"403" => Err(ProxyError::Forbidden { target: target.into() }),
            _ => Err(ProxyError::Status { target: target.into(), status: status.into() }),
        }
    }
}

/// Everything to the first empty line, and not a byte more: what follows is the coordinator's.
async fn read_head(stream: &mut TcpStream) -> Result<String, ProxyError> {
    let mut head = Vec::new();
    // One byte at a time, once for a connection: what is behind the head stays in the socket.
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if head.len() < HEAD_BYTES => head.push(byte),
            Ok(_) => return Err(ProxyError::Garbage),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ProxyError::Garbage),
            Err(error) => return Err(ProxyError::Unreachable(error)),
        }
    }
    String::from_utf8(head).map_err(|_| ProxyError::Garbage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> Proxy {
        "http://proxy.hospital.example:3128".parse().unwrap()
    }

    #[test]
    fn a_proxy_is_read_and_shown_without_its_password() {
        for text in ["http://proxy.hospital.example:3128", "http://10.0.0.1:8080", "http://[::1]:3128"] {
            assert_eq!(text.parse::<Proxy>().unwrap().to_string(), text);
        }
        let shown = format!("{:?}", proxy().with_login("north", "secret"));
        assert_eq!(shown, "Proxy(http://proxy.hospital.example:3128)");
        for (text, error) in [
            ("https://proxy:3128", ParseProxyError::Scheme),
            ("proxy:3128", ParseProxyError::Scheme),
            ("http://a:b@proxy:3128", ParseProxyError::Login),
            ("http://proxy", ParseProxyError::Form),
            ("http://proxy:0", ParseProxyError::Form),
            ("http://pro xy\r\n:3128", ParseProxyError::Form),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_request_shows_a_login_only_when_there_is_one() {
        let request = proxy().request("c.example.org:443");
        assert_eq!(request, "CONNECT c.example.org:443 HTTP/1.1\r\nHost: c.example.org:443\r\n\r\n");
        let request = proxy().with_login("Aladdin", "open sesame").request("c:1");
        assert!(
            request.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            "{request}"
        );
    }

    #[test]
    fn each_answer_has_its_name() {
        let code = |head: &str| proxy().judge(head, "c:443").map_err(|error| error.code());
        assert_eq!(code("HTTP/1.1 200 Connection established\r\n\r\n"), Ok(()));
        assert_eq!(code("HTTP/1.0 200\r\n\r\n"), Ok(()));
        assert_eq!(code("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), Err("proxy-login"));
        assert_eq!(code("HTTP/1.1 403 Forbidden\r\n\r\n"), Err("proxy-forbidden"));
        assert_eq!(code("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Err("proxy-refused"));
        assert_eq!(code("SSH-2.0-OpenSSH\r\n\r\n"), Err("proxy-garbage"));
        assert_eq!(code("HTTP/1.1 2000 \r\n\r\n"), Err("proxy-garbage"));
    }
}
