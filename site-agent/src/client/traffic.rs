//! `[bandwidth]` and `streams` of `site.toml`: how transfers use the hospital's line.

use common::config::Problems;
use link::transfer::MAX_STREAMS;
use serde::Deserialize;

use crate::egress::Traffic;
use crate::egress::bandwidth::{Bandwidth, Caps, Hours, MINUTES};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBandwidth {
    upload_mbit: Option<f64>,
    download_mbit: Option<f64>,
    hours: Vec<RawHours>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHours {
    from: String,
    to: String,
    #[serde(default)]
    upload_mbit: Option<f64>,
    #[serde(default)]
    download_mbit: Option<f64>,
}

/// Streams and caps; mistakes go to `problems`.
pub(super) fn parse(streams: Option<u32>, raw: &RawBandwidth, problems: &mut Problems) -> Traffic {
    let default = Traffic::default();
    let streams = streams.map_or(default.streams, |streams| streams as usize);
    problems.in_range("streams", streams, 1..=MAX_STREAMS);
    let always = caps("bandwidth", raw.upload_mbit, raw.download_mbit, problems);
    let hours = raw.hours.iter().enumerate();
    let hours = hours.filter_map(|(index, hours)| parse_hours(index, hours, problems)).collect();
    Traffic { streams, bandwidth: Bandwidth { always, hours } }
}

fn parse_hours(index: usize, raw: &RawHours, problems: &mut Problems) -> Option<Hours> {
    let key = format!("bandwidth.hours[{index}]");
    let mut time = |name: &str, text: &str, last: u16| {
        let minute = minute(text).filter(|&minute| minute <= last);
        if minute.is_none() {
            problems.add_allowed(format!("{key}.{name}"), format!("`{text}` is no time of day"), "HH:MM");
        }
        minute
    };
    // `to` may be the end of the day.
    let (from, to) = (time("from", &raw.from, MINUTES - 1), time("to", &raw.to, MINUTES));
    if raw.upload_mbit.is_none() && raw.download_mbit.is_none() {
        problems.add_allowed(&key, "these hours change nothing", "`upload_mbit`, `download_mbit` or both");
    }
    let caps = caps(&key, raw.upload_mbit, raw.download_mbit, problems);
    Some(Hours { from: from?, to: to?, caps })
}

fn caps(key: &str, upload: Option<f64>, download: Option<f64>, problems: &mut Problems) -> Caps {
    let mut cap = |name: &str, mbit: Option<f64>| {
        // Below 1 Mbit/s a chunk would take longer than the coordinator waits for one.
        problems.in_range(&format!("{key}.{name}"), mbit.unwrap_or(1.0), 1.0..=100_000.0);
        mbit.map(|mbit| (mbit * 125_000.0) as u64)
    };
    Caps { upload: cap("upload_mbit", upload), download: cap("download_mbit", download) }
}

/// The minute of the day of `HH:MM`.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::client::config::SiteConfig;

    fn read(keys: &str) -> Result<SiteConfig, common::config::Diagnostics> {
        let text = format!(
            "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n{keys}"
        );
        SiteConfig::parse(Path::new("site.toml"), &text)
    }

    #[test]
    fn nothing_is_capped_unless_somebody_says_so() {
        let config = read("").unwrap();
        assert_eq!(config.traffic, Traffic::default());
        assert_eq!(config.transport().receive_window, link::quic::QuicSettings::site().receive_window);
    }

    #[test]
    fn caps_follow_the_hours() {
        let config = read(
            "streams = 4\n[bandwidth]\nupload_mbit = 100\ndownload_mbit = 80\n\
             hours = [{ from = \"07:00\", to = \"19:00\", upload_mbit = 20.5 }, \
             { from = \"22:30\", to = \"24:00\", upload_mbit = 400, download_mbit = 400 }]\n",
        )
        .unwrap();
        assert_eq!(config.traffic.streams, 4);
        let at = |hour: u16, minute: u16| {
            let caps = config.traffic.bandwidth.at(60 * hour + minute);
            (caps.upload.unwrap(), caps.download.unwrap())
        };
        assert_eq!(at(6, 59), (12_500_000, 10_000_000));
        assert_eq!(at(7, 0), (2_562_500, 10_000_000));
        assert_eq!(at(19, 0), (12_500_000, 10_000_000));
        assert_eq!(at(23, 59), (50_000_000, 50_000_000));
        assert_eq!(
            config.transport().receive_window,
            12_500_000,
            "a quarter of a second of the fastest hour"
        );
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let refused = read(
            "streams = 5\n[bandwidth]\nupload_mbit = 0.5\nhours = [{ from = \"7:00\", to = \"25:00\" }]\n",
        )
        .unwrap_err();
        let lines: Vec<_> = refused.items().iter().map(|item| item.line).collect();
        assert_eq!(lines, [Some(5), Some(7), Some(8), Some(8), Some(8)], "{refused}");
        let words = refused.to_string();
        assert!(words.contains("`7:00` is no time of day") && words.contains("1 to 4"), "{words}");
    }
}
