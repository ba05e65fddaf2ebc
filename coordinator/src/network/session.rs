//! One connection of one site, over either lane: admitted, served exchange by exchange, ended by age, expiry or the
//! driver.

use std::sync::Arc;
use std::time::Duration;

use common::wire::{self, GoodbyeCode, Hello, Notice, Refusal, RefusalCode, Reply, Request, Welcome};
use link::{CloseCode, Connection, Exchange, Lane, LinkError, PeerIdentity};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::credit::{Bulk, Direction};
use super::slot::UploadSlot;
use super::{Context, close_code, requests};
use crate::admission::check_role;
use crate::clock;
use crate::driver::{NOTICES, Peer, SEATS};
use crate::progress::Line;

/// How long a site may take from opening an exchange to its request.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the exchanges of one connection share.
pub(super) struct Session {
    pub(super) context: Arc<Context>,
    pub(super) identity: PeerIdentity,
    pub(super) connection: Connection,
    /// Where an update of the site arrives.
    pub(super) upload: UploadSlot,
    pub(super) receiving: Bulk,
    pub(super) sending: Bulk,
}

/// Serves a connection until it ends.
pub(super) async fn serve(connection: Connection, identity: PeerIdentity, context: Arc<Context>) {
    // Before the store is asked: who is revoked after its answer is ended by the seat.
    let seat = context.seats.enter(&identity, &connection);
    let bulk = |direction| Bulk::new(direction, &context.budget);
    let (receiving, sending) = (bulk(Direction::Receive), bulk(Direction::Send));
    let upload = context.uploads.session(&identity.site);
    let session = Arc::new(Session { context, identity, connection, upload, receiving, sending });
    if let Err(refusal) = session.admit().await {
        session.say_refused("connection", &refusal).await;
        let words = refusal.detail.as_str().into();
        return session.connection.close(close_code(refusal.code), &words);
    }
    if let Some(oldest) = seat.admit() {
        session.make_room(&oldest).await;
    }
    let tasks = TaskTracker::new();
    let ends = tokio::time::sleep(session.life());
    tokio::pin!(ends);
    loop {
        tokio::select! {
            exchange = session.connection.accept() => match exchange {
                Ok(exchange) => drop(tasks.spawn(session.clone().answer(exchange))),
                Err(_) => break,
            },
            () = &mut ends => break session.end().await,
        }
    }
    tasks.close();
    tasks.wait().await;
    session.upload.leave().await;
}

impl Session {
    /// Whether the site may speak now.
    async fn admit(&self) -> Result<(), Refusal> {
        self.context.admission.check(&self.identity, clock::now()).await.map_err(requests::internal)?
    }

    /// Ends a connection of the site that is one too many.
    async fn make_room(&self, oldest: &Connection) {
        oldest.close(CloseCode::Replaced, &CloseCode::Replaced.words().into());
        let remote = oldest.remote_address();
        let detail = format!("connection: {remote} is closed, the oldest of more than {SEATS} of this site");
        let (site, code) = (Some(self.identity.site.clone()), CloseCode::Replaced.code().to_owned());
        self.context.driver.say(Line::Refused { site, code, detail }).await;
    }

    /// How long this connection may last: to its greatest age or until the certificate's last moment is over.
    fn life(&self) -> Duration {
        let valid = self.identity.not_after.since(clock::now()) + Duration::from_millis(1);
        valid.min(self.context.connection_age)
    }

    async fn end(&self) {
        let code = match self.admit().await {
            Err(refusal) => {
                self.say_refused("connection", &refusal).await;
                close_code(refusal.code)
            }
            Ok(()) => CloseCode::Done,
        };
        self.connection.close(code, &code.words().into());
    }

    /// Answers one exchange. Errors of the stream end the exchange, not the connection.
    async fn answer(self: Arc<Self>, mut exchange: Exchange) {
        let mut is_large = false;
        let room = async {
            let room = self.context.large.room(&self.identity.site).await;
            is_large = true;
            room
        };
        let read = tokio::select! {
            // What came before a close counts.
            biased;
            read = exchange.reader.read_with_room::<Request, _>(PATIENCE, room) => read,
            // Who is gone waits for no room: a connection has its place until its exchanges are over.
            error = self.connection.closed() => Err(error),
        };
        let (request, room) = match read {
            Ok(read) => read,
            // It would come again, and take the room of others each time.
            Err(LinkError::TooSlow { .. }) if is_large => {
                return self.connection.close(CloseCode::TooSlow, &CloseCode::TooSlow.words().into());
            }
            Err(error) => return self.give_up("request", &error).await,
        };
        let name = request.name();
        let answered = match self.permit(&request).await {
            Ok(()) => match request {
                Request::Hello(hello) => {
                    let theirs = (hello.minor_min, hello.minor_max);
                    let returns_artifacts = hello.can(Hello::RETURNS_ARTIFACTS);
                    // The rest is not needed for the life of the connection.
                    drop((hello, room));
                    self.watch(theirs, returns_artifacts, &mut exchange).await
                }
                request => requests::answer(&self, request, &mut exchange).await,
            },
            Err(refusal) => Err(LinkError::Refused(refusal)),
        };
        match answered {
            Ok(()) => {}
            Err(LinkError::Refused(refusal)) => self.refuse(name, refusal, &mut exchange).await,
            Err(error) => self.give_up(name, &error).await,
        }
    }

