//! A consortium in a folder of its own: set up by the commands that operators use.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::ids::{Role, RoundId};
use common::journal::Entry;
use common::participant::Event;
use coordinator::operator::client::ask_running;
use coordinator::operator::{Reply, Request, Status, StudyLine};
use coordinator::progress::Line;
use coordinator::report::ReportData;
use nix::sys::signal::Signal;
use site_agent::egress::{self, Kind};
use tempfile::TempDir;

use super::process::{FAILPOINT, Finished, PATIENCE, Process, command, finish};

/// A coordinator and the folders of its sites.
pub(crate) struct Consortium {
    /// The running coordinator.
    pub(crate) coordinator: Coordinator,
    /// What sites dial.
    pub(crate) address: String,
    folder: TempDir,
}

/// The coordinator's process, which tells what happens as JSON.
pub(crate) struct Coordinator(pub(crate) Process);

/// An enrolled site.
pub(crate) struct Site {
    pub(crate) name: String,
    /// Identity, configuration and state.
    pub(crate) folder: PathBuf,
}

impl Consortium {
    /// Makes the consortium `name` and starts its coordinator.
    pub(crate) fn found(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = format!("127.0.0.1:{}", lasting_port());
        finish(coordinator(folder.path(), ["init", "--consortium", name, "--listen", &listen])).ok();
        let mut running = Coordinator::start(folder.path(), None);
        let address = running.until_listening();
        Self { coordinator: running, address, folder }
    }

    /// Kills the coordinator where it stands and starts it again; what the killed one said.
    pub(crate) fn crash_coordinator(&mut self) -> Vec<String> {
        self.crash_coordinator_before(None)
    }

    /// As [`Consortium::crash_coordinator`]: the new one ends itself at `failpoint`.
    pub(crate) fn crash_coordinator_before(&mut self, failpoint: Option<&str>) -> Vec<String> {
        let said = self.coordinator.0.kill();
        self.coordinator = Coordinator::start(self.folder.path(), failpoint);
        said
    }

    /// Has the coordinator end in order. Then it is as one that was killed: nothing of it is left.
    pub(crate) fn stop_coordinator(&mut self) {
        self.coordinator.0.signal(Signal::SIGTERM);
        self.coordinator.until("its end", |line| matches!(line, Line::Stopped).then_some(()));
        self.coordinator.0.kill();
    }

