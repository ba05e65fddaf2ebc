//! Sites, their certificates, and the invites that make them.

use common::ids::{Role, SiteId};
use common::time::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Store, StoreError, array, parse, signed, unsigned};
use crate::pki::{Serial, TokenHash};

/// Whether a site may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteStatus {
    /// It may.
    Active,
    /// Its certificates no longer count; only a new invite brings it back.
    Revoked,
}

impl std::fmt::Display for SiteStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
        })
    }
}

impl std::str::FromStr for SiteStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "active" => Ok(Self::Active),
            "revoked" => Ok(Self::Revoked),
            other => Err(format!("unknown status `{other}`")),
        }
    }
}

/// An enrolled site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRecord {
    /// Its name.
    pub site: SiteId,
    /// Its one role.
    pub role: Role,
    /// Whether it may speak.
    pub status: SiteStatus,
    /// Ed25519 public key that signs its manifests and reports.
    pub signing_key: [u8; 32],
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// End of its latest certificate.
    pub certificate_until: Option<Timestamp>,
}

/// What the store knows of one certificate, joined with its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The site's role now.
    pub role: Role,
    /// The site's status now.
    pub status: SiteStatus,
    /// Whether this very certificate was revoked.
    pub revoked: bool,
    /// Its end.
    pub not_after: Timestamp,
}

/// Whom an invite is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteTerms {
    /// The site.
    pub site: SiteId,
    /// The role.
    pub role: Role,
}

/// Why a token does not enrol anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteRefusal {
    /// No invite has this token.
    #[error("no invite has this token")]
    Unknown,
    /// It enrolled a site before.
    #[error("the invite of `{site}` was used before")]
    Used {
        /// The site invited.
        site: SiteId,
    },
    /// Too late.
    #[error("the invite of `{site}` has expired")]
    Expired {
        /// The site invited.
        site: SiteId,
    },
}

impl InviteRefusal {
    /// Stable short name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "invite-unknown",
            Self::Used { .. } => "invite-used",
            Self::Expired { .. } => "invite-expired",
        }
    }
}

