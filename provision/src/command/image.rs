//! `hivemind image`.

use hivemind_spec::machine::{Install, MachineConfig};
use serde_json::json;

use crate::bundle::read_config;
use crate::cli::{Global, Image, ImageConfigure, Output};
use crate::failure::{Exit, Failure, Result};
use crate::image::{ConfigPartition, Present};
use crate::quantity::show_span;
use crate::secret;
use crate::terminal::{CHANGING, note, paint, say, say_json};
use crate::token::{self, StoredToken};

pub(super) fn run(global: &Global, command: &Image) -> Result<Exit> {
    match command {
        Image::Configure(options) => configure(global, options),
    }
}

fn configure(global: &Global, options: &ImageConfigure) -> Result<Exit> {
    let now_ms = super::now_ms();
    let token = match &options.token {
        Some(path) => token::read(path)?,
        None => token::newest_open(&super::open_bundle(global)?, now_ms)?,
    };
    let config = machine_config(&token, options)?;
    let text = config.to_toml();
    if options.stdout {
        say(text.trim_end());
        return Ok(Exit::Success);
    }
    let target = match (&options.output_file, &options.target) {
        (Some(path), _) => {
            refuse_other_cluster(options, &config, || Ok(path.exists().then(|| read_config(path))), path)?;
            secret::write_private(path, text.as_bytes(), true)?;
            path
        }
        (None, Some(target)) => {
            let partition = ConfigPartition::open(target)?;
            let present = || {
                Ok(match partition.present()? {
                    Present::Configuration(config) => Some(Ok(*config)),
                    Present::Nothing | Present::Unreadable => None,
                })
            };
            refuse_other_cluster(options, &config, present, target)?;
            partition.write(&text)?;
            target
        }
        (None, None) => return Err(Failure::input("no-target", "there is nothing to configure")),
    };
    if token.spec.not_after_ms <= now_ms {
        note(&paint(CHANGING, "The token has expired: machines with this configuration will be refused."));
    }
    if global.output == Output::Json {
        say_json(&json!({
            "target": target,
            "cluster": config.cluster.id,
            "token": token.spec.id,
            "notAfterMs": token.spec.not_after_ms,
        }));
    } else {
        say(&format!("{} is configured for cluster {}.", target.display(), config.cluster.name));
        let left = token.spec.not_after_ms.saturating_sub(now_ms);
        say(&format!("Machines that boot from it may join for the next {}.", show_span(left)));
    }
    Ok(Exit::Success)
}

/// The token file's content with what is this machine's own.
fn machine_config(token: &StoredToken, options: &ImageConfigure) -> Result<MachineConfig> {
    let mut config = token.config.clone();
    if options.hostname.is_some() {
        config.node.hostname.clone_from(&options.hostname);
    }
    config.node.labels.extend(options.labels.iter().cloned());
    if let Some(token) = &mut config.token {
        token.seeds.extend(options.seeds.iter().cloned());
    }
    config.registries.insecure.extend(options.insecure_registries.iter().cloned());
    for (registry, mirror) in &options.mirrors {
        config.registries.mirrors.entry(registry.clone()).or_default().push(mirror.clone());
    }
    config.install = options.install.clone().map(|disk| Install { disk });
    let network = &mut config.network;
    network.interface = options.interface.clone().or(network.interface.take());
    network.address = options.address.clone().or(network.address.take());
    network.gateway = options.gateway.or(network.gateway);
    network.dns.extend(&options.dns);
    network.ntp.extend(options.ntp.iter().cloned());
    MachineConfig::parse(&config.to_toml()).map_err(|e| {
        Failure::input(
            "bad-configuration",
            format!("the configuration would be wrong: {}: {}", e.key, e.message),
        )
        .advice("correct the option of that name")
    })
}

/// A disk that belongs to another cluster is probably the wrong disk.
fn refuse_other_cluster(
    options: &ImageConfigure,
    config: &MachineConfig,
    present: impl FnOnce() -> Result<Option<Result<MachineConfig>>>,
    target: &std::path::Path,
) -> Result<()> {
    match present()? {
        Some(Ok(other)) if other.cluster.id != config.cluster.id && !options.force => Err(Failure::input(
            "other-cluster",
            format!("{} is configured for another cluster, {:?}", target.display(), other.cluster.name),
        )
        .advice("check the target, or add --force to replace its configuration")),
        _ => Ok(()),
    }
}