    /// A copy of all files in another folder, with a coordinator of its own that listens at the same address: this one must be
    /// dead. It ends itself at `failpoint`.
    pub(crate) fn copy(&self, failpoint: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.folder.path().join(".")).arg(folder.path());
        finish(copy).ok();
        let mut coordinator = Coordinator::start(folder.path(), failpoint);
        coordinator.until_listening();
        Self { coordinator, address: self.address.clone(), folder }
    }

    /// The same site in this consortium's folder.
    pub(crate) fn site(&self, site: &Site) -> Site {
        Site { name: site.name.clone(), folder: self.path(&site.name) }
    }

    /// Runs a command of the operator.
    pub(crate) fn operate<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Finished {
        finish(coordinator(self.folder.path(), args))
    }

    /// Starts a command of the operator that runs on.
    pub(crate) fn begin<'a>(&self, name: &str, args: impl IntoIterator<Item = &'a str>) -> Process {
        Process::start(name, coordinator(self.folder.path(), args))
    }

    /// The report on a study, as it stands now.
    pub(crate) fn report(&self, study: &str) -> ReportData {
        let out = self.folder.path().join("report");
        self.operate(["report", study, "--out", out.to_str().expect("a plain name")]).ok();
        let report = fs::read(out.join("report.json")).expect("written");
        serde_json::from_slice(&report).expect("a report")
    }

    /// Invites a site for so many hours; the invite's file.
    pub(crate) fn invite(&self, site: &str, role: Role, hours: u32) -> PathBuf {
        let file = self.folder.path().join(format!("{site}.invite.toml"));
        let (role, hours) = (role.to_string(), hours.to_string());
        let out = file.to_str().expect("a folder with a plain name");
        self.operate(["invite", site, "--role", &role, "--hours", &hours, "--out", out]).ok();
        file
    }

    /// An invite that expired when it was written, which no command makes; its file.
    pub(crate) fn expired_invite(&self, site: &str, role: Role) -> PathBuf {
        let file = self.folder.path().join(format!("{site}.invite.toml"));
        let request = Request::Invite { site: site.parse().expect("a site's name"), role, hours: 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let reply = runtime.block_on(ask_running(&self.path("state"), &request)).expect("an answer");
        let Some(Reply::Invite { text }) = reply else { panic!("{reply:?}") };
        fs::write(&file, text).expect("the folder is ours");
        file
    }

    /// Invites and enrols a site that may take part in any study.
    pub(crate) fn enrol(&self, name: &str, role: Role) -> Site {
        let invite = self.invite(name, role, 1);
        let site = Site { name: name.to_owned(), folder: self.folder.path().join(name) };
        site.enrol(&invite).ok();
        fs::remove_file(invite).expect("the invite was there");
        site.configure(&self.address, "");
        site
    }

    /// How everything stands.
    pub(crate) fn status(&self) -> Status {
        serde_json::from_str(&self.operate(["status", "--json"]).ok()).expect("a status")
    }

    /// Waits until a site is one that a round of a study can be opened with: the coordinator knows what it has.
    pub(crate) fn until_ready(&self, site: &Site) {
        let status = || finish(coordinator(self.folder.path(), ["status", "--json"]));
        let is_ready = |study: &StudyLine| study.ready.iter().any(|ready| ready.as_str() == site.name);
        until_told(&format!("the coordinator has {} ready", site.name), status, |told| {
            let status: Status = serde_json::from_str(told).expect("a status");
            status.studies.iter().any(is_ready)
        });
    }

    /// A path in the consortium's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Coordinator {
    fn start(folder: &Path, failpoint: Option<&str>) -> Self {
        let mut run = coordinator(folder, ["run", "--json"]);
        run.envs(failpoint.map(|failpoint| (FAILPOINT, failpoint)));
        Self(Process::start("coordinator", run))
    }

    /// Waits until something has happened.
    pub(crate) fn until<T>(&mut self, what: &str, find: impl Fn(&Line) -> Option<T>) -> T {
        self.0.until(what, |text| find(&serde_json::from_str(text).ok()?))
    }

    /// Waits until sites and commands can reach it; where sites do.
    pub(crate) fn until_listening(&mut self) -> String {
        self.until("its address", |line| match line {
            Line::Listening { address, .. } => Some(address.clone()),
            _ => None,
        })
    }

    /// Waits for a turn in a study, by its short name and part of its words; the words.
    pub(crate) fn until_study(&mut self, wanted: &str, words: &str) -> String {
        self.until(&format!("{wanted}: {words}"), |line| match line {
            Line::Study { what, detail, .. } if what == wanted && detail.contains(words) => {
                Some(detail.clone())
            }
            _ => None,
        })
    }

    /// Waits until the report of an evaluator on the model of a round counts.
    pub(crate) fn until_scored(&mut self, name: &str, round: RoundId) {
        self.until(&format!("round {round} scored by {name}"), |line| match line {
            Line::Scored { site, round: scored, .. } => {
                (site.as_str() == name && *scored == round).then_some(())
            }
            _ => None,
        });
    }

    /// Waits until a site is connected.
    pub(crate) fn until_connected(&mut self, name: &str) {
        self.until(&format!("{name} connected"), |line| match line {
            Line::Connected { site, .. } => (site.as_str() == name).then_some(()),
            _ => None,
        });
    }

    /// Waits for a refusal with this code, of this site if it can be told; what was refused and why.
    pub(crate) fn until_refused(&mut self, name: Option<&str>, wanted: &str) -> String {
        self.until(&format!("{name:?} refused: {wanted}"), |line| match line {
            Line::Refused { site, code, detail } => {
                let same = code == wanted && site.as_ref().map(|site| site.as_str()) == name;
                same.then(|| detail.clone())
            }
            _ => None,
        })
    }
}

impl Site {
    /// Exchanges an invite for this folder's identity.
    pub(crate) fn enrol(&self, invite: &Path) -> Finished {
        let args = ["enroll".as_ref(), invite.as_os_str(), "--dir".as_ref(), self.folder.as_os_str()];
        finish(command("site-agent", args))
    }

    /// Writes `site.toml` and a policy that takes every study; `datasets` is TOML.
    pub(crate) fn configure(&self, coordinator: &str, datasets: &str) {
        let site = format!(
            "coordinator = \"{coordinator}\"\nidentity = \"identity\"\nstate = \"state\"\npolicy = \"policy.toml\"\n\
             threads = 1\nmin_count = 1\n{datasets}"
        );
        let policy = "[studies]\napprove = \"any\"\n\n[egress]\nallow = [\"label-manifest\", \"progress\", \
                      \"update\", \"evaluation-report\"]\nmax_update_mib = 64\nmax_mib_per_day = 1024\n\
                      progress_every_s = 1\n";
        fs::write(self.folder.join("site.toml"), site).expect("the folder is ours");
        fs::write(self.folder.join("policy.toml"), policy).expect("the folder is ours");
    }

    /// Makes the policy of [`Site::configure`] one that leaves every study to a person.
    pub(crate) fn ask_before_studies(&self) {
        let policy = self.path("policy.toml");
        let text = fs::read_to_string(&policy).expect("written at enrolment");
        let asking = text.replace("approve = \"any\"", "approve = \"ask\"");
        assert_ne!(text, asking);
        fs::write(policy, asking).expect("the folder is ours");
    }

