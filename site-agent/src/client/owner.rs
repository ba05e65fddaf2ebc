//! Whose a file is: what to do where this user may not do something with it, and the folders where root is not to write.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::unistd::{Uid, User, geteuid};

use super::files::{self, FileError};
use super::state::StateFolder;

/// Whose everything of unknown owners is, such as what root writes over NFS: nobody works as that.
const NOBODY: Uid = Uid::from_raw(65_534);

/// A folder of another user.
#[derive(Debug, thiserror::Error)]
#[error("it belongs to `{owner}`, who could not use what `root` writes there")]
struct Foreign {
    owner: String,
}

/// Keeps root from writing in another user's state folder: that user could not even read what root leaves there. Everybody else is
/// kept out by the folder's own permissions, or let in by them. An agent that has always run as root goes on, whosever the folder is.
///
/// # Errors
/// [`FileError`], with whom the folder belongs to.
pub(super) fn refuse_root(folder: &Path) -> Result<(), FileError> {
    refuse(folder, owner(folder), agent_of(folder), geteuid())
}

/// Whoever has run the agent, and what tells that: its journal or, where that was moved away, its ledger.
fn agent_of(folder: &Path) -> Option<(PathBuf, Uid)> {
    let state = StateFolder::at(folder);
    [state.journal(), state.ledger()].into_iter().find_map(|at| owner(&at).map(|agent| (at, agent)))
}

fn refuse(
    folder: &Path,
    whose: Option<Uid>,
    agent: Option<(PathBuf, Uid)>,
    user: Uid,
) -> Result<(), FileError> {
    let (at, owner) = match (agent, whose) {
        (Some((at, agent)), whose) if whose != Some(agent) => (at, agent),
        (_, Some(whose)) => (folder.to_owned(), whose),
        // One that is not there yet will be that of whoever makes it.
        (_, None) => return Ok(()),
    };
    if !user.is_root() || owner.is_root() || owner == NOBODY {
        return Ok(());
    }
    let foreign = Foreign { owner: name(owner) };
    Err(FileError::new("use", &at, io::Error::new(io::ErrorKind::PermissionDenied, foreign)))
}

/// Whether a file or folder is this user's.
pub(super) fn is_own(path: &Path) -> bool {
    owner(path) == Some(geteuid())
}

/// Whether this user may work with a state folder, or make it where it is not there yet. Nothing is written.
///
/// # Errors
/// [`FileError`].
pub fn require_usable(folder: &Path) -> Result<(), FileError> {
    refuse_root(folder)?;
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    files::require_writable(nearest(&folder).map_or(folder.as_path(), |(at, _)| at))
}

/// What lies in a state folder, at any depth, and is not the agent's.
pub fn not_the_agents(folder: &Path) -> Vec<PathBuf> {
    let agent = agent_of(folder).map(|(_, agent)| agent);
    not_of(agents_user(owner(folder), agent, geteuid()), folder)
}

/// Whose all in a state folder should be: this user's, who has run the agent there (over NFS root is nobody), or else the folder's
/// owner's. What tells of another agent than this user's is itself amiss.
fn agents_user(whose: Option<Uid>, agent: Option<Uid>, user: Uid) -> Option<Uid> {
    agent.filter(|agent| *agent == user || user.is_root() && *agent == NOBODY).or(whose)
}

