//! Long, lossy and broken lines: how fast an update goes over one, and what is lost when it breaks.
//!
//! A coordinator, a relay that is the line ([`relay`]), a site: the agent with all its transfer code. Everything is seen from
//! outside: when the site has trained, what it sends into the line, when the coordinator counts the update.

mod line;
mod relay;
mod tcp;
mod udp;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use coordinator::progress::Line as Said;
use serde::Serialize;

use self::line::Path;
use self::relay::Relay;
use super::Places;
use super::consortium::{Consortium, PATIENCE, Size, turn};
use super::process::{Heard, Process};
use super::site::TRAINED;

/// How often it is looked what the line has carried: of the fastest update here, half a percent.
const LOOK: Duration = Duration::from_millis(2);
/// From so many bytes on an update is on its way: acknowledgements and the offer are fewer.
const UNDER_WAY: u64 = 1 << 18;
/// Rounds of a case with a disturbance, which comes in the first; the second shows that nothing is left of it.
const ROUNDS: u32 = 2;

/// What is run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of the model.
    #[arg(long, default_value_t = 19_400_000)]
    params: u64,
    /// Rates of the line, Mbit/s; the disturbances have the first.
    #[arg(long, value_delimiter = ',', default_value = "100,1000", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Vec<u32>,
    /// Delay there and back, milliseconds.
    #[arg(long, default_value_t = 50)]
    round_trip_ms: u64,
    /// Packets that are lost, per cent, each way.
    #[arg(long, default_value_t = 1.0)]
    loss: f64,
    /// Congestion control of the site.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bbr,cubic")]
    congestion: Vec<Congestion>,
    /// Only these.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Seconds after which an update that is not through is given up, and its rate so far told.
    #[arg(long, default_value_t = 30)]
    sample: u64,
    /// Seconds of the cut.
    #[arg(long, default_value_t = 60)]
    cut: u64,
    /// Draws the losses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a line in the place of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

/// What is done to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Case {
    /// One update, nothing but delay, loss and rate.
    Upload,
    /// The same over two rounds, to compare with.
    Undisturbed,
    /// Nothing comes through for some time in the midst of an update.
    Cut,
    /// The site's address is another in the midst of an update.
    AddressChange,
    /// No UDP ever comes through.
    NoUdp,
    /// No UDP comes through any more, from the midst of an update on.
    UdpLost,
}

/// Congestion control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Congestion {
    Bbr,
    Cubic,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    case: Case,
    rate_mbit_s: u32,
    round_trip_ms: u64,
    loss_percent: f64,
    congestion: Congestion,
    params: u64,
    /// From the first bytes of the first update on the line until the coordinator counts it.
    s_update: Option<f64>,
    /// The update's bits by that time; of one that was given up, what came through by the time.
    mbit_s: Option<f64>,
    /// From the start of the site to the end of the study.
    s: Option<f64>,
    /// What the site sent into the line.
    bytes_sent: u64,
    /// More than undisturbed.
    bytes_resent: Option<i64>,
    s_lost: Option<f64>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!((0.0..=100.0).contains(&options.loss), "--loss {}: expected 0 to 100", options.loss);
    if !options.json {
        println!("{}", Row::HEADER);
    }
    let wanted = |case: &Case| options.cases.is_empty() || options.cases.contains(case);
    if wanted(&Case::Upload) {
        for &rate in &options.rate {
            for &congestion in &options.congestion {
                measure(options, Case::Upload, rate, congestion)?.print(options.json)?;
            }
        }
    }
    let (Some(&rate), Some(&congestion)) = (options.rate.first(), options.congestion.first()) else {
        return Ok(());
    };
    let disturbed = [Case::Cut, Case::AddressChange, Case::NoUdp, Case::UdpLost];
    let disturbed: Vec<Case> = disturbed.into_iter().filter(|case| wanted(case)).collect();
    if disturbed.is_empty() && !wanted(&Case::Undisturbed) {
        return Ok(());
    }
    // Without it there is nothing to compare with.
    let undisturbed = measure(options, Case::Undisturbed, rate, congestion)?;
    undisturbed.print(options.json)?;
    for case in disturbed {
        measure(options, case, rate, congestion)?.compared_with(&undisturbed).print(options.json)?;
    }
    Ok(())
}

fn measure(options: &Options, case: Case, rate: u32, congestion: Congestion) -> anyhow::Result<Row> {
    let trial = Trial { options, case, rate, congestion };
    trial.run().with_context(|| format!("{case:?} at {rate} Mbit/s, {congestion:?}"))
}

/// One consortium with one site behind one line.
struct Trial<'a> {
    options: &'a Options,
    case: Case,
    rate: u32,
    congestion: Congestion,
}

/// What was seen of a trial so far.
#[derive(Default)]
struct Seen {
    /// What had been sent when the first update was ready, and when its first bytes were on the line.
    ready: Option<u64>,
    first_bytes: Option<(Instant, u64)>,
    counted: Option<Instant>,
    finished: Option<Instant>,
    disturbed: Option<Instant>,
}

