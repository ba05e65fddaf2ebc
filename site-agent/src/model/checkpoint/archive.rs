//! The zip archive that `torch.save` writes: `<root>/data.pkl`, and each storage at `<root>/data/<key>`.
//!
//! PyTorch stores its entries and never compresses them. So does this reader: nothing that it returns is longer than the
//! file. Directories come from the end of the archive, as everywhere; the 64-bit variant is read, comments are not.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
};

use flate2::Crc;

use super::{bytes::Bytes, error::CheckpointError};

pub(super) const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
pub(super) const CENTRAL_HEADER: [u8; 4] = *b"PK\x01\x02";
pub(super) const END_RECORD: [u8; 4] = *b"PK\x05\x06";
const WIDE_LOCATOR: [u8; 4] = *b"PK\x06\x07";
const WIDE_END_RECORD: [u8; 4] = *b"PK\x06\x06";

/// Directories of real checkpoints have some hundred entries of about 70 bytes.
const MAX_DIRECTORY: u64 = 4 << 20;

const ENCRYPTED: u16 = 1;

/// An open archive and its directory.
#[derive(Debug)]
pub(super) struct Archive<R> {
    source: Source<R>,
    root: String,
    entries: BTreeMap<String, Entry>,
}

/// A stored entry that lies inside the file.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its local header begins.
    start: u64,
    size: u64,
    crc: u32,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the directory.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Archive`] for anything but a zip of stored entries with one `data.pkl`.
    pub(super) fn open(file: R) -> Result<Self, CheckpointError> {
        let mut source = Source::new(file)?;
        let directory = source.directory()?;
        let entries = parse_directory(&directory, source.length)?;
        let mut roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
        let root = match (roots.next(), roots.next()) {
            (Some(root), None) => root.to_owned(),
            (None, _) => return Err(broken("it has no data.pkl")),
            (Some(_), Some(_)) => return Err(broken("it has more than one data.pkl")),
        };
        Ok(Self { source, root, entries })
    }

    /// Length of the whole file.
    pub(super) fn length(&self) -> u64 {
        self.source.length
    }

    /// Length of an entry below the root.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(&format!("{}/{name}", self.root)).map(|entry| entry.size)
    }

    /// The bytes of an entry below the root.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Archive`] if it is absent or its checksum is another.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let entry = self.entries.get(&format!("{}/{name}", self.root)).copied();
        let entry = entry.ok_or_else(|| broken(format!("it has no {name}")))?;
        let start = self.source.content_start(entry)?;
        let bytes = self.source.read_at(start, entry.size)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        if crc.sum() != entry.crc {
            return Err(broken(format!("{name} is damaged: its checksum is another")));
        }
        Ok(bytes)
    }
}

/// The file and its length: no read goes beyond it.
#[derive(Debug)]
struct Source<R> {
    file: R,
    length: u64,
}

impl<R: Read + Seek> Source<R> {
    fn new(mut file: R) -> Result<Self, CheckpointError> {
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, length })
    }

    fn read_at(&mut self, start: u64, size: u64) -> Result<Vec<u8>, CheckpointError> {
        let inside = start.checked_add(size).is_some_and(|end| end <= self.length);
        let size = usize::try_from(size).ok().filter(|_| inside).ok_or_else(cut_off)?;
        self.file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; size];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of the central directory.
    fn directory(&mut self) -> Result<Vec<u8>, CheckpointError> {
        if self.length < 4 || self.read_at(0, 4)? != LOCAL_HEADER {
            return Err(broken("it is no zip archive (files from before PyTorch 1.6 are none)"));
        }
        let end_start = self.length.checked_sub(22).ok_or_else(cut_off)?;
        let end = self.read_at(end_start, 22)?;
        let (size, start) = parse_end(&end).ok_or_else(|| broken("it has no end: it may be cut off"))?;
        let (size, start) = if size == u32::MAX || start == u32::MAX {
            self.wide_end(end_start)?
        } else {
            (size.into(), start.into())
        };
        if size > MAX_DIRECTORY {
            return Err(broken(format!("its directory says that it has {size} bytes")));
        }
        self.read_at(start, size)
    }

    /// Size and start of a directory that 32 bits cannot say.
    fn wide_end(&mut self, end_start: u64) -> Result<(u64, u64), CheckpointError> {
        let locator = self.read_at(end_start.checked_sub(20).ok_or_else(cut_off)?, 20)?;
        let record_start = parse_locator(&locator).ok_or_else(cut_off)?;
        let record = self.read_at(record_start, 56)?;
        parse_wide_end(&record).ok_or_else(cut_off)
    }

    /// Where an entry's bytes begin: its local header has lengths of its own.
    fn content_start(&mut self, entry: Entry) -> Result<u64, CheckpointError> {
        let header = self.read_at(entry.start, 30)?;
        let mut fields = Bytes::new(&header);
        let lengths = (fields.array::<4>() == Some(LOCAL_HEADER))
            .then(|| {
                fields.skip(22)?;
                Some(u64::from(fields.u16()?) + u64::from(fields.u16()?))
            })
            .flatten();
        Ok(entry.start + 30 + lengths.ok_or_else(|| broken("an entry is not where the directory says"))?)
    }
}

