//! Asking the coordinator: the running one over its socket, else the store itself, under its lock.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{Reply, Request, SocketError, socket_path};
use crate::config::Config;
use crate::driver::{Driver, Parts};
use crate::pki::{Authority, PkiError};
use crate::progress::Progress;
use crate::store::{Store, StoreError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The socket's path.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The running coordinator does not answer as it should.
    #[error("the running coordinator does not answer")]
    Exchange(#[source] io::Error),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Asks the coordinator of `config`, running or not.
///
/// # Errors
/// [`AskError`]; that the request itself was refused is a [`Reply::Failed`].
pub async fn ask(config: &Config, request: Request) -> Result<Reply, AskError> {
    match ask_running(&config.state, &request).await? {
        Some(reply) => Ok(reply),
        None => ask_store(config, request).await,
    }
}

/// Asks the running coordinator; `None` when none runs.
///
/// # Errors
/// [`AskError::Socket`] or [`AskError::Exchange`].
pub async fn ask_running(state: &Path, request: &Request) -> Result<Option<Reply>, AskError> {
    let mut stream = match UnixStream::connect(socket_path(state)?).await {
        Ok(stream) => stream,
        // No file, or the file of one that was killed.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(AskError::Exchange(error)),
    };
    let exchange = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    exchange.await.map(Some).map_err(AskError::Exchange)
}

async fn ask_store(config: &Config, request: Request) -> Result<Reply, AskError> {
    let store = Store::open(&config.state).await?;
    let parts = Parts {
        authority: std::sync::Arc::new(Authority::open(&config.certs, &config.consortium)?),
        store: store.clone(),
        address: config.address.clone(),
        progress: Progress::Silent,
        stop: CancellationToken::new(),
    };
    let reply = Driver::open(parts).await?.operate_offline(request).await;
    store.close().await;
    Ok(reply)
}
