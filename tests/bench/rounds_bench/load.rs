//! A site that is nothing but its side of the protocol: it forgets the model while it reads it, and makes up its update
//! while it sends it. Many of them fit into one process.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::artifact::{ArtifactManifest, CHUNK_BYTES};
use common::ids::{ArtifactHash, AttemptId, ChunkHash, ClassId, Digest, StudyDigest};
use common::manifest::{CaseLabels, LabelManifest};
use common::signed::Signed;
use common::taxonomy::Taxonomy;
use common::wire::{
    ChunkHeader, Hello, MINOR_MAX, MINOR_MIN, Manifest, Notice, OfferedUpdate, Reply, Request, RoundTask,
    SignedBytes,
};
use link::quic::{Connection, Dialer, Exchange, QuicSettings, Reader};
use link::{LinkError, tls};
use site_agent::client::identity::Identity;

use super::consortium::PATIENCE;

/// Windows of a site in a process of many. What the coordinator holds is bounded by its own.
const WINDOW: u32 = 4 << 20;
/// How long a site waits that was told to come again.
const AGAIN: Duration = Duration::from_millis(200);

/// A connected site.
struct LoadSite {
    index: u32,
    identity: Identity,
    connection: Connection,
}

/// Takes part in a study from its offer to its end.
pub(crate) async fn take_part(index: u32, identity: Identity, coordinator: SocketAddr) -> anyhow::Result<()> {
    let tls = tls::site_config(identity.credentials.clone(), &identity.root)?;
    let settings = QuicSettings {
        stream_window: WINDOW,
        receive_window: WINDOW,
        send_window: WINDOW,
        ..QuicSettings::site()
    };
    let dialer = Dialer::bind((Ipv4Addr::UNSPECIFIED, 0).into(), tls, settings)?;
    let connection = dialer.dial(coordinator, &coordinator.ip().to_string()).await?;
    LoadSite { index, identity, connection }.follow_notices().await?;
    dialer.close().await;
    Ok(())
}

impl LoadSite {
    async fn follow_notices(&self) -> anyhow::Result<()> {
        let hello = Hello {
            minor_min: MINOR_MIN,
            minor_max: MINOR_MAX,
            agent_version: "load".into(),
            capabilities: Vec::new(),
        };
        let mut watch = self.ask(&Request::Hello(hello)).await?;
        let Reply::Welcome(_) = reply(&mut watch).await? else { bail!("no welcome") };
        while let Some(notice) = watch.read_or_end::<Notice>().await? {
            match notice {
                Notice::StudyOffered { study, .. } => self.register(study).await?,
                Notice::RoundOpened(task) => self.play_round(&task).await?,
                Notice::StudyFinished { .. } => return Ok(()),
                _ => {}
            }
        }
        bail!("the coordinator ended the watch stream")
    }

    async fn register(&self, study: StudyDigest) -> anyhow::Result<()> {
        self.exchange(&Request::ApproveStudy { study }).await?;
        let annotated: BTreeSet<ClassId> = ClassId::new(6).into_iter().collect();
        let (dataset, patient) = ("synthetic", "synthetic");
        let scan = CaseLabels { dataset, patient, annotated: &annotated, present: &annotated, pseudo: false };
        let site = self.identity.membership.site.clone();
        let manifest = LabelManifest::count(site, Taxonomy::standard().digest(), [scan; 10], 1);
        let signed = Signed::sign(&manifest, &self.identity.signing);
        let manifest = SignedBytes { bytes: signed.bytes().to_vec(), signature: *signed.signature() };
        self.exchange(&Request::RegisterManifest { study, manifest }).await.map(drop)
    }

    async fn play_round(&self, task: &RoundTask) -> anyhow::Result<()> {
        let RoundTask { study, round, base, .. } = *task;
        self.exchange(&Request::AcceptRound { study, round, base }).await?;
        let Reply::Artifact { manifest } = self.exchange(&Request::GetArtifact { artifact: base }).await?
        else {
            bail!("no manifest of the model")
        };
        let model = ArtifactManifest::try_from(manifest)?;
        self.download(base, &model).await.context("the model")?;
        self.upload(task, &Synthetic::new(self.index, &model)?).await.context("the update")
    }

    /// Reads every chunk, and keeps none.
    async fn download(&self, artifact: ArtifactHash, model: &ArtifactManifest) -> anyhow::Result<()> {
        let indices: Vec<u32> = (0..).take(model.chunks().len()).collect();
        let mut reader = self.ask(&Request::GetChunks { artifact, indices: indices.clone() }).await?;
        let mut buffer = Vec::new();
        for _ in indices {
            let Reply::Chunk(ChunkHeader { len, .. }) = reply(&mut reader).await? else { bail!("no chunk") };
            reader.read_raw(usize::try_from(len)?, &mut buffer, "chunk").await?;
        }
        match reply(&mut reader).await? {
            Reply::Done => Ok(()),
            _ => bail!("no end of the chunks"),
        }
    }

