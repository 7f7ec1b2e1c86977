//! `x-hivemind` of a service: what Compose has no words for.

use std::num::NonZeroU32;

use hivemind_spec::workload::{MAX_REPLICAS, Takeover};

use super::Draft;
use crate::compose::reader::Reader;
use crate::compose::yaml::Node;
use crate::compose::{health, job, keys};

pub(super) fn read(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    let takeovers =
        [("majority", Takeover::Majority), ("always", Takeover::Always), ("never", Takeover::Never)];
    for (key, value) in reader.entries(node, keys::EXTENSION)? {
        match key.text.as_str() {
            "exclusive" => draft.exclusive = Some((value.mark, reader.boolean(value)?)),
            "health" => {
                let question = reader.ok(value.mark, health::question(&reader.text(value)?))?;
                draft.question = Some((value.mark, question));
            }
            "job" => draft.job = Some((value.mark, job::job(reader, value)?)),
            "rebalance" => {
                let most = reader.integer(value, 1, MAX_REPLICAS.into())?;
                draft.rebalance =
                    u32::try_from(most).ok().and_then(NonZeroU32::new).map(|most| (value.mark, most));
            }
            "takeover" => draft.takeover = reader.word(value, &takeovers)?,
            _ => {
                let priority = reader.integer(value, i32::MIN.into(), i32::MAX.into())?;
                draft.priority = i32::try_from(priority).unwrap_or_default();
            }
        }
    }
    Some(())
}
