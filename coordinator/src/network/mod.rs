//! The network's side of the coordinator: who knocks is let in or turned away, and what is asked is answered.
//!
//! `doors` are what is listened with, `enrolment` speaks with strangers who hold an invite, `refusals` tells of those who were
//! turned away, `session` speaks with one connected site, `requests` answers each exchange, `chunks` those that carry some,
//! `upload` takes updates in, one of each site in its `slot`, `shelf` keeps open what is fetched, `large` bounds what requests
//! take, `rotten` says of what the disk has changed that it cannot be, `credit` says whose turn it is, `pace` who loses it. No
//! decision about rounds is made here: that is asked of the driver.

mod chunks;
mod credit;
mod doors;
mod enrolment;
mod large;
mod pace;
mod refusals;
mod requests;
mod rotten;
mod session;
mod shelf;
mod slot;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::wire::RefusalCode;
use link::{Admitted, CloseCode, Connection, LinkError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::credit::Budget;
pub use self::large::LargeRequests;
pub use self::refusals::Refusals;
pub use self::shelf::Shelf;
pub use self::slot::UploadSlots;
use crate::admission::Admission;
use crate::driver::{DriverHandle, Seats};
use crate::pki::Authority;
use crate::store::Store;
use doors::Knock;
pub use doors::{Doors, Frame};

/// What every connection needs.
pub struct Context {
    /// The store.
    pub store: Store,
    /// The driver.
    pub driver: DriverHandle,
    /// Artifacts that are fetched now.
    pub shelf: Shelf,
    /// Updates that are arriving.
    pub uploads: UploadSlots,
    /// Memory for transfers.
    pub budget: Budget,
    /// Memory for large requests.
    pub large: LargeRequests,
    /// Who may speak.
    pub admission: Admission,
    /// Who was turned away at the door.
    pub refusals: Refusals,
    /// The connections of sites.
    pub seats: Seats,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Life of a site's certificate.
    pub site_certificate_life: Duration,
    /// Longest life of a connection.
    pub connection_age: Duration,
    /// Most enrolment attempts in a minute.
    pub enrolments_per_minute: u32,
    /// Cancelled when the process is to stop.
    pub stop: CancellationToken,
}

/// Takes connections until told to stop, then waits for those under way.
pub async fn serve(doors: Doors, context: Arc<Context>, connections: usize) {
    let places = Arc::new(Semaphore::new(connections));
    let strangers = Arc::new(RateLimit::new(context.enrolments_per_minute));
    let tasks = TaskTracker::new();
    while let Some(Some(knock)) = context.stop.run_until_cancelled(doors.next()).await {
        let (context, strangers, places) = (context.clone(), strangers.clone(), places.clone());
        tasks.spawn(async move { answer_knock(knock, context, &strangers, places).await });
    }
    tasks.close();
    doors.close(CloseCode::Stopping).await;
    tasks.wait().await;
}

/// Who shakes hands has a place at the door, and takes one among the connections once it is known who that is: over TCP most
/// belong to a connection that is open already, and on both lanes strangers who never finish keep nobody's place.
async fn answer_knock(knock: Knock, context: Arc<Context>, strangers: &RateLimit, places: Arc<Semaphore>) {
    let remote = knock.remote_address();
    let admitted = knock.admit().await;
    let place: Option<OwnedSemaphorePermit> = match &admitted {
        Ok(Admitted::Site(connection, _) | Admitted::Stranger(connection)) => {
            let Ok(place) = places.try_acquire_owned() else {
                let code = CloseCode::TooBusy;
                return say_refused(&context, connection, code, code.words()).await;
            };
            Some(place)
        }
        // Counted at the door: the operator is not told of each look at an open port. Nor of who came as we closed.
        Err(error) if link::is_noise(error) || matches!(error, LinkError::ClosedHere) => return,
        Ok(Admitted::Joined) | Err(_) => None,
    };
    answer(admitted, remote, context, strangers).await;
    drop(place);
}

async fn answer(
    admitted: Result<Admitted, LinkError>,
    remote: SocketAddr,
    context: Arc<Context>,
    strangers: &RateLimit,
) {
    match admitted {
        // The session that serves its connection takes it.
        Ok(Admitted::Joined) => {}
        Ok(Admitted::Site(connection, identity)) => session::serve(connection, identity, context).await,
        Ok(Admitted::Stranger(connection)) if strangers.allow(Instant::now()) => {
            enrolment::serve(connection, &context).await;
        }
        Ok(Admitted::Stranger(connection)) => {
            say_refused(&context, &connection, CloseCode::TooBusy, "too many enrolments in this minute")
                .await;
        }
        Err(error) => {
            context.refusals.say(&context.driver, error.code(), format!("{remote}: {error}")).await;
        }
    }
}

async fn say_refused(context: &Context, connection: &Connection, code: CloseCode, words: &str) {
    let detail = format!("{}: {words}", connection.remote_address());
    connection.close(code, &words.into());
    context.refusals.say(&context.driver, code.code(), detail).await;
}

/// How a connection ends whose site may not speak.
fn close_code(code: RefusalCode) -> CloseCode {
    match code {
        RefusalCode::SiteRevoked => CloseCode::Revoked,
        RefusalCode::CertificateExpired => CloseCode::CertificateExpired,
        RefusalCode::Internal => CloseCode::TooBusy,
        _ => CloseCode::UnknownSite,
    }
}

/// So many in each minute that begins with the first of them.
struct RateLimit {
    limit: u32,
    window: std::sync::Mutex<Option<(Instant, u32)>>,
}

impl RateLimit {
    fn new(limit: u32) -> Self {
        Self { limit, window: std::sync::Mutex::new(None) }
    }

    fn allow(&self, now: Instant) -> bool {
        // A poisoned lock guards two numbers: they are still good.
        let mut window = self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (start, count) =
            window.filter(|(start, _)| now - *start < Duration::from_secs(60)).unwrap_or((now, 0));
        *window = Some((start, count.saturating_add(1)));
        count < self.limit
    }
}

#[cfg(test)]
mod tests;
