//! Buffers of a chunk's size, lent to transfers one after the other.
//!
//! Taken afresh for every exchange, from whichever thread, they leave the allocator with holes that fit nothing else. What is
//! spare is never more than what is lent, and when nothing is lent nothing is kept: so those whose turn it is bound it.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use common::artifact::CHUNK_BYTES;

/// Room for one chunk, empty at first. Dropped, it is there for the next.
#[derive(Debug)]
pub struct ChunkBuffer {
    bytes: Vec<u8>,
    pool: &'static Pool,
}

#[derive(Debug)]
struct Pool(Mutex<Shelf>);

#[derive(Debug)]
struct Shelf {
    lent: usize,
    spare: Vec<Vec<u8>>,
}

static POOL: Pool = Pool::new();

impl ChunkBuffer {
    /// A buffer of before, or a new one.
    pub fn take() -> Self {
        POOL.lend()
    }
}

impl Pool {
    const fn new() -> Self {
        Self(Mutex::new(Shelf { lent: 0, spare: Vec::new() }))
    }

    fn lend(&'static self) -> ChunkBuffer {
        let spare = self.change(|shelf| {
            shelf.lent += 1;
            shelf.spare.pop()
        });
        // 1 MiB: it fits.
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES as usize));
        ChunkBuffer { bytes, pool: self }
    }

    fn take_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let unwanted = self.change(|shelf| {
            shelf.lent = shelf.lent.saturating_sub(1);
            // One that got lost in a task that was dropped comes back without its room.
            if bytes.capacity() > 0 {
                shelf.spare.push(bytes);
            }
            let kept = shelf.spare.len().min(shelf.lent);
            shelf.spare.split_off(kept)
        });
        // Freed when nobody waits for the lock.
        drop(unwanted);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> T {
        // A poisoned lock guards a list that is whole before and after each change.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        self.pool.take_back(mem::take(&mut self.bytes));
    }
}

impl Deref for ChunkBuffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for ChunkBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_lent_again_and_nothing_is_kept_when_nothing_is_lent() {
        static POOL: Pool = Pool::new();
        let spare = || POOL.change(|shelf| (shelf.lent, shelf.spare.len()));
        let (one, mut other) = (POOL.lend(), POOL.lend());
        other.extend_from_slice(b"liver");
        let room = other.as_ptr();
        drop(other);
        assert_eq!(spare(), (1, 1));
        let again = POOL.lend();
        assert!(again.is_empty() && again.as_ptr() == room);
        drop(again);
        drop(one);
        assert_eq!(spare(), (0, 0));
    }

    #[test]
    fn no_more_is_spare_than_is_lent_and_one_without_room_is_not_kept() {
        static POOL: Pool = Pool::new();
        let spare = || POOL.change(|shelf| (shelf.lent, shelf.spare.len()));
        let mut buffers: Vec<_> = (0..4).map(|_| POOL.lend()).collect();
        drop(buffers.pop());
        assert_eq!(spare(), (3, 1));
        let mut lost = buffers.remove(0);
        drop(mem::take(&mut *lost));
        drop(lost);
        assert_eq!(spare(), (2, 1));
        drop(buffers.pop());
        assert_eq!(spare(), (1, 1));
    }
}
