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
use crate::store::{Failing, Store, StoreError, causes, name_failure, pause_name};

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

/// How often a store in use is asked for, a second each. A coordinator that starts has the lock before it listens to operators,
/// and one that ends has it for longer than it does.
const TRIES: usize = 10;

/// Asks the coordinator of `config`, running or not.
///
/// # Errors
/// [`AskError`]; that the request itself was refused is a [`Reply::Failed`].
pub async fn ask(config: &Config, request: Request) -> Result<Reply, AskError> {
    for _ in 1..TRIES {
        match ask_once(config, &request).await {
            Err(AskError::Store(StoreError::Locked { .. })) => {}
            answered => return answered,
        }
    }
    ask_once(config, &request).await
}

async fn ask_once(config: &Config, request: &Request) -> Result<Reply, AskError> {
    match ask_running(&config.state, request).await? {
        Some(reply) => Ok(reply),
        None => ask_store(config, request.clone()).await,
    }
}

/// Asks the running coordinator; `None` when none runs.
///
/// # Errors
/// [`AskError::Socket`] or [`AskError::Exchange`].
pub async fn ask_running(state: &Path, request: &Request) -> Result<Option<Reply>, AskError> {
    let socket = socket_path(state)?;
    let mut stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        // No file, or the file of one that was killed.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        // Whether one runs, another user cannot know.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(StoreError::file(&socket)(error).into());
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
    let (store, failing) = open_for(&request, &config.state).await?;
    let parts = Parts {
        authority: std::sync::Arc::new(Authority::open(&config.certs, &config.consortium)?),
        store: store.clone(),
        address: config.address.clone(),
        progress: Progress::Silent,
        stop: CancellationToken::new(),
    };
    let reply = Driver::open(parts).await?.with_trouble(failing).operate_offline(request).await;
    store.close().await;
    Ok(reply)
}

/// Opens the store for a request. On a disk that takes nothing it can be looked at, and how the disk fails goes with it.
async fn open_for(request: &Request, state: &Path) -> Result<(Store, Option<Failing>), StoreError> {
    let error = match Store::open(state).await {
        Ok(store) => return Ok((store, None)),
        Err(error) => error,
    };
    let code = name_failure(state, &error);
    if pause_name(code).is_none() || !request.only_looks() {
        return Err(error);
    }
    let words = causes(&error);
    let store = Store::inspect(state).await.map_err(|_| error)?;
    Ok((store, Some(Failing { code, words })))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use crate::fixture::Fixture;
    use crate::store::StoreLock;

    fn written_by_hand() -> Reply {
        Reply::Done { words: "it is asked".to_owned() }
    }

    /// The database's own waiting is of real time: time stands still from when it is there.
    #[tokio::test]
    async fn a_coordinator_that_is_starting_is_asked_when_it_listens() {
        let fixture = Fixture::new().await;
        let state = &fixture.config.state;
        let _held = StoreLock::try_take(state).unwrap();
        tokio::time::pause();
        let starting = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let listener = UnixListener::bind(socket_path(state).unwrap()).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            stream.write_all(&serde_json::to_vec(&written_by_hand()).unwrap()).await.unwrap();
        };
        let (answered, ()) = tokio::join!(ask(&fixture.config, Request::Status), starting);
        assert_eq!(answered.unwrap(), written_by_hand());
    }

    #[tokio::test]
    async fn a_store_that_stays_in_use_is_said_to_be() {
        let fixture = Fixture::new().await;
        let _held = StoreLock::try_take(&fixture.config.state).unwrap();
        tokio::time::pause();
        let refused = ask(&fixture.config, Request::Status).await.unwrap_err();
        assert!(matches!(refused, AskError::Store(StoreError::Locked { .. })));
    }
}
