//! From nothing to a running agent, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hivemind_core::cluster::ContainerRange;
use hivemind_core::event::{Event, NetworkPlan, Zone};
use hivemind_core::isolation::Isolation;
use hivemind_core::node::{Node, Settings};
use hivemind_spec::api::Release;
use hivemind_spec::certificate::verify_node_chain;
use hivemind_spec::document::{Document, Spec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::key::PublicKey;
use hivemind_spec::machine::{MachineConfig, MachineConfigError, PEER_PORT};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::facts;
use super::handle::AgentHandle;
use super::hands::Hands;
use super::happened::Happened;
use super::turn::Turn;
use crate::clock::Clock;
use crate::discovery::{Announcement, Discovery};
use crate::identity::{self, Identity, IdentityError};
use crate::release::{Brought, Running, Sources, Taking};
use crate::runtime::{self, Runtime, Seen};
use crate::store::{self, StoreHandle};
use crate::transport::Transport;
use crate::underlay::Underlay;
use crate::{api, discovery, dns, hardware, network, recent, screen, stick, underlay};
use hivemind_init::config;

/// Events waiting for the loop. Sources wait when it is full; the core takes well under a
/// millisecond for most.
const MAX_EVENTS: usize = 1024;

/// How often the leaf's age is looked at.
const LEAF_CHECK: Duration = Duration::from_secs(600);

/// How often host names among the seeds are looked up again while the node is alone.
const SEED_INTERVAL: Duration = Duration::from_secs(5);

/// Hints waiting for the loop; discovery repeats them.
const MAX_HINTS: usize = 64;

/// Runs the agent until SIGTERM.
///
/// # Errors
/// When the machine's configuration, identity or ports do not let it start; says which and why.
pub fn run() -> anyhow::Result<()> {
    store::abort_on_panic();
    // The DNS library tells of every question, and containers ask all the time.
    let quieter = Targets::new().with_default(Level::INFO).with_target("hickory_server", Level::WARN);
    tracing_subscriber::fmt()
        .with_writer(recent::Log)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_max_level(Level::INFO)
        .finish()
        .with(quieter)
        .init();
    // One thread for all that waits: handing every packet from thread to thread cost more than what
    // is done with it. What waits for the disk has threads of its own: the store, the logs, and
    // tokio's for blocking work.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot start")?;
    let result = runtime.block_on(serve());
    // What still blocks must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn serve() -> anyhow::Result<()> {
    let text = read_config()?;
    let config = MachineConfig::parse(&text)?;
    let clock = Arc::new(Clock::start());
    clock.raise_floor(token_opens_ms(&config).unwrap_or(0));
    let identity = enrol(&config, &text, &clock)?;
    tracing::info!(node = %identity.node(), cluster = %config.cluster.name, "this node");

    // PID 1 knows a configured name only, and not one that follows from the identity.
    if let Err(error) = nix::unistd::sethostname(facts::hostname(&config.node, identity.node())) {
        tracing::warn!(%error, "the machine's own host name cannot be set");
    }

    let (store, stored) =
        StoreHandle::open(Path::new(store::FOLDER)).context("the store cannot be opened")?;
    let settings = settings(&config, &identity)?;
    let now = clock.now();
    let (node, first) = Node::new(settings, stored, now, seed(&identity, now.wall_ms));

    let (events, event_queue) = mpsc::channel(MAX_EVENTS);
    let (agent, questions) = AgentHandle::new();
    let happened = Arc::new(Happened::new(identity.node(), identity.boot()));
    let (underlay_tx, underlay) = watch::channel(None);
    let leaf = identity.mint_leaf(&[], &names(&config, &identity), now.wall_ms)?;
    let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PEER_PORT));
    let (transport, forwarded) = Transport::start(&identity, &leaf, listen, events.clone())?;
    let (isolation_tx, isolation) = watch::channel(Arc::<Isolation>::default());
    let (in_force, keep_isolation) = network::isolation::keep(isolation.clone());
    let runtime = Runtime::connect(runtime::Settings {
        in_force: Some(in_force),
        transport: Some(transport.clone()),
        registries: config.registries.clone(),
        owner: Some((identity.node(), identity.record_key().clone())),
        ..runtime::Settings::default()
    })?;
    let (network_tx, network_plan) = watch::channel(NetworkPlan::default());
    let (zone_tx, zone) = watch::channel(Arc::new(Zone::default()));
    let (checks_tx, checks) = watch::channel(BTreeMap::new());
    let (secrets_tx, secrets) = watch::channel(BTreeMap::new());
    let (devices_tx, devices) = watch::channel(BTreeSet::new());
    let (hardware_tx, hardware) = watch::channel(());

    let (running, release) = Running::look();
    let brought = Brought::default();
    let runs = release.borrow().as_ref().map(|release| release.id);
    match brought.look(runs) {
        Ok(release) => drop(events.send(Event::Brought { release }).await),
        Err(error) => tracing::error!(%error, "the release that a stick brought cannot be looked at"),
    }
    let sources = Sources::new(transport.clone(), config.registries.insecure.clone(), brought.clone());
    let taking = Taking::new(running.clone(), sources, events.clone());

    let mut tasks = JoinSet::new();
    let listener = TcpListener::bind(api::listen_address()).await.context("the API's port is taken")?;
    let router = api::router(api::Context {
        agent: agent.clone(),
        clock: clock.clone(),
        transport: transport.clone(),
        running: running.clone(),
        brought: brought.clone(),
        runtime: runtime.clone(),
        happened: Arc::clone(&happened),
        seen: Arc::new(api::Seen::since(now)),
        bodies: Arc::default(),
        sessions: Arc::new(Semaphore::new(api::MAX_SESSIONS)),
    });
    tasks.spawn(api::serve(listener, api::tls_config(transport.leaf())?, router.clone()));
    tasks.spawn(api::serve_peers(forwarded, router));
    tasks.spawn(underlay::run(config.network.clone(), underlay_tx));
    tasks.spawn(serve_names(zone, isolation, network_plan.clone(), underlay.clone()));
    tasks.spawn(network::run(network::load_modules(), network_plan, keep_isolation));
    tasks.spawn(discover(&identity, underlay.clone(), events.clone()));
    tasks.spawn(keep_time(clock.clone(), config.network.ntp.clone(), underlay.clone()));
    tasks.spawn(seeds(config.token.as_ref().map(|t| t.seeds.clone()).unwrap_or_default(), events.clone()));
    tasks.spawn(runtime::health::check_all(runtime.clone(), checks, events.clone()));
    tasks.spawn(runtime::secrets::keep(runtime.clone(), secrets));
    tasks.spawn(hardware::keep(hardware_tx));
    tasks.spawn(screen::keep(agent.clone(), config.network.clone(), underlay.clone()));
    let plugged = hardware.clone();
    tasks.spawn(stick::keep(
        agent.clone(),
        runtime.clone(),
        clock.clone(),
        brought,
        events.clone(),
        Arc::clone(&happened),
        plugged,
    ));
    tasks.spawn(runtime::device::watch(devices, hardware, events.clone()));
    tasks.spawn(taking.clone().run());
    tasks.spawn({
        let runtime = runtime.clone();
        async move { runtime.end_orphans().await }
    });
    let watch = NodeWatch { config, identity, release, clock: clock.clone(), transport: transport.clone() };
    tasks.spawn(watch.run(runtime.clone(), underlay, events.clone()));

    let hands = Hands {
        store,
        transport: transport.clone(),
        runtime,
        network: network_tx,
        isolation: isolation_tx,
        zone: zone_tx,
        health_checks: checks_tx,
        secrets: secrets_tx,
        devices: devices_tx,
        running,
        taking,
        clock: Arc::clone(&clock),
        events,
    };
    Turn::new(node, first, clock, hands, happened).run(event_queue, questions, stop()).await;
    tracing::info!("stopping");
    transport.close().await;
    tasks.shutdown().await;
    Ok(())
}

