//! NVFlare and Flower on the same work: the same sizes, clients that change one number.
//!
//! Each is run by a script in `tests/bench/peers`, which prints one line of JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::process::{command, finish};
use super::rounds::{Row, Times};

/// Pythons in which the peers are installed.
pub(crate) struct Peers<'a> {
    pub(crate) nvflare: Option<&'a Path>,
    pub(crate) flower: Option<&'a Path>,
}

/// What a script prints.
#[derive(Debug, Deserialize)]
struct Measured {
    peer: String,
    lane: String,
    s_rounds: Vec<f64>,
    s_cold_start: f64,
    bytes_per_round: Option<u64>,
    server_peak_mb: f64,
    client_peak_mb: f64,
}

/// Runs both, one after the other.
pub(crate) fn measure(
    programs: &Peers<'_>,
    params: u64,
    sites: u16,
    rounds: u32,
) -> anyhow::Result<Vec<Row>> {
    let peers = [("nvflare", programs.nvflare), ("flower", programs.flower)];
    let peers = peers.into_iter().map(|(name, python)| {
        let python =
            python.with_context(|| format!("no Python with {name}: use `tests/bench/rounds --peers`"))?;
        let script: PathBuf =
            [env!("CARGO_MANIFEST_DIR"), "bench", "peers", &format!("{name}_rounds.py")].iter().collect();
        let mut run = command(python);
        run.env("PYTHONDONTWRITEBYTECODE", "1");
        run.arg(script).args(["--params", &params.to_string(), "--clients", &sites.to_string()]);
        let said = finish(run.args(["--rounds", &rounds.to_string()])).with_context(|| name)?;
        read(&said, params, sites, rounds).with_context(|| name)
    });
    peers.collect()
}

fn read(said: &str, params: u64, sites: u16, rounds: u32) -> anyhow::Result<Row> {
    let Some(line) = said.lines().rfind(|line| line.starts_with('{')) else { bail!("it printed no result") };
    let measured: Measured = serde_json::from_str(line)?;
    let row = Row {
        system: measured.peer,
        lane: measured.lane,
        params,
        sites,
        rounds,
        bytes: measured.bytes_per_round,
        coordinator_peak_mb: measured.server_peak_mb,
        site_peak_mb: measured.client_peak_mb,
        ..Row::default()
    };
    Ok(row.with(&Times { rounds: measured.s_rounds, cold_start: measured.s_cold_start }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_json_is_the_result() {
        let said = "installing\n{\"peer\": \"nvflare 2.9.0\", \"lane\": \"gRPC, mutual TLS\", \"s_rounds\": [4.0, 5.0, 6.0], \
                    \"s_cold_start\": 20.0, \"bytes_per_round\": null, \"server_peak_mb\": 1200, \"client_peak_mb\": 500}\n";
        let row = read(said, 1, 3, 3).unwrap();
        assert_eq!((row.system.as_str(), row.s_per_round, row.bytes), ("nvflare 2.9.0", 6.0, None));
        assert!(read("nothing", 1, 3, 3).is_err());
    }
}
