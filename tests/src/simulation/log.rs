//! A journal on a disk: one line for each event, of which a kill can leave the last in part.
//!
//! A site's is a file of lines. The coordinator's is a database with a log of its own, of which the same holds: what is not
//! there whole when it is opened again did not happen.

use common::journal::Entry;
use common::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The lines of a journal.
#[derive(Debug, Default)]
pub(super) struct Log {
    text: String,
}

impl Log {
    /// Writes an event; what is read back of its line.
    pub(super) fn append<E: Clone + Serialize + DeserializeOwned>(
        &mut self,
        event: &E,
        at: Timestamp,
    ) -> Entry<E> {
        let line = line_of(event, at);
        self.text.push_str(&line);
        self.text.push('\n');
        serde_json::from_str(&line).expect("a journal line is an event")
    }

    /// Writes a part of an event's line, which ends somewhere before its end.
    pub(super) fn tear<E: Clone + Serialize>(&mut self, event: &E, at: Timestamp, cut: usize) {
        let line = line_of(event, at);
        self.text.extend(line.chars().take(cut % (line.len() + 1)));
    }

    /// Cuts off what a kill left of a line.
    pub(super) fn recover(&mut self) {
        let whole = self.text.rfind('\n').map_or(0, |at| at + 1);
        self.text.truncate(whole);
    }

    /// All events.
    ///
    /// # Errors
    /// A line that is none.
    pub(super) fn read<E: DeserializeOwned>(&self) -> Result<Vec<Entry<E>>, serde_json::Error> {
        self.text.lines().map(serde_json::from_str).collect()
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
    }
}

fn line_of<E: Clone + Serialize>(event: &E, at: Timestamp) -> String {
    serde_json::to_string(&Entry { at, event: event.clone() }).expect("an event is JSON")
}

#[cfg(test)]
mod tests {
    use common::round::Event;

    use super::*;

    #[test]
    fn a_last_line_that_is_cut_at_any_byte_did_not_happen() {
        let line = line_of(&Event::Abort, Timestamp(2));
        for cut in 0..=line.len() {
            let mut log = Log::default();
            let start = log.append(&Event::Start, Timestamp(1));
            log.tear(&Event::Abort, Timestamp(2), cut);
            log.recover();
            assert_eq!(log.read::<Event>().unwrap(), [start], "cut at {cut}");
        }
    }
}
