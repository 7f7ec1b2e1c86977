//! The rows themselves: what is shown of a machine, and in which words.

use hivemind_init::screen::{HEAD, Look, Row};
use hivemind_spec::api::{self, NodeState, UpdatePhase};

use crate::underlay::Underlay;

/// Rows for what is wrong: all but the title, what is well, the row that says how many more there are, and the line below.
const PROBLEMS: usize = HEAD - 9;

/// All that is shown.
#[derive(Debug)]
pub(super) struct Head {
    /// The node itself; none until it has been heard of, which is right after it has joined.
    pub(super) own: Option<api::Node>,
    /// The machine's name.
    pub(super) hostname: String,
    pub(super) status: api::Status,
    /// The leader's name.
    pub(super) leader: Option<String>,
    /// Replicas running here.
    pub(super) running: usize,
    pub(super) network: Network,
    pub(super) machine: Machine,
}

/// How the machine is reached.
#[derive(Debug)]
pub(super) enum Network {
    Up(Underlay),
    /// What there is, while it is not: the cards, and of the configuration the interface and whether the address is in it.
    Down {
        cards: Vec<Card>,
        wanted: Option<String>,
        is_static: bool,
    },
}

/// A network card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) name: String,
    /// Whether a cable leads somewhere.
    pub(super) has_carrier: bool,
}

/// The computer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    pub(super) up_ms: u64,
    pub(super) processors: usize,
    pub(super) memory_bytes: u64,
    pub(super) free_bytes: u64,
}

impl Head {
    /// [`HEAD`] rows for a screen that is so wide.
    pub(super) fn rows(&self, columns: usize) -> Vec<Row> {
        let mut rows = vec![self.title(columns), plain(String::new())];
        let named = [
            ("cluster", self.cluster()),
            ("network", self.network.text()),
            ("release", self.release()),
            ("workloads", self.workloads()),
            ("machine", self.machine.text()),
        ];
        for (name, text) in named {
            let look = if name == "network" && matches!(self.network, Network::Down { .. }) {
                Look::Alarm
            } else {
                Look::Plain
            };
            rows.push(Row { text: format!(" {name:<10} {text}"), look });
        }
        let problems = self.problems();
        for problem in problems.iter().take(PROBLEMS) {
            rows.push(Row {
                text: format!(" ! {}", shortened(problem, columns.saturating_sub(3))),
                look: Look::Alarm,
            });
        }
        let more = problems.len().saturating_sub(PROBLEMS);
        if more > 0 {
            rows.push(plain(format!(" and {more} more: `hivemind status` lists them")));
        }
        rows.resize(HEAD - 1, plain(String::new()));
        rows.push(plain("-".repeat(columns)));
        rows
    }

    fn title(&self, columns: usize) -> Row {
        let (state, look) = self.state();
        let told = self.own.as_ref().map(|own| own.version.as_str()).filter(|version| !version.is_empty());
        let left = format!(" Hivemind {}  {}", told.unwrap_or(crate::VERSION), self.hostname);
        let room = columns.saturating_sub(left.len() + 1);
        Row { text: format!("{left}{state:>room$} "), look }
    }

    /// In a word or two, and how that looks.
    fn state(&self) -> (&'static str, Look) {
        if let Network::Down { .. } = self.network {
            return ("no network", Look::Bad);
        }
        let Some(own) = &self.own else { return ("joins", Look::Busy) };
        let on_trial = own.release.as_ref().is_some_and(|release| release.on_trial);
        match own.state {
            NodeState::Revoked => ("revoked", Look::Bad),
            NodeState::Down | NodeState::NotReady => ("not ready", Look::Bad),
            NodeState::Ready if on_trial => ("tries a release", Look::Busy),
            NodeState::Ready if own.update.as_ref().is_some_and(is_under_way) => ("updates", Look::Busy),
            NodeState::Ready if own.cordoned => ("ready, cordoned", Look::Busy),
            NodeState::Ready => ("ready", Look::Good),
        }
    }

    fn cluster(&self) -> String {
        let api::Status { cluster_name, nodes, nodes_ready, .. } = &self.status;
        let leader = match (&self.leader, &self.own) {
            (None, _) => "no leader".to_owned(),
            (Some(leader), Some(own)) if own.leader => format!("{leader} (this machine) leads"),
            (Some(leader), _) => format!("{leader} leads"),
        };
        format!(
            "{cluster_name}: {nodes_ready} of {nodes} {} ready; {leader}",
            plural(*nodes as usize, "machine")
        )
    }