    /// Makes the policy of [`Site::configure`], one of before models were a kind, one that lets them go back.
    pub(crate) fn let_models_leave(&self) {
        let policy = self.path("policy.toml");
        let text = fs::read_to_string(&policy).expect("written at enrolment");
        let letting = text.replace("allow = [", "allow = [\"model\", ");
        assert_ne!(text, letting);
        fs::write(policy, letting).expect("the folder is ours");
    }

    /// What has left the site, by its own ledger.
    pub(crate) fn left(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        egress::verify(&self.path("state/egress.jsonl"), |entry| kinds.push(entry.kind)).expect("whole");
        kinds
    }

    /// Starts the agent.
    pub(crate) fn run(&self) -> Process {
        Process::start(&self.name, self.command(["run"]))
    }

    /// Asks the site's own status until it says these words.
    pub(crate) fn until_status(&self, words: &str) {
        let status = || finish(self.command(["status"]));
        until_told(&format!("the status of {}: {words}", self.name), status, |told| told.contains(words));
    }

    /// Has the agent keep every step of a round.
    pub(crate) fn keep_every_step(&self) {
        let path = self.path("site.toml");
        let text = fs::read_to_string(&path).expect("written at enrolment");
        fs::write(path, format!("{text}\n[checkpoint]\nevery_steps = 1\n")).expect("the folder is ours");
    }

    /// Has the agent dial over QUIC alone, however long that takes to answer.
    pub(crate) fn dial_over_quic(&self) {
        self.set("lane = \"quic\"\n");
    }

    /// Has the agent dial over TCP alone.
    pub(crate) fn dial_over_tcp(&self) {
        self.set("lane = \"tcp\"\n");
    }

    /// Has the agent dial over TCP alone, through a proxy.
    pub(crate) fn dial_through(&self, proxy: &str) {
        self.set(&format!("lane = \"tcp\"\nproxy = \"{proxy}\"\n"));
    }

    /// Has the agent dial another address than the coordinator's own.
    pub(crate) fn dial_at(&self, coordinator: &str, address: SocketAddr) {
        let path = self.path("site.toml");
        let text = fs::read_to_string(&path).expect("written at enrolment");
        let elsewhere = text.replace(coordinator, &address.to_string());
        assert_ne!(text, elsewhere);
        fs::write(path, elsewhere).expect("the folder is ours");
    }

    /// Adds lines to the settings that [`Site::configure`] wrote, before its tables.
    fn set(&self, lines: &str) {
        let path = self.path("site.toml");
        let text = fs::read_to_string(&path).expect("written at enrolment");
        fs::write(path, format!("{lines}{text}")).expect("the folder is ours");
    }

    /// Starts the agent as one that also says when it has kept a step, and ends itself at `failpoint`.
    pub(crate) fn run_to(&self, failpoint: Option<&str>) -> Process {
        let mut run = self.command(["run"]);
        run.env("CONSILIUM_LOG", "info,site_agent::client::checkpointing=debug");
        run.envs(failpoint.map(|failpoint| (FAILPOINT, failpoint)));
        Process::start(&self.name, run)
    }

    /// Steps of each training that came to its end, by the site's own journal.
    pub(crate) fn trainings(&self) -> Vec<u32> {
        let journal = fs::read_to_string(self.path("state/journal/events-0.jsonl")).expect("the journal");
        let steps = |line: &str| match serde_json::from_str::<Entry<Event>>(line).expect("an event").event {
            Event::Trained { steps, .. } => Some(steps),
            _ => None,
        };
        // The agent may be at the last line.
        let whole = journal.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.filter_map(steps).collect()
    }

    /// A command of the site's operator, with its configuration.
    pub(crate) fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = command("site-agent", args);
        command.arg("--config").arg(self.folder.join("site.toml"));
        command
    }

    /// A path in the site's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Asks by a command, again and again, until the answer is as wanted.
///
/// # Panics
/// When it does not come to be.
fn until_told(what: &str, ask: impl Fn() -> Finished, is_wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = ask();
        if is_wanted(&told.out) {
            return;
        }
        assert!(Instant::now() < deadline, "waiting until {what}: {told:#?}");
    }
}

/// A port that is free for both lanes, and that the system gives to nobody who asks for any: the sites keep the address, and a
/// coordinator that was killed must find it free, whoever opened a socket meanwhile.
fn lasting_port() -> u16 {
    /// Linux gives to who asks for any from 32768 on.
    const PORTS: std::ops::Range<u16> = 10_000..32_768;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Tests that run beside this one, each in a process of its own, begin elsewhere.
    let first = std::process::id().wrapping_mul(16);
    let ports = std::iter::repeat_with(|| {
        let next = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        PORTS.start + u16::try_from(next % u32::from(PORTS.end - PORTS.start)).expect("one of so few")
    });
    let is_free = |port: &u16| {
        let address = (Ipv4Addr::LOCALHOST, *port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    ports.take(PORTS.len()).find(is_free).expect("a free port")
}

fn coordinator<'a>(folder: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = command("coordinator", args);
    command.arg("--config").arg(folder.join("coordinator.toml"));
    command
}
