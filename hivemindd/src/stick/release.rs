//! A release of the operating system from a stick: its files, for the document that was pushed. Whatever is on the stick is
//! compared with that, so nobody has to have signed it.

use std::path::PathBuf;

use anyhow::bail;
use hivemind_core::event::Event;
use hivemind_spec::release::Architecture;
use tokio::sync::mpsc;

use super::reading;
use crate::agent::AgentHandle;
use crate::release::Brought;

/// Copies the release that this cluster is to have. Returns what it is called.
///
/// # Errors
/// When another is to come, or none, or not all of it is on the stick.
pub(super) async fn take(
    agent: &AgentHandle,
    brought: &Brought,
    events: &mpsc::Sender<Event>,
    stick: PathBuf,
) -> anyhow::Result<String> {
    let asked = agent.read(|core, _| {
        let cluster = core.cluster();
        let status = cluster.nodes.get(&core.me()).and_then(|node| node.status.as_ref());
        let running = status.and_then(|status| Some(status.release.as_ref()?.id));
        let wanted = Architecture::own().and_then(|own| cluster.os_releases.get(&own));
        (running, wanted.map(|wanted| wanted.spec.clone()))
    });
    let (running, wanted) = asked.await.map_err(|problem| anyhow::anyhow!(problem.detail))?;
    let Some(spec) = wanted else {
        bail!(
            "nobody has pushed a release: do so (`hivemind upgrade BUNDLE --from stick`), and plug it in again"
        );
    };
    if running == Some(spec.release) {
        bail!("this machine runs release {} ({}), and others have it from here", spec.version, spec.release);
    }
    let (release, called) = (spec.release, format!("{} ({})", spec.version, spec.release));
    let (copy, wanted) = (brought.clone(), called.clone());
    let copied = reading(stick, move |root| {
        copy.take(root, &spec).map_err(|error| error.context(format!("release {wanted}, which was pushed")))
    });
    let copied = copied.await;
    // One that was here before made room. The loop may have ended, and then nobody is left to be told.
    let _ = events.send(Event::Brought { release: copied.is_ok().then_some(release) }).await;
    copied.map(|()| called)
}
