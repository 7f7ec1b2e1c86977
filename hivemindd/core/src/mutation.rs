//! Deliberate faults of this crate, one at a time, so that the simulator can show that it would
//! notice them. They exist only with the feature `mutations`, which nothing that ships turns on.

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// Merging takes the record that arrives, whatever is held.
    MergeTakesWhatArrives,
    /// Of two documents with one revision the one that came first stays.
    TheFirstOfEqualsStays,
    /// Anti-entropy finds everything alike.
    AntiEntropySeesNoDifference,
    /// What tells of a write does not wait for it.
    NothingWaitsForTheDisk,
    /// A write that failed counts all the same.
    FailedWritesCount,
    /// Deletions are not written to the disk.
    DeletionsAreNotStored,
    /// Old deletions are forgotten although some nodes have not heard of them.
    DeletionsAreForgottenUnheard,
    /// A push is answered as soon as it is durable here.
    PushesAreAnsweredAlone,
    /// Every key may write everything.
    RolesDoNotMatter,
    /// Revoked and retired keys go on.
    KeysLiveForEver,
    /// Anybody may take over anybody's replicas.
    TakeoverIgnoresTheRule,
    /// Takeovers do not wait for a settled view.
    TakeoverDoesNotWait,
    /// Replicas are placed and started where there is no room.
    CapacityDoesNotMatter,
    /// Containers that are no longer wanted go on.
    NothingIsTrimmed,
    /// Replicas go where there is room, wherever their data is.
    DataBindsNobody,
    /// Nobody makes keys to secrets for others.
    SecretsAreNotShared,
    /// A holder keeps its lease past its end.
    LeasesAreKeptPastTheirEnd,
    /// A new release of the operating system is called good as soon as the node is up.
    ReleasesAreGoodUnseen,
    /// What containers elsewhere have come or gone is not passed on to the rules of networks.
    ReachIsNotFollowed,
    /// What ended with success is run again when its node is gone.
    EndsAreForgotten,
    /// Grantors grant again at once after a restart, without knowing to whom they granted before.
    GrantorsForget,
}

impl Mutation {
    /// Those that show within some hundred lives. That deletions are forgotten unheard takes weeks to show,
    /// and that grantors forget takes restarts at one moment: those have tests of their own.
    pub const SOON_SEEN: [Self; 19] = [
        Self::MergeTakesWhatArrives,
        Self::TheFirstOfEqualsStays,
        Self::AntiEntropySeesNoDifference,
        Self::NothingWaitsForTheDisk,
        Self::FailedWritesCount,
        Self::DeletionsAreNotStored,
        Self::PushesAreAnsweredAlone,
        Self::RolesDoNotMatter,
        Self::KeysLiveForEver,
        Self::TakeoverIgnoresTheRule,
        Self::TakeoverDoesNotWait,
        Self::CapacityDoesNotMatter,
        Self::NothingIsTrimmed,
        Self::DataBindsNobody,
        Self::SecretsAreNotShared,
        Self::LeasesAreKeptPastTheirEnd,
        Self::ReleasesAreGoodUnseen,
        Self::ReachIsNotFollowed,
        Self::EndsAreForgotten,
    ];
}

#[cfg(feature = "mutations")]
mod switch {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Turns one fault on, and all others off, for everything on this thread.
    pub fn turn_on(mutation: Option<Mutation>) {
        ON.set(mutation);
    }

    pub(crate) fn is_on(mutation: Mutation) -> bool {
        ON.get() == Some(mutation)
    }
}

#[cfg(not(feature = "mutations"))]
mod switch {
    pub(crate) const fn is_on(_: super::Mutation) -> bool {
        false
    }
}

pub(crate) use switch::is_on;
#[cfg(feature = "mutations")]
pub use switch::turn_on;
