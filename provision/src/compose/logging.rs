//! What is kept of a service's output.

use hivemind_spec::workload::{MAX_LOG_BYTES, MIN_LOG_BYTES};

use super::keys;
use super::reader::Reader;
use super::yaml::Node;

/// Reads `logging`: the most that is kept, bytes; 0 is nothing, and nothing said is what is kept anyway.
pub(super) fn log_bytes(reader: &Reader<'_>, node: &Node) -> Option<Option<u64>> {
    let (mut nothing, mut file_bytes, mut files) = (false, None, 1);
    for (key, value) in reader.entries(node, keys::LOGGING)? {
        if key.text == "driver" {
            // Names of how Docker keeps logs on the machine itself.
            nothing = reader.word(value, &[("json-file", false), ("local", false), ("none", true)])?;
            continue;
        }
        for (key, value) in reader.entries(value, keys::LOGGING_OPTIONS)? {
            match key.text.as_str() {
                // One reads it as it was printed either way.
                "compress" => drop(reader.boolean(value)?),
                "max-size" => file_bytes = Some((value.mark, reader.size_bytes(value)?)),
                _ => {
                    let text = reader.text_or_number(value, "a number")?;
                    let number = text.parse::<u64>().ok().filter(|number| *number > 0);
                    files = reader
                        .ok(value.mark, number.ok_or_else(|| format!("{text:?} is not a number of files")))?;
                }
            }
        }
    }
    if nothing {
        return Some(Some(0));
    }
    let Some((mark, file_bytes)) = file_bytes else { return Some(None) };
    let bytes = file_bytes.saturating_mul(files);
    if bytes > MAX_LOG_BYTES {
        reader.warn(
            mark,
            format!("of each replica's output {} MiB are kept, and no more", MAX_LOG_BYTES >> 20),
        );
        return Some(None);
    }
    if bytes < MIN_LOG_BYTES {
        reader.warn(mark, format!("{} KiB are kept, which is the least", MIN_LOG_BYTES >> 10));
    }
    Some(Some(bytes.max(MIN_LOG_BYTES)))
}
