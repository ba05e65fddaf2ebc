//! The network's side of the coordinator: who knocks is let in or turned away, and what is asked is answered.
//!
//! `doors` are what is listened with, `enrolment` speaks with strangers who hold an invite, `strangers` keeps those who hold
//! none out of their way, `refusals` tells of who was turned away, `session` speaks with one connected site, `requests` answers
//! each exchange, `chunks` those that carry some, `upload` takes updates in, one of each site in its `slot`, `shelf` keeps open
//! what is fetched, `large` bounds what requests take, `rotten` says of what the disk has changed that it cannot be, `credit`
//! says whose turn it is, `pace` who loses it. No decision about rounds is made here: that is asked of the driver.

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
mod strangers;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use common::wire::RefusalCode;
use link::{Admitted, CloseCode, Connection, LinkError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::credit::Budget;
pub use self::large::LargeRequests;
pub use self::refusals::Refusals;
pub use self::shelf::Shelf;
pub use self::slot::UploadSlots;
pub use self::strangers::Strangers;
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
    /// Who comes to enrol.
    pub strangers: Strangers,
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
    /// Cancelled when the process is to stop.
    pub stop: CancellationToken,
}

/// Takes connections until told to stop, then waits for those under way.
pub async fn serve(doors: Doors, context: Arc<Context>, connections: usize) {
    let places = Arc::new(Semaphore::new(connections));
    let tasks = TaskTracker::new();
    while let Some(Some(knock)) = context.stop.run_until_cancelled(doors.next()).await {
        tasks.spawn(answer(knock, context.clone(), places.clone()));
    }
    tasks.close();
    doors.close(CloseCode::Stopping).await;
    tasks.wait().await;
}

/// Who shakes hands has a place at the door, and takes one among the connections once it is known that it is a site: over TCP most
/// belong to a connection that is open already, and on both lanes strangers keep nobody's place.
async fn answer(knock: Knock, context: Arc<Context>, places: Arc<Semaphore>) {
    let remote = knock.remote_address();
    match knock.admit().await {
        // The session that serves its connection takes it.
        Ok(Admitted::Joined) => {}
        Ok(Admitted::Site(connection, identity)) => match places.try_acquire() {
            Ok(_place) => session::serve(connection, identity, context).await,
            Err(_) => {
                let code = CloseCode::TooBusy;
                say_refused(&context, &connection, code, code.words()).await;
            }
        },
        Ok(Admitted::Stranger(connection)) => enrolment::serve(connection, &context).await,
        // Counted at the door: the operator is not told of each look at an open port. Nor of who came as we closed.
        Err(error) if link::is_noise(&error) || matches!(error, LinkError::ClosedHere) => {}
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

#[cfg(test)]
mod tests;
