//! What rounds leave behind: timings, contributions, losses, receipts, evaluation reports, bytes moved. The report is made of
//! these.

use std::collections::BTreeMap;

use common::aggregate::Contribution;
use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, RoundId, SiteId, StudyDigest};
use common::time::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::studies::bytes;
use super::{Store, StoreError, array, parse, signed, unsigned};

/// Losses that are told of each site: more than a chart shows.
const LOSSES: u32 = 1000;

/// The version of the database that has contributions.
const CONTRIBUTIONS_SINCE: usize = 2;

/// One round as the report tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundRecord {
    /// Which.
    pub round: RoundId,
    /// When sites were asked.
    pub opened_at: Timestamp,
    /// When it ended, if it has.
    pub closed_at: Option<Timestamp>,
    /// How it ended, in the machine's word.
    pub outcome: Option<String>,
    /// The model that it made.
    pub model: Option<ModelHash>,
    /// Sites whose updates it averaged.
    pub sites: Vec<SiteId>,
}

/// A site's loss at one step of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct LossPoint {
    /// The site.
    pub site: SiteId,
    /// The round.
    pub round: RoundId,
    /// Step within the round, of `steps`.
    pub step: u32,
    /// Steps of the round.
    pub steps: u32,
    /// Masked loss, as the site told it.
    pub loss: f32,
}

/// A site's mean loss over a stretch of its training, of one step where there are few.
#[derive(Clone, Debug, PartialEq)]
pub struct LossMean {
    /// The site.
    pub site: SiteId,
    /// Rounds done, the mean too: 2.5 is the middle of round 3.
    pub done: f64,
    /// The loss.
    pub loss: f64,
}

/// What a site was told about an update that the coordinator keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The site's idempotency key.
    pub attempt: AttemptId,
    /// Study.
    pub study: StudyDigest,
    /// Site.
    pub site: SiteId,
    /// Round.
    pub round: RoundId,
    /// Digest of the update's manifest.
    pub update: ArtifactHash,
    /// Size of the update.
    pub bytes: u64,
    /// When it was durable.
    pub at: Timestamp,
}

/// An evaluation report in the bytes that the evaluator signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReport {
    /// The evaluator.
    pub site: SiteId,
    /// The model that it scored.
    pub model: ModelHash,
    /// The exact document.
    pub document: Vec<u8>,
    /// Ed25519 signature over it.
    pub signature: Vec<u8>,
}

/// A document that a site signed, a label manifest or a report, with what it is checked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    /// The site.
    pub site: SiteId,
    /// The model that a report is on; none of a label manifest.
    pub model: Option<ModelHash>,
    /// The exact document.
    pub document: Vec<u8>,
    /// Ed25519 signature over it.
    pub signature: Vec<u8>,
    /// The key that the site has now.
    pub signing_key: [u8; 32],
    /// The site has enrolled again since: it signed with another key.
    pub by_former_key: bool,
    /// The site has enrolled more than once. A clock that was ahead makes what it signed before look as if it came after.
    pub has_enrolled_again: bool,
}

/// Payload bytes moved for one site since it enrolled, as the coordinator counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The site.
    pub site: SiteId,
    /// Bytes that it sent us.
    pub received: u64,
    /// Bytes that we sent it.
    pub sent: u64,
}

