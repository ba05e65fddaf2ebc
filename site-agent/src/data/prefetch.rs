//! Prepares batches on a thread of its own while the trainer computes.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::DataError;
use super::batch::{Batch, BatchAddress, BatchSource};

/// Runs `consume` with the batches at `addresses`, in that order; up to `ahead` of them wait prepared.
///
/// With `ahead` 0 each batch is prepared when it is asked for. What comes out is the same. When `consume` returns early,
/// the thread ends after the batch that it is at.
pub fn with_batches<R>(
    source: &dyn BatchSource,
    addresses: impl Iterator<Item = BatchAddress> + Send,
    ahead: usize,
    consume: impl FnOnce(&mut dyn Iterator<Item = Result<Batch, DataError>>) -> R,
) -> R {
    if ahead == 0 {
        return consume(&mut addresses.map(|address| source.batch(address)));
    }
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(ahead);
        scope.spawn(move || {
            for address in addresses {
                // A closed channel says that nobody wants the rest.
                if sender.send(source.batch(address)).is_err() {
                    break;
                }
            }
        });
        consume(&mut Receiver::into_iter(receiver))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::RoundId;

    /// Batches that say which one they are.
    struct Numbered;

    impl BatchSource for Numbered {
        fn batch(&self, address: BatchAddress) -> Result<Batch, DataError> {
            let images = vec![address.step as f32, address.micro as f32];
            Ok(Batch {
                patch: [1, 1, 2],
                samples: 1,
                images,
                classes: vec![],
                targets: vec![],
                annotated: vec![],
            })
        }
    }

    fn addresses() -> impl Iterator<Item = BatchAddress> + Send {
        (0..10).map(|step| BatchAddress { round: RoundId(1), step, micro: step % 3 })
    }

    #[test]
    fn batches_arrive_in_order_however_far_ahead_they_are_prepared() {
        let images = |ahead| {
            with_batches(&Numbered, addresses(), ahead, |batches| {
                batches.map(|batch| batch.unwrap().images).collect::<Vec<_>>()
            })
        };
        let plain = images(0);
        assert_eq!(plain.len(), 10);
        assert_eq!(plain, images(1));
        assert_eq!(plain, images(4));
    }

    #[test]
    fn a_trainer_that_stops_early_stops_the_thread() {
        let first =
            with_batches(&Numbered, addresses(), 2, |batches| batches.next().unwrap().unwrap().images);
        assert_eq!(first, [0.0, 0.0]);
    }
}
