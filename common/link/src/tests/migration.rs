//! A site's address changes in mid-transfer, as when a router forgets it or a laptop changes networks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

use super::pki::PATIENCE;
use super::*;

const BYTES: usize = 4 << 20;

/// Carries datagrams between one site and the coordinator; the coordinator sees another port once `moved` is set.
async fn carry(front: UdpSocket, coordinator: SocketAddr, moved: Arc<AtomicBool>) -> std::io::Result<()> {
    let mut back = UdpSocket::bind(any_port()).await?;
    let (mut out, mut home) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut site, mut has_moved) = (None, false);
    loop {
        tokio::select! {
            got = front.recv_from(&mut out) => {
                let (len, from) = got?;
                site = Some(from);
                if moved.load(Ordering::Relaxed) && !has_moved {
                    (back, has_moved) = (UdpSocket::bind(any_port()).await?, true);
                }
                back.send_to(&out[..len], coordinator).await?;
            }
            got = back.recv_from(&mut home) => {
                let (len, _) = got?;
                if let Some(site) = site {
                    front.send_to(&home[..len], site).await?;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_connection_survives_a_change_of_address_in_mid_transfer() {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let front = UdpSocket::bind(any_port()).await.unwrap();
    let relay = front.local_addr().unwrap();
    let moved = Arc::new(AtomicBool::new(false));
    let carrying = tokio::spawn(carry(front, address, moved.clone()));

    let dialer = site_dialer(&pki);
    let (site, admitted) = tokio::join!(dialer.dial(relay, "localhost"), admit(&listener));
    let Ok(Admitted::Site(coordinator, _)) = admitted else { panic!("{admitted:?}") };
    let site = site.unwrap();
    let before = coordinator.remote_address();
    let data: Vec<u8> = (0..BYTES).map(|k| (k % 251) as u8).collect();
    let send = async {
        let mut exchange = site.open().await.unwrap();
        exchange.writer.write_raw(&data[..BYTES / 2]).await.unwrap();
        moved.store(true, Ordering::Relaxed);
        exchange.writer.write_raw(&data[BYTES / 2..]).await.unwrap();
        exchange.writer.finish().await.unwrap();
        exchange.reader.read::<Reply>().await.unwrap()
    };
    let receive = async {
        let mut exchange = coordinator.accept().await.unwrap();
        let mut got = Vec::new();
        exchange.reader.read_raw(BYTES, &mut got, "data").await.unwrap();
        exchange.writer.write(&Reply::Done).await.unwrap();
        exchange.writer.finish().await.unwrap();
        got
    };
    let both = async { tokio::join!(send, receive) };
    let (reply, got) = tokio::time::timeout(PATIENCE, both).await.expect("no reconnection is waited for");
    assert_eq!(reply, Reply::Done);
    assert!(got == data, "every byte arrived");
    assert!(site.close_reason().is_none() && coordinator.close_reason().is_none());
    assert_ne!(coordinator.remote_address(), before, "the coordinator saw the new address");
    carrying.abort();
}
