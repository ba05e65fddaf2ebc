//! An exchange that moves chunks keeps its turn of the budget while it moves them: a model on a slow line comes whole, however long it
//! takes. One that trickles loses its turn to who waits, and offers or asks again for what is missing.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use link::LinkError;

/// How often an exchange is looked at.
const TURN: Duration = Duration::from_secs(30 * 60);

/// Bytes that it moves between two looks at the least: half of what a line does that takes a minute for each chunk of bfloat16. Chunks
/// alone do not tell, because the smallest have a few bytes.
const LEAST: u64 = 8 << 20;

/// Bytes that an exchange has moved.
#[derive(Debug, Default)]
pub(super) struct Moved(AtomicU64);

impl Moved {
    /// So many more.
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends `transfer` when it trickles.
    ///
    /// # Errors
    /// [`LinkError::TooSlow`] then; else what the transfer says.
    pub(super) async fn watch(
        &self,
        what: &'static str,
        transfer: impl Future<Output = Result<(), LinkError>>,
    ) -> Result<(), LinkError> {
        let mut transfer = pin!(transfer);
        let mut before = 0;
        loop {
            if let Ok(ended) = tokio::time::timeout(TURN, transfer.as_mut()).await {
                return ended;
            }
            let moved = self.0.load(Ordering::Relaxed);
            if moved.saturating_sub(before) < LEAST {
                return Err(LinkError::TooSlow { what, limit: TURN });
            }
            before = moved;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three hours of an exchange that moves so much in each minute.
    async fn move_each_minute(bytes: u64) -> Result<(), LinkError> {
        let moved = Moved::default();
        let transfer = async {
            for _ in 0..180 {
                tokio::time::sleep(Duration::from_secs(60)).await;
                moved.add(bytes);
            }
            Ok::<(), LinkError>(())
        };
        moved.watch("update", transfer).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_keeps_its_turn_and_a_trickle_loses_it() {
        assert!(move_each_minute(512 << 10).await.is_ok(), "70 kbit/s");
        let trickled = move_each_minute(4 << 10).await;
        assert!(matches!(trickled, Err(LinkError::TooSlow { what: "update", limit: TURN })), "{trickled:?}");
    }
}