async fn keep_time(clock: Arc<Clock>, servers: Vec<String>, underlay: watch::Receiver<Option<Underlay>>) {
    clock.keep(servers, underlay).await;
}

/// Answers DNS where containers ask, and asks whom the machine would ask.
async fn serve_names(
    zone: watch::Receiver<Arc<Zone>>,
    isolation: watch::Receiver<Arc<Isolation>>,
    mut plan: watch::Receiver<NetworkPlan>,
    mut underlay: watch::Receiver<Option<Underlay>>,
) {
    let (listen_tx, listen) = watch::channel(BTreeSet::new());
    let (upstreams_tx, upstreams) = watch::channel(Vec::new());
    let mut askers = isolation.clone();
    let follow = async {
        // Before it is known who asks, an answer could only be wrong.
        let _ = askers.wait_for(|isolation| isolation.range.is_some()).await;
        loop {
            let gateway = plan.borrow_and_update().local.as_ref().map(|local| IpAddr::V4(local.gateway));
            let servers = underlay.borrow_and_update().as_ref().map(|u| u.dns.clone()).unwrap_or_default();
            set(&listen_tx, dns::on_port(gateway).into_iter().collect());
            set(&upstreams_tx, dns::on_port(servers));
            tokio::select! {
                Ok(()) = plan.changed() => {}
                Ok(()) = underlay.changed() => {}
                else => return,
            }
        }
    };
    tokio::join!(dns::run(zone, isolation, listen, upstreams), follow);
}

