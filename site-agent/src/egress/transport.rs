//! The last step of egress, and the only place of this crate that opens a stream or holds its sending end.
//!
//! What asks for something without saying anything about the data ([`ask`]) is open to the whole crate; everything else
//! is behind [`Carrier`], which only [`super::Egress`] uses. `clippy.toml` forbids the calls below everywhere else.
//!
//! What is large goes through a [`Line`]: several streams, and no faster than the site's bandwidth caps.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::artifact::ArtifactManifest;
use common::ids::AttemptId;
use common::wire::{EnrollReply, EnrollRequest, Notice, Reply, Request};
use link::LinkError;
use link::framing::FrameReader;
use link::quic::{Connection, Exchange};
use link::transfer::{self, ChunkSink, ChunkSource, Patience};
use tokio::io::AsyncRead;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bandwidth::{Bandwidth, Bucket, Caps};

/// How long an answer may take. The coordinator writes to its disk before it acknowledges.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a coordinator that says when it is there ([`Notice::Alive`]) may say nothing. Keep-alive over TCP reaches the next hop
/// alone: a proxy or firewall that forgot the rest of the way goes on answering it.
const SILENCE: Duration = Notice::ALIVE_EVERY.saturating_mul(3);
/// With many sites, a transfer waits for its turn; while it waits, the connection notices a coordinator that is gone.
const TRANSFER: Patience = Patience { turn: Duration::from_secs(3600), chunk: PATIENCE };

/// Carries messages that have passed policy, limits and ledger.
pub(crate) trait Carrier: Sync {
    /// Sends one request and returns its reply; a refusal is an error.
    fn exchange(&self, request: &Request) -> impl Future<Output = Result<Reply, LinkError>> + Send;

    /// Sends an enrolment request.
    fn enrol(&self, request: &EnrollRequest) -> impl Future<Output = Result<EnrollReply, LinkError>> + Send;
}

/// Carries updates too.
pub(crate) trait ChunkCarrier: Carrier {
    /// Sends chunks of an offered update; how many the coordinator kept.
    fn put_chunks<S: ChunkSource + Clone + Send + 'static>(
        &self,
        attempt: AttemptId,
        manifest: &ArtifactManifest,
        indices: &[u32],
        source: S,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;
}

impl Carrier for Connection {
    async fn exchange(&self, request: &Request) -> Result<Reply, LinkError> {
        let Exchange { mut reader, mut writer } = open(self).await?;
        let sent = async {
            writer.write(request).await?;
            writer.finish().await
        };
        match (sent.await, transfer::read_reply(&mut reader, PATIENCE).await) {
            // A coordinator that refuses may stop reading: its refusal says more than the broken stream.
            (_, Err(refused @ LinkError::Refused(_))) => Err(refused),
            (Err(broken), _) => Err(broken),
            (Ok(()), reply) => reply,
        }
    }

    async fn enrol(&self, request: &EnrollRequest) -> Result<EnrollReply, LinkError> {
        let Exchange { mut reader, mut writer } = open(self).await?;
        writer.write(request).await?;
        writer.finish().await?;
        reader.read_within(PATIENCE).await
    }
}

/// A connection with the streams and the pace of what is large. Clones share the pace.
#[derive(Clone)]
pub(crate) struct Line {
    connection: Connection,
    streams: usize,
    pace: Arc<Pace>,
}

impl Line {
    /// Over `connection`.
    pub(super) fn new(connection: Connection, streams: usize, pace: Arc<Pace>) -> Self {
        Self { connection, streams, pace }
    }

    fn paced<E>(&self, end: E) -> Paced<E> {
        Paced { end, pace: self.pace.clone() }
    }
}

impl Carrier for Line {
    async fn exchange(&self, request: &Request) -> Result<Reply, LinkError> {
        self.connection.exchange(request).await
    }

    async fn enrol(&self, request: &EnrollRequest) -> Result<EnrollReply, LinkError> {
        self.connection.enrol(request).await
    }
}

impl ChunkCarrier for Line {
    async fn put_chunks<S: ChunkSource + Clone + Send + 'static>(
        &self,
        attempt: AttemptId,
        manifest: &ArtifactManifest,
        indices: &[u32],
        source: S,
    ) -> Result<u32, LinkError> {
        let manifest = Arc::new(manifest.clone());
        let mut streams = JoinSet::new();
        for indices in transfer::share(indices, self.streams) {
            let (connection, manifest) = (self.connection.clone(), manifest.clone());
            let mut source = self.paced(source.clone());
            streams.spawn(async move {
                let Exchange { mut reader, mut writer } = open(&connection).await?;
                let put = transfer::put_chunks(
                    &mut reader,
                    &mut writer,
                    attempt,
                    &manifest,
                    &indices,
                    &mut source,
                    TRANSFER,
                );
                put.await
            });
        }
        gather(streams).await
    }
}

