//! How long the allocator keeps the blocks of tensors (docs/decisions/0012).

use libmimalloc_sys::{mi_collect, mi_option_set_default, mi_option_t};

/// mimalloc's `mi_option_purge_delay`, milliseconds; the bindings leave it out of their constants.
const PURGE_DELAY: mi_option_t = 15;

/// Longer than a training step of the largest network takes, and a round that hardly trains: what one gives back, the next takes.
const KEEP_MS: i64 = 30_000;

/// Keeps freed blocks for some seconds, unless `MIMALLOC_PURGE_DELAY` says otherwise. To be called first thing in a process
/// whose allocator is mimalloc.
pub fn keep_blocks() {
    // SAFETY: It writes a number into mimalloc's table of options, in which 15 is an entry. It must not race with another
    // call that sets options: nobody else does, and there is one thread when a process starts.
    unsafe { mi_option_set_default(PURGE_DELAY, KEEP_MS) };
}

/// Gives back what this thread has freed and the allocator keeps; so that a measurement of what comes next begins with what is held.
pub fn give_back() {
    // SAFETY: It may be called at any time, from any thread.
    unsafe { mi_collect(true) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_delay_of_purging() {
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_some() {
            return;
        }
        // SAFETY: It reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000, "mimalloc's default: another number means another option");
        keep_blocks();
        assert_eq!(delay(), KEEP_MS);
    }
}
