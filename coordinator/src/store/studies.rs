//! Studies, the sites' answers to them, and the journal from which a study's state is rebuilt.

use common::ids::{Digest, SiteId, StudyDigest};
use common::time::Timestamp;
use sqlx::Row;

use super::{Store, StoreError, array, parse, signed, unsigned};

/// A study's document as it was added: the digest is over these bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredStudy {
    /// Its digest.
    pub digest: StudyDigest,
    /// Its name.
    pub name: String,
    /// The exact document.
    pub document: Vec<u8>,
    /// When it was added.
    pub added_at: Timestamp,
}

/// A label manifest in the bytes that the site signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// The site.
    pub site: SiteId,
    /// The exact document.
    pub document: Vec<u8>,
    /// Ed25519 signature over it.
    pub signature: Vec<u8>,
}

/// What a study's state is rebuilt from: the last snapshot and the events since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// The state at the last durable transition; absent at the very beginning.
    pub snapshot: Option<String>,
    /// What happened since, in order.
    pub events: Vec<JournalEntry>,
}

/// One event, as text whose meaning is the machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// When it was taken in: the `now` of its tick.
    pub at: Timestamp,
    /// The event.
    pub event: String,
}

impl Store {
    /// Adds a study; adding the same document twice changes nothing.
    ///
    /// # Errors
    /// The database.
    pub async fn add_study(&self, study: &StoredStudy) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO studies (digest, name, document, added_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(bytes(&study.digest))
            .bind(&study.name)
            .bind(&study.document)
            .bind(signed(study.added_at.0))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// All studies, oldest first.
    ///
    /// # Errors
    /// The database.
    pub async fn studies(&self) -> Result<Vec<StoredStudy>, StoreError> {
        let query = "SELECT digest, name, document, added_at FROM studies ORDER BY added_at, digest";
        let rows = sqlx::query(query).fetch_all(&self.pool).await?;
        rows.iter().map(read_study).collect()
    }

    /// One study.
    ///
    /// # Errors
    /// The database.
    pub async fn study(&self, study: &StudyDigest) -> Result<Option<StoredStudy>, StoreError> {
        let query = "SELECT digest, name, document, added_at FROM studies WHERE digest = ?";
        let row = sqlx::query(query).bind(bytes(study)).fetch_optional(&self.pool).await?;
        row.as_ref().map(read_study).transpose()
    }

    /// Records that `site` approved `study`.
    ///
    /// # Errors
    /// The database; also when there is no such study.
    pub async fn approve_study(
        &self,
        study: &StudyDigest,
        site: &SiteId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO approvals (study, site, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(bytes(study))
            .bind(site.as_str())
            .bind(signed(at.0))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Sites that approved `study`.
    ///
    /// # Errors
    /// The database.
    pub async fn approvals(&self, study: &StudyDigest) -> Result<Vec<SiteId>, StoreError> {
        let query = "SELECT site FROM approvals WHERE study = ? ORDER BY site";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        rows.iter().map(|row| parse("approval", row.try_get("site")?)).collect()
    }

    /// Keeps a site's label manifest, in place of an earlier one.
    ///
    /// # Errors
    /// The database.
    pub async fn put_manifest(
        &self,
        study: &StudyDigest,
        manifest: &StoredManifest,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO manifests (study, site, document, signature, at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (study, site) DO UPDATE SET document = excluded.document,
             signature = excluded.signature, at = excluded.at",
        )
        .bind(bytes(study))
        .bind(manifest.site.as_str())
        .bind(&manifest.document)
        .bind(&manifest.signature)
        .bind(signed(at.0))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The manifest of a site for a study.
    ///
    /// # Errors
    /// The database.
    pub async fn manifest(
        &self,
        study: &StudyDigest,
        site: &SiteId,
    ) -> Result<Option<StoredManifest>, StoreError> {
        let query = "SELECT site, document, signature FROM manifests WHERE study = ? AND site = ?";
        let row =
            sqlx::query(query).bind(bytes(study)).bind(site.as_str()).fetch_optional(&self.pool).await?;
        row.as_ref().map(read_manifest).transpose()
    }

    /// The manifests of a study, by site.
    ///
    /// # Errors
    /// The database.
    pub async fn manifests(&self, study: &StudyDigest) -> Result<Vec<StoredManifest>, StoreError> {
        let query = "SELECT site, document, signature FROM manifests WHERE study = ? ORDER BY site";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        rows.iter().map(read_manifest).collect()
    }

    /// Appends one event; durable when this returns.
    ///
    /// # Errors
    /// The database.
    pub async fn append_event(&self, study: &StudyDigest, entry: &JournalEntry) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO events (study, seq, at, event) VALUES (?1,
             1 + max((SELECT coalesce(max(seq), 0) FROM events WHERE study = ?1),
                     (SELECT coalesce(max(seq), 0) FROM snapshots WHERE study = ?1)), ?2, ?3)",
        )
        .bind(bytes(study))
        .bind(signed(entry.at.0))
        .bind(&entry.event)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Replaces the snapshot and drops the events that it contains, all or nothing. The caller has appended every
    /// event that led to `state` and is the only one who appends.
    ///
    /// # Errors
    /// The database.
    pub async fn put_snapshot(&self, study: &StudyDigest, state: &str) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO snapshots (study, seq, state) VALUES (?1,
             max((SELECT coalesce(max(seq), 0) FROM events WHERE study = ?1),
                 (SELECT coalesce(max(seq), 0) FROM snapshots WHERE study = ?1)), ?2)
             ON CONFLICT (study) DO UPDATE SET seq = excluded.seq, state = excluded.state",
        )
        .bind(bytes(study))
        .bind(state)
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM events WHERE study = ?")
            .bind(bytes(study))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        // After the commit: the mark must never be ahead of what is durable.
        self.mark().await
    }

    /// What the state of `study` is rebuilt from.
    ///
    /// # Errors
    /// The database.
    pub async fn journal(&self, study: &StudyDigest) -> Result<Journal, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let snapshot = sqlx::query("SELECT state FROM snapshots WHERE study = ?")
            .bind(bytes(study))
            .fetch_optional(&mut *transaction)
            .await?;
        let rows = sqlx::query("SELECT at, event FROM events WHERE study = ? ORDER BY seq")
            .bind(bytes(study))
            .fetch_all(&mut *transaction)
            .await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let at = Timestamp(unsigned("event", row.try_get("at")?)?);
            Ok(JournalEntry { at, event: row.try_get("event")? })
        };
        Ok(Journal {
            snapshot: snapshot.map(|row| row.try_get("state")).transpose()?,
            events: rows.iter().map(read).collect::<Result<_, StoreError>>()?,
        })
    }
}

fn read_study(row: &sqlx::sqlite::SqliteRow) -> Result<StoredStudy, StoreError> {
    let digest: &[u8] = row.try_get("digest")?;
    Ok(StoredStudy {
        digest: StudyDigest(Digest::from_bytes(array("study", digest)?)),
        name: row.try_get("name")?,
        document: row.try_get("document")?,
        added_at: Timestamp(unsigned("study", row.try_get("added_at")?)?),
    })
}

fn read_manifest(row: &sqlx::sqlite::SqliteRow) -> Result<StoredManifest, StoreError> {
    Ok(StoredManifest {
        site: parse("manifest", row.try_get("site")?)?,
        document: row.try_get("document")?,
        signature: row.try_get("signature")?,
    })
}

pub(super) fn bytes(study: &StudyDigest) -> &[u8] {
    study.0.as_bytes().as_slice()
}
