//! `hivemind support`: one file with what helps to find out what is wrong.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use hivemind_spec::api::{Node, NodeState, Support};
use serde_json::json;

use super::nodes::{called, find};
use crate::cli::{self, Global, Output};
use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{BAD, GOOD, note, paint, say, say_json};
use hivemind_spec::words::timestamp;

/// The longest name of a file that is taken from a node, bytes.
const MAX_NAME_BYTES: usize = 100;

pub(super) fn run(global: &Global, options: &cli::Support) -> Result<Exit> {
    let client = super::client(global)?;
    let cluster = client.bundle().machine_config().cluster.name;
    let out = options.out.clone().unwrap_or_else(|| {
        let now = timestamp(super::now_ms());
        PathBuf::from(format!("support-{cluster}-{}.tar.gz", now[..19].replace(':', "-")))
    });
    let text = global.output == Output::Text;
    let gathered = super::block_on("stopped; nothing was written", gather(&client, &options.of.nodes, text))?;
    if gathered.parts.is_empty() {
        let detail = format!("nothing could be gathered: {}", gathered.missing.join("; "));
        return Err(Failure::new(Exit::Unreachable, "no-answer", detail)
            .advice("`hivemind nodes` tells which machines can be reached"));
    }
    gathered.write(&out).map_err(|error| Failure::file("write", &out, &error))?;
    if text {
        say(&format!("{} holds what {} told", out.display(), machines(gathered.parts.len())));
        say(
            "It has logs and addresses, but no documents, no output of containers, no keys: look before you pass it on.",
        );
    } else {
        let nodes: Vec<String> = gathered.parts.iter().map(|(node, _)| node.id.to_string()).collect();
        say_json(&json!({ "file": out, "nodes": nodes, "missing": gathered.missing }));
    }
    Ok(Exit::Success)
}

fn machines(count: usize) -> String {
    if count == 1 { "1 machine".to_owned() } else { format!("{count} machines") }
}

/// What came, and what did not.
#[derive(Default)]
struct Gathered {
    parts: Vec<(Node, Support)>,
    missing: Vec<String>,
}

async fn gather(client: &Client, names: &[String], text: bool) -> Result<Gathered> {
    let nodes: Vec<Node> = client.list("/v1/nodes").await?;
    let wanted: Vec<Node> = if names.is_empty() {
        nodes.iter().filter(|node| node.state != NodeState::Revoked).cloned().collect()
    } else {
        names.iter().map(|name| find(&nodes, name).cloned()).collect::<Result<_>>()?
    };
    let mut gathered = Gathered::default();
    for node in wanted {
        let answer = client.get::<Support>(&format!("/v1/nodes/{}/support", node.id)).await;
        let told = match answer {
            Ok(support) => {
                let told = format!("{} {}", paint(GOOD, "✓"), called(&node));
                gathered.parts.push((node, support));
                told
            }
            Err(failure) => {
                let told = format!("{} {}: {}", paint(BAD, "✗"), called(&node), failure.detail);
                gathered.missing.push(format!("{} ({}): {}", node.hostname, node.id, failure.detail));
                told
            }
        };
        if text {
            note(&told);
        }
    }
    Ok(gathered)
}

impl Gathered {
    /// Writes the archive, readable by its owner only.
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        self.archive(GzEncoder::new(file, Compression::default()))?.finish()?.sync_all()
    }

    fn archive<W: Write>(&self, out: W) -> std::io::Result<W> {
        let mut archive = tar::Builder::new(out);
        let about = format!("made by hivemind {}\n", env!("CARGO_PKG_VERSION"));
        add(&mut archive, "about.txt", &about, 0)?;
        if !self.missing.is_empty() {
            add(&mut archive, "missing.txt", &format!("{}\n", self.missing.join("\n")), 0)?;
        }
        for (node, support) in &self.parts {
            let folder = if is_plain(&node.hostname) { node.hostname.as_str() } else { "node" };
            for (name, text) in support.files.iter().filter(|(name, _)| is_plain(name)) {
                let name = format!("{folder}-{}/{name}", node.id.short());
                add(&mut archive, &name, text, support.taken_ms / 1000)?;
            }
        }
        archive.into_inner()
    }
}

/// Whether a name that a node gave is one below the folder it is put into, on any system.
fn is_plain(name: &str) -> bool {
    let parts = || name.split('/');
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= MAX_NAME_BYTES
        && parts().all(|part| !part.starts_with('.') && !part.is_empty() && part.chars().all(known))
}

fn add<W: Write>(archive: &mut tar::Builder<W>, name: &str, text: &str, time_s: u64) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(time_s);
    archive.append_data(&mut header, name, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use hivemind_spec::id::NodeId;

    use super::super::nodes::tests::node;
    use super::*;

    #[test]
    fn the_archive_holds_what_came_and_says_what_did_not_and_no_name_leads_out_of_it() {
        let files = [
            ("kernel.log", "all is well\n"),
            ("../evil", "x"),
            ("/etc/evil", "x"),
            ("proc/meminfo", "MemTotal"),
        ];
        let files: BTreeMap<String, String> =
            files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let support = Support { node: NodeId([1; 16]), taken_ms: 5000, files };
        let gathered = Gathered {
            parts: vec![(node(1, "edge-1", NodeState::Ready), support)],
            missing: vec!["edge-2 (02): does not answer".to_owned()],
        };
        let bytes = gathered.archive(Vec::new()).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), text);
        }
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["about.txt", "edge-1-01010101/kernel.log", "edge-1-01010101/proc/meminfo", "missing.txt"]
        );
        assert_eq!(found["edge-1-01010101/kernel.log"], "all is well\n");
    }
}
