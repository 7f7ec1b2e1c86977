//! The upper part of the machine's screen: how the machine is, for whoever stands in front of it. PID 1 has the rest.
//!
//! It asks nobody to log in, takes no input, and shows nothing that is secret.

mod head;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hivemind_core::node::Node;
use hivemind_core::time::Time;
use hivemind_init::fence::boot_ms;
use hivemind_init::screen::{Place, Row, Screen};
use hivemind_spec::api::Phase;
use hivemind_spec::machine;
use hivemind_spec::problem::Problem;
use tokio::sync::watch;

use self::head::{Card, Head, Machine, Network};
use crate::agent::{AgentHandle, meminfo};
use crate::underlay::Underlay;

/// How old what is shown may be, and how soon what somebody else wrote over it is gone.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What looking may take of the agent's time, at most: one part in so many. A large cluster is looked at less often.
const TIME_SHARE: u32 = 100;

/// How seldom at the most.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Where the kernel shows network devices.
const DEVICES: &str = "/sys/class/net";

/// Shows it for as long as the agent runs. Ends at once on a machine without a screen: the driver is the kernel's own, so
/// none comes later.
pub(crate) async fn keep(
    agent: AgentHandle,
    config: machine::Network,
    mut underlay: watch::Receiver<Option<Underlay>>,
) {
    if !Screen::is_seen() {
        return;
    }
    let screen = match Screen::open() {
        Ok(screen) => screen,
        Err(error) => return tracing::warn!(%error, "nothing is shown on the screen"),
    };
    let mut failed = false;
    loop {
        let network = network(&config, underlay.borrow_and_update().clone());
        let (shown, took) = match look(&agent, network).await {
            Ok((head, took)) => (show(&screen, &head), took),
            // The loop is busy, or ends.
            Err(_) => (Ok(()), Duration::ZERO),
        };
        if let Err(error) = shown
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(%error, "the screen cannot be written to");
        }
        // The network changes rarely, and is what somebody in front of the machine waits for.
        let pause = (took * TIME_SHARE).clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY);
        let _ = tokio::time::timeout(pause, underlay.changed()).await;
    }
}

fn show(screen: &Screen, head: &Head) -> std::io::Result<()> {
    let rows: Vec<Row> = head.rows(Place::look()?.columns);
    screen.paint(&rows)
}

/// What is to be shown, and how long the agent's loop was kept by that.
async fn look(agent: &AgentHandle, network: Network) -> Result<(Head, Duration), Problem> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = |name: &str| meminfo(&text, name).unwrap_or(0);
    let machine = Machine {
        up_ms: boot_ms(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory("MemTotal:"),
        free_bytes: memory("MemAvailable:"),
    };
    let look = move |core: &Node, now: Time| {
        let begin = Instant::now();
        (of(core, now, network, machine), begin.elapsed())
    };
    agent.read(look).await
}

/// What is known of the node, in the agent's loop.
fn of(core: &Node, now: Time, network: Network, machine: Machine) -> Head {
    let view = core.view(now, "");
    let nodes = view.nodes();
    let leader = nodes.iter().find(|node| node.leader).map(|node| node.hostname.clone());
    let own = nodes.into_iter().find(|node| node.id == core.me());
    let here = core.cluster().replicas.iter().filter(|((_, node), _)| *node == core.me());
    let running = here.filter(|(_, status)| status.phase == Phase::Running).count();
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    Head { own, hostname, status: view.status(), leader, running, network, machine }
}

/// How the machine is reached, or what is missing for it.
fn network(config: &machine::Network, underlay: Option<Underlay>) -> Network {
    match underlay {
        Some(underlay) => Network::Up(underlay),
        None => Network::Down {
            cards: cards(Path::new(DEVICES)),
            wanted: config.interface.clone(),
            is_static: config.address.is_some(),
        },
    }
}

/// The network cards, by name: what has hardware behind it.
fn cards(devices: &Path) -> Vec<Card> {
    let found = fs::read_dir(devices).into_iter().flatten().flatten();
    let hardware = found.filter(|device| device.path().join("device").exists());
    let mut cards: Vec<Card> = hardware
        .map(|device| Card {
            name: device.file_name().to_string_lossy().into_owned(),
            // Cannot be read while the card is down.
            has_carrier: fs::read_to_string(device.path().join("carrier"))
                .is_ok_and(|text| text.trim() == "1"),
        })
        .collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_what_has_hardware_with_or_without_a_cable() {
        let devices = tempfile::tempdir().unwrap();
        for (name, carrier) in [("eth1", Some("1\n")), ("eth0", None), ("eth2", Some("0\n"))] {
            fs::create_dir_all(devices.path().join(name).join("device")).unwrap();
            if let Some(carrier) = carrier {
                fs::write(devices.path().join(name).join("carrier"), carrier).unwrap();
            }
        }
        fs::create_dir_all(devices.path().join("lo")).unwrap();
        let found: Vec<_> =
            cards(devices.path()).into_iter().map(|card| (card.name, card.has_carrier)).collect();
        assert_eq!(
            found,
            [("eth0".to_owned(), false), ("eth1".to_owned(), true), ("eth2".to_owned(), false)]
        );
    }
}
