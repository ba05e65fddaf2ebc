//! What of a round is the machine's: the same bytes over QUIC alone, with as little around it as the result allows.
//!
//! Processes, sizes, mutual TLS, BLAKE3 of each chunk (of updates at both ends, of the model where it is made and where it arrives) and a new model that is durable are those of ours. There is no
//! protocol: sites have the model in memory, the coordinator adds up the same chunk of all sites as it comes, no update is kept,
//! and nothing can be resumed or refused. quinn has its own congestion control, and the windows that were quickest here.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use common::ids::Digest;
use link::tls::crypto_provider;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime};
use quinn::{TransportConfig, VarInt};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::SockRef;

use super::process::command;
use super::rounds::{Row, Times};

/// What is sent, hashed and added up at once.
const CHUNK: u64 = 1 << 20;
/// The name in the certificate that both ends show.
const NAME: &str = "bare";
const SOCKET_BUFFER: usize = 2 << 20;
/// For a site to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the rounds; this process is the coordinator.
pub(crate) fn measure(folder: &Path, params: u64, sites: u16, rounds: u32) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir_in(folder)?;
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
    fs::write(folder.path().join("certificate"), cert.der())?;
    fs::write(folder.path().join("key"), signing_key.serialize_der())?;
    let model = folder.path().join("model");
    let bytes = params * 4;
    // Of zeros, in no block of the disk yet: the first round stands apart anyway.
    File::create(&model)?.set_len(bytes)?;

    let started = Instant::now();
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let endpoint = listen(folder.path())?;
    let address = endpoint.local_addr()?;
    let program = std::env::current_exe()?;
    let children = (0..sites).map(|_| {
        let mut site = command(&program);
        site.arg("bare-site").arg(folder.path()).args([address.to_string(), bytes.to_string()]);
        Ok(Site(site.spawn()?))
    });
    let mut children = children.collect::<anyhow::Result<Vec<_>>>()?;
    let times = runtime.block_on(coordinate(&endpoint, &model, bytes, rounds, sites, started))?;
    for Site(child) in &mut children {
        let status = child.wait()?;
        ensure!(status.success(), "a bare site ended with {status}");
    }
    let row = Row {
        system: "quinn alone".to_owned(),
        lane: "quic".to_owned(),
        params,
        sites,
        rounds,
        bytes: Some(2 * u64::from(sites) * bytes),
        // This process had other work before.
        coordinator_peak_mb: f64::NAN,
        site_peak_mb: f64::NAN,
        ..Row::default()
    };
    Ok(row.with(&times))
}

/// A site's process. Dropped, it is killed.
struct Site(std::process::Child);

