//! Writes the zip archive that `torch.load` reads: stored entries, each content at a multiple of 64 bytes, no clock.

use flate2::Crc;

use super::{
    archive::{CENTRAL_HEADER, END_RECORD, LOCAL_HEADER},
    error::CheckpointError,
};

/// Where PyTorch lets contents begin.
const ALIGNMENT: usize = 64;

/// The extra field in which PyTorch keeps its padding.
const PADDING_ID: [u8; 2] = *b"FB";

/// 1 January 1980, midnight: equal models give equal bytes.
const EPOCH: [u8; 4] = [0, 0, 0x21, 0];

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub(super) struct ArchiveWriter {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl ArchiveWriter {
    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::TooLarge`] beyond what 32 bits can say.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> Result<(), CheckpointError> {
        let start = narrow(self.bytes.len())?;
        let fields = entry_fields(name, content)?;
        let content_start = self.bytes.len() + 30 + name.len() + 4;
        let padding = content_start.next_multiple_of(ALIGNMENT) - content_start;
        self.bytes.extend_from_slice(&LOCAL_HEADER);
        self.bytes.extend_from_slice(&fields);
        // Less than 64 + 4, and that is what the extra field's own header says too.
        self.bytes.extend_from_slice(&(padding as u16 + 4).to_le_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(&PADDING_ID);
        self.bytes.extend_from_slice(&(padding as u16).to_le_bytes());
        self.bytes.resize(self.bytes.len() + padding, b'Z');
        self.bytes.extend_from_slice(content);
        self.list(name, &fields, start)
    }

    fn list(&mut self, name: &str, fields: &[u8], start: u32) -> Result<(), CheckpointError> {
        self.entries =
            self.entries.checked_add(1).ok_or(CheckpointError::TooLarge("more than 65,535 entries"))?;
        self.directory.extend_from_slice(&CENTRAL_HEADER);
        self.directory.extend_from_slice(&[20, 0]);
        self.directory.extend_from_slice(fields);
        // No extra field, no comment, first disk, no attributes.
        self.directory.extend_from_slice(&[0; 12]);
        self.directory.extend_from_slice(&start.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());
        Ok(())
    }

    /// The archive.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub(super) fn finish(mut self) -> Result<Vec<u8>, CheckpointError> {
        let (start, size) = (narrow(self.bytes.len())?, narrow(self.directory.len())?);
        self.bytes.append(&mut self.directory);
        self.bytes.extend_from_slice(&END_RECORD);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&self.entries.to_le_bytes());
        self.bytes.extend_from_slice(&self.entries.to_le_bytes());
        self.bytes.extend_from_slice(&size.to_le_bytes());
        self.bytes.extend_from_slice(&start.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 2]);
        Ok(self.bytes)
    }
}

/// What local and central header have in common: version to the length of the name.
fn entry_fields(name: &str, content: &[u8]) -> Result<Vec<u8>, CheckpointError> {
    let name_length = u16::try_from(name.len()).map_err(|_| CheckpointError::TooLarge("a name of 64 KiB"))?;
    let size = narrow(content.len())?.to_le_bytes();
    let mut crc = Crc::new();
    crc.update(content);
    // Version 2.0, names in UTF-8, stored.
    let mut fields = vec![20, 0, 0, 8, 0, 0];
    fields.extend_from_slice(&EPOCH);
    fields.extend_from_slice(&crc.sum().to_le_bytes());
    fields.extend_from_slice(&size);
    fields.extend_from_slice(&size);
    fields.extend_from_slice(&name_length.to_le_bytes());
    Ok(fields)
}

/// All ones would announce the 64-bit variant.
fn narrow(length: usize) -> Result<u32, CheckpointError> {
    let narrow = u32::try_from(length).ok().filter(|&length| length < u32::MAX);
    narrow.ok_or(CheckpointError::TooLarge("4 GiB or more"))
}