/// Sends a value unless it is the same.
fn set<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|current| {
        let changed = *current != value;
        *current = value;
        changed
    });
}

/// Finds peers on the local network, wherever that is at the moment.
fn discover(
    identity: &Identity,
    mut underlay: watch::Receiver<Option<Underlay>>,
    events: mpsc::Sender<Event>,
) -> impl Future<Output = ()> + Send + use<> {
    let announcement = Announcement { cluster: identity.cluster(), node: identity.node(), port: PEER_PORT };
    let (hints_tx, mut hints) = mpsc::channel(MAX_HINTS);
    let discovery = Discovery::start(announcement, hints_tx);
    async move {
        loop {
            let place = underlay.borrow_and_update().clone();
            discovery.set_underlay(
                place.map(|u| discovery::Underlay { interface: u.interface, address: u.address }),
            );
            loop {
                tokio::select! {
                    Some(address) = hints.recv() => {
                        if events.send(Event::Hint { address }).await.is_err() {
                            return;
                        }
                    }
                    changed = underlay.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => pending().await,
                    },
                }
            }
        }
    }
}

fn read_config() -> anyhow::Result<String> {
    std::fs::read_to_string(config::MACHINE)
        .with_context(|| format!("{} cannot be read: this machine has no configuration", config::MACHINE))
}

/// Since when the configuration's token counts, milliseconds since 1970: it was signed about an hour
/// later, so a machine whose clock begins in 1970 is right to within the token's age.
fn token_opens_ms(config: &MachineConfig) -> Option<u64> {
    let envelope = Envelope::parse(config.token.as_ref()?.document.as_bytes()).ok()?;
    match Document::parse(&envelope.payload().ok()?).ok()?.spec? {
        Spec::Token(token) => Some(token.not_before_ms),
        _ => None,
    }
}

/// Makes sure of the identity, then takes the token's key off the configuration: from then on
/// nobody can make another node from this disk.
fn enrol(config: &MachineConfig, text: &str, clock: &Clock) -> anyhow::Result<Identity> {
    let identity = Identity::load_or_enrol(Path::new(identity::FOLDER), config, clock.now().wall_ms);
    let identity = identity.map_err(|error| match error {
        IdentityError::Configuration { place, reason } => {
            let next = "write it anew with `hivemind image configure`, then start the machine again";
            anyhow::Error::from(MachineConfigError::in_value(text, place, format!("{reason}; {next}")))
        }
        error => anyhow::anyhow!("{error} ({})", error.code()),
    })?;
    if config.token.as_ref().is_some_and(|token| token.ca_key.is_some()) {
        match config::erase_token_key() {
            Ok(done) => tracing::info!(?done, "the token's key is no longer needed"),
            Err(error) => tracing::error!(%error, "the token's key is still in the configuration"),
        }
    }
    Ok(identity)
}

fn settings(config: &MachineConfig, identity: &Identity) -> anyhow::Result<Settings> {
    let root_keys = config.cluster.root_keys.iter().map(|key| PublicKey::from_base64(key));
    let range = &config.cluster.container_range;
    Ok(Settings {
        me: identity.node(),
        record_key: identity.record_key().clone(),
        boot: identity.boot(),
        subnet: identity::remembered_subnet(Path::new(identity::FOLDER)),
        cluster_id: identity.cluster(),
        cluster_name: config.cluster.name.clone(),
        container_range: ContainerRange::parse(range)
            .with_context(|| format!("{range} is no container range"))?,
        root_ca: identity.root().to_vec(),
        root_keys: root_keys.collect::<Result<_, _>>()?,
        chain: identity.chain(),
        token: identity.token(),
        token_document: config
            .token
            .as_ref()
            .and_then(|token| Envelope::parse(token.document.as_bytes()).ok()),
        peer_port: PEER_PORT,
        verify_chain: verify_node_chain,
        verify_signature: PublicKey::verifies,
    })
}

