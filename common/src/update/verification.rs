//! What was found of an update's content, as it is kept.

use crate::ids::{ArtifactHash, Digest};

/// That the content of an update was verified, and what was found: to be kept beside the update before its receipt is given.
///
/// An update's name covers every byte of it, so what was found holds for whatever has that name, and a reader need only
/// compare the chunks with the manifest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verification {
    pub(super) update: ArtifactHash,
    pub(super) norm: f64,
}

impl Verification {
    /// As kept on disk: name, norm, and a digest of both, because disks err. Frozen by golden bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.update.0.as_bytes().to_vec();
        bytes.extend(self.norm.to_le_bytes());
        let guard = guard(&bytes);
        bytes.extend(guard.as_bytes());
        bytes
    }

    /// Reads it back; `None` when these are not the bytes that [`Verification::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (found, guarded) = bytes.split_at_checked(40)?;
        let (update, norm) = found.split_at_checked(32)?;
        if guarded != guard(found).as_bytes() {
            return None;
        }
        let update = ArtifactHash(Digest::from_bytes(update.try_into().ok()?));
        Some(Self { update, norm: f64::from_le_bytes(norm.try_into().ok()?) })
    }
}

fn guard(found: &[u8]) -> Digest {
    Digest::of(&[b"consilium verification 1\0".as_slice(), found].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_verification_reads_back_and_a_changed_one_does_not() {
        let found = Verification { update: ArtifactHash(Digest::from_bytes([1; 32])), norm: 5.0 };
        let kept = found.to_bytes();
        assert_eq!(kept[..32], [1; 32]);
        assert_eq!(kept[32..40], [0, 0, 0, 0, 0, 0, 0x14, 0x40]);
        assert_eq!(Verification::from_bytes(&kept), Some(found));
        for at in 0..kept.len() {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            assert_eq!(Verification::from_bytes(&changed), None, "byte {at}");
        }
        assert_eq!(Verification::from_bytes(&kept[..71]), None);
        assert_eq!(Verification::from_bytes(&[]), None);
    }
}
