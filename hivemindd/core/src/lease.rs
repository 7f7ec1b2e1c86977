//! Leases: who may run a workload of which there must never be two (`exclusive`).
//!
//! ```text
//!   holder                                     grantor (every voter, the holder's own node included)
//!     | -- Ask(round, voter sets) -----------> |  learns the sets, and if nobody else's grant is open
//!     | <----------- Granted(round, sets) ---- |  grants for GRANT_MS from receipt; what it must not
//!     |                                        |  forget is on its disk before the answer leaves
//!     |  a strict majority of every set known
//!     v  in one round: may run until RUN_MS after it asked; asks again after RENEW_EVERY_MS
//! ```
//!
//! - *One holder.* Two strict majorities of one set share a grantor, which has one open grant. The
//!   holder counts from when it asked and grantors count from when they heard, later, and for longer,
//!   so that clocks whose rates differ by up to 5 % ([`RUN_MS`]) do no harm; no wall clock is read.
//! - *Grantors restart.* Whom they granted to is durable; after a restart they wait [`GRANT_MS`]
//!   before they grant to anybody else.
//! - *Voters change.* The first set is in the signed document. A holder proposes the enrolled nodes as
//!   the next one; from then on it needs majorities of both, and once it has them the older one is
//!   dropped. Grantors remember, durably, every set they were told of that was not dropped, and tell
//!   them with each answer: whoever asks only an old set meets a grantor who knows the newer one,
//!   because a strict majority of the old one was told before it was dropped.
//! - *A lost store.* A grantor that lost its memory grants nothing for leases of before, until their
//!   holder tells it the sets.
//!
//! It does not stop containers: the holder's node does ([`crate::replica`]), and PID 1 where the agent
//! fails to, by the deadline the agent told it before the container was started.

mod voters;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::id::NodeId;
use hivemind_spec::workload::Exclusive;
use serde::{Deserialize, Serialize};

use crate::mutation::{Mutation, is_on};
use crate::record::WorkloadId;
pub use voters::Voters;

/// How long a grant is open from its receipt, by the grantor's monotonic clock, milliseconds. A dead
/// holder is replaced after this time; longer leases cost more of it, shorter ones more messages.
pub const GRANT_MS: u64 = 15_000;

/// How long the holder may run from when it asked, by its own monotonic clock, milliseconds: shorter than
/// [`GRANT_MS`] by 5.3 %, which is by how much the rates of two clocks may differ. Quartz is off by
/// 0.02 %, NTP slews by 0.05 % at most.
pub const RUN_MS: u64 = 14_200;

/// How often the holder renews, milliseconds: two renewals may be lost before it has to stop.
pub const RENEW_EVERY_MS: u64 = 4000;

/// How often who wants a lease asks, milliseconds.
const ASK_EVERY_MS: u64 = 2000;

/// How soon a round follows one whose answers changed what there is to ask, milliseconds.
const SOON_MS: u64 = 100;

/// How long before its end the holder begins to stop, milliseconds: time for a shutdown in order.
pub const STOP_AHEAD_MS: u64 = 4000;

/// Leases a grantor knows at most. Each takes some kilobytes of memory in a large cluster.
const MAX_BALLOTS: usize = 1024;

/// What nodes say to each other about a lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Letter {
    /// Which workload's.
    pub workload: WorkloadId,
    /// Which incarnation of it: [`Exclusive::since`].
    pub since: u64,
    /// What is said.
    pub word: Word,
}

/// What is said about a lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Word {
    /// Grant it to me.
    Ask {
        /// Counts the asker's rounds.
        round: u64,
        /// Whether the asker has it.
        holds: bool,
        /// [`Voters::digest`] of what it knows.
        digest: u64,
        /// The sets themselves, unless the grantor had the same when it last answered.
        voters: Option<Voters>,
    },
    /// It is yours for [`GRANT_MS`] from when I heard.
    Granted {
        /// The round of the question.
        round: u64,
        /// The sets I know, if others than yours.
        voters: Option<Voters>,
    },
    /// I grant nothing now.
    Refused {
        /// The round of the question.
        round: u64,
        /// Why.
        refusal: Refusal,
        /// The sets I know, if others than yours.
        voters: Option<Voters>,
    },
    /// I have stopped, and want it no longer.
    Released,
}