fn not_of(whose: Option<Uid>, folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // Not of what a link leads to.
            let Ok(met) = entry.metadata() else { continue };
            if Some(Uid::from_raw(met.uid())) != whose {
                found.push(entry.path());
            } else if met.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// This user's name.
pub fn user() -> String {
    name(geteuid())
}

/// What to do where this user may not do something with a path: that goes by whose it is, or the folder in which it is to be.
pub fn denied_hint(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let user = geteuid();
    let seen = [Some(path.as_path()), path.parent()].into_iter().flatten().filter_map(nearest);
    let foreign = seen.into_iter().find(|(_, owner)| *owner != user);
    advice(&path, foreign, user)
}

/// The path, or else the lowest folder above it that this user can see, and whose that is.
fn nearest(path: &Path) -> Option<(&Path, Uid)> {
    path.ancestors().find_map(|at| Some((at, owner(at)?)))
}

fn advice(path: &Path, foreign: Option<(&Path, Uid)>, user: Uid) -> String {
    let (shown, may_take) = (path.display(), !user.is_root());
    let user = name(user);
    let Some((at, owner)) = foreign else {
        return format!(
            "`ls -ld {shown}` shows what `{user}`, whose it is, may do with it: change that with `chmod`"
        );
    };
    let (is_there, at, whose) = (at == path, at.display(), name(owner));
    match owner.is_root() {
        true if is_there => {
            format!("{at} belongs to `root`: `sudo chown {user} {at}`, or let `{user}` in by its group")
        }
        true => format!(
            "{at} belongs to `root`, and `{user}` may not go on there: name another place, or have root make one: \
             `sudo install -d -o {user} -m 700 FOLDER`"
        ),
        false => {
            let sudo = for_sudo(owner);
            let run =
                format!("{at} belongs to `{whose}`: run this as that user, `sudo -u {sudo} site-agent …`");
            // Root's, an agent's files would keep that agent from starting.
            if may_take {
                format!("{run}; or, if `{user}` is to have it, `sudo chown -R {user} {at}`")
            } else {
                run
            }
        }
    }
}

fn owner(path: &Path) -> Option<Uid> {
    Some(Uid::from_raw(fs::metadata(path).ok()?.uid()))
}

/// The number, where nobody has a name for it.
fn name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

/// As `sudo -u` takes it.
fn for_sudo(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| format!("'#{user}'"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Uid = Uid::from_raw(0);
    /// Nobody's.
    const AGENT: Uid = Uid::from_raw(4_000_001);
    const OTHER: Uid = Uid::from_raw(4_000_002);

    #[test]
    fn root_is_kept_out_of_another_users_folder_and_nobody_else_is() {
        let folder = Path::new("/srv/site/state");
        let ran = Some((folder.join("journal"), AGENT));
        let error = anyhow::Error::from(refuse(folder, Some(AGENT), ran, ROOT).unwrap_err());
        assert_eq!(
            format!("{error:#}"),
            "cannot use /srv/site/state: it belongs to `4000001`, who could not use what `root` writes there"
        );
        // A folder that a group shares is for that group to use.
        for (owner, user) in [(AGENT, AGENT), (ROOT, ROOT), (ROOT, AGENT), (OTHER, AGENT)] {
            assert!(refuse(folder, Some(owner), None, user).is_ok(), "{owner} {user}");
        }
        assert!(
            refuse(folder, Some(AGENT), None, ROOT).is_err(),
            "another user's, and nothing was run there yet"
        );
        assert!(refuse_root(&folder.join("not/there")).is_ok());
    }

    #[test]
    fn an_agent_that_always_ran_as_root_goes_on_in_a_folder_of_another() {
        let folder = Path::new("/srv/site/state");
        let ran = |agent| Some((folder.join("journal"), agent));
        // That of a bind mount, and of a file system where root's files are nobody's.
        for agent in [ROOT, NOBODY] {
            assert!(refuse(folder, Some(OTHER), ran(agent), ROOT).is_ok(), "{agent}");
            assert_eq!(agents_user(Some(OTHER), Some(agent), ROOT), Some(agent), "what it wrote is its own");
        }
        let error = refuse(folder, Some(ROOT), ran(AGENT), ROOT).unwrap_err().to_string();
        assert!(error.contains("/srv/site/state/journal"), "root made the folder for the agent: {error}");
    }

    #[test]
    fn what_is_not_the_agents_is_found_and_a_journal_of_root_is_none_of_its() {
        assert_eq!(
            agents_user(Some(OTHER), Some(AGENT), AGENT),
            Some(AGENT),
            "in a folder that a group shares"
        );
        for agent in [Some(ROOT), None] {
            assert_eq!(agents_user(Some(AGENT), agent, AGENT), Some(AGENT), "{agent:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        fs::write(state.ledger(), "").unwrap();
        assert_eq!(not_of(Some(geteuid()), folder.path()), Vec::<PathBuf>::new());
        assert!(not_of(Some(AGENT), folder.path()).contains(&state.ledger()));
        assert_eq!(not_the_agents(folder.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn who_has_run_the_agent_is_known_by_its_ledger_while_its_journal_is_moved_away() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::at(folder.path());
        assert_eq!(agent_of(folder.path()), None);
        fs::write(state.ledger(), "").unwrap();
        assert_eq!(agent_of(folder.path()), Some((state.ledger(), geteuid())));
        fs::create_dir(state.journal()).unwrap();
        assert_eq!(agent_of(folder.path()), Some((state.journal(), geteuid())));
    }

    #[test]
    fn a_folder_that_can_be_written_or_made_is_told_from_one_that_cannot() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["", "not/there/yet"] {
            assert!(require_usable(&folder.path().join(path)).is_ok(), "{path}");
        }
        // For root too, nothing is made below a file.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(require_usable(&file.join("state")).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_to_do_goes_by_whose_the_file_is_and_not_by_who_asks() {
        let path = Path::new("/srv/site/state/egress.jsonl");
        let told = |at: &str, owner| advice(path, Some((Path::new(at), owner)), AGENT);
        let roots = told("/srv/site/state/egress.jsonl", ROOT);
        assert!(roots.contains("`sudo chown 4000001 /srv/site/state/egress.jsonl`"), "{roots}");
        assert!(!roots.contains("run this as"), "it is the agent's own user who asks: {roots}");
        let above = told("/srv", ROOT);
        assert!(above.starts_with("/srv belongs to `root`") && !above.contains("chown"), "{above}");
        let others = told("/srv/site", OTHER);
        assert!(others.contains("run this as that user, `sudo -u '#4000002' site-agent …`"), "{others}");
        assert!(
            others.ends_with("; or, if `4000001` is to have it, `sudo chown -R 4000001 /srv/site`"),
            "{others}"
        );
        let journal = Path::new("/srv/site/state/journal");
        let to_root = advice(journal, Some((journal, AGENT)), ROOT);
        assert!(to_root.ends_with("run this as that user, `sudo -u '#4000001' site-agent …`"), "{to_root}");
        let own = advice(path, None, AGENT);
        assert!(own.contains("`ls -ld /srv/site/state/egress.jsonl`") && own.contains("chmod"), "{own}");
    }

    #[test]
    fn a_path_that_is_not_there_is_told_by_the_lowest_folder_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let (at, owner) =
            nearest(&folder.path().join("not/there")).map(|(at, owner)| (at.to_owned(), owner)).unwrap();
        assert_eq!((at.as_path(), owner), (folder.path(), geteuid()));
        assert!(is_own(folder.path()) && !is_own(&folder.path().join("not")));
    }
}
