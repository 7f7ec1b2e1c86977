//! What the first release wrote, and what a later one may write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;

use hivemind_spec::api::{Capacity, Phase, PullProgress, Release, Update, UpdatePhase};
use hivemind_spec::document::{Ancestor, Kind, SpecKey};
use hivemind_spec::dsse::{Envelope, Signature};
use hivemind_spec::id::{Digest, KeyId, NodeId, ReleaseId, TokenId, hex};
use hivemind_spec::key::SigningKey;
use hivemind_spec::release::Architecture;
use hivemind_spec::secret::SealedKey;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::*;
use crate::cluster::LastSeen;
use crate::event::{Message, Peer};
use crate::lease::{Ballot, Forgot, Letter, Refusal, Voters, Word};
use crate::membership::Identity;
use crate::record::{
    Body, Decision, Doubled, Enrolment, Forgotten, GivenImage, JobProgress, Matter, NodeStatus, Observation,
    Overtaken, Placement, Record, RecordKey, ReplicaId, ReplicaStatus, Rollout, SharedKey, Statement, Topic,
    VolumeId, VolumePart, VolumeStatus, WorkloadId,
};
use crate::state::encode;
use crate::statement;
use crate::time::Hlc;

/// A line each: a name, and in hexadecimal what the first release wrote for it.
const FIRST: &str = include_str!("first.txt");

const ME: NodeId = NodeId([0xa1; 16]);
const OTHER: NodeId = NodeId([0xb2; 16]);

/// Whether bytes mean what they meant.
type Means = Box<dyn Fn(&[u8]) -> bool>;

/// Something that is written.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether a later release may write it otherwise.
    grows: bool,
    means_the_same: Means,
}

fn fixed<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(
    name: &'static str,
    value: T,
) -> Sample {
    Sample {
        name,
        bytes: encode(&value),
        grows: false,
        means_the_same: Box::new(move |bytes| postcard::from_bytes::<T>(bytes).as_ref() == Ok(&value)),
    }
}

fn growing<T: Serialize + DeserializeOwned + PartialEq + 'static>(name: &'static str, value: T) -> Sample {
    Sample {
        name,
        bytes: write(&value),
        grows: true,
        means_the_same: Box::new(move |bytes| read::<T>(bytes).is_ok_and(|read| read == value)),
    }
}

fn said(name: &'static str, topic: Topic, observation: Observation) -> Sample {
    stated(name, Body::Observation { boot: 3, sequence: 300, topic, observation: Some(observation) })
}

fn decided(name: &'static str, matter: Matter, decision: Decision) -> Sample {
    let clock = Hlc { wall_ms: 1_800_000_000_000, counter: 2 };
    stated(name, Body::Decision { clock, matter, decision: Some(decision) })
}

/// A statement's body with its frame.
fn stated(name: &'static str, body: Body) -> Sample {
    let key = SigningKey::from_seed([1; 32]);
    Sample {
        name,
        bytes: statement::sign(ME, &key, &body).body,
        grows: true,
        means_the_same: Box::new(move |bytes| {
            let statement = Statement { writer: ME, body: bytes.to_vec(), signature: Vec::new() };
            statement::read(&statement).as_ref() == Ok(&body)
        }),
    }
}

fn workload() -> WorkloadId {
    WorkloadId { namespace: "default".into(), name: "web".into() }
}

fn secret() -> SpecKey {
    SpecKey { kind: Kind::Secret, namespace: "default".into(), name: "password".into() }
}

fn part() -> VolumePart {
    VolumePart { volume: VolumeId { namespace: "default".into(), name: "data".into() }, number: 1 }
}

fn peer() -> Peer {
    Peer { node: OTHER, address: "[fd00::2]:7844".parse().unwrap() }
}