    async fn upload(&self, task: &RoundTask, update: &Synthetic) -> anyhow::Result<()> {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&self.index.to_le_bytes());
        name[4..8].copy_from_slice(&task.round.0.to_le_bytes());
        let attempt = AttemptId::from_bytes(name);
        let offer = OfferedUpdate {
            study: task.study,
            round: task.round,
            base: task.base,
            attempt,
            steps: task.steps,
            manifest: Manifest::from(&update.manifest),
        };
        let missing = match self.exchange(&Request::OfferUpdate(offer)).await? {
            Reply::UpdateWanted { missing } => missing,
            // The round was opened to us twice, as it is to a site that answers twice: this was sent.
            Reply::Receipt(_) => return Ok(()),
            _ => bail!("it is not wanted"),
        };
        let Exchange { mut reader, mut writer } = self.connection.open().await?;
        writer.write(&Request::PutChunks { attempt, count: u32::try_from(missing.len())? }).await?;
        let mut buffer = Vec::new();
        for index in missing {
            update.fill(index, &mut buffer)?;
            writer.write(&ChunkHeader { index, len: u32::try_from(buffer.len())? }).await?;
            writer.write_raw(&buffer).await?;
        }
        writer.finish().await?;
        let Reply::Stored { .. } = reply(&mut reader).await? else { bail!("its chunks were not kept") };
        match self.exchange(&Request::CommitUpdate { attempt }).await? {
            Reply::Receipt(_) => Ok(()),
            _ => bail!("no receipt"),
        }
    }

    /// Sends a request, again as often as the coordinator is too busy; its answer.
    async fn exchange(&self, request: &Request) -> anyhow::Result<Reply> {
        loop {
            let mut reader = self.ask(request).await?;
            match reply(&mut reader).await {
                Err(refused @ LinkError::Refused(_)) if refused.is_transient() => {
                    tokio::time::sleep(AGAIN).await;
                }
                other => return other.with_context(|| request.name()),
            }
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reader, LinkError> {
        let Exchange { reader, mut writer } = self.connection.open().await?;
        writer.write(request).await?;
        writer.finish().await?;
        Ok(reader)
    }
}

async fn reply(reader: &mut Reader) -> Result<Reply, LinkError> {
    match reader.read_within(PATIENCE).await? {
        Reply::Refused(refusal) => Err(LinkError::Refused(refusal)),
        reply => Ok(reply),
    }
}

/// An update that is made up chunk by chunk: no two chunks are the same, of this site or of another.
struct Synthetic {
    site: u32,
    /// Most of every chunk.
    pattern: Vec<u8>,
    manifest: ArtifactManifest,
}

impl Synthetic {
    /// The update of a site, shaped like `model`.
    fn new(site: u32, model: &ArtifactManifest) -> anyhow::Result<Self> {
        let numbers = usize::try_from(CHUNK_BYTES)? / 4;
        let pattern = std::iter::repeat_n(1e-6f32.to_le_bytes(), numbers).flatten().collect();
        let mut update = Self { site, pattern, manifest: model.clone() };
        let mut buffer = Vec::new();
        let hash = |index: u32| -> anyhow::Result<ChunkHash> {
            update.fill(index, &mut buffer)?;
            Ok(ChunkHash(Digest::of(&buffer)))
        };
        let hashes = (0..).take(model.chunks().len()).map(hash).collect::<anyhow::Result<_>>()?;
        update.manifest = ArtifactManifest::new(model.layout().clone(), hashes)?;
        Ok(update)
    }

    /// Makes chunk `index` in `buffer`.
    fn fill(&self, index: u32, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
        let span = self.manifest.layout().spans().get(usize::try_from(index)?).context("no such chunk")?;
        buffer.clear();
        buffer.extend_from_slice(&self.pattern[..usize::try_from(span.len)?]);
        // A layout of f32 has no chunk below four bytes. All these numbers differ in 24 bits.
        let own = (1 + (self.site << 16) + index) as f32 * 1e-9;
        buffer[..4].copy_from_slice(&own.to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::artifact::{Dtype, TensorLayout, TensorSpec};

    use super::*;

    #[test]
    fn no_two_chunks_of_made_up_updates_are_the_same() {
        let spec =
            |name: &str, length| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![length] };
        let layout = TensorLayout::new(vec![spec("a", 600_000), spec("b", 1)]).unwrap();
        let model = ArtifactManifest::of(layout.clone(), &vec![0; 2_400_004]);
        let hashes = [0, 1].map(|site| Synthetic::new(site, &model).unwrap().manifest.chunks().to_vec());
        let all: BTreeSet<_> = hashes.iter().flatten().collect();
        assert_eq!(all.len(), 2 * layout.spans().len());
        let mut chunk = Vec::new();
        Synthetic::new(1, &model).unwrap().fill(3, &mut chunk).unwrap();
        assert_eq!(ChunkHash(Digest::of(&chunk)), hashes[1][3]);
        assert_eq!(chunk.len(), 4);
    }
}