impl Store {
    /// Notes that a round was opened; opening it again after a restart keeps the first time.
    ///
    /// # Errors
    /// The database.
    pub async fn open_round(
        &self,
        study: &StudyDigest,
        round: RoundId,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO rounds (study, round, opened_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(bytes(study))
            .bind(round.0)
            .bind(signed(at.0))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Notes how a round ended.
    ///
    /// # Errors
    /// The database.
    pub async fn close_round(&self, study: &StudyDigest, record: &RoundRecord) -> Result<(), StoreError> {
        let sites = serde_json::to_string(&record.sites).map_err(|e| StoreError::corrupt("round", e))?;
        sqlx::query(
            "INSERT INTO rounds (study, round, opened_at, closed_at, outcome, model, sites)
             VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (study, round) DO UPDATE SET
             closed_at = excluded.closed_at, outcome = excluded.outcome, model = excluded.model, sites = excluded.sites",
        )
        .bind(bytes(study))
        .bind(record.round.0)
        .bind(signed(record.opened_at.0))
        .bind(record.closed_at.map(|at| signed(at.0)))
        .bind(&record.outcome)
        .bind(record.model.map(|hash| hash.0.as_bytes().to_vec()))
        .bind(sites)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The rounds of a study, in order.
    ///
    /// # Errors
    /// The database.
    pub async fn rounds(&self, study: &StudyDigest) -> Result<Vec<RoundRecord>, StoreError> {
        let query = "SELECT * FROM rounds WHERE study = ? ORDER BY round";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        rows.iter().map(read_round).collect()
    }

    /// Notes what each site's update is in the model of a round; a round that is aggregated again replaces the earlier word.
    ///
    /// # Errors
    /// The database.
    pub async fn note_contributions(
        &self,
        study: &StudyDigest,
        round: RoundId,
        contributions: &[Contribution],
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("DELETE FROM contributions WHERE study = ? AND round = ?")
            .bind(bytes(study))
            .bind(round.0)
            .execute(&mut *transaction)
            .await?;
        for Contribution { site, share, norm } in contributions {
            sqlx::query("INSERT INTO contributions (study, round, site, share, norm) VALUES (?, ?, ?, ?, ?)")
                .bind(bytes(study))
                .bind(round.0)
                .bind(site.as_str())
                .bind(*share)
                .bind(*norm)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// What each site's update is in the models of a study, by round, in order of the sites' names.
    ///
    /// # Errors
    /// The database.
    pub async fn contributions(
        &self,
        study: &StudyDigest,
    ) -> Result<BTreeMap<RoundId, Vec<Contribution>>, StoreError> {
        // One that is only looked at is not brought up.
        if self.schema().await?.0 < CONTRIBUTIONS_SINCE {
            return Ok(BTreeMap::new());
        }
        let query = "SELECT round, site, share, norm FROM contributions WHERE study = ? ORDER BY round, site";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        let mut by_round: BTreeMap<RoundId, Vec<Contribution>> = BTreeMap::new();
        for row in &rows {
            let round = RoundId(unsigned("contribution", row.try_get("round")?)?);
            by_round.entry(round).or_default().push(Contribution {
                site: parse("contribution", row.try_get("site")?)?,
                share: row.try_get("share")?,
                norm: row.try_get("norm")?,
            });
        }
        Ok(by_round)
    }

    /// Notes a site's loss; a repeated step replaces the earlier word.
    ///
    /// # Errors
    /// The database; also for a loss that is not a number, which SQLite stores as nothing.
    pub async fn put_loss(&self, study: &StudyDigest, point: &LossPoint) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO losses (study, round, site, step, steps, loss) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(bytes(study))
        .bind(point.round.0)
        .bind(point.site.as_str())
        .bind(point.step)
        .bind(point.steps)
        .bind(f64::from(point.loss))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The losses of a study by site, in order of time: some thousand of each, averaged by the database. Weeks of training have
    /// more than fit the memory.
    ///
    /// # Errors
    /// The database.
    pub async fn losses(&self, study: &StudyDigest) -> Result<Vec<LossMean>, StoreError> {
        let rows = sqlx::query(
            "SELECT site, avg(reached) AS done, avg(loss) AS loss FROM
             (SELECT site, loss, round - 1 + step * 1.0 / max(steps, 1) AS reached FROM losses WHERE study = ?1)
             GROUP BY site, CAST(reached * ?2 / (SELECT max(round) FROM losses WHERE study = ?1) AS INTEGER)
             ORDER BY site, done",
        )
        .bind(bytes(study))
        .bind(LOSSES)
        .fetch_all(&self.pool)
        .await?;
        let read = |row: &SqliteRow| {
            Ok(LossMean {
                site: parse("loss", row.try_get("site")?)?,
                done: row.try_get("done")?,
                loss: row.try_get("loss")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Keeps a receipt; the same attempt twice keeps the first.
    ///
    /// # Errors
    /// The database.
    pub async fn put_receipt(&self, receipt: &Receipt) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO receipts (attempt, study, site, round, hash, bytes, at) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(receipt.attempt.as_bytes().as_slice())
        .bind(bytes(&receipt.study))
        .bind(receipt.site.as_str())
        .bind(receipt.round.0)
        .bind(receipt.update.0.as_bytes().as_slice())
        .bind(signed(receipt.bytes))
        .bind(signed(receipt.at.0))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The receipt of `attempt`, if that very site has one: another site's key is not its own.
    ///
    /// # Errors
    /// The database.
    pub async fn receipt(&self, attempt: &AttemptId, site: &SiteId) -> Result<Option<Receipt>, StoreError> {
        let row = sqlx::query("SELECT * FROM receipts WHERE attempt = ? AND site = ?")
            .bind(attempt.as_bytes().as_slice())
            .bind(site.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read_receipt).transpose()
    }

    /// Keeps an evaluation report. `false` when that site reported on that model before: the first word stays.
    ///
    /// # Errors
    /// The database.
    pub async fn put_report(
        &self,
        study: &StudyDigest,
        report: &StoredReport,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO evaluations (study, model, site, document, signature, at) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(bytes(study))
        .bind(report.model.0.as_bytes().as_slice())
        .bind(report.site.as_str())
        .bind(&report.document)
        .bind(&report.signature)
        .bind(signed(at.0))
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The evaluation report of a site on a model.
    ///
    /// # Errors
    /// The database.
    pub async fn report(
        &self,
        study: &StudyDigest,
        model: &ModelHash,
        site: &SiteId,
    ) -> Result<Option<StoredReport>, StoreError> {
        let query = "SELECT site, model, document, signature FROM evaluations
                     WHERE study = ? AND model = ? AND site = ?";
        let row = sqlx::query(query)
            .bind(bytes(study))
            .bind(model.0.as_bytes().as_slice())
            .bind(site.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(read_report).transpose()
    }

    /// The evaluation reports of a study, oldest first.
    ///
    /// # Errors
    /// The database.
    pub async fn reports(&self, study: &StudyDigest) -> Result<Vec<StoredReport>, StoreError> {
        let query =
            "SELECT site, model, document, signature FROM evaluations WHERE study = ? ORDER BY at, site";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        rows.iter().map(read_report).collect()
    }

    /// Every document of a study that a site signed.
    ///
    /// # Errors
    /// The database.
    pub async fn signed_records(&self, study: &StudyDigest) -> Result<Vec<SignedRecord>, StoreError> {
        let query = "SELECT d.*, s.signing_key, d.at < s.enrolled_at AS by_former_key,
             (SELECT count(*) FROM certificates c WHERE c.site = d.site) > 1 AS has_enrolled_again FROM
             (SELECT site, NULL AS model, document, signature, at FROM manifests WHERE study = ?1 UNION ALL
              SELECT site, model, document, signature, at FROM evaluations WHERE study = ?1) d
             JOIN sites s USING (site) ORDER BY d.at, d.site";
        let rows = sqlx::query(query).bind(bytes(study)).fetch_all(&self.pool).await?;
        let read = |row: &SqliteRow| {
            let model: Option<&[u8]> = row.try_get("model")?;
            Ok(SignedRecord {
                site: parse("signed document", row.try_get("site")?)?,
                model: model.map(|bytes| read_hash("signed document", bytes)).transpose()?,
                document: row.try_get("document")?,
                signature: row.try_get("signature")?,
                signing_key: array("signed document", row.try_get("signing_key")?)?,
                by_former_key: row.try_get::<i64, _>("by_former_key")? != 0,
                has_enrolled_again: row.try_get::<i64, _>("has_enrolled_again")? != 0,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Adds to the bytes moved for `site`.
    ///
    /// # Errors
    /// The database.
    pub async fn add_traffic(&self, site: &SiteId, received: u64, sent: u64) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO traffic (site, received, sent) VALUES (?, ?, ?) ON CONFLICT (site) DO UPDATE SET
             received = received + excluded.received, sent = sent + excluded.sent",
        )
        .bind(site.as_str())
        .bind(signed(received))
        .bind(signed(sent))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Bytes moved, by site.
    ///
    /// # Errors
    /// The database.
    pub async fn traffic(&self) -> Result<Vec<Traffic>, StoreError> {
        let rows = sqlx::query("SELECT site, received, sent FROM traffic ORDER BY site")
            .fetch_all(&self.pool)
            .await?;
        let read = |row: &SqliteRow| {
            Ok(Traffic {
                site: parse("traffic", row.try_get("site")?)?,
                received: unsigned("traffic", row.try_get("received")?)?,
                sent: unsigned("traffic", row.try_get("sent")?)?,
            })
        };
        rows.iter().map(read).collect()
    }
}

fn read_round(row: &SqliteRow) -> Result<RoundRecord, StoreError> {
    let closed: Option<i64> = row.try_get("closed_at")?;
    let model: Option<&[u8]> = row.try_get("model")?;
    let sites: &str = row.try_get("sites")?;
    Ok(RoundRecord {
        round: RoundId(unsigned("round", row.try_get("round")?)?),
        opened_at: Timestamp(unsigned("round", row.try_get("opened_at")?)?),
        closed_at: closed.map(|at| unsigned("round", at).map(Timestamp)).transpose()?,
        outcome: row.try_get("outcome")?,
        model: model.map(|bytes| read_hash("round", bytes)).transpose()?,
        sites: serde_json::from_str(sites).map_err(|e| StoreError::corrupt("round", e))?,
    })
}

fn read_report(row: &SqliteRow) -> Result<StoredReport, StoreError> {
    Ok(StoredReport {
        site: parse("report", row.try_get("site")?)?,
        model: read_hash("report", row.try_get("model")?)?,
        document: row.try_get("document")?,
        signature: row.try_get("signature")?,
    })
}

fn read_receipt(row: &SqliteRow) -> Result<Receipt, StoreError> {
    Ok(Receipt {
        attempt: AttemptId::from_bytes(array("receipt", row.try_get("attempt")?)?),
        study: StudyDigest(Digest::from_bytes(array("receipt", row.try_get("study")?)?)),
        site: parse("receipt", row.try_get("site")?)?,
        round: RoundId(unsigned("receipt", row.try_get("round")?)?),
        update: read_hash("receipt", row.try_get("hash")?)?,
        bytes: unsigned("receipt", row.try_get("bytes")?)?,
        at: Timestamp(unsigned("receipt", row.try_get("at")?)?),
    })
}

fn read_hash(what: &'static str, bytes: &[u8]) -> Result<ArtifactHash, StoreError> {
    Ok(ArtifactHash(Digest::from_bytes(array(what, bytes)?)))
}
