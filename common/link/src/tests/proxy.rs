//! Through an HTTP proxy, and what it may answer instead.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::tcp_lane::{admit_over_tcp, listen_over_tcp, tcp_dialer};
use super::*;
use crate::tcp::{Proxy, Route, TcpSettings};

/// A proxy that gives every caller the same answer, and after a 200 a way to `coordinator`; its address, and the head
/// of the first request.
async fn proxy(answer: &'static str, coordinator: SocketAddr) -> (Proxy, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = tokio::spawn(async move {
        let (mut site, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(site.read_u8().await.unwrap());
        }
        site.write_all(answer.as_bytes()).await.unwrap();
        if answer.contains("200") {
            let mut onwards = TcpStream::connect(coordinator).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut site, &mut onwards).await });
        }
        String::from_utf8(head).unwrap()
    });
    (proxy, serving)
}

async fn dial_through(pki: &Pki, proxy: Proxy) -> Result<Connection, LinkError> {
    let dialer = tcp_dialer(tls::site_config(pki.site("north"), &pki.root()).unwrap());
    dialer.dial(Route::Proxy(proxy), "localhost", 8443).await
}

#[tokio::test]
async fn a_proxy_makes_a_way_and_sees_tls_alone() {
    let pki = Pki::new();
    let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
    let (proxy, serving) = proxy("HTTP/1.1 200 Connection established\r\nVia: 1.1 p\r\n\r\n", address).await;
    let through = proxy.with_login("north", "secret");
    let (site, admitted) = tokio::join!(dial_through(&pki, through), admit_over_tcp(&listener));
    let Ok(Admitted::Site(coordinator, identity)) = admitted else { panic!("{admitted:?}") };
    assert_eq!(identity.site.as_str(), "north");
    let mut asked = site.unwrap().open().await.unwrap();
    asked.writer.write(&Reply::Done).await.unwrap();
    let mut heard = coordinator.accept().await.unwrap();
    assert_eq!(heard.reader.read::<Reply>().await.unwrap(), Reply::Done);
    let head = serving.await.unwrap();
    assert!(head.starts_with("CONNECT localhost:8443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic bm9ydGg6c2VjcmV0\r\n"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_says_no_is_named_with_what_to_do() {
    let pki = Pki::new();
    for (answer, code, hint) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy-login", "proxy_user"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "proxy-forbidden", "network team"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "proxy-refused", "network team"),
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n", "proxy-garbage", "HTTP proxy"),
        ("HTTP/1.1 no end", "proxy-garbage", "HTTP proxy"),
    ] {
        let (proxy, _serving) = proxy(answer, any_port()).await;
        let name = proxy.to_string();
        let error = dial_through(&pki, proxy).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(&name), "{error}");
        assert!(error.hint().is_some_and(|words| words.contains(hint)), "{error}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_short() {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (mut site, _) = listener.accept().await.unwrap();
        while site.write_all(b"HTTP/1.1 200 OK and so on ").await.is_ok() {}
    });
    let error = dial_through(&Pki::new(), proxy).await.unwrap_err();
    assert_eq!(error.code(), "proxy-garbage");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told() {
    let closed = std::net::TcpListener::bind(any_port()).unwrap();
    let proxy = format!("http://{}", closed.local_addr().unwrap()).parse().unwrap();
    drop(closed);
    let error = dial_through(&Pki::new(), proxy).await.unwrap_err();
    assert_eq!((error.code(), error.is_transient()), ("proxy-unreachable", true));
}

#[tokio::test]
async fn a_proxy_that_falls_silent_is_named_with_what_to_ask() {
    let pki = Pki::new();
    // The second says that there is a way, and carries nothing.
    for (answer, words, hint) in [
        ("", "does not answer `CONNECT localhost:8443`", "takes CONNECT"),
        ("HTTP/1.1 200 OK\r\n\r\n", "nothing comes through it", "reaches the coordinator"),
    ] {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let proxy: Proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let name = proxy.to_string();
        let silent = async {
            let (mut site, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(site.read_u8().await.unwrap());
            }
            site.write_all(answer.as_bytes()).await.unwrap();
            if !answer.is_empty() {
                // The site begins with TLS: it has read the answer.
                site.read_u8().await.unwrap();
            }
            // Nothing more is to come: its patience passes at once.
            tokio::time::pause();
            site
        };
        let (dialled, _stays) = tokio::join!(dial_through(&pki, proxy), silent);
        tokio::time::resume();
        let error = dialled.unwrap_err();
        assert_eq!((error.code(), error.is_transient()), ("proxy-silent", true), "{error}");
        assert!(error.to_string().contains(&name) && error.to_string().contains(words), "{error}");
        assert!(error.hint().is_some_and(|told| told.contains("network team") && told.contains(hint)));
    }
}
