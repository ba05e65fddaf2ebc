//! How many files the process may have open. Over QUIC all sites share one socket, but over TCP each exchange is one: some fifty
//! such sites at once need more than the 1024 that many systems allow a process that asks for nothing. It may ask for more, up to
//! a hard limit.

use link::tcp::TcpSettings;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most that a site has open: its exchanges over TCP, each a second time while it waits for its turn, and its update, which
/// arrives and is aggregated.
const OF_A_SITE: u64 = 2 * TcpSettings::site().max_exchanges as u64 + 2;
/// What is open beside it: handshakes and strangers at the door, sockets that are ending, database, models, moments.
const OTHERS: u64 = 512;

/// Asks for as many as there may be, and says so when they are too few for so many sites.
pub(crate) fn make_room(sites: usize) {
    let shortfall = raise().and_then(|limit| shortfall(limit, sites));
    if let Some(shortfall) = shortfall {
        tracing::warn!("{shortfall}");
    }
}

/// The limit once it is as high as it may be, where there is one that is known.
fn raise() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    Some(if raised { hard } else { soft })
}

/// What is missing, and what the machine's administrator can do about it; `None` when there are enough.
fn shortfall(limit: u64, sites: usize) -> Option<String> {
    let needed = u64::try_from(sites).unwrap_or(u64::MAX).saturating_mul(OF_A_SITE).saturating_add(OTHERS);
    (limit < needed).then(|| {
        format!(
            "{limit} files and connections may be open at once, and {sites} sites over TCP may need {needed}: beyond the limit none \
             connects and nothing is opened; hint: set LimitNOFILE={needed} in the unit of the service"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_sites_over_tcp_need_more_than_many_systems_give_unasked() {
        let words = shortfall(1024, 50).unwrap();
        assert!(words.starts_with("1024 files") && words.contains("LimitNOFILE=1412"), "{words}");
        assert_eq!(shortfall(1412, 50), None);
        assert_eq!(shortfall(1024, 20), None);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Of this process: enough for the tests beside this one.
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        assert_eq!(raise(), Some(hard));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise(), Some(hard));
    }
}