impl Trial<'_> {
    fn run(&self) -> anyhow::Result<Row> {
        let rounds = if self.case == Case::Upload { 1 } else { ROUNDS };
        let size = Size { params: self.options.params, sites: 1, rounds };
        let (programs, folder) = (self.options.places.programs()?, self.options.places.folder());
        size.check_room(&folder, super::rounds::models_on_disk(1))?;
        let consortium = Consortium::found(&programs, &folder, size)?;
        let (mut coordinator, address) = consortium.start_coordinator()?;
        let relay = Relay::start(address.parse()?, self.path())?;
        if self.case == Case::NoUdp {
            relay.drop_udp();
        }
        let settings = match self.congestion {
            Congestion::Bbr => "congestion = \"bbr\"\n",
            Congestion::Cubic => "congestion = \"cubic\"\n",
        };
        let started = Instant::now();
        let name = consortium.sites().pop().context("there is one site")?;
        let mut site = consortium.start_site(&name, &relay.address.to_string(), settings)?;
        let seen = self.watch(&mut coordinator, &mut site, &relay, size.model_bytes() / 2)?;
        let bytes_sent = relay.sent();
        let given_up = seen.finished.is_none();
        if !given_up {
            site.stop()?;
            coordinator.stop()?;
        }
        Ok(self.row(&seen, started, bytes_sent, size.model_bytes(), relay.delivered()))
    }

    fn path(&self) -> Path {
        Path {
            mbit_s: self.rate,
            delay: Duration::from_millis(self.options.round_trip_ms) / 2,
            loss: self.options.loss / 100.0,
            queue: Duration::from_millis(50),
            seed: self.options.seed,
        }
    }

    /// Follows the trial to its end, or until an update takes too long, and disturbs it when half of the first is sent.
    fn watch(
        &self,
        coordinator: &mut Process,
        site: &mut Process,
        relay: &Relay,
        half: u64,
    ) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        let mut last = Instant::now();
        while seen.finished.is_none() {
            if let Some(heard) = coordinator.next(LOOK)? {
                last = heard.at;
                seen.note(&heard)?;
            }
            if let Some(heard) = site.next(Duration::ZERO)?
                && turn(&heard) == Some(TRAINED)
            {
                seen.ready = seen.ready.or(Some(relay.sent()));
            }
            let Some(ready) = seen.ready else {
                ensure!(last.elapsed() < PATIENCE, "nothing was said for {} s", PATIENCE.as_secs());
                continue;
            };
            let sent = relay.sent() - ready;
            if sent >= UNDER_WAY && seen.first_bytes.is_none() {
                seen.first_bytes = Some((Instant::now(), relay.delivered()));
            }
            if sent >= half && seen.disturbed.is_none() {
                self.disturb(relay);
                seen.disturbed = Some(Instant::now());
            }
            let since = seen.disturbed.map_or(Duration::ZERO, |at| at.elapsed());
            if self.case == Case::Cut && since >= Duration::from_secs(self.options.cut) {
                relay.cut(false);
            }
            let (under_way, patience) =
                (seen.first_bytes.filter(|_| seen.counted.is_none()), self.patience());
            if under_way.is_some_and(|(at, _)| at.elapsed() >= patience) {
                ensure!(
                    self.case == Case::Upload,
                    "the update is not through after {} s",
                    patience.as_secs()
                );
                break;
            }
            ensure!(last.elapsed() < PATIENCE, "nothing was said for {} s", PATIENCE.as_secs());
        }
        Ok(seen)
    }

    fn disturb(&self, relay: &Relay) {
        match self.case {
            Case::Upload | Case::Undisturbed | Case::NoUdp => {}
            Case::Cut => relay.cut(true),
            Case::AddressChange => relay.move_address(),
            Case::UdpLost => relay.drop_udp(),
        }
    }

    /// How long an update may take.
    fn patience(&self) -> Duration {
        match self.case {
            Case::Upload => Duration::from_secs(self.options.sample),
            _ => PATIENCE,
        }
    }

    fn row(&self, seen: &Seen, started: Instant, bytes_sent: u64, update: u64, delivered: u64) -> Row {
        let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
        let s_update = seen.first_bytes.zip(seen.counted).map(|((from, _), to)| seconds(from, to));
        let mbit_s = seen.first_bytes.map(|(from, before)| match seen.counted {
            Some(to) => update as f64 * 8e-6 / seconds(from, to),
            None => (delivered - before) as f64 * 8e-6 / from.elapsed().as_secs_f64(),
        });
        Row {
            case: self.case,
            rate_mbit_s: self.rate,
            round_trip_ms: self.options.round_trip_ms,
            loss_percent: self.options.loss,
            congestion: self.congestion,
            params: self.options.params,
            s_update,
            mbit_s,
            s: seen.finished.map(|finished| seconds(started, finished)),
            bytes_sent,
            bytes_resent: None,
            s_lost: None,
        }
    }
}

impl Seen {
    fn note(&mut self, heard: &Heard) -> anyhow::Result<()> {
        if let Said::Fault { detail, .. } = &heard.line {
            bail!("the coordinator's store fails: {detail}");
        }
        match turn(heard) {
            Some("update-counted") => self.counted = self.counted.or(Some(heard.at)),
            Some("finished") => self.finished = Some(heard.at),
            _ => {}
        }
        Ok(())
    }
}

impl Row {
    const HEADER: &'static str = "| case | Mbit/s of the line | congestion | s/update | Mbit/s | s in all | MB sent | MB more | s more |\n\
                                  | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

    fn compared_with(self, undisturbed: &Self) -> Self {
        Self {
            bytes_resent: i64::try_from(self.bytes_sent)
                .ok()
                .zip(i64::try_from(undisturbed.bytes_sent).ok())
                .map(|(ours, theirs)| ours - theirs),
            s_lost: self.s.zip(undisturbed.s).map(|(ours, theirs)| ours - theirs),
            ..self
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let name = self.case.to_possible_value().map(|case| case.get_name().to_owned()).unwrap_or_default();
        let (more, sent) = (self.bytes_resent.map(|bytes| bytes as f64 / 1e6), self.bytes_sent as f64 / 1e6);
        println!(
            "| {name} | {} | {:?} | {} | {} | {} | {sent:.1} | {} | {} |",
            self.rate_mbit_s,
            self.congestion,
            shown(self.s_update),
            shown(self.mbit_s),
            shown(self.s),
            shown(more),
            shown(self.s_lost)
        );
        Ok(())
    }
}