fn observations() -> Vec<Sample> {
    let replica = ReplicaId { workload: workload(), slot: 2 };
    let digest = Digest([0xc3; 32]);
    let status = NodeStatus {
        hostname: "edge-1".into(),
        address: Ipv4Addr::new(10, 0, 0, 7).into(),
        vtep_mac: [2, 0, 0, 0, 0, 255],
        version: "0.1.0".into(),
        release: Some(Release {
            id: ReleaseId([0xd4; 8]),
            architecture: Architecture::Amd64,
            minimum: "0.1.0".into(),
            on_trial: true,
            failed: vec![ReleaseId([0xd5; 8])],
        }),
        update: Some(Update {
            release: ReleaseId([0xd6; 8]),
            phase: UpdatePhase::Fetching,
            done_bytes: 1,
            total_bytes: 2,
            reason: "waits".into(),
        }),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        capacity: Capacity { cpu_millis: 2000, memory_bytes: 1 << 30 },
        problems: vec!["no network".into()],
        started_ms: 5,
        outdated: true,
    };
    let running = ReplicaStatus {
        template: digest,
        phase: Phase::Pulling,
        reason: "fetches".into(),
        ip: Some(Ipv4Addr::new(10, 77, 1, 2)),
        restarts: 4,
        since_ms: 6,
        pull: Some(PullProgress { done_bytes: 7, total_bytes: 8 }),
    };
    let enrolment = Enrolment {
        chain: vec![ByteBuf::from([1, 200]), ByteBuf::from([3])],
        token: TokenId([0xe5; 16]),
        enrolled_ms: 9,
        subnet: Some(12),
    };
    let overtaken = Overtaken {
        version: Ancestor { revision: 1, digest },
        signer: KeyId([0xf6; 16]),
        by: Digest([0xc4; 32]),
        by_signer: KeyId([0xf7; 16]),
        since_ms: 10,
    };
    let doubled =
        Doubled { addresses: ["10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap()], seen_ms: 11 };
    let volume = VolumeStatus { made_ms: 12, used_bytes: Some(13), discarding_ms: None };
    let shared = SharedKey { digest, key: SealedKey("c2VhbGVk".into()) };
    let images = [("example/app:1".to_owned(), GivenImage { digest, given_ms: 14 })].into();
    vec![
        said("observation/enrolment", Topic::Enrolment, Observation::Enrolment(enrolment)),
        said(
            "observation/admission",
            Topic::Admission(OTHER),
            Observation::Admission { token: TokenId([0xe5; 16]), admitted_ms: 15 },
        ),
        said("observation/node", Topic::Node, Observation::Node(status)),
        said("observation/replica", Topic::Replica(replica), Observation::Replica(running)),
        said("observation/overtaken", Topic::Overtaken(secret()), Observation::Overtaken(overtaken)),
        said("observation/doubled", Topic::Doubled(OTHER), Observation::Doubled(doubled)),
        said("observation/volume", Topic::Volume(part()), Observation::Volume(volume)),
        said("observation/shared", Topic::Shared(secret(), OTHER), Observation::Shared(shared)),
        said("observation/images", Topic::Images, Observation::Images(images)),
        stated(
            "observation/withdrawn",
            Body::Observation { boot: 1, sequence: 2, topic: Topic::Node, observation: None },
        ),
    ]
}

fn decisions() -> Vec<Sample> {
    let digest = Digest([0xc3; 32]);
    let placement = Placement {
        digest: Some(digest),
        slots: [(0, ME), (300, OTHER)].into(),
        pending: [(1, "no room".to_owned())].into(),
    };
    let forgotten = Forgotten { records: BTreeSet::from([(1, u64::MAX)]), until_revision: 16 };
    let rollout = Rollout { digest, turns: BTreeSet::from([ME]), stopped: "failed".into() };
    let job = JobProgress { template: digest, run_ms: Some(17), completed: BTreeSet::from([0, 2]) };
    vec![
        decided("decision/placement", Matter::Placement(workload()), Decision::Placement(placement)),
        decided("decision/forgotten", Matter::Forgotten, Decision::Forgotten(forgotten)),
        decided("decision/rollout", Matter::Rollout(Architecture::Arm64), Decision::Rollout(rollout)),
        decided("decision/job", Matter::Job(workload()), Decision::Job(job)),
    ]
}

fn messages() -> Vec<Sample> {
    let voters = || Voters::first(BTreeSet::from([ME, OTHER]));
    let letter = |word| Message::Lease(Letter { workload: workload(), since: 18, word });
    let spec = Record::Spec(Envelope {
        payload: "e30=".into(),
        payload_type: "application/vnd.hivemind.spec.v1+json".into(),
        signatures: vec![Signature { keyid: KeyId([0xf6; 16]), sig: "c2ln".into() }],
    });
    let statement = Record::Statement(Statement { writer: ME, body: vec![1, 2], signature: vec![3; 64] });
    let records = vec![
        (RecordKey::Spec(secret(), KeyId([0xf6; 16])), spec),
        (RecordKey::Observation(ME, Topic::Node), statement.clone()),
        (RecordKey::Decision(Matter::Forgotten), statement),
    ];
    vec![
        fixed("message/swim", Message::Swim(vec![1, 2, 3])),
        fixed("message/hello", Message::Hello { run: 1 << 40 }),
        fixed("message/members", Message::Members(vec![peer()])),
        fixed("message/digests", Message::Digests(vec![1, u64::MAX])),
        fixed("message/ranges", Message::Ranges(vec![(255, vec![(1, 2)])])),
        fixed("message/want", Message::Want(vec![3])),
        fixed("message/records", Message::Records { records, ack: Some(19) }),
        fixed("message/stored", Message::Stored { ack: 19 }),
        fixed("message/ask", letter(Word::Ask { round: 1, holds: true, digest: 2, voters: Some(voters()) })),
        fixed("message/granted", letter(Word::Granted { round: 1, voters: None })),
        fixed(
            "message/grant-refused",
            letter(Word::Refused { round: 1, refusal: Refusal::Taken(OTHER), voters: Some(voters()) }),
        ),
        fixed("message/released", letter(Word::Released)),
        fixed("message/refused", Message::Refused { reason: "the token has expired".into() }),
    ]
}

fn samples() -> Vec<Sample> {
    let mut all = observations();
    all.extend(decisions());
    all.extend(messages());
    let placement = RecordKey::Decision(Matter::Placement(workload()));
    let ballot =
        Ballot { since: 20, voters: Voters::first(BTreeSet::from([ME])), holder: Some(ME), abstains: true };
    let seen = LastSeen { wall_ms: 21, missed_ms: 22, counted_ms: 23 };
    all.extend([
        fixed("key/document", RecordKey::Spec(secret(), KeyId([0xf6; 16]))),
        fixed(
            "key/replica",
            RecordKey::Observation(ME, Topic::Replica(ReplicaId { workload: workload(), slot: 2 })),
        ),
        fixed("key/shared", RecordKey::Observation(ME, Topic::Shared(secret(), OTHER))),
        fixed("key/placement", placement),
        fixed("identity", Identity { node: ME, address: peer().address, boot: 3, generation: 1 }),
        growing("note/ballot", (workload(), ballot)),
        growing("note/forgot", Forgot { until: 24, unsure: true }),
        growing("note/seen", BTreeMap::from([(OTHER, seen)])),
        growing("note/anchors", BTreeSet::from([ME, OTHER])),
    ]);
    all
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// `HIVEMIND_WRITE_FORMS=1` adds what the file lacks; what it has never changes.
#[test]
fn what_the_first_release_wrote_is_read_by_every_later_one() {
    let first: BTreeMap<_, _> = FIRST.lines().filter_map(|line| line.split_once(' ')).collect();
    let samples = samples();
    if std::env::var_os("HIVEMIND_WRITE_FORMS").is_some() {
        let new = samples.iter().filter(|sample| !first.contains_key(sample.name));
        let lines: String = new.map(|sample| format!("{} {}\n", sample.name, hex(&sample.bytes))).collect();
        std::fs::write("src/form/first.txt", format!("{FIRST}{lines}")).unwrap();
        return;
    }
    assert_eq!(first.len(), samples.len());
    for sample in samples {
        let bytes = unhex(first[sample.name]);
        assert!((sample.means_the_same)(&bytes), "{} is not read any longer as it was meant", sample.name);
        assert!(sample.grows || bytes == sample.bytes, "{} is written otherwise than it was", sample.name);
    }
}

/// A statement's body as a later release may put it together.
fn later_body(variant: u32, boot: u64, sequence: u64, topic: &[u8], said: &[u8]) -> Vec<u8> {
    encode(&(variant, boot, sequence, topic.to_vec(), said.to_vec()))
}

#[test]
fn fields_that_a_later_release_adds_are_skipped_and_those_it_knows_and_others_lack_are_made_up() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        one: u64,
        two: NodeId,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Later {
        before: BTreeMap<u32, Vec<NodeId>>,
        one: u64,
        #[serde(default)]
        between: Option<String>,
        two: NodeId,
    }
    let later = Later { before: [(1, vec![ME])].into(), one: 1, between: Some("x".into()), two: ME };
    assert_eq!(read::<Now>(&write(&later)).unwrap(), Now { one: 1, two: ME });
    #[derive(Debug, PartialEq, Deserialize)]
    struct Grown {
        one: u64,
        two: NodeId,
        #[serde(default)]
        three: Option<u8>,
        #[serde(default)]
        four: Vec<u8>,
    }
    let grown = Grown { one: 1, two: ME, three: None, four: Vec::new() };
    assert_eq!(read::<Grown>(&write(&Now { one: 1, two: ME })).unwrap(), grown);
}

#[test]
fn what_a_later_release_says_about_itself_is_kept_under_the_name_that_it_has_there() {
    // A topic with the number that comes next, and something behind it.
    let topic = [9, 1, 2, 3];
    let body = later_body(0, 4, 5, &topic, b"anything");
    let statement = Statement { writer: ME, body, signature: Vec::new() };
    let read = statement::read(&statement).unwrap();
    let expected = Body::Observation {
        boot: 4,
        sequence: 5,
        topic: Topic::Unknown(topic.to_vec()),
        observation: Some(Observation::Unknown),
    };
    assert_eq!(read, expected);
    // A release that knows the topic writes its name with these very bytes.
    let name = encode(&statement::key(ME, &read));
    assert_eq!(name, encode(&(1u32, serde_bytes::Bytes::new(&ME.0), serde_bytes::Bytes::new(&topic))));
    assert_eq!(postcard::from_bytes::<RecordKey>(&name).unwrap(), statement::key(ME, &read));
}

#[test]
fn what_a_later_release_says_otherwise_is_known_to_be_said() {
    let node = encode(&Topic::Node);
    for said in [write(&BTreeMap::from([("NodeInOtherWords", 1)])), b"\xc1".to_vec(), vec![0x91; 5000]] {
        // The topic's own length is in its bytes already.
        let body = later_body(0, 1, 2, &node[1..], &said);
        let statement = Statement { writer: ME, body, signature: Vec::new() };
        let Ok(Body::Observation { topic: Topic::Node, observation, .. }) = statement::read(&statement)
        else {
            panic!("the frame is read");
        };
        assert_eq!(observation, Some(Observation::Unknown));
    }
}

#[test]
fn a_word_for_how_something_is_that_a_later_release_uses_does_not_hide_the_rest() {
    assert_eq!(read::<Phase>(&write(&"thawing")).unwrap(), Phase::Later);
    assert_eq!(read::<UpdatePhase>(&write(&"verifying")).unwrap(), UpdatePhase::Later);
    assert_eq!(read::<Phase>(&write(&Phase::Running)).unwrap(), Phase::Running);
}

#[test]
fn messages_of_a_later_release_are_told_from_damaged_ones() {
    let last = encode(&Message::Refused { reason: String::new() });
    assert!(!Message::is_later(&last) && last[0] == 9, "a new kind counts");
    assert!(Message::is_later(&encode(&(10u32, "anything"))));
    for damaged in [&[9, 200][..], &[], &[7, 1, 1]] {
        assert!(!Message::is_later(damaged));
    }
}
