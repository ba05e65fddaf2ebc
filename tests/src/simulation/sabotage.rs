//! Drivers that are broken on purpose, one fault each: every one must be caught.

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    None,
    /// The driver tells the sites about a model while it is being written.
    AnnounceBeforeDurable,
    /// The driver hands an update to the aggregation twice, as if attempts had no ids.
    CountTwice,
    /// The driver gives the receipt when the upload is offered.
    ReceiptBeforeDurable,
    /// The study's quorum does not reach the machine.
    IgnoreQuorum,
    /// The study's quorum of each class does not reach the machine.
    IgnoreClasses,
    /// The driver hands a late update to the aggregation twice: in the round that it counts in, and in the next.
    CountLateTwice,
    /// The driver weighs late updates as if they had come in time.
    WeighLateInFull,
    /// The driver removes what is stored of a round that is over, though it counts in the next.
    SweepLate,
    /// The driver takes a sealed evaluator for one that helps to choose models.
    AskSealed,
    /// The driver lets a site that left go on as if it had not.
    KeepRevoked,
    /// A driver goes on, on either side, though its full disk did not take the event.
    ActUnwritten,
    /// The driver weighs by the manifests of now, not of the round's opening.
    WeighAgain,
    /// The driver does not write down that an update was stored: an acknowledged one is lost in a crash.
    ForgetUpdates,
    /// The drivers drop timers, on either side.
    ForgetTimers,
    /// The driver aggregates what a site sent for an earlier round.
    MixRounds,
    /// A site's driver does not stop the training that it is told to stop.
    KeepTraining,
    /// The driver does not check again what it stored before it aggregates it.
    TrustTheDisk,
    /// A site's driver keeps the half line that a crash left in its journal.
    KeepTornLine,
    /// The driver keeps what a crash left of the last record in its own.
    KeepTornRecord,
    /// The driver says that a model is durable before it is.
    CommitBeforeDurable,
    /// A site's driver begins a round at its first step, whatever it kept of it.
    RepeatSteps,
    /// A site's driver goes on from what it kept, whichever round that is of.
    TakeAnyCheckpoint,
    /// The driver's deadlines go by the clock that others set.
    TrustTheClock,
    /// The study's fewest volumes do not reach the machine.
    IgnoreVolumes,
    /// Nor does whom the study leaves out.
    IgnoreLeaveOut,
    /// A site's driver does not write down that it ends in order.
    ForgetStops,
    /// A site's driver starts as earlier ones did, which could not tell a death from a stop.
    ForgetDeaths,
    /// A site's driver does not say what it kept of a round.
    ForgetKept,
    /// The driver says of a study that it cannot read that there is none.
    DenyStudy,
}

impl Sabotage {
    /// All that is broken.
    pub const BROKEN: [Self; 29] = [
        Self::AnnounceBeforeDurable,
        Self::CountTwice,
        Self::ReceiptBeforeDurable,
        Self::IgnoreQuorum,
        Self::IgnoreClasses,
        Self::CountLateTwice,
        Self::WeighLateInFull,
        Self::SweepLate,
        Self::AskSealed,
        Self::KeepRevoked,
        Self::ActUnwritten,
        Self::WeighAgain,
        Self::ForgetUpdates,
        Self::ForgetTimers,
        Self::MixRounds,
        Self::KeepTraining,
        Self::TrustTheDisk,
        Self::KeepTornLine,
        Self::KeepTornRecord,
        Self::CommitBeforeDurable,
        Self::RepeatSteps,
        Self::TakeAnyCheckpoint,
        Self::TrustTheClock,
        Self::IgnoreVolumes,
        Self::IgnoreLeaveOut,
        Self::ForgetStops,
        Self::ForgetDeaths,
        Self::ForgetKept,
        Self::DenyStudy,
    ];
}
