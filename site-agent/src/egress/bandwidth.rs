//! How much of its line a hospital gives to the consortium, hour by hour.
//!
//! Pure: time is an argument. `transport` asks before each chunk that it sends and after each that it received, so that a
//! change of the hour counts from the next chunk on.

use std::time::Duration;

/// Bytes per second in each direction; `None` is whatever the line gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// From here to the coordinator.
    pub upload: Option<u64>,
    /// From the coordinator to here.
    pub download: Option<u64>,
}

/// Caps for a part of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// First minute of the day, 0 to 1439.
    pub from: u16,
    /// The first minute after it. Before `from`: on the next day. The same: all day.
    pub to: u16,
    /// The caps; a direction without one follows what is always true.
    pub caps: Caps,
}

impl Hours {
    fn cover(&self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// A site's caps over the day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// When no hours say otherwise.
    pub always: Caps,
    /// The first of them that covers the time counts.
    pub hours: Vec<Hours>,
}

impl Bandwidth {
    /// The caps at a minute of the day, local time.
    pub fn at(&self, minute: u16) -> Caps {
        let Some(hours) = self.hours.iter().find(|hours| hours.cover(minute)) else { return self.always };
        Caps {
            upload: hours.caps.upload.or(self.always.upload),
            download: hours.caps.download.or(self.always.download),
        }
    }

    /// The highest download cap of the day; `None` when there are minutes without one.
    pub fn fastest_download(&self) -> Option<u64> {
        let caps: Option<Vec<u64>> = (0..MINUTES).map(|minute| self.at(minute).download).collect();
        caps?.into_iter().max()
    }
}

/// Minutes of a day.
pub const MINUTES: u16 = 24 * 60;

/// Lets bytes through at a rate, first come, first served. At most one booking is ahead of the rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// When all that was booked is through.
    free_at: Duration,
}

impl Bucket {
    /// Books `bytes` at `rate` bytes per second; how long to wait from `now` on. Times count from any fixed instant.
    pub fn book(&mut self, bytes: u64, rate: Option<u64>, now: Duration) -> Duration {
        let start = self.free_at.max(now);
        match rate {
            Some(rate) => {
                self.free_at = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
                start - now
            }
            None => {
                self.free_at = now;
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Sends chunks of 1 MiB one after the other; when each may leave.
    fn send(
        bucket: &mut Bucket,
        chunks: u32,
        mut now: Duration,
        rate: impl Fn(Duration) -> Option<u64>,
    ) -> Vec<u64> {
        let mut left = Vec::new();
        for _ in 0..chunks {
            now += bucket.book(MIB, rate(now), now);
            left.push(now.as_secs());
        }
        left
    }

    #[test]
    fn a_cap_holds_from_the_second_chunk_on() {
        let mut bucket = Bucket::default();
        assert_eq!(send(&mut bucket, 4, seconds(100), |_| Some(MIB / 2)), [100, 102, 104, 106]);
        // A pause is not saved up.
        assert_eq!(send(&mut bucket, 3, seconds(1000), |_| Some(MIB / 2)), [1000, 1002, 1004]);
    }

    #[test]
    fn two_streams_share_one_cap() {
        let mut bucket = Bucket::default();
        let waits = [0, 1, 2, 3].map(|_| bucket.book(MIB, Some(MIB), seconds(5)).as_secs());
        assert_eq!(waits, [0, 1, 2, 3]);
    }

    #[test]
    fn a_change_of_the_hour_counts_in_mid_transfer() {
        let day = Bandwidth {
            always: Caps::default(),
            hours: vec![Hours { from: 1, to: 3, caps: Caps { upload: Some(MIB / 30), download: None } }],
        };
        let mut bucket = Bucket::default();
        let minute = |now: Duration| (now.as_secs() / 60) as u16;
        // Free until 1:00, one chunk each half minute until 3:00, then free again.
        let left = send(&mut bucket, 9, seconds(60), |now| day.at(minute(now)).upload);
        assert_eq!(left, [60, 90, 120, 150, 180, 180, 180, 180, 180]);
    }

    #[test]
    fn a_clock_that_steps_counts_from_the_next_chunk_on_and_stops_nothing() {
        let day = Bandwidth {
            always: Caps::default(),
            hours: vec![Hours { from: 1, to: 3, caps: Caps { upload: Some(MIB / 30), download: None } }],
        };
        // After 100 s the clock on the wall is set back by an hour, out of the capped minutes.
        let minute = |now: Duration| {
            let minute = (now.as_secs() / 60) as u16;
            if now < seconds(100) { minute } else { (minute + MINUTES - 60) % MINUTES }
        };
        let mut bucket = Bucket::default();
        let left = send(&mut bucket, 5, seconds(60), |now| day.at(minute(now)).upload);
        assert_eq!(left, [60, 90, 120, 120, 120]);
        // And back into them: what was free is not paid for.
        let left = send(&mut bucket, 3, seconds(130), |_| day.at(1).upload);
        assert_eq!(left, [130, 160, 190]);
    }

    #[test]
    fn hours_may_pass_midnight_and_say_one_direction_only() {
        let (day, night) = (Some(10), Some(99));
        let bandwidth = Bandwidth {
            always: Caps { upload: day, download: Some(50) },
            hours: vec![Hours { from: 22 * 60, to: 6 * 60, caps: Caps { upload: night, download: None } }],
        };
        for (minute, upload) in
            [(0, night), (359, night), (360, day), (1319, day), (1320, night), (1439, night)]
        {
            assert_eq!(bandwidth.at(minute), Caps { upload, download: Some(50) }, "{minute}");
        }
        assert_eq!(bandwidth.fastest_download(), Some(50));
        assert_eq!(Bandwidth::default().fastest_download(), None);
    }
}
