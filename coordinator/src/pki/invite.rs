//! Invites: the file that an operator hands to a hospital, and the one-time token in it.
//!
//! The coordinator keeps only the token's hash: whoever reads its store cannot enrol. The file names the root's
//! fingerprint, so that a site trusts this consortium from its first byte on, whatever the network in between says.

use std::path::Path;

use common::ids::{Digest, Role, SiteId};
use serde::{Deserialize, Serialize};

use super::random_bytes;

/// A one-time secret of 32 bytes. Has no `Debug` on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// A new one.
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// What the coordinator keeps of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }

    /// As written in the invite.
    pub fn to_text(&self) -> String {
        data_encoding::BASE32_NOPAD.encode(&self.0)
    }
}

/// Digest of a token's bytes: random 256 bits need no salt and no slow hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHash(Digest);

impl TokenHash {
    /// Hash of a token as it arrived.
    pub fn of(token: &[u8]) -> Self {
        Self(Digest::of(token))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// An invite file, TOML.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The consortium's name, written into the certificate.
    pub consortium: String,
    /// Where the coordinator answers, `host:port`.
    pub coordinator: String,
    /// SHA-256 of the root certificate, 64 hexadecimal digits.
    pub root_sha256: String,
    /// The site invited.
    pub site: SiteId,
    /// What it is invited for.
    pub role: Role,
    /// Until when the token counts, RFC 3339.
    pub expires: String,
    /// The one-time token, base 32.
    pub token: String,
}

/// An invite that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The file.
    #[error("{path}")]
    File {
        /// Where.
        path: String,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// Its text.
    #[error("invite: {0}")]
    Text(String),
}

impl Invite {
    /// The file's text, with a few words to the person who opens it.
    ///
    /// # Errors
    /// [`InviteError::Text`] when a field cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, InviteError> {
        let body = toml::to_string(self).map_err(|e| InviteError::Text(e.to_string()))?;
        Ok(format!(
            "# Invite to the consortium `{}`. Whoever holds this file can enrol as `{}`, once: hand it over in person\n\
             # or encrypted, run `site-agent enroll` with it, then delete it.\n{body}",
            self.consortium, self.site
        ))
    }

    /// Writes the invite to a file that only its owner can read, and that must not exist.
    ///
    /// # Errors
    /// [`InviteError::File`].
    pub fn write(&self, path: &Path) -> Result<(), InviteError> {
        crate::files::write_new(path, self.to_toml()?.as_bytes(), crate::files::Access::Private)
            .map_err(|source| InviteError::File { path: path.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_reads_back_what_it_says() {
        let token = Token::random();
        let invite = Invite {
            consortium: "demo".to_owned(),
            coordinator: "127.0.0.1:443".to_owned(),
            root_sha256: "00".repeat(32),
            site: "site-a".parse().unwrap(),
            role: Role::Trainer,
            expires: "2027-01-15T08:00:00Z".to_owned(),
            token: token.to_text(),
        };
        let text = invite.to_toml().unwrap();
        let back: Invite = toml::from_str(&text).unwrap();
        assert_eq!((back.site, back.role), (invite.site, invite.role));
        let bytes = data_encoding::BASE32_NOPAD.decode(back.token.as_bytes()).unwrap();
        assert_eq!(TokenHash::of(&bytes), token.hash());
    }
}
