//! The running coordinator: opens everything, serves until told to stop, closes everything.

use std::sync::Arc;

use link::LinkError;
use link::tls::Credentials;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::driver::{Driver, DriverHandle, Parts};
use crate::network::{
    self, Budget, Context, Doors, Frame, LargeRequests, Refusals, Shelf, Strangers, UploadSlots,
};
use crate::open_files;
use crate::operator::{OperatorSocket, SocketError};
use crate::pki::{Authority, PkiError};
use crate::progress::{Line, Progress};
use crate::store::{SiteRecord, SiteStatus, Store, StoreError};

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
    use super::*;
    use crate::fixture::Fixture;

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