/// How many chunks all streams moved. The first that fails ends the others: what came whole is kept at the other end.
async fn gather(mut streams: JoinSet<Result<u32, LinkError>>) -> Result<u32, LinkError> {
    let mut moved = 0;
    while let Some(ended) = streams.join_next().await {
        moved += ended.map_err(|error| LinkError::Io(error.into()))??;
    }
    Ok(moved)
}

/// The site's bandwidth caps at work.
#[derive(Debug)]
pub(super) struct Pace {
    bandwidth: Bandwidth,
    began: Instant,
    up: Mutex<Bucket>,
    down: Mutex<Bucket>,
}

impl Pace {
    /// Keeps to `bandwidth`.
    pub(super) fn new(bandwidth: Bandwidth) -> Self {
        Self { bandwidth, began: Instant::now(), up: Mutex::default(), down: Mutex::default() }
    }

    async fn wait(&self, bucket: &Mutex<Bucket>, bytes: usize, rate: impl Fn(Caps) -> Option<u64>) {
        if self.bandwidth == Bandwidth::default() {
            return;
        }
        let rate = rate(self.bandwidth.at(minute_of_day()));
        let wait = {
            // A poisoned lock guards a point in time: it is still good.
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.book(bytes as u64, rate, self.began.elapsed())
        };
        tokio::time::sleep(wait).await;
    }
}

/// The clock on the site's wall: caps follow its working day.
fn minute_of_day() -> u16 {
    let time = jiff::Zoned::now().time();
    // Hours and minutes of a time of day are not negative.
    60 * u16::from(time.hour().unsigned_abs()) + u16::from(time.minute().unsigned_abs())
}

/// A source or a sink that keeps the pace.
struct Paced<E> {
    end: E,
    pace: Arc<Pace>,
}

impl<S: ChunkSource + Send> ChunkSource for Paced<S> {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.end.read_chunk(index, buffer).await?;
        self.pace.wait(&self.pace.up, buffer.len(), |caps| caps.upload).await;
        Ok(())
    }
}

impl<S: ChunkSink + Send> ChunkSink for Paced<S> {
    fn missing(&self) -> Vec<u32> {
        self.end.missing()
    }

    async fn keep_chunk(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        self.end.keep_chunk(index, bytes).await?;
        self.pace.wait(&self.pace.down, bytes.len(), |caps| caps.download).await;
        Ok(())
    }
}