impl Drop for Site {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn coordinate(
    endpoint: &Endpoint,
    model: &Path,
    bytes: u64,
    rounds: u32,
    sites: u16,
    started: Instant,
) -> anyhow::Result<Times> {
    let mut connections = Vec::new();
    for _ in 0..sites {
        let knock = tokio::time::timeout(PATIENCE, endpoint.accept()).await.context("a site did not come")?;
        connections.push(knock.context("the endpoint is open")?.await?);
    }
    let (mut times, cold_start) = (Vec::new(), started.elapsed().as_secs_f64());
    for _ in 0..rounds {
        let opened = Instant::now();
        let (mut updates, mut downloads) = (Vec::new(), tokio::task::JoinSet::new());
        for connection in &connections {
            let (send, receive) = connection.open_bi().await?;
            downloads.spawn(send_model(send, File::open(model)?, bytes));
            updates.push(receive);
        }
        add_up(&mut updates, model, bytes).await?;
        while let Some(sent) = downloads.join_next().await {
            sent??;
        }
        times.push(opened.elapsed().as_secs_f64());
    }
    endpoint.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok(Times { rounds: times, cold_start })
}

async fn send_model(mut to: SendStream, model: File, bytes: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    for (at, length) in chunks(bytes) {
        model.read_exact_at(&mut buffer[..length], at)?;
        to.write_all(&buffer[..length]).await?;
    }
    Ok(to.finish()?)
}

/// Makes the next model: the mean of what the sites send, chunk by chunk.
async fn add_up(updates: &mut [RecvStream], model: &Path, bytes: u64) -> anyhow::Result<()> {
    let next = model.with_extension("next");
    let file = File::create(&next)?;
    let (mut buffer, mut sums) = (vec![0; CHUNK as usize], vec![0.0_f64; CHUNK as usize / 4]);
    for (at, length) in chunks(bytes) {
        sums.fill(0.0);
        for update in &mut *updates {
            update.read_exact(&mut buffer[..length]).await?;
            std::hint::black_box(Digest::of(&buffer[..length]));
            for (sum, number) in sums.iter_mut().zip(buffer[..length].as_chunks::<4>().0) {
                *sum += f64::from(f32::from_le_bytes(*number));
            }
        }
        let all = updates.len() as f64;
        for (number, sum) in buffer[..length].as_chunks_mut::<4>().0.iter_mut().zip(&sums) {
            *number = ((sum / all) as f32).to_le_bytes();
        }
        std::hint::black_box(Digest::of(&buffer[..length]));
        file.write_all_at(&buffer[..length], at)?;
    }
    file.sync_all()?;
    fs::rename(&next, model)?;
    File::open(model.parent().context("a file lies in a folder")?)?.sync_all()?;
    Ok(())
}

/// A site: takes each model, changes it a little, sends it back.
pub(crate) fn site(folder: &Path, coordinator: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut endpoint = endpoint(None)?;
        endpoint.set_default_client_config(dialing(folder)?);
        let connection = endpoint.connect(coordinator, NAME)?.await?;
        let mut model = vec![0; usize::try_from(bytes)?];
        // The coordinator closes when it has seen enough.
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            for part in model.chunks_mut(CHUNK as usize) {
                receive.read_exact(part).await?;
                std::hint::black_box(Digest::of(part));
            }
            for part in model.chunks_mut(CHUNK as usize) {
                for number in part.as_chunks_mut::<4>().0 {
                    *number = (f32::from_le_bytes(*number) + 1e-3).to_le_bytes();
                }
                std::hint::black_box(Digest::of(part));
                send.write_all(part).await?;
            }
            send.finish()?;
        }
        Ok(())
    })
}

/// Where each chunk lies, and how long it is.
fn chunks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes.div_ceil(CHUNK)).map(move |index| {
        let at = index * CHUNK;
        (at, (bytes - at).min(CHUNK) as usize)
    })
}

type Shown = (CertificateDer<'static>, PrivateKeyDer<'static>, Arc<RootCertStore>);

fn shown(folder: &Path) -> anyhow::Result<Shown> {
    let certificate = CertificateDer::from(fs::read(folder.join("certificate"))?);
    let key = PrivateKeyDer::try_from(fs::read(folder.join("key"))?).map_err(anyhow::Error::msg)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    Ok((certificate, key, Arc::new(roots)))
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(2 << 20));
    transport.receive_window(VarInt::from_u32(4 << 20));
    transport.send_window(2 << 20);
    Arc::new(transport)
}

fn endpoint(config: Option<ServerConfig>) -> anyhow::Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER)?;
    SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER)?;
    Ok(Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime))?)
}

fn listen(folder: &Path) -> anyhow::Result<Endpoint> {
    let (certificate, key, roots) = shown(folder)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto_provider()).build()?;
    let tls = rustls::ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    endpoint(Some(config))
}

fn dialing(folder: &Path) -> anyhow::Result<ClientConfig> {
    let (certificate, key, roots) = shown(folder)?;
    let tls = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_bytes_once() {
        assert_eq!(chunks(0).count(), 0);
        assert_eq!(chunks(CHUNK).collect::<Vec<_>>(), [(0, CHUNK as usize)]);
        assert_eq!(chunks(CHUNK + 4).collect::<Vec<_>>(), [(0, CHUNK as usize), (CHUNK, 4)]);
    }
}