/// Why a grantor grants nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Another node has, or may have, its grant.
    Taken(NodeId),
    /// It restarted lately, or its store is lost, and may have granted to somebody.
    Unsure,
    /// It has not the document that says so, or another.
    OtherDocument,
    /// The sets must be told.
    WhichVoters,
    /// It knows of too many leases, or was told of too many sets.
    Full,
    /// The asker runs on two machines at once, each of which would take itself for the holder.
    Doubled,
}

/// A letter and to or from whom.
pub type Addressed = (NodeId, Letter);

/// What a grantor must not forget about a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The incarnation.
    pub since: u64,
    /// The sets it was told of.
    pub voters: Voters,
    /// To whom it granted last.
    pub holder: Option<NodeId>,
    /// Its store was lost since the lease began: to whom it granted, and other sets than those of the
    /// document, may be forgotten. It grants nothing until a holder tells it the sets.
    pub abstains: bool,
}

/// A grantor's view of one workload's lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Grantor {
    ballot: Ballot,
    /// Until when the grant is open, monotonic milliseconds.
    until_ms: u64,
    /// The batch of writes in which the ballot is; absent once it is durable.
    written_in: Option<u64>,
}

/// A holder's, or would-be holder's, view of one workload's lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Claim {
    since: u64,
    round: u64,
    asked_ms: u64,
    answers: Answers,
    /// Those to the round before: what people are told, because they are complete.
    before: Option<Answers>,
    /// What each grantor knew when it last answered: [`Voters::digest`].
    told: BTreeMap<NodeId, u64>,
    /// The end of the lease, monotonic milliseconds; 0 while there was none.
    until_ms: u64,
    ask_at_ms: u64,
}

/// Who granted in a round, and who refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Answers {
    granted: BTreeSet<NodeId>,
    refused: BTreeMap<NodeId, Refusal>,
}

/// What a node that lost its store cannot know about its grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forgot {
    /// Leases of incarnations up to this revision may have been granted and forgotten.
    pub until: u64,
    /// No other node has said yet which documents there are: any may have been.
    pub unsure: bool,
}

impl Forgot {
    fn covers(self, since: u64) -> bool {
        self.unsure || since <= self.until
    }
}

/// How a workload's lease stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was never had since the agent started. What runs from before is PID 1's to stop.
    Never,
    /// It is held.
    Held {
        /// Until when, monotonic milliseconds.
        until_ms: u64,
    },
    /// It ends soon, or has ended.
    Lost {
        /// When, monotonic milliseconds.
        until_ms: u64,
    },
}

/// All leases, as grantor and as holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leases {
    me: NodeId,
    grantors: BTreeMap<WorkloadId, Grantor>,
    claims: BTreeMap<WorkloadId, Claim>,
    forgot: Option<Forgot>,
    /// Ballots that must be written.
    unwritten: BTreeSet<WorkloadId>,
    rounds: u64,
}

impl Leases {
    /// Without any. `first_round` must be above all rounds before this start.
    pub fn new(me: NodeId, first_round: u64) -> Self {
        Self {
            me,
            grantors: BTreeMap::new(),
            claims: BTreeMap::new(),
            forgot: None,
            unwritten: BTreeSet::new(),
            rounds: first_round,
        }
    }

    /// Takes up what was durable before this start.
    pub fn load(&mut self, now_ms: u64, id: WorkloadId, ballot: Ballot) {
        let forgets = is_on(Mutation::GrantorsForget);
        let ballot = Ballot { holder: ballot.holder.filter(|_| !forgets), ..ballot };
        let until_ms = if ballot.holder.is_none() { 0 } else { now_ms + GRANT_MS };
        self.grantors.insert(id, Grantor { ballot, until_ms, written_in: None });
    }

    /// What was granted, and when that ends, is forgotten: the store was lost. To be kept durably.
    pub fn forget(&mut self, forgot: Forgot) {
        self.forgot = Some(forgot);
    }

    /// What was forgotten, if anything.
    pub fn forgot(&self) -> Option<Forgot> {
        self.forgot
    }