/// The next notice with news. After [`LinkError::TimedOut`] the stream is of no more use.
async fn next_notice<R: AsyncRead + Unpin>(
    notices: &mut FrameReader<R>,
    silence: Option<Duration>,
) -> Result<Option<Notice>, LinkError> {
    loop {
        let reading = notices.read_or_end::<Notice>();
        let notice = match silence {
            Some(limit) => tokio::time::timeout(limit, reading).await.map_err(|_| LinkError::TimedOut)??,
            None => reading.await?,
        };
        if notice != Some(Notice::Alive) {
            return Ok(notice);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "egress is the one module that may open a stream")]
async fn open(connection: &Connection) -> Result<Exchange, LinkError> {
    connection.open().await
}

/// Requests that say nothing about the site's data: they pass no policy, because nothing leaves with them.
pub(crate) mod ask {
    use common::ids::{ArtifactHash, StudyDigest};
    use common::wire::{Hello, MINOR_MAX, MINOR_MIN, Welcome, Words};
    use link::Lane;
    use link::quic::Reader;

    use super::{
        Arc, ArtifactManifest, Carrier, ChunkSink, Connection, Duration, Exchange, JoinSet, Line, LinkError,
        Notice, PATIENCE, Reply, Request, SILENCE, TRANSFER, gather, next_notice, open, transfer,
    };

    /// Opens the watch stream: who the coordinator takes us for, and the stream of its notices.
    /// `returns_artifacts`: it may tell of artifacts that it lost.
    pub(crate) async fn watch(
        connection: &Connection,
        returns_artifacts: bool,
    ) -> Result<(Welcome, WatchStream), LinkError> {
        let Exchange { mut reader, mut writer } = open(connection).await?;
        let agent_version = Words::new(env!("CARGO_PKG_VERSION"));
        let capabilities = returns_artifacts.then(|| Words::new(Hello::RETURNS_ARTIFACTS));
        let hello = Hello {
            minor_min: MINOR_MIN,
            minor_max: MINOR_MAX,
            agent_version,
            capabilities: capabilities.into_iter().collect(),
        };
        writer.write(&Request::Hello(hello)).await?;
        writer.finish().await?;
        match transfer::read_reply(&mut reader, PATIENCE).await? {
            Reply::Welcome(welcome) => {
                let says_alive = connection.lane() == Lane::Tcp && welcome.minor >= Notice::ALIVE_SINCE;
                let silence = says_alive.then_some(SILENCE);
                Ok((welcome, WatchStream { notices: reader, silence }))
            }
            _ => Err(LinkError::Unexpected { expected: "welcome", got: "another reply" }),
        }
    }

    /// The notices of a connection. Reading is not cancel-safe: read in one task.
    pub(crate) struct WatchStream {
        notices: Reader,
        /// How long nothing may come.
        silence: Option<Duration>,
    }

    impl WatchStream {
        /// The next notice with news, or `None` when the coordinator ended the stream.
        pub(crate) async fn next(&mut self) -> Result<Option<Notice>, LinkError> {
            next_notice(&mut self.notices, self.silence).await
        }
    }

    /// The bytes of a study document, checked against the digest asked for.
    pub(crate) async fn study(connection: &Connection, study: StudyDigest) -> Result<Vec<u8>, LinkError> {
        match connection.exchange(&Request::GetStudy { study }).await? {
            Reply::Study { bytes } if common::ids::Digest::of(&bytes) == study.0 => Ok(bytes),
            Reply::Study { .. } => {
                Err(LinkError::Unexpected { expected: "the study asked for", got: "another document" })
            }
            _ => Err(LinkError::Unexpected { expected: "a study", got: "another reply" }),
        }
    }

    /// The manifest of an artifact, checked against the name asked for.
    pub(crate) async fn manifest(
        connection: &Connection,
        artifact: ArtifactHash,
    ) -> Result<ArtifactManifest, LinkError> {
        let Exchange { mut reader, mut writer } = open(connection).await?;
        transfer::fetch_manifest(&mut reader, &mut writer, artifact, PATIENCE).await
    }

    /// The chunks that `sink` misses, each checked before the sink sees it.
    pub(crate) async fn chunks<S: ChunkSink + Clone + Send + 'static>(
        line: &Line,
        manifest: &ArtifactManifest,
        sink: &S,
    ) -> Result<u32, LinkError> {
        let manifest = Arc::new(manifest.clone());
        let mut streams = JoinSet::new();
        for indices in transfer::share(&sink.missing(), line.streams) {
            let (connection, manifest) = (line.connection.clone(), manifest.clone());
            let mut sink = line.paced(sink.clone());
            streams.spawn(async move {
                let Exchange { mut reader, mut writer } = open(&connection).await?;
                let fetch = transfer::fetch_chunks(
                    &mut reader,
                    &mut writer,
                    &manifest,
                    &indices,
                    &mut sink,
                    TRANSFER,
                );
                fetch.await
            });
        }
        gather(streams).await
    }
}

#[cfg(test)]
mod tests {
    use common::wire::GoodbyeCode;
    use link::framing::FrameWriter;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_stream_that_falls_silent_ends_and_no_sign_of_life_is_news() {
        let (coordinator, site) = tokio::io::duplex(1 << 10);
        let (mut said, mut heard) = (FrameWriter::new(coordinator), FrameReader::new(site));
        let news = Notice::Goodbye { code: GoodbyeCode::Stopping };
        let speak = async {
            for _ in 0..10 {
                tokio::time::sleep(Notice::ALIVE_EVERY).await;
                said.write(&Notice::Alive).await.unwrap();
            }
            said.write(&news).await.unwrap();
        };
        let (notice, ()) = tokio::join!(next_notice(&mut heard, Some(SILENCE)), speak);
        assert_eq!(notice.unwrap(), Some(news));

        let fell_silent = Instant::now();
        let error = next_notice(&mut heard, Some(SILENCE)).await.unwrap_err();
        assert!(matches!(error, LinkError::TimedOut) && error.is_transient(), "{error:?}");
        assert_eq!(fell_silent.elapsed().as_secs(), 90);
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_says_that_it_is_there_may_be_silent() {
        let (_coordinator, site) = tokio::io::duplex(1 << 10);
        let mut heard = FrameReader::new(site);
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, next_notice(&mut heard, None)).await.is_err());
    }
}