/// Size and start of the directory.
fn parse_end(record: &[u8]) -> Option<(u32, u32)> {
    let mut fields = Bytes::new(record);
    if fields.array::<4>()? != END_RECORD {
        return None;
    }
    fields.skip(8)?;
    Some((fields.u32()?, fields.u32()?))
}

fn parse_locator(record: &[u8]) -> Option<u64> {
    let mut fields = Bytes::new(record);
    if fields.array::<4>()? != WIDE_LOCATOR {
        return None;
    }
    fields.skip(4)?;
    fields.u64()
}

fn parse_wide_end(record: &[u8]) -> Option<(u64, u64)> {
    let mut fields = Bytes::new(record);
    if fields.array::<4>()? != WIDE_END_RECORD {
        return None;
    }
    fields.skip(36)?;
    Some((fields.u64()?, fields.u64()?))
}

fn parse_directory(bytes: &[u8], length: u64) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let mut fields = Bytes::new(bytes);
    let mut entries = BTreeMap::new();
    while fields.left() > 0 {
        let (name, entry) = CentralHeader::read(&mut fields).ok_or_else(cut_off)?.entry(length)?;
        if entries.insert(name, entry).is_some() {
            return Err(broken("two of its entries have one name"));
        }
    }
    Ok(entries)
}

/// An entry as the directory describes it.
struct CentralHeader<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    crc: u32,
    size: u64,
    stored_size: u64,
    start: u64,
}

impl<'a> CentralHeader<'a> {
    fn read(fields: &mut Bytes<'a>) -> Option<Self> {
        if fields.array::<4>()? != CENTRAL_HEADER {
            return None;
        }
        fields.skip(4)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.skip(4)?;
        let (crc, stored_size, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let [name, extra, comment] = [fields.u16()?, fields.u16()?, fields.u16()?];
        fields.skip(8)?;
        let start = fields.u32()?;
        let name = fields.take(name.into())?;
        let mut wide = Bytes::new(wide_fields(fields.take(extra.into())?));
        fields.skip(comment.into())?;
        let mut widen = |narrow: u32| if narrow == u32::MAX { wide.u64() } else { Some(narrow.into()) };
        // The wide fields come in this order, and only those whose narrow field is all ones.
        let (size, stored_size, start) = (widen(size)?, widen(stored_size)?, widen(start)?);
        Some(Self { name, flags, method, crc, size, stored_size, start })
    }

    fn entry(self, length: u64) -> Result<(String, Entry), CheckpointError> {
        let name = std::str::from_utf8(self.name).map_err(|_| broken("an entry's name is no text"))?;
        if self.method != 0 || self.flags & ENCRYPTED != 0 || self.stored_size != self.size {
            return Err(broken(format!("{name:?} is compressed or encrypted, which PyTorch never does")));
        }
        let end = self.start.checked_add(self.size);
        if end.is_none_or(|end| end > length) {
            return Err(broken(format!("{name:?} is larger than the file")));
        }
        Ok((name.to_owned(), Entry { start: self.start, size: self.size, crc: self.crc }))
    }
}

/// The extra field of 64-bit sizes, or nothing.
fn wide_fields(extra: &[u8]) -> &[u8] {
    let mut extra = Bytes::new(extra);
    while let (Some(id), Some(length)) = (extra.u16(), extra.u16()) {
        let Some(data) = extra.take(length.into()) else { break };
        if id == 1 {
            return data;
        }
    }
    &[]
}

fn broken(what: impl Into<String>) -> CheckpointError {
    CheckpointError::Archive(what.into())
}

fn cut_off() -> CheckpointError {
    broken("it is cut off or damaged")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::model::checkpoint::archive_writer::ArchiveWriter;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ArchiveWriter::default();
        for (name, content) in entries {
            writer.add(name, content).unwrap();
        }
        writer.finish().unwrap()
    }

