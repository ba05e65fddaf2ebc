//! The transitions that a long enough simulation must take, read off the machines of `common`.
//!
//! All changes of phase that a study can go through, but for a few that need several rare things at one instant, and
//! the events that must leave a phase as it is: above all a restart, which may come in every one of them.

use super::coverage::Transition;

/// Machine, phase, event, phase after.
const REQUIRED: &str = "
disk works write-failed full
disk full write-failed full
disk full tried works
site-disk works write-failed full
site-disk full write-failed full
site-disk full tried works
study unreadable offer unreadable
study unreadable report unreadable
study unreadable fetch unreadable
study unreadable pause unreadable
study unreadable resume unreadable
study unreadable trainers-expected unreadable
study unreadable site-gone unreadable
study unreadable evaluator-gone unreadable
deaths clear died suspected
deaths suspected died suspected
deaths suspected died-soon suspected
deaths suspected died given-up
deaths suspected kept clear
deaths suspected stopped clear
deaths suspected done clear
deaths given-up asked clear
rounds not-started trainers-expected not-started
rounds not-started start waiting
rounds waiting site-ready waiting
rounds waiting site-ready distributing
rounds waiting timer-fired distributing
rounds waiting site-gone waiting
rounds waiting round-declined waiting
rounds waiting update-stored waiting
rounds waiting restarted waiting
rounds waiting trainers-expected waiting
rounds waiting pause paused
rounds waiting pause-for paused
rounds waiting abort aborted
rounds distributing round-accepted distributing
rounds distributing round-accepted collecting
rounds distributing update-stored collecting
rounds distributing update-stored aggregating
rounds distributing timer-fired collecting
rounds distributing timer-fired aggregating
rounds distributing timer-fired quorum-missing
rounds distributing site-ready distributing
rounds distributing site-gone distributing
rounds distributing restarted distributing
rounds distributing trainers-expected distributing
rounds distributing restarted collecting
rounds distributing restarted quorum-missing
rounds distributing pause paused
rounds distributing abort aborted
rounds collecting round-accepted collecting
rounds collecting round-declined collecting
rounds collecting round-declined aggregating
rounds collecting round-declined quorum-missing
rounds collecting update-stored collecting
rounds collecting update-stored aggregating
rounds collecting timer-fired aggregating
rounds collecting timer-fired quorum-missing
rounds collecting site-ready collecting
rounds collecting site-gone collecting
rounds collecting restarted collecting
rounds collecting trainers-expected collecting
rounds collecting trainers-expected aggregating
rounds collecting trainers-expected quorum-missing
rounds collecting restarted quorum-missing
rounds collecting restarted aggregating
rounds collecting pause paused
rounds collecting pause-for paused
rounds collecting abort aborted
rounds quorum-missing round-accepted collecting
rounds quorum-missing round-accepted quorum-missing
rounds quorum-missing round-declined quorum-missing
rounds quorum-missing update-stored quorum-missing
rounds quorum-missing update-stored aggregating
rounds quorum-missing timer-fired quorum-missing
rounds quorum-missing site-ready quorum-missing
rounds quorum-missing site-gone quorum-missing
rounds quorum-missing restarted quorum-missing
rounds quorum-missing trainers-expected quorum-missing
rounds quorum-missing resume quorum-missing
rounds quorum-missing pause paused
rounds quorum-missing abort aborted
rounds aggregating aggregated committing
rounds aggregating aggregation-failed paused
rounds aggregating update-lost collecting
rounds aggregating update-lost aggregating
rounds aggregating update-stored aggregating
rounds aggregating site-ready aggregating
rounds aggregating site-gone aggregating
rounds aggregating restarted aggregating
rounds aggregating trainers-expected aggregating
rounds aggregating pause paused
rounds aggregating abort aborted
rounds committing committed waiting
rounds committing committed distributing
rounds committing committed committed
rounds committing committed finished
rounds committing commit-failed paused
rounds committing update-stored committing
rounds committing site-ready committing
rounds committing site-gone committing
rounds committing restarted committing
rounds committing trainers-expected committing
rounds committing pause paused
rounds committing abort aborted
rounds committed gate-opened waiting
rounds committed gate-opened distributing
rounds committed update-stored committed
rounds committed site-ready committed
rounds committed site-gone committed
rounds committed restarted committed
rounds committed trainers-expected committed
rounds committed pause paused
rounds committed abort aborted
rounds paused resume waiting
rounds paused resume distributing
rounds paused resume collecting
rounds paused resume quorum-missing
rounds paused resume aggregating
rounds paused resume committing
rounds paused resume committed
rounds paused resume finished
rounds paused timer-fired aggregating
rounds paused timer-fired committing
rounds paused abort aborted
rounds paused site-ready paused
rounds paused site-gone paused
rounds paused round-accepted paused
rounds paused update-stored paused
rounds paused aggregated paused
rounds paused committed paused
rounds paused gate-opened paused
rounds paused restarted paused
rounds paused trainers-expected paused
rounds finished update-stored finished
rounds finished site-ready finished
rounds finished site-gone finished
rounds finished restarted finished
rounds finished trainers-expected finished
rounds aborted update-stored aborted
rounds aborted site-gone aborted
rounds aborted restarted aborted
rounds aborted trainers-expected aborted
evaluations settled requested settled
evaluations settled requested asking
evaluations settled requested gate-closed
evaluations settled promoted settled
evaluations settled promoted asking
evaluations settled evaluator-ready settled
evaluations settled evaluator-ready asking
evaluations settled evaluator-gone settled
evaluations settled restarted settled
evaluations asking requested asking
evaluations asking promoted asking
evaluations asking evaluator-ready asking
evaluations asking evaluator-gone asking
evaluations asking report-stored asking
evaluations asking report-stored settled
evaluations asking restarted asking
evaluations gate-closed promoted gate-closed
evaluations gate-closed evaluator-ready gate-closed
evaluations gate-closed evaluator-gone gate-closed
evaluations gate-closed report-stored gate-closed
evaluations gate-closed report-stored settled
evaluations gate-closed timer-fired asking
evaluations gate-closed restarted gate-closed
trainer idle study-offered idle
trainer idle study-approved idle
trainer idle study-refused idle
trainer idle study-paused idle
trainer idle study-finished idle
trainer idle data-unusable idle
trainer idle round-opened idle
trainer idle round-opened downloading
trainer idle connected idle
trainer idle disconnected idle
trainer idle started idle
trainer idle stopped idle
trainer downloading model-stored downloading
trainer downloading model-stored training
trainer downloading fetch-failed downloading
trainer downloading timer-fired downloading
trainer downloading round-opened downloading
trainer downloading round-closed idle
trainer downloading study-refused idle
trainer downloading study-finished idle
trainer downloading study-paused downloading
trainer downloading connected downloading
trainer downloading disconnected downloading
trainer downloading started downloading
trainer downloading stopped downloading
trainer training trained uploading
trainer training round-kept training
trainer training artifact-lost downloading
trainer training training-failed training
trainer training training-failed idle
trainer training training-failed downloading
trainer training timer-fired training
trainer training round-opened training
trainer training round-opened downloading
trainer training round-closed idle
trainer training round-closed training
trainer training study-refused idle
trainer training study-finished idle
trainer training study-paused training
trainer training connected training
trainer training disconnected training
trainer training started training
trainer training started idle
trainer training stopped training
trainer uploading receipt idle
trainer uploading receipt downloading
trainer uploading refused idle
trainer uploading refused uploading
trainer uploading refused downloading
trainer uploading upload-failed uploading
trainer uploading timer-fired uploading
trainer uploading round-opened uploading
trainer uploading round-opened downloading
trainer uploading round-closed idle
trainer uploading round-closed uploading
trainer uploading study-refused idle
trainer uploading study-finished idle
trainer uploading study-paused uploading
trainer uploading connected uploading
trainer uploading disconnected uploading
trainer uploading started uploading
trainer uploading stopped uploading
evaluator idle study-offered idle
evaluator idle study-approved idle
evaluator idle study-refused idle
evaluator idle evaluation-requested downloading
evaluator idle connected idle
evaluator idle disconnected idle
evaluator idle started idle
evaluator idle stopped idle
evaluator downloading model-stored downloading
evaluator downloading model-stored evaluating
evaluator downloading fetch-failed downloading
evaluator downloading timer-fired downloading
evaluator downloading evaluation-requested downloading
evaluator downloading study-refused idle
evaluator downloading connected downloading
evaluator downloading disconnected downloading
evaluator downloading started downloading
evaluator downloading stopped downloading
evaluator evaluating evaluated reporting
evaluator evaluating artifact-lost downloading
evaluator evaluating evaluation-failed evaluating
evaluator evaluating evaluation-failed idle
evaluator evaluating timer-fired evaluating
evaluator evaluating evaluation-requested evaluating
evaluator evaluating study-refused idle
evaluator evaluating connected evaluating
evaluator evaluating disconnected evaluating
evaluator evaluating started evaluating
evaluator evaluating started idle
evaluator evaluating stopped evaluating
evaluator reporting report-receipt idle
evaluator reporting report-receipt downloading
evaluator reporting report-failed reporting
evaluator reporting report-lost evaluating
evaluator reporting timer-fired reporting
evaluator reporting evaluation-requested reporting
evaluator reporting study-refused idle
evaluator reporting connected reporting
evaluator reporting disconnected reporting
evaluator reporting started reporting
evaluator reporting stopped reporting
";

/// All of them.
pub(super) fn required() -> impl Iterator<Item = Transition> {
    REQUIRED.lines().filter(|line| !line.is_empty()).map(|line| {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().expect("four words on each line of the table");
        Transition { machine: word(), from: word(), event: word(), to: word() }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_line_of_the_table_is_one_transition_and_none_is_there_twice() {
        assert!(REQUIRED.lines().all(|line| line.is_empty() || line.split_ascii_whitespace().count() == 4));
        let all: BTreeSet<Transition> = required().collect();
        assert_eq!(all.len(), required().count());
        let machines: BTreeSet<&str> = all.iter().map(|transition| transition.machine).collect();
        assert_eq!(
            machines,
            ["deaths", "disk", "evaluations", "evaluator", "rounds", "site-disk", "study", "trainer"].into()
        );
    }
}
