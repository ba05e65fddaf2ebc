//! The running coordinator: opens everything, serves until told to stop, closes everything.

use std::path::Path;
use std::sync::Arc;

use link::LinkError;
use link::tls::Credentials;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::driver::{Driver, DriverHandle, Parts, RETRY, space_in_words};
use crate::network::{
    self, Budget, Context, Doors, Frame, LargeRequests, Refusals, Shelf, Strangers, UploadSlots,
};
use crate::open_files;
use crate::operator::{OperatorSocket, SocketError};
use crate::pki::{Authority, PkiError};
use crate::progress::{Line, Progress};
use crate::store::{SiteRecord, SiteStatus, Store, StoreError, name_failure, pause_name};

/// Why the coordinator does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The state folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator's socket.
    #[error("the operator's socket")]
    Socket(#[from] SocketError),
    /// The network.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: LinkError,
    },
}

/// A coordinator that listens, and does nothing yet.
pub struct Service {
    driver: Driver,
    doors: Doors,
    socket: OperatorSocket,
    context: Arc<Context>,
    connections: usize,
    store: Store,
}

impl Service {
    /// Opens the store, takes its lock, binds port and socket, and rebuilds the studies.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing is left behind but the files.
    pub async fn open(
        config: &Config,
        progress: Progress,
        stop: CancellationToken,
    ) -> Result<Self, ServiceError> {
        let authority = Arc::new(Authority::open(&config.certs, &config.consortium)?);
        let store = Store::open(&config.state).await?;
        // Sites that cannot be read are told of where they are needed.
        let active = |site: &&SiteRecord| site.status == SiteStatus::Active;
        open_files::make_room(store.sites().await.map_or(0, |sites| sites.iter().filter(active).count()));
        let socket = OperatorSocket::bind(&config.state)?;
        let doors = listen(config, &authority)?;
        let listening = local(&doors, config)?;
        progress.say(&Line::Listening { address: listening.clone(), tcp: doors.has_tcp() });
        // An address that stands for all of the machine's is none that sites can dial.
        let dialled = (!config.listen.ip().is_unspecified()).then_some(listening);
        let driver = Driver::open(Parts {
            store: store.clone(),
            authority: authority.clone(),
            address: config.address.clone().or(dialled),
            progress,
            stop: stop.clone(),
        })
        .await?;
        let context = Arc::new(Context {
            store: store.clone(),
            driver: driver.handle(),
            shelf: Shelf::default(),
            uploads: UploadSlots::default(),
            budget: Budget::new(config.transfer_bytes, &config.transport),
            large: LargeRequests::default(),
            admission: Admission::new(store.clone(), config.consortium.clone()),
            strangers: Strangers::new(config.enrolments_per_minute),
            refusals: Refusals::default(),
            seats: driver.seats(),
            authority,
            site_certificate_life: config.site_certificate_life,
            connection_age: config.connection_age,
            stop,
        });
        Ok(Self { driver, doors, socket, context, connections: config.connections, store })
    }

    /// As [`Service::open`], once the disk allows it: where it is full or read-only that is told, and it is tried again until it is not.
    /// `None` when told to stop before.
    ///
    /// # Errors
    /// [`ServiceError`] of anything else.
    pub async fn open_when_disk_allows(
        config: &Config,
        progress: Progress,
        stop: CancellationToken,
    ) -> Result<Option<Self>, ServiceError> {
        let open = || Self::open(config, progress, stop.clone());
        when_disk_allows(&config.state, progress, &stop, open).await
    }