    /// An archive of one entry with every size and place in 64 bits, as those of more than 4 GiB have them.
    fn widened(plain: &[u8]) -> Vec<u8> {
        let central = plain.windows(4).position(|window| window == CENTRAL_HEADER).unwrap();
        let (mut header, mut end) =
            (plain[central..plain.len() - 22].to_vec(), plain[plain.len() - 22..].to_vec());
        let wide = |at: usize| u64::from(u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
        // Size, stored size, start.
        let extra: Vec<u8> = [24, 20, 42].into_iter().flat_map(|at| wide(at).to_le_bytes()).collect();
        for at in [20, 24, 42] {
            header[at..at + 4].fill(0xff);
        }
        header[30] = 28;
        header.extend_from_slice(&[1, 0, 24, 0]);
        header.extend_from_slice(&extra);
        let record_start = (central + header.len()) as u64;
        // Its own length, versions, disks; entries here and in all.
        let mut record = [WIDE_END_RECORD.as_slice(), &44u64.to_le_bytes(), &[0; 12]].concat();
        for number in [1, 1, header.len() as u64, central as u64] {
            record.extend_from_slice(&number.to_le_bytes());
        }
        let locator = [WIDE_LOCATOR.as_slice(), &[0; 4], &record_start.to_le_bytes(), &[1, 0, 0, 0]].concat();
        end[12..20].fill(0xff);
        [&plain[..central], &header, &record, &locator, &end].concat()
    }

    fn refusal(bytes: Vec<u8>) -> String {
        match Archive::open(Cursor::new(bytes)).map(|mut archive| archive.read("data.pkl")) {
            Err(error) | Ok(Err(error)) => error.to_string(),
            Ok(Ok(_)) => panic!("the archive was accepted"),
        }
    }

    #[test]
    fn entries_read_back_as_written() {
        let bytes = archive(&[("archive/data.pkl", b"pickle"), ("archive/data/0", b"")]);
        let mut read = Archive::open(Cursor::new(bytes)).unwrap();
        assert_eq!(read.read("data.pkl").unwrap(), b"pickle");
        assert_eq!((read.size("data/0"), read.size("data/1")), (Some(0), None));
        assert!(read.read("data/1").is_err());
    }

    #[test]
    fn sizes_and_places_in_64_bits_are_read_and_may_not_lie_outside_of_the_file() {
        let wide = widened(&archive(&[("archive/data.pkl", b"pickle")]));
        let mut read = Archive::open(Cursor::new(wide.clone())).unwrap();
        assert_eq!(read.read("data.pkl").unwrap(), b"pickle");
        for (record, field, words) in [
            (CENTRAL_HEADER, 46 + "archive/data.pkl".len() + 4, "compressed"),
            (CENTRAL_HEADER, 46 + "archive/data.pkl".len() + 20, "larger than the file"),
            (WIDE_END_RECORD, 40, "its directory says"),
            (WIDE_END_RECORD, 48, "cut off or damaged"),
            (WIDE_LOCATOR, 8, "cut off or damaged"),
        ] {
            let mut hostile = wide.clone();
            let at = hostile.windows(4).position(|window| window == record).unwrap() + field;
            hostile[at..at + 8].fill(0xff);
            let said = refusal(hostile);
            assert!(said.contains(words), "{record:?} {field}: {said}");
        }
    }

    #[test]
    fn cut_off_and_foreign_files_are_refused() {
        let bytes = archive(&[("archive/data.pkl", b"pickle")]);
        for length in 0..bytes.len() {
            refusal(bytes[..length].to_vec());
        }
        assert!(
            refusal(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".repeat(3)).contains("before PyTorch 1.6")
        );
    }

    #[test]
    fn no_damaged_byte_brings_it_down() {
        let plain = archive(&[("archive/data.pkl", b"pickle")]);
        for bytes in [widened(&plain), plain] {
            for position in 0..bytes.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut damaged = bytes.clone();
                    damaged[position] = value;
                    let _ = Archive::open(Cursor::new(damaged)).map(|mut archive| archive.read("data.pkl"));
                }
            }
        }
    }

    #[test]
    fn damaged_content_is_refused() {
        let mut bytes = archive(&[("archive/data.pkl", b"pickle")]);
        let at = bytes.windows(6).position(|window| window == b"pickle").unwrap();
        bytes[at] ^= 1;
        assert!(refusal(bytes).contains("damaged"));
    }

    #[test]
    fn a_size_beyond_the_file_is_refused_before_anything_is_allocated() {
        let mut bytes = archive(&[("archive/data.pkl", b"pickle")]);
        let central = bytes.windows(4).position(|window| window == CENTRAL_HEADER).unwrap();
        bytes[central + 20..central + 28].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff].repeat(2));
        assert!(refusal(bytes).contains("larger than the file"));
    }

    #[test]
    fn compressed_entries_twins_and_strangers_are_refused() {
        let mut bytes = archive(&[("archive/data.pkl", b"pickle")]);
        let central = bytes.windows(4).position(|window| window == CENTRAL_HEADER).unwrap();
        bytes[central + 10] = 8;
        assert!(refusal(bytes).contains("compressed"));
        let twins = archive(&[("archive/data.pkl", b""), ("archive/data.pkl", b"")]);
        assert!(refusal(twins).contains("one name"));
        assert!(refusal(archive(&[("archive/weights", b"")])).contains("no data.pkl"));
        assert!(refusal(archive(&[("a/data.pkl", b""), ("b/data.pkl", b"")])).contains("more than one"));
    }
}
