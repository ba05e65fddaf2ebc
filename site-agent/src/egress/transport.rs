//! The last step of egress, and the only place of this crate that opens a stream or holds its sending end.
//!
//! What asks for something without saying anything about the data ([`ask`]) is open to the whole crate; everything else
//! is behind [`Carrier`], which only [`super::Egress`] uses. `clippy.toml` forbids the calls below everywhere else.

use std::time::Duration;

use common::artifact::ArtifactManifest;
use common::ids::AttemptId;
use common::wire::{EnrollReply, EnrollRequest, Reply, Request};
use link::LinkError;
use link::quic::{Connection, Exchange};
use link::transfer::{self, ChunkSource};

/// How long an answer may take. The coordinator writes to its disk before it acknowledges.
const PATIENCE: Duration = Duration::from_secs(60);

/// Carries messages that have passed policy, limits and ledger.
pub(crate) trait Carrier: Sync {
    /// Sends one request and returns its reply; a refusal is an error.
    fn exchange(&self, request: &Request) -> impl Future<Output = Result<Reply, LinkError>> + Send;

    /// Sends chunks of an offered update; how many the coordinator kept.
    fn put_chunks<S: ChunkSource + Send>(
        &self,
        attempt: AttemptId,
        manifest: &ArtifactManifest,
        indices: &[u32],
        source: &mut S,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;

    /// Sends an enrolment request.
    fn enrol(&self, request: &EnrollRequest) -> impl Future<Output = Result<EnrollReply, LinkError>> + Send;
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

    async fn put_chunks<S: ChunkSource + Send>(
        &self,
        attempt: AttemptId,
        manifest: &ArtifactManifest,
        indices: &[u32],
        source: &mut S,
    ) -> Result<u32, LinkError> {
        let Exchange { mut reader, mut writer } = open(self).await?;
        transfer::put_chunks(&mut reader, &mut writer, attempt, manifest, indices, source, PATIENCE).await
    }

    async fn enrol(&self, request: &EnrollRequest) -> Result<EnrollReply, LinkError> {
        let Exchange { mut reader, mut writer } = open(self).await?;
        writer.write(request).await?;
        writer.finish().await?;
        reader.read_within(PATIENCE).await
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
    use link::quic::Reader;
    use link::transfer::ChunkSink;

    use super::{
        ArtifactManifest, Carrier, Connection, Exchange, LinkError, PATIENCE, Reply, Request, open, transfer,
    };

    /// Opens the watch stream: who the coordinator takes us for, and the stream of its notices.
    pub(crate) async fn watch(connection: &Connection) -> Result<(Welcome, WatchStream), LinkError> {
        let Exchange { mut reader, mut writer } = open(connection).await?;
        let agent_version = Words::new(env!("CARGO_PKG_VERSION"));
        let hello =
            Hello { minor_min: MINOR_MIN, minor_max: MINOR_MAX, agent_version, capabilities: Vec::new() };
        writer.write(&Request::Hello(hello)).await?;
        writer.finish().await?;
        match transfer::read_reply(&mut reader, PATIENCE).await? {
            Reply::Welcome(welcome) => Ok((welcome, WatchStream(reader))),
            _ => Err(LinkError::Unexpected { expected: "welcome", got: "another reply" }),
        }
    }

    /// The notices of a connection. Reading is not cancel-safe: read in one task.
    pub(crate) struct WatchStream(Reader);

    impl WatchStream {
        /// The next notice, or `None` when the coordinator ended the stream.
        pub(crate) async fn next(&mut self) -> Result<Option<common::wire::Notice>, LinkError> {
            self.0.read_or_end().await
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
    pub(crate) async fn chunks<S: ChunkSink>(
        connection: &Connection,
        manifest: &ArtifactManifest,
        sink: &mut S,
    ) -> Result<u32, LinkError> {
        let Exchange { mut reader, mut writer } = open(connection).await?;
        transfer::fetch_chunks(&mut reader, &mut writer, manifest, sink, PATIENCE).await
    }
}