    /// To ask it things from the same process.
    pub fn handle(&self) -> DriverHandle {
        self.driver.handle()
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The socket.
    pub fn local_address(&self) -> Result<std::net::SocketAddr, LinkError> {
        self.doors.local_address()
    }

    /// What its connections share.
    #[cfg(test)]
    pub(crate) fn context(&self) -> Arc<Context> {
        self.context.clone()
    }

    /// Serves until the token is cancelled, then drains: connections are closed, work under way is journalled.
    ///
    /// # Errors
    /// [`StoreError::Displaced`] as soon as the state folder is another: then nothing more is begun, nor drained: that would write, too.
    pub async fn run(self) -> Result<(), StoreError> {
        let Self { driver, doors, socket, context, connections, store } = self;
        let stop = context.stop.clone();
        let operator = socket.serve(driver.handle(), stop.clone());
        let served = async {
            tokio::join!(driver.run(), network::serve(doors, context, connections), operator);
        };
        tokio::select! {
            () = served => {}
            error = store.displaced() => {
                stop.cancel();
                return Err(error);
            }
        }
        store.close().await;
        Ok(())
    }
}

/// Tries `open` until the disk of `state` is neither full nor read-only, which is told once when it begins and once when it ends, or
/// until told to stop.
async fn when_disk_allows<T>(
    state: &Path,
    progress: Progress,
    stop: &CancellationToken,
    mut open: impl AsyncFnMut() -> Result<T, ServiceError>,
) -> Result<Option<T>, ServiceError> {
    let mut told: Option<&'static str> = None;
    loop {
        let error = match open().await {
            Ok(opened) => {
                if let Some(code) = told {
                    progress.say(&Line::Recovered { code: code.to_owned() });
                }
                return Ok(Some(opened));
            }
            Err(error) => error,
        };
        let ServiceError::Store(failure) = &error else { return Err(error) };
        // Meanwhile a command may look at the state, and holds it as long as it does.
        let is_in_use = told.is_some() && matches!(failure, StoreError::Locked { .. });
        let code = told.filter(|_| is_in_use).unwrap_or_else(|| name_failure(state, failure));
        if pause_name(code).is_none() {
            return Err(error);
        }
        if told.replace(code) != Some(code) {
            tracing::error!(
                code,
                error = failure as &dyn std::error::Error,
                "the store cannot be opened yet"
            );
            progress.say(&Line::Fault { code: code.to_owned(), detail: space_in_words(state) });
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

fn listen(config: &Config, authority: &Authority) -> Result<Doors, ServiceError> {
    let identity = authority.certify_server(&config.server_names())?;
    let opened = Doors::open(&Frame {
        listen: config.listen,
        tcp: config.tcp,
        quic: &config.transport,
        credentials: Credentials { chain: identity.chain, key: identity.key },
        root: authority.root(),
        reset_key: authority.reset_key(),
    });
    opened.map_err(|source| ServiceError::Listen { address: config.listen.to_string(), source })
}

fn local(doors: &Doors, config: &Config) -> Result<String, ServiceError> {
    let address = doors.local_address();
    let address =
        address.map_err(|source| ServiceError::Listen { address: config.listen.to_string(), source })?;
    Ok(address.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::time::Instant;

    use super::*;
    use crate::fixture::Fixture;

    fn refused(kind: ErrorKind) -> Result<u32, ServiceError> {
        Err(StoreError::File { path: "lock".into(), source: kind.into() }.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_takes_nothing_is_waited_for_and_nothing_else_is() {
        let stop = CancellationToken::new();
        let opened = async |answers: Vec<Result<u32, ServiceError>>| {
            let mut answers = answers.into_iter();
            let open = || std::future::ready(answers.next().unwrap());
            when_disk_allows(Path::new("state"), Progress::Silent, &stop, open).await
        };
        let begun = Instant::now();
        let in_use = || Err(StoreError::Locked { path: "state".into() }.into());
        let answers =
            vec![refused(ErrorKind::StorageFull), refused(ErrorKind::ReadOnlyFilesystem), in_use(), Ok(7)];
        assert_eq!(opened(answers).await.unwrap(), Some(7), "the doctor looked at it meanwhile");
        assert!((3 * RETRY..4 * RETRY).contains(&begun.elapsed()));
        let failed = opened(vec![in_use()]).await;
        assert!(matches!(failed, Err(ServiceError::Store(StoreError::Locked { .. }))), "{failed:?}");

        let failed = opened(vec![refused(ErrorKind::PermissionDenied)]).await;
        assert!(matches!(failed, Err(ServiceError::Store(StoreError::File { .. }))), "{failed:?}");
        stop.cancel();
        assert_eq!(opened(vec![refused(ErrorKind::ReadOnlyFilesystem)]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_coordinator_whose_state_is_moved_away_ends() {
        let fixture = Fixture::new().await;
        let (state, stop) = (&fixture.config.state, CancellationToken::new());
        let service = Service::open(&fixture.config, Progress::Silent, stop.clone()).await.unwrap();
        std::fs::rename(state, state.with_extension("away")).unwrap();
        let ended = service.run().await;
        assert!(matches!(ended, Err(StoreError::Displaced { .. })), "{ended:?}");
        assert!(stop.is_cancelled(), "its connections end too");
    }
}
