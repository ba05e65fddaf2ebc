//! Things that several threads make, taken one after the other as if one had made them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Has `make` make each of `count` things, with a scratchpad that its thread keeps and into room of before, and `take` take what came of
/// it in order of the indices. A thread that is done with one goes on with the next, so long and short ones may alternate; each thread
/// has room for two, so that none waits while another's is taken.
///
/// # Errors
/// What `make` said of the first that failed, or `take`; nothing is taken after that.
pub(super) fn make_in_order<Scratch, Room, Made, Error>(
    count: u32,
    threads: usize,
    make: impl Fn(u32, &mut Scratch, &mut Room) -> Result<Made, Error> + Sync,
    mut take: impl FnMut(Made, &Room) -> Result<(), Error>,
) -> Result<(), Error>
where
    Scratch: Default,
    Room: Default + Send,
    Made: Send,
    Error: Send,
{
    let (to_fill, rooms) = mpsc::channel::<Room>();
    let (filled, mut arriving) = mpsc::channel();
    for _ in 0..2 * threads {
        // The receiver is here.
        let _ = to_fill.send(Room::default());
    }
    let (rooms, next) = (Mutex::new(rooms), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..threads {
            let (filled, rooms, next, make) = (filled.clone(), &rooms, &next, &make);
            scope.spawn(move || {
                let mut scratch = Scratch::default();
                // Room first, and then an index: so the lowest index that is not made yet always has room.
                while let Some(mut room) = wait_for_room(rooms) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    // It goes on in whoever waits for this one: else he would wait for ever.
                    let made = catch_unwind(AssertUnwindSafe(|| make(index, &mut scratch, &mut room)));
                    if filled.send((index, made, room)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(filled);
        let taken = take_all(count, &mut arriving, &to_fill, &mut take);
        // Lets the threads go.
        drop((to_fill, arriving));
        taken
    })
}

/// What became of one thing, and the room that it was made in.
type Arrived<Room, Made, Error> = (u32, thread::Result<Result<Made, Error>>, Room);

fn take_all<Room, Made, Error>(
    count: u32,
    arriving: &mut mpsc::Receiver<Arrived<Room, Made, Error>>,
    to_fill: &mpsc::Sender<Room>,
    take: &mut impl FnMut(Made, &Room) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut early = BTreeMap::new();
    for wanted in 0..count {
        let (made, room) = loop {
            if let Some(found) = early.remove(&wanted) {
                break found;
            }
            let (index, made, room) = arriving.recv().expect("the threads end when all is made and sent");
            early.insert(index, (made, room));
        };
        take(made.unwrap_or_else(|panic| resume_unwind(panic))?, &room)?;
        // Fails when the threads have ended: all is made.
        let _ = to_fill.send(room);
    }
    Ok(())
}

/// `None` when no more is to be made.
fn wait_for_room<Room>(rooms: &Mutex<mpsc::Receiver<Room>>) -> Option<Room> {
    // Poisoning means that a thread panicked while it waited: the channel is as it was.
    rooms.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Doubles each index on so many threads; what was taken, and how that ended.
    fn double(count: u32, threads: usize, bad: Option<u32>) -> (Vec<u32>, Result<(), u32>) {
        let mut taken = Vec::new();
        let make = |index, calls: &mut u32, room: &mut Vec<u32>| {
            *calls += 1;
            room.push(index);
            if bad == Some(index) { Err(index) } else { Ok(2 * index) }
        };
        let ended = make_in_order(count, threads, make, |made, room| {
            assert_eq!(room.last().map(|index| 2 * index), Some(made), "its own room");
            taken.push(made);
            Ok(())
        });
        (taken, ended)
    }

    #[test]
    fn what_many_threads_make_is_taken_in_order() {
        for (count, threads) in [(0, 3), (1, 3), (7, 1), (1000, 4)] {
            let expected: Vec<u32> = (0..count).map(|index| 2 * index).collect();
            assert_eq!(double(count, threads, None), (expected, Ok(())), "{count} on {threads}");
        }
    }

    #[test]
    fn what_comes_early_waits_for_what_is_late() {
        // Index 0 is made only when 1 has been.
        let (one_is_made, mut taken) = (Barrier::new(2), Vec::new());
        let make = |index, (): &mut (), (): &mut ()| {
            if index <= 1 {
                one_is_made.wait();
            }
            Ok::<_, ()>(index)
        };
        let take = |made, (): &()| {
            taken.push(made);
            Ok(())
        };
        make_in_order(3, 2, make, take).unwrap();
        assert_eq!(taken, [0, 1, 2]);
    }

    #[test]
    fn the_first_that_fails_ends_it_and_what_was_before_is_taken() {
        for threads in [1, 4] {
            assert_eq!(double(100, threads, Some(3)), (vec![0, 2, 4], Err(3)), "{threads} threads");
        }
        let refuse = |made, (): &()| if made == 2 { Err(made) } else { Ok(()) };
        assert_eq!(make_in_order(100, 4, |index, (): &mut (), (): &mut ()| Ok(index), refuse), Err(2));
    }

    #[test]
    #[should_panic(expected = "at two")]
    fn a_panic_goes_on_in_who_waits() {
        let make = |index, (): &mut (), (): &mut ()| {
            assert!(index != 2, "at two");
            Ok::<_, ()>(index)
        };
        let _ = make_in_order(100, 3, make, |_, ()| Ok(()));
    }
}