/// The core's randomness: differs from node to node and from start to start, and need not be
/// secret.
fn seed(identity: &Identity, now_ms: u64) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&identity.node().0[..8]);
    u64::from_le_bytes(bytes) ^ now_ms ^ identity.boot().rotate_left(32)
}

fn names(config: &MachineConfig, identity: &Identity) -> Vec<String> {
    vec![facts::hostname(&config.node, identity.node())]
}

/// Tells the core what the node is, and keeps the leaf fresh.
struct NodeWatch {
    config: MachineConfig,
    identity: Identity,
    release: watch::Receiver<Option<Release>>,
    clock: Arc<Clock>,
    transport: Transport,
}

impl NodeWatch {
    async fn run(
        mut self,
        runtime: Runtime,
        mut underlay: watch::Receiver<Option<Underlay>>,
        events: mpsc::Sender<Event>,
    ) {
        let (seen_tx, mut seen) = mpsc::channel(4);
        let mut watching = JoinSet::new();
        watching.spawn(async move { runtime.watch(seen_tx).await });
        let mut problems = vec!["containerd has not answered yet".to_owned()];
        let mut addresses = Vec::new();
        let mut leaf_check = tokio::time::interval(LEAF_CHECK);
        loop {
            let current = underlay.borrow_and_update().clone();
            let now_addresses: Vec<_> = current.iter().map(|underlay| underlay.address).collect();
            if now_addresses != addresses {
                addresses = now_addresses;
                leaf_check.reset_immediately();
            }
            let facts = facts::gather(
                &self.config.node,
                self.identity.node(),
                current.as_ref(),
                problems.clone(),
                self.release.borrow_and_update().clone(),
            );
            if events.send(Event::Facts { facts }).await.is_err() {
                return;
            }
            // Waits here until something that the facts depend on changes.
            loop {
                tokio::select! {
                    changed = underlay.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => pending().await,
                    },
                    Ok(()) = self.release.changed() => break,
                    Some(news) = seen.recv() => match news {
                        Seen::Inventory(inventory) => {
                            let recovered = !std::mem::take(&mut problems).is_empty();
                            if events.send(Event::Observed { inventory }).await.is_err() {
                                return;
                            }
                            if recovered {
                                break;
                            }
                        }
                        Seen::Short(of, uses) => {
                            if events.send(Event::Short { of, uses }).await.is_err() {
                                return;
                            }
                        }
                        Seen::Unreachable(why) => {
                            problems = vec![format!("containerd does not answer: {why}")];
                            break;
                        }
                    },
                    _ = leaf_check.tick() => {
                        self.renew_leaf(&addresses);
                    }
                }
            }
        }
    }

    fn renew_leaf(&self, addresses: &[IpAddr]) {
        let renewed = self
            .identity
            .mint_leaf(addresses, &names(&self.config, &self.identity), self.clock.now().wall_ms)
            .map_err(anyhow::Error::from)
            .and_then(|leaf| Ok(self.transport.set_leaf(&leaf)?));
        if let Err(error) = renewed {
            tracing::error!(%error, "the node's certificate cannot be renewed");
        }
    }
}

/// Tells the core where the configured seeds are, for as long as the agent runs: names may lead
/// elsewhere tomorrow, and the core knows whom it has met.
async fn seeds(seeds: Vec<String>, events: mpsc::Sender<Event>) {
    if seeds.is_empty() {
        return;
    }
    loop {
        for seed in &seeds {
            let with_port = if seed.contains(':') { seed.clone() } else { format!("{seed}:{PEER_PORT}") };
            // Names that lead nowhere now are tried again.
            let Ok(found) = tokio::net::lookup_host(with_port).await else { continue };
            for address in found {
                if events.send(Event::Hint { address }).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(SEED_INTERVAL).await;
    }
}

/// Ends when PID 1 asks the agent to stop.
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(error) => {
            tracing::error!(%error, "SIGTERM cannot be watched for");
            pending().await
        }
    }
}