    /// Status, dates and role, again for every request.
    async fn permit(&self, request: &Request) -> Result<(), Refusal> {
        self.admit().await?;
        check_role(self.identity.role, request)
    }

    async fn refuse(&self, name: &str, refusal: Refusal, exchange: &mut Exchange) {
        self.say_refused(name, &refusal).await;
        // The site may have gone meanwhile; then nobody is left to tell.
        let _ = requests::say(&Reply::Refused(refusal), &mut exchange.writer).await;
    }

    async fn say_refused(&self, name: &str, refusal: &Refusal) {
        let detail = format!("{name}: {}", refusal.detail);
        let (site, code) = (Some(self.identity.site.clone()), refusal.code.code().to_owned());
        self.context.driver.say(Line::Refused { site, code, detail }).await;
    }

    async fn give_up(&self, name: &str, error: &LinkError) {
        let site = &self.identity.site;
        if matches!(error, LinkError::Codec(_) | LinkError::Unexpected { .. }) {
            tracing::warn!(%site, name, code = error.code(), "breaks the protocol: {error}");
            return self.connection.close(CloseCode::ProtocolViolation, &error.to_string().into());
        }
        tracing::debug!(%site, name, code = error.code(), "an exchange ended early: {error}");
    }

    /// The watch stream: Welcome, then notices for the life of the connection.
    async fn watch(
        &self,
        theirs: (u16, u16),
        returns_artifacts: bool,
        exchange: &mut Exchange,
    ) -> Result<(), LinkError> {
        let ours = (wire::MINOR_MIN, wire::MINOR_MAX);
        let minor = wire::agree_minor(ours, theirs).ok_or_else(|| {
            let words = format!("the coordinator speaks 1.{} to 1.{}", ours.0, ours.1);
            LinkError::Refused(Refusal::new(RefusalCode::UnsupportedVersion, words))
        })?;
        let PeerIdentity { site, role, .. } = self.identity.clone();
        let consortium = self.context.authority.consortium().into();
        exchange
            .writer
            .write(&Reply::Welcome(Welcome { site: site.clone(), role, consortium, minor }))
            .await?;
        exchange.hears_goodbye();

        let (notices, mut queue) = mpsc::channel(NOTICES);
        let peer = Peer { role, connection: self.connection.clone(), notices, returns_artifacts };
        let id = self.context.driver.connected(site.clone(), peer).await.map_err(LinkError::Refused)?;
        let says_alive = self.connection.lane() == Lane::Tcp && minor >= Notice::ALIVE_SINCE;
        let ended = self.forward(&mut queue, says_alive, exchange).await;
        self.context.driver.disconnected(site, id).await;
        ended
    }

    async fn forward(
        &self,
        queue: &mut mpsc::Receiver<Notice>,
        says_alive: bool,
        exchange: &mut Exchange,
    ) -> Result<(), LinkError> {
        loop {
            // All are cancel-safe; a notice that was taken is written before the next turn.
            let notice = tokio::select! {
                notice = next_notice(queue, says_alive) => notice,
                error = self.connection.closed() => return Err(error),
                () = exchange.hung_up() => return Err(LinkError::Reset),
            };
            let Some(notice) = notice else {
                // Over TCP a site that connects anew, or its double, comes to the same connection.
                exchange.writer.write(&Notice::Goodbye { code: GoodbyeCode::Replaced }).await?;
                return exchange.writer.finish().await;
            };
            exchange.writer.write(&notice).await?;
        }
    }
}

/// What to say next: the next notice or, when there is none for a while, that we are there. `None` when there will be none.
async fn next_notice(queue: &mut mpsc::Receiver<Notice>, says_alive: bool) -> Option<Notice> {
    if !says_alive {
        return queue.recv().await;
    }
    tokio::time::timeout(Notice::ALIVE_EVERY, queue.recv()).await.unwrap_or(Some(Notice::Alive))
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_no_news_says_every_half_minute_that_it_is_there() {
        let (notices, mut queue) = mpsc::channel(NOTICES);
        let began = Instant::now();
        for seconds in [30, 60, 90] {
            assert_eq!(next_notice(&mut queue, true).await, Some(Notice::Alive));
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
        let news = Notice::Goodbye { code: GoodbyeCode::Stopping };
        notices.send(news.clone()).await.unwrap();
        assert_eq!(next_notice(&mut queue, true).await, Some(news), "news does not wait");
        assert_eq!(began.elapsed().as_secs(), 90);
        drop(notices);
        assert_eq!(next_notice(&mut queue, true).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_that_does_not_know_that_notice_does_not_get_it() {
        let (_notices, mut queue) = mpsc::channel(NOTICES);
        let day = Duration::from_secs(24 * 3600);
        assert!(timeout(day, next_notice(&mut queue, false)).await.is_err());
    }
}
