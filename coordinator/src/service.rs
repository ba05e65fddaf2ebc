//! The running coordinator: opens everything, serves until told to stop, closes everything.

use std::sync::Arc;

use link::LinkError;
use link::quic::Listener;
use link::tls::{self, Credentials};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::clock;
use crate::config::Config;
use crate::driver::{Driver, DriverHandle, Parts};
use crate::network::{self, Budget, Context, Shelf};
use crate::operator::{OperatorSocket, SocketError};
use crate::pki::{Authority, PkiError};
use crate::progress::{Line, Progress};
use crate::store::{Store, StoreError};

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
    listener: Listener,
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
        let socket = OperatorSocket::bind(&config.state)?;
        let listener = listen(config, &authority)?;
        let address = local(&listener, config)?;
        progress.say(&Line::Listening { address: address.clone() });
        let driver = Driver::open(Parts {
            store: store.clone(),
            authority: authority.clone(),
            address: Some(config.address.clone().unwrap_or(address)),
            progress,
            stop: stop.clone(),
        })
        .await?;
        let context = Arc::new(Context {
            store: store.clone(),
            driver: driver.handle(),
            shelf: Shelf::default(),
            budget: Budget::new(config.transfer_bytes, &config.transport),
            admission: Admission::new(store.clone(), config.consortium.clone()),
            authority,
            site_certificate_life: config.site_certificate_life,
            connection_age: config.connection_age,
            enrolments_per_minute: config.enrolments_per_minute,
            stop,
        });
        Ok(Self { driver, listener, socket, context, connections: config.connections, store })
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
        self.listener.local_address()
    }

    /// Serves until the token is cancelled, then drains: connections are closed, work under way is journalled.
    pub async fn run(self) {
        let Self { driver, listener, socket, context, connections, store } = self;
        let operator = socket.serve(driver.handle(), context.stop.clone());
        tokio::join!(driver.run(), network::serve(listener, context, connections), operator);
        store.close().await;
    }
}

fn listen(config: &Config, authority: &Authority) -> Result<Listener, ServiceError> {
    let identity = authority.certify_server(&config.server_names(), clock::now())?;
    let credentials = Credentials { chain: identity.chain, key: identity.key };
    let bind = || {
        let tls = tls::server_config(credentials, authority.root())?;
        Listener::bind_with(config.listen, tls, config.transport.clone(), authority.reset_key())
    };
    bind().map_err(|source| ServiceError::Listen { address: config.listen.to_string(), source })
}

fn local(listener: &Listener, config: &Config) -> Result<String, ServiceError> {
    let address = listener.local_address();
    let address =
        address.map_err(|source| ServiceError::Listen { address: config.listen.to_string(), source })?;
    Ok(address.to_string())
}