impl Store {
    /// Records an invite; older unused invites of the same site no longer count.
    ///
    /// # Errors
    /// The database.
    pub async fn add_invite(
        &self,
        token: TokenHash,
        terms: &InviteTerms,
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("DELETE FROM invites WHERE site = ? AND used_at IS NULL")
            .bind(terms.site.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO invites (token_hash, site, role, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(token.as_bytes().as_slice())
        .bind(terms.site.as_str())
        .bind(terms.role.to_string())
        .bind(signed(now.0))
        .bind(signed(expires.0))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Looks a token up without using it. One that was used passes until it expires: whether it counts again, for the keys
    /// that used it, is decided in [`Self::enrol`].
    ///
    /// # Errors
    /// The database; the inner error says why the token does not count.
    pub async fn check_invite(
        &self,
        token: TokenHash,
        now: Timestamp,
    ) -> Result<Result<InviteTerms, InviteRefusal>, StoreError> {
        let row = sqlx::query("SELECT site, role, expires_at, used_at FROM invites WHERE token_hash = ?")
            .bind(token.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(Err(InviteRefusal::Unknown)) };
        let site: SiteId = parse("invite", row.try_get("site")?)?;
        let expires: u64 = unsigned("invite", row.try_get("expires_at")?)?;
        if now.0 >= expires {
            let used = row.try_get::<Option<i64>, _>("used_at")?.is_some();
            return Ok(Err(if used {
                InviteRefusal::Used { site }
            } else {
                InviteRefusal::Expired { site }
            }));
        }
        Ok(Ok(InviteTerms { site, role: parse("invite", row.try_get("role")?)? }))
    }

    /// Uses a token: marks it, makes the site active with its new key, and records the serial of its certificate,
    /// all or nothing. Earlier certificates of the site end here. A used token counts again for the serial that it was used
    /// with, which stands for the same keys (see [`Serial::of`]): the answer to the site may have been lost.
    ///
    /// # Errors
    /// The database; the inner error says why the token does not count (it may have been used since it was checked).
    pub async fn enrol(
        &self,
        token: TokenHash,
        signing_key: &[u8; 32],
        serial: Serial,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Result<InviteTerms, InviteRefusal>, StoreError> {
        let terms = match self.check_invite(token, now).await? {
            Ok(terms) => terms,
            refused => return Ok(refused),
        };
        let mut transaction = self.pool.begin().await?;
        let used = sqlx::query("UPDATE invites SET used_at = ? WHERE token_hash = ? AND used_at IS NULL")
            .bind(signed(now.0))
            .bind(token.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?;
        if used.rows_affected() == 0 {
            if !certify_again(&mut transaction, token, &terms.site, serial, not_after).await? {
                return Ok(Err(InviteRefusal::Used { site: terms.site }));
            }
            transaction.commit().await?;
            return Ok(Ok(terms));
        }
        sqlx::query(
            "INSERT INTO sites (site, role, status, signing_key, enrolled_at) VALUES (?, ?, 'active', ?, ?)
             ON CONFLICT (site) DO UPDATE SET role = excluded.role, status = 'active',
             signing_key = excluded.signing_key, enrolled_at = excluded.enrolled_at",
        )
        .bind(terms.site.as_str())
        .bind(terms.role.to_string())
        .bind(signing_key.as_slice())
        .bind(signed(now.0))
        .execute(&mut *transaction)
        .await?;
        sqlx::query("UPDATE certificates SET revoked_at = ? WHERE site = ? AND revoked_at IS NULL")
            .bind(signed(now.0))
            .bind(terms.site.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO certificates (serial, site, not_after) VALUES (?, ?, ?)")
            .bind(serial.as_bytes().as_slice())
            .bind(terms.site.as_str())
            .bind(signed(not_after.0))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Ok(terms))
    }

    /// Revokes a site and all its certificates; `false` when there is no such site.
    ///
    /// # Errors
    /// The database.
    pub async fn revoke_site(&self, site: &SiteId, now: Timestamp) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let known = sqlx::query("UPDATE sites SET status = 'revoked' WHERE site = ?")
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE certificates SET revoked_at = ? WHERE site = ? AND revoked_at IS NULL")
            .bind(signed(now.0))
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        // A revoked site does not come back through an invite made before.
        sqlx::query("DELETE FROM invites WHERE site = ? AND used_at IS NULL")
            .bind(site.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(known.rows_affected() > 0)
    }

    /// What is known of the certificate `serial` of `site`.
    ///
    /// # Errors
    /// The database.
    pub async fn certificate(
        &self,
        serial: &Serial,
        site: &SiteId,
    ) -> Result<Option<CertificateRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT s.role, s.status, c.revoked_at, c.not_after FROM certificates c JOIN sites s USING (site)
             WHERE c.serial = ? AND c.site = ?",
        )
        .bind(serial.as_bytes().as_slice())
        .bind(site.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(CertificateRecord {
            role: parse("site", row.try_get("role")?)?,
            status: parse("site", row.try_get("status")?)?,
            revoked: row.try_get::<Option<i64>, _>("revoked_at")?.is_some(),
            not_after: Timestamp(unsigned("certificate", row.try_get("not_after")?)?),
        }))
    }

    /// All sites, by name.
    ///
    /// # Errors
    /// The database.
    pub async fn sites(&self) -> Result<Vec<SiteRecord>, StoreError> {
        let rows = sqlx::query(&format!("{SELECT_SITE} ORDER BY s.site")).fetch_all(&self.pool).await?;
        rows.iter().map(read_site).collect()
    }

    /// One site.
    ///
    /// # Errors
    /// The database.
    pub async fn site(&self, site: &SiteId) -> Result<Option<SiteRecord>, StoreError> {
        let query = format!("{SELECT_SITE} WHERE s.site = ?");
        let row = sqlx::query(&query).bind(site.as_str()).fetch_optional(&self.pool).await?;
        row.as_ref().map(read_site).transpose()
    }
}

/// Gives the certificate of a used token its new end; `false` when the token has none with this serial, it was revoked, or
/// the site was invited anew.
async fn certify_again(
    connection: &mut SqliteConnection,
    token: TokenHash,
    site: &SiteId,
    serial: Serial,
    not_after: Timestamp,
) -> Result<bool, StoreError> {
    let again = sqlx::query(
        "UPDATE certificates SET not_after = ?1 WHERE serial = ?2 AND site = ?3 AND revoked_at IS NULL
         AND NOT EXISTS (SELECT 1 FROM invites AS used JOIN invites AS newer ON newer.site = used.site
         WHERE used.token_hash = ?4 AND newer.token_hash <> ?4 AND newer.created_at >= used.used_at)",
    )
    .bind(signed(not_after.0))
    .bind(serial.as_bytes().as_slice())
    .bind(site.as_str())
    .bind(token.as_bytes().as_slice())
    .execute(connection)
    .await?;
    Ok(again.rows_affected() > 0)
}

const SELECT_SITE: &str = "SELECT s.*, (SELECT max(c.not_after) FROM certificates c
    WHERE c.site = s.site AND c.revoked_at IS NULL) AS certificate_until FROM sites s";

fn read_site(row: &SqliteRow) -> Result<SiteRecord, StoreError> {
    let until: Option<i64> = row.try_get("certificate_until")?;
    Ok(SiteRecord {
        site: parse("site", row.try_get("site")?)?,
        role: parse("site", row.try_get("role")?)?,
        status: parse("site", row.try_get("status")?)?,
        signing_key: array("site", row.try_get("signing_key")?)?,
        enrolled_at: Timestamp(unsigned("site", row.try_get("enrolled_at")?)?),
        certificate_until: until.map(|at| unsigned("certificate", at).map(Timestamp)).transpose()?,
    })
}
