//! What lists look like.

use std::io::{self, Write};

use anyhow::Result;
use hivemind_qemu::Power;
use hivemind_qemu::images::Images;

use super::Output;
use super::protocol::Cluster;

pub(crate) fn cluster(name: &str, cluster: Option<Cluster>, output: Output) -> Result<()> {
    let mut out = io::stdout().lock();
    match (cluster, output) {
        (cluster, Output::Json) => writeln!(out, "{}", serde_json::to_string_pretty(&cluster)?)?,
        (None, Output::Table) => eprintln!("the cluster `{name}` is not up; `hivemind-qemu up` starts one"),
        (Some(cluster), Output::Table) => {
            writeln!(
                out,
                "{:<12} {:<8} {:<15} {:<18} {:>9}",
                "MACHINE", "POWER", "ADDRESS", "MAC", "CPU TIME"
            )?;
            for machine in &cluster.machines {
                let power = match machine.power {
                    Power::On => "on",
                    Power::Off => "off",
                    Power::Frozen => "frozen",
                };
                let address = machine.address.to_string();
                let time =
                    machine.cpu_time_ms.map_or("-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
                writeln!(out, "{:<12} {power:<8} {address:<15} {:<18} {time:>9}", machine.name, machine.mac)?;
            }
            for forward in &cluster.forwards {
                writeln!(out, "{} leads to {}", forward.local, forward.target)?;
            }
            if let Some(registry) = &cluster.registry {
                writeln!(out, "test images at {registry}")?;
            }
        }
    }
    Ok(())
}

pub(crate) fn images(images: &Images, output: Output) -> Result<()> {
    let mut out = io::stdout().lock();
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(images.list())?)?;
        return Ok(());
    }
    writeln!(out, "{:<14} {:>9}  DIGEST", "IMAGE", "SIZE")?;
    for image in images.list() {
        let (reference, size) = (format!("{}:{}", image.name, image.tag), image.size.div_ceil(1024));
        writeln!(out, "{reference:<14} {size:>5} KiB  {}", image.digest)?;
    }
    Ok(())
}
