//! The power button, as an input device.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;

/// `EV_KEY` and `KEY_POWER` of `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Size of `struct input_event` on 64-bit machines: two 64-bit times, type, code, value.
const EVENT_SIZE: usize = 24;

/// Buttons watched at most: machines have one or two (ACPI, keyboard).
const MAX_BUTTONS: usize = 8;

/// A device with a power button.
pub(super) struct Button(File);

impl AsFd for Button {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Button {
    /// Reads what has come; whether the button was pressed.
    pub(super) fn was_pressed(&mut self) -> bool {
        let mut events = [0; EVENT_SIZE * 16];
        // The descriptor does not block: an error means no event.
        let count = self.0.read(&mut events).unwrap_or(0);
        events.get(..count).unwrap_or_default().chunks_exact(EVENT_SIZE).any(is_press)
    }
}

/// All devices with a power button.
pub(super) fn buttons() -> Vec<Button> {
    let Ok(entries) = std::fs::read_dir("/sys/class/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter(|entry| {
            let keys = std::fs::read_to_string(entry.path().join("device/capabilities/key"));
            keys.is_ok_and(|bitmap| has_key(&bitmap, KEY_POWER))
        })
        .filter_map(|entry| {
            let node = Path::new("/dev/input").join(entry.file_name());
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(node).ok()
        })
        .take(MAX_BUTTONS)
        .map(Button)
        .collect()
}

/// Whether a bitmap of `/sys`, 64-bit words in hexadecimal with the highest first, has a bit.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn is_press(event: &[u8]) -> bool {
    let field = |at: usize| event.get(at..at + 2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
    let value = event.get(20..24).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    (field(16), field(18), value) == (Some(EV_KEY), Some(KEY_POWER), Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_key_is_found_in_the_kernel_s_bitmap() {
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(!has_key("8000 10000000000000 0\n", 115));
        assert!(!has_key("10000000000000\n", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        let mut event = [0; EVENT_SIZE];
        event[16..18].copy_from_slice(&EV_KEY.to_ne_bytes());
        event[18..20].copy_from_slice(&KEY_POWER.to_ne_bytes());
        assert!(!is_press(&event), "released");
        event[20..24].copy_from_slice(&1i32.to_ne_bytes());
        assert!(is_press(&event));
        event[18] = 0;
        assert!(!is_press(&event));
    }
}