    /// Brings the claims in line with what this node is to run, `wanted`, and asks when it is time.
    /// Claims of workloads that are neither wanted nor `still_here` are given back. `enrolled` are the
    /// nodes that should vote, of which `alive` can be heard.
    pub fn claim(
        &mut self,
        now_ms: u64,
        wanted: &BTreeMap<WorkloadId, Exclusive>,
        still_here: &BTreeSet<WorkloadId>,
        enrolled: &BTreeSet<NodeId>,
        alive: &BTreeSet<NodeId>,
    ) -> Vec<Addressed> {
        let mut letters = Vec::new();
        let gone: Vec<WorkloadId> = self
            .claims
            .iter()
            .filter(|(id, claim)| {
                let same = wanted.get(*id).is_some_and(|exclusive| exclusive.since == claim.since);
                !same && !still_here.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.give_back(now_ms, &id, &mut letters);
        }
        for (id, exclusive) in wanted {
            if !self.claims.contains_key(id) {
                self.claims.insert(id.clone(), Claim::new(exclusive.since, now_ms));
            }
            self.begin_ballot(now_ms, id, exclusive, alive.len() <= 1);
        }
        let due: Vec<WorkloadId> = self
            .claims
            .iter()
            .filter(|(_, claim)| claim.ask_at_ms <= now_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.follow_enrolment(now_ms, &id, enrolled, alive);
            self.ask(now_ms, &id, &mut letters);
        }
        letters
    }

    /// This node's own vote needs a ballot as any other's.
    fn begin_ballot(&mut self, now_ms: u64, id: &WorkloadId, exclusive: &Exclusive, alone: bool) {
        // With nobody there an operator has begun anew.
        let covered = |forgot: Forgot| exclusive.since <= forgot.until || !alone && forgot.unsure;
        let abstains = self.forgot.is_some_and(covered);
        let room = self.grantors.len() < MAX_BALLOTS;
        match self.grantors.get_mut(id) {
            None if room => {
                self.grantors.insert(id.clone(), Grantor::new(exclusive, abstains));
                self.unwritten.insert(id.clone());
            }
            Some(grantor) if grantor.ballot.since < exclusive.since && grantor.until_ms <= now_ms => {
                *grantor = Grantor::new(exclusive, abstains);
                self.unwritten.insert(id.clone());
            }
            _ => {}
        }
    }

    fn give_back(&mut self, now_ms: u64, id: &WorkloadId, letters: &mut Vec<Addressed>) {
        let Some(claim) = self.claims.remove(id) else { return };
        let me = self.me;
        let Some(grantor) = self.grantors.get_mut(id).filter(|g| g.ballot.since == claim.since) else {
            return;
        };
        if grantor.ballot.holder == Some(me) {
            grantor.until_ms = grantor.until_ms.min(now_ms);
        }
        let released = Letter { workload: id.clone(), since: claim.since, word: Word::Released };
        let others = grantor.ballot.voters.all().into_iter().filter(|voter| *voter != me);
        letters.extend(others.map(|voter| (voter, released.clone())));
    }

    /// A holder makes the enrolled nodes the next voters, if those it hears are enough of them.
    fn follow_enrolment(
        &mut self,
        now_ms: u64,
        id: &WorkloadId,
        enrolled: &BTreeSet<NodeId>,
        alive: &BTreeSet<NodeId>,
    ) {
        let (Some(claim), Some(grantor)) = (self.claims.get(id), self.grantors.get_mut(id)) else { return };
        let heard = enrolled.intersection(alive).count();
        let holds = claim.until_ms > now_ms && grantor.ballot.since == claim.since;
        if holds && 2 * heard > enrolled.len() && grantor.ballot.voters.propose(self.me, enrolled) {
            self.unwritten.insert(id.clone());
        }
    }

    /// Begins a round.
    fn ask(&mut self, now_ms: u64, id: &WorkloadId, letters: &mut Vec<Addressed>) {
        let me = self.me;
        let (Some(claim), Some(grantor)) = (self.claims.get_mut(id), self.grantors.get_mut(id)) else {
            return;
        };
        if grantor.ballot.since != claim.since {
            return;
        }
        self.rounds += 1;
        let holds = claim.until_ms > now_ms;
        let answers = std::mem::take(&mut claim.answers);
        claim.before = (claim.round > 0).then_some(answers);
        claim.round = self.rounds;
        claim.asked_ms = now_ms;
        claim.ask_at_ms = now_ms + if holds { RENEW_EVERY_MS } else { ASK_EVERY_MS };
        // Its own vote counts once it is durable, as everybody's.
        match grantor.grant(now_ms, me) {
            Ok(changed) => {
                claim.answers.granted.insert(me);
                if changed {
                    self.unwritten.insert(id.clone());
                }
            }
            Err(refusal) => drop(claim.answers.refused.insert(me, refusal)),
        }
        let voters = &grantor.ballot.voters;
        let digest = voters.digest();
        for voter in voters.all().into_iter().filter(|voter| *voter != me) {
            let knows = claim.told.get(&voter) == Some(&digest);
            let voters = (!knows).then(|| voters.clone());
            let word = Word::Ask { round: claim.round, holds, digest, voters };
            letters.push((voter, Letter { workload: id.clone(), since: claim.since, word }));
        }
        self.count(now_ms, id);
    }

    /// Takes a letter. `exclusive` is what the current document of the workload says, if it is
    /// exclusive. Answers must not leave before what [`Leases::write`] gives is durable.
    pub fn receive(
        &mut self,
        now_ms: u64,
        from: NodeId,
        letter: Letter,
        exclusive: Option<&Exclusive>,
    ) -> Option<Addressed> {
        let Letter { workload, since, word } = letter;
        match word {
            Word::Ask { round, holds, digest, voters } => {
                let exclusive = exclusive.filter(|exclusive| exclusive.since == since);
                let asked = Asked { holds, digest, voters };
                let verdict = match exclusive {
                    Some(exclusive) => self.judge(now_ms, from, &workload, exclusive, &asked),
                    None => Err(Refusal::OtherDocument),
                };
                let voters = self.grantors.get(&workload).filter(|g| g.ballot.since == since);
                let voters =
                    voters.map(|g| &g.ballot.voters).filter(|voters| voters.digest() != digest).cloned();
                let word = match verdict {
                    Ok(()) => Word::Granted { round, voters },
                    Err(refusal) => Word::Refused { round, refusal, voters },
                };
                return Some((from, Letter { workload, since, word }));
            }
            Word::Granted { round, voters } => {
                self.answered(now_ms, from, &workload, since, round, Ok(voters))
            }
            Word::Refused { round, refusal, voters } => {
                self.answered(now_ms, from, &workload, since, round, Err((refusal, voters)));
            }
            Word::Released => {
                if let Some(grantor) = self.grantors.get_mut(&workload)
                    && grantor.ballot.since == since
                    && grantor.ballot.holder == Some(from)
                {
                    grantor.until_ms = grantor.until_ms.min(now_ms);
                }
            }
        }
        None
    }

    fn judge(
        &mut self,
        now_ms: u64,
        from: NodeId,
        id: &WorkloadId,
        exclusive: &Exclusive,
        asked: &Asked,
    ) -> Result<(), Refusal> {
        let forgotten = self.forgot.is_some_and(|forgot| forgot.covers(exclusive.since));
        if !self.grantors.contains_key(id) {
            if self.grantors.len() >= MAX_BALLOTS {
                return Err(Refusal::Full);
            }
            self.grantors.insert(id.clone(), Grantor::new(exclusive, forgotten));
            self.unwritten.insert(id.clone());
        }
        let Some(grantor) = self.grantors.get_mut(id) else { return Err(Refusal::Full) };
        if grantor.ballot.since < exclusive.since {
            // The document was deleted and made anew. What was granted before must have lapsed.
            grantor.is_free(now_ms, from)?;
            *grantor = Grantor::new(exclusive, forgotten);
            self.unwritten.insert(id.clone());
        }
        if grantor.ballot.abstains {
            match &asked.voters {
                None => return Err(Refusal::WhichVoters),
                Some(_) if !asked.holds => return Err(Refusal::Unsure),
                Some(_) => {}
            }
        }
        match &asked.voters {
            Some(voters) => {
                let news = grantor.ballot.voters.learn(voters).map_err(|_| Refusal::Full)?;
                if std::mem::take(&mut grantor.ballot.abstains) || news {
                    self.unwritten.insert(id.clone());
                }
            }
            None if grantor.ballot.voters.digest() != asked.digest => return Err(Refusal::WhichVoters),
            None => {}
        }
        if grantor.grant(now_ms, from)? {
            self.unwritten.insert(id.clone());
        }
        Ok(())
    }

    fn answered(
        &mut self,
        now_ms: u64,
        from: NodeId,
        id: &WorkloadId,
        since: u64,
        round: u64,
        answer: Result<Option<Voters>, (Refusal, Option<Voters>)>,
    ) {
        let (Some(claim), Some(grantor)) = (self.claims.get_mut(id), self.grantors.get_mut(id)) else {
            return;
        };
        if claim.since != since || grantor.ballot.since != since {
            return;
        }
        let voters = match &answer {
            Ok(voters) | Err((_, voters)) => voters.as_ref(),
        };
        let digest = voters.map_or_else(|| grantor.ballot.voters.digest(), Voters::digest);
        let Ok(news) = voters.map_or(Ok(false), |voters| grantor.ballot.voters.learn(voters)) else {
            // It tells of more than an honest node does, and its grant counts for nothing.
            return;
        };
        if news {
            self.unwritten.insert(id.clone());
            // There are others to be asked.
            claim.ask_at_ms = claim.ask_at_ms.min(now_ms + SOON_MS);
        }
        match answer {
            Ok(_) => drop(claim.told.insert(from, digest)),
            Err((Refusal::WhichVoters, _)) => {
                claim.told.remove(&from);
                claim.ask_at_ms = claim.ask_at_ms.min(now_ms + SOON_MS);
            }
            Err(_) => {}
        }
        if claim.round == round {
            match answer {
                Ok(_) => drop(claim.answers.granted.insert(from)),
                Err((refusal, _)) => drop(claim.answers.refused.insert(from, refusal)),
            }
            self.count(now_ms, id);
        }
    }

    /// Whether it wants nothing of others.
    pub fn is_idle(&self) -> bool {
        self.claims.is_empty()
    }

    /// Takes note that a batch of writes is durable. Returns whether that concerned anything.
    pub fn persisted(&mut self, now_ms: u64, batch: u64) -> bool {
        let mut durable = Vec::new();
        for (id, grantor) in &mut self.grantors {
            if grantor.written_in.is_some_and(|written| written <= batch) {
                grantor.written_in = None;
                durable.push(id.clone());
            }
        }
        durable.iter().for_each(|id| self.count(now_ms, id));
        !durable.is_empty()
    }

    /// Takes note that writes failed: what was in them is written again.
    pub fn persist_failed(&mut self) {
        let lost = self.grantors.iter().filter(|(_, grantor)| grantor.written_in.is_some());
        let lost: Vec<_> = lost.map(|(id, _)| id.clone()).collect();
        self.unwritten.extend(lost);
    }

    /// The ballots that must be written now, in this batch.
    pub fn write(&mut self, batch: u64) -> Vec<(WorkloadId, Option<Ballot>)> {
        let unwritten = std::mem::take(&mut self.unwritten);
        let ballot = |id: WorkloadId| match self.grantors.get_mut(&id) {
            Some(grantor) => {
                grantor.written_in = Some(batch);
                (id, Some(grantor.ballot.clone()))
            }
            None => (id, None),
        };
        unwritten.into_iter().map(ballot).collect()
    }

    /// Whether enough granted in this round; then the lease lasts.
    fn count(&mut self, now_ms: u64, id: &WorkloadId) {
        let (Some(claim), Some(grantor)) = (self.claims.get_mut(id), self.grantors.get_mut(id)) else {
            return;
        };
        let mut granted = claim.answers.granted.clone();
        if grantor.written_in.is_some() || self.unwritten.contains(id) {
            granted.remove(&self.me);
        }
        let runs_ms = if is_on(Mutation::LeasesAreKeptPastTheirEnd) { 2 * GRANT_MS } else { RUN_MS };
        let until_ms = claim.asked_ms + runs_ms;
        if grantor.ballot.since != claim.since
            || !grantor.ballot.voters.carried_by(&granted)
            || until_ms <= now_ms
        {
            return;
        }
        let was_held = claim.until_ms > now_ms;
        claim.until_ms = claim.until_ms.max(until_ms);
        if !was_held {
            claim.ask_at_ms = claim.asked_ms + RENEW_EVERY_MS;
        }
        // Whoever granted knew all sets.
        let abstained = std::mem::take(&mut grantor.ballot.abstains);
        if grantor.ballot.voters.drop_older() || abstained {
            self.unwritten.insert(id.clone());
        }
    }

    /// How a workload's lease stands.
    pub fn standing(&self, now_ms: u64, id: &WorkloadId) -> Standing {
        match self.claims.get(id).map_or(0, |claim| claim.until_ms) {
            0 => Standing::Never,
            until_ms if now_ms + STOP_AHEAD_MS >= until_ms => Standing::Lost { until_ms },
            until_ms => Standing::Held { until_ms },
        }
    }

    /// Why a workload's lease is not held, in words; `name` says what people call a node.
    pub fn explain(&self, id: &WorkloadId, name: impl Fn(&NodeId) -> String) -> String {
        let answers = self.claims.get(id).and_then(|claim| claim.before.as_ref());
        let (Some(Answers { granted, refused }), Some(grantor)) = (answers, self.grantors.get(id)) else {
            return "waits for its lease".to_owned();
        };
        let taken = refused.values().find_map(|refusal| match refusal {
            Refusal::Taken(other) => Some(*other),
            _ => None,
        });
        if let Some(other) = taken {
            return format!("waits for its lease, which {} has or had until lately", name(&other));
        }
        if refused.values().any(|refusal| *refusal == Refusal::Doubled) {
            return "waits for its lease, which nobody grants a node that runs twice".to_owned();
        }
        let short = grantor.ballot.voters.sets().map(|set| (set.intersection(granted).count(), set.len()));
        let (granted, of) = short.min_by_key(|(granted, of)| (2 * granted > *of, *granted)).unwrap_or((0, 0));
        format!("waits for its lease: {granted} of {of} nodes granted it, and more than half must")
    }

    /// When to call [`Leases::claim`] though nothing happened, and when a standing changes.
    pub fn wake_at_ms(&self, now_ms: u64) -> Option<u64> {
        let ends = |claim: &Claim| claim.until_ms.saturating_sub(STOP_AHEAD_MS);
        let times = self.claims.values().flat_map(|claim| [claim.ask_at_ms, ends(claim)]);
        times.filter(|at| *at > now_ms).min()
    }

    /// Forgets the ballots of workloads of which nothing is held any more, and whose grants lapsed.
    pub fn keep(&mut self, now_ms: u64, is_known: impl Fn(&WorkloadId) -> bool) {
        let claims = &self.claims;
        let stays = |id: &WorkloadId, grantor: &Grantor| {
            is_known(id) || claims.contains_key(id) || grantor.until_ms > now_ms
        };
        let gone: Vec<_> =
            self.grantors.iter().filter(|(id, g)| !stays(id, g)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.grantors.remove(&id);
            self.unwritten.insert(id);
        }
    }
}

/// What a question brings along.
struct Asked {
    /// Whether the asker has the lease.
    holds: bool,
    digest: u64,
    voters: Option<Voters>,
}

impl Claim {
    fn new(since: u64, now_ms: u64) -> Self {
        Self {
            since,
            round: 0,
            asked_ms: 0,
            answers: Answers::default(),
            before: None,
            told: BTreeMap::new(),
            until_ms: 0,
            ask_at_ms: now_ms,
        }
    }
}

impl Grantor {
    fn new(exclusive: &Exclusive, abstains: bool) -> Self {
        let voters = Voters::first(exclusive.voters.clone());
        let ballot = Ballot { since: exclusive.since, voters, holder: None, abstains };
        Self { ballot, until_ms: 0, written_in: None }
    }

    /// Whether nobody else's grant is open.
    fn is_free(&self, now_ms: u64, asker: NodeId) -> Result<(), Refusal> {
        match self.ballot.holder {
            Some(other) if other != asker && self.until_ms > now_ms => Err(Refusal::Taken(other)),
            _ => Ok(()),
        }
    }

    /// Grants to `asker`. Says whether that is something to be remembered.
    fn grant(&mut self, now_ms: u64, asker: NodeId) -> Result<bool, Refusal> {
        if self.ballot.abstains {
            return Err(Refusal::Unsure);
        }
        self.is_free(now_ms, asker)?;
        self.until_ms = now_ms + GRANT_MS;
        Ok(self.ballot.holder.replace(asker) != Some(asker))
    }
}