    fn release(&self) -> String {
        let Some(own) = &self.own else { return "unknown until the machine has joined".to_owned() };
        let running = match &own.release {
            Some(release) if release.on_trial => format!("{}, on trial", release.id),
            Some(release) => format!("{}, good", release.id),
            None => "cannot be updated: the machine was started without a boot menu".to_owned(),
        };
        match &own.update {
            None => running,
            Some(update) if update.phase == UpdatePhase::Failed => {
                format!("{running}; {} failed", update.release)
            }
            Some(update) if update.phase == UpdatePhase::Brought => {
                format!("{running}; {} is here from a stick", update.release)
            }
            Some(update) => {
                let percent = (100 * update.done_bytes).checked_div(update.total_bytes).unwrap_or(0);
                format!("{running}; takes {}: {percent} %", update.release)
            }
        }
    }

    fn workloads(&self) -> String {
        let placed = self.own.as_ref().map_or(0, |own| own.replicas);
        let api::Status { replicas_running, replicas, .. } = &self.status;
        format!(
            "{} of {placed} {} running here, {replicas_running} of {replicas} in the cluster",
            self.running,
            plural(placed as usize, "replica")
        )
    }

    /// The machine's own first.
    fn problems(&self) -> Vec<String> {
        let own = self
            .own
            .iter()
            .flat_map(|own| own.problems.iter().map(|problem| format!("this machine: {problem}")));
        // As the cluster's problems have it.
        let as_node = format!("node {} is ", self.hostname);
        let others = self.status.problems.iter().filter(|text| !text.starts_with(&as_node));
        own.chain(others.cloned()).collect()
    }
}

impl Network {
    fn text(&self) -> String {
        match self {
            Self::Up(Underlay { interface, address, prefix, gateway, .. }) => {
                let gateway = gateway.map_or("no gateway".to_owned(), |gateway| format!("gateway {gateway}"));
                format!("{address}/{prefix} on {interface}, {gateway}")
            }
            Self::Down { cards, wanted, is_static } => missing(cards, wanted.as_deref(), *is_static),
        }
    }
}

/// What is missing for a network.
fn missing(cards: &[Card], wanted: Option<&str>, is_static: bool) -> String {
    let names = |cards: &[&Card]| cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>().join(", ");
    let all: Vec<&Card> = cards.iter().collect();
    if all.is_empty() {
        return "none: no network card is found, or none that there is a driver for".to_owned();
    }
    let usable: Vec<&Card> =
        all.iter().copied().filter(|card| wanted.is_none_or(|wanted| wanted == card.name)).collect();
    if let (Some(wanted), true) = (wanted, usable.is_empty()) {
        return format!("none: the configuration names {wanted}, and there is only {}", names(&all));
    }
    let with_cable: Vec<&Card> = usable.iter().copied().filter(|card| card.has_carrier).collect();
    if with_cable.is_empty() {
        return format!("none: no cable is plugged into {}, or nothing is at its other end", names(&usable));
    }
    let up = names(&with_cable);
    if is_static {
        format!("none: the configured address cannot be set on {up}; the reason is below")
    } else {
        format!("none yet: {up} is up, and no DHCP server has answered")
    }
}

impl Machine {
    fn text(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let used = mib(self.memory_bytes.saturating_sub(self.free_bytes));
        format!(
            "up {}; {} {}, {used} of {} MiB of memory in use",
            duration(self.up_ms),
            self.processors,
            plural(self.processors, "processor"),
            mib(self.memory_bytes)
        )
    }
}

/// In its largest two units, minutes at least.
fn is_under_way(update: &api::Update) -> bool {
    matches!(update.phase, UpdatePhase::Fetching | UpdatePhase::Ready)
}

fn duration(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

fn plural(number: usize, word: &str) -> String {
    if number == 1 { word.to_owned() } else { format!("{word}s") }
}

fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(3)).chain("...".chars()).collect()
}

fn plain(text: String) -> Row {
    Row { text, look: Look::Plain }
}

#[cfg(test)]
mod tests;
