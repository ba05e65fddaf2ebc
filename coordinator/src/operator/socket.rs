//! The operator's door to a running coordinator: a Unix socket that only the owner can open.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Reply, Request};
use crate::driver::DriverHandle;

/// Longest path of a Unix socket, bytes: the kernel's `sun_path` less its final zero.
pub const MAX_SOCKET_PATH: usize = 107;
/// Longest request, bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel takes no such long name.
    #[error("{} has {} bytes; a Unix socket's path has at most {MAX_SOCKET_PATH}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// The file system says no.
    #[error("{}", .path.display())]
    File {
        /// The socket.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

/// Where the socket of the coordinator with this state folder lies.
///
/// # Errors
/// [`SocketError::TooLong`].
pub fn socket_path(state: &Path) -> Result<PathBuf, SocketError> {
    let path = state.join("operator.sock");
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(SocketError::TooLong(path));
    }
    Ok(path)
}

/// Serves the operator until told to stop; the socket's file goes with it.
#[derive(Debug)]
pub struct OperatorSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl OperatorSocket {
    /// Opens the socket. Call only while holding the store's lock: what lies at the path is then a dead one's.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(state: &Path) -> Result<Self, SocketError> {
        let path = socket_path(state)?;
        let file = |source| SocketError::File { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(error)),
            _ => {}
        }
        // Between bind and chmod the socket has the umask's mode; the folder around it is 0700.
        let listener = UnixListener::bind(&path).map_err(file)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(file)?;
        Ok(Self { listener, path })
    }

    /// Answers requests.
    pub async fn serve(self, driver: DriverHandle, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (driver, stop) = (driver.clone(), stop.clone());
                        tasks.spawn(async move {
                            let served = stop.run_until_cancelled(serve_one(stream, driver)).await;
                            if let Some(Err(error)) = served {
                                tracing::warn!(%error, "an operator's request was not answered");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the operator socket does not accept");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
        tasks.close();
        tasks.wait().await;
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve_one(stream: UnixStream, driver: DriverHandle) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_REQUEST));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(request) => driver.operate(request).await,
        Err(error) => Reply::failed(
            format!("not a request: {error}"),
            Some("use the `coordinator` program of the same version as the server"),
        ),
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    write.write_all(&text).await?;
    write.shutdown().await
}
