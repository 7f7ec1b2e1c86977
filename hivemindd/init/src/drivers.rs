//! Which kernel modules there are for which hardware, as the build found it in the modules themselves.
//!
//! The index has a line for each driver, with its name and the files to load, and below it lines that begin with a space:
//! what the hardware calls itself that it is for, in the kernel's own words (`modalias`), where `*`, `?` and `[a-z]` stand
//! for anything, any character and one of those. The kernel tells the words of each device in `/sys`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::modules;

/// The drivers in the root.
pub const INDEX: &str = "/usr/lib/hivemind/modules.drivers";

/// Where the kernel lists devices, by the bus that they are at.
const BUSES: &str = "/sys/bus";

/// The drivers of an index.
#[derive(Debug)]
pub struct Drivers {
    drivers: Vec<Driver>,
    buses: PathBuf,
}

/// A driver.
#[derive(Debug)]
struct Driver {
    name: String,
    files: Vec<PathBuf>,
    /// Patterns of what hardware calls itself.
    aliases: Vec<String>,
    /// Whether it was loaded here, or could not be.
    is_tried: bool,
}

impl Drivers {
    /// Reads an index.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(index: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(index)?;
        Ok(Self { drivers: parse(&text), buses: BUSES.into() })
    }

    /// Loads those with these names, whatever hardware there is.
    pub(super) fn load_named(&mut self, names: &[&str]) {
        for driver in self.drivers.iter_mut().filter(|driver| names.contains(&driver.name.as_str())) {
            driver.load();
        }
    }

    /// Loads the first driver of the index that is not loaded and for which there is hardware. None: there is no more.
    pub(super) fn load_next(&mut self) -> Option<()> {
        let hardware = self.hardware();
        self.drivers.iter_mut().find(|driver| driver.is_wanted(&hardware))?.load();
        Some(())
    }

    /// Loads all drivers for which there is hardware, and those for what comes to light by that. Returns how many.
    pub fn load_all(&mut self) -> usize {
        let mut count = 0;
        loop {
            let hardware = self.hardware();
            let before = count;
            for driver in self.drivers.iter_mut().filter(|driver| driver.is_wanted(&hardware)) {
                driver.load();
                count += 1;
            }
            if count == before {
                return count;
            }
        }
    }

    /// What the hardware calls itself, at the buses for which there are drivers.
    fn hardware(&self) -> BTreeSet<String> {
        let aliases =
            self.drivers.iter().filter(|driver| !driver.is_tried).flat_map(|driver| &driver.aliases);
        let buses: BTreeSet<&str> = aliases.map(|alias| bus(alias)).collect();
        let devices =
            buses.into_iter().filter_map(|bus| fs::read_dir(self.buses.join(bus).join("devices")).ok());
        let words = devices.flatten().flatten().filter_map(|device| {
            let words = fs::read_to_string(device.path().join("modalias")).ok()?;
            Some(words.trim_end().to_owned())
        });
        words.filter(|words| !words.is_empty()).collect()
    }
}

impl Driver {
    fn is_wanted(&self, hardware: &BTreeSet<String>) -> bool {
        let is_for =
            |alias: &String| hardware.iter().any(|words| matches(alias.as_bytes(), words.as_bytes()));
        !self.is_tried && self.aliases.iter().any(is_for)
    }

    fn load(&mut self) {
        self.is_tried = true;
        for file in &self.files {
            modules::load(file);
        }
    }
}

fn parse(text: &str) -> Vec<Driver> {
    let mut drivers: Vec<Driver> = Vec::new();
    for line in text.lines() {
        if let Some(alias) = line.strip_prefix(' ') {
            if let Some(driver) = drivers.last_mut() {
                driver.aliases.push(alias.to_owned());
            }
            continue;
        }
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        drivers.push(Driver {
            name,
            files: words.map(PathBuf::from).collect(),
            aliases: Vec::new(),
            is_tried: false,
        });
    }
    drivers
}

/// The bus that begins a pattern: `acpi` of `acpi*:PNP0C0C:*`.
fn bus(alias: &str) -> &str {
    alias.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default()
}

/// Whether a pattern stands for the words, as fnmatch(3) has it without flags.
fn matches(pattern: &[u8], words: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star was, and how much of the words it stood for.
    let mut star: Option<(usize, usize)> = None;
    while from < words.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => one_of(&pattern[at..], words[from]),
            Some(letter) if *letter == words[from] => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(length), _) => (at, from) = (at + length, from + 1),
            (None, Some((place, stood_for))) => {
                star = Some((place, stood_for + 1));
                (at, from) = (place + 1, stood_for + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[at.min(pattern.len())..].iter().all(|letter| *letter == b'*')
}

/// The length of a set like `[0-9af]` at the beginning of a pattern, if the letter is one of it.
fn one_of(pattern: &[u8], letter: u8) -> Option<usize> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let mut set = &pattern[1..end];
    loop {
        set = match set {
            [from, b'-', to, ..] if (*from..=*to).contains(&letter) => return Some(end + 1),
            [_, b'-', _, rest @ ..] => rest,
            [one, ..] if *one == letter => return Some(end + 1),
            [_, rest @ ..] => rest,
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_what_the_kernel_calls_hardware() {
        for (pattern, words, is_for) in [
            (
                "pci:v00008086d000010D3sv*sd*bc*sc*i*",
                "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00",
                true,
            ),
            (
                "pci:v00008086d000010D3sv*sd*bc*sc*i*",
                "pci:v00008086d000010D4sv00008086sd00000000bc02sc00i00",
                false,
            ),
            ("pci:v*d*sv*sd*bc0Csc03i30*", "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30", true),
            ("pci:v*d*sv*sd*bc0Csc03i30*", "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i20", false),
            ("acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true),
            ("acpi*:PNP0C0C:*", "acpi:LNXPWRBN:PNP0C0C:", true),
            ("usb:v0403p6001d0[2-9]*dc*", "usb:v0403p6001d0400dc00", true),
            ("usb:v0403p6001d0[2-9af]*dc*", "usb:v0403p6001d0f00dc00", true),
            ("usb:v0403p6001d0[2-9]*dc*", "usb:v0403p6001d0100dc00", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("scsi:t-0x00*", "scsi:t-0x00", true),
            ("", "", true),
            ("*", "", true),
            ("ab", "a", false),
            ("a[", "a[", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), words.as_bytes()), is_for, "{pattern} {words}");
        }
    }

    #[test]
    fn drivers_are_loaded_for_what_hardware_there_is_in_their_order_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let plug = |bus: &str, name: &str, words: &str| {
            let device = folder.path().join(bus).join("devices").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("modalias"), format!("{words}\n")).unwrap();
        };
        let index = "disk /m/bus.ko /m/disk.ko\n pci:v1d1*\n pci:v1d2*\nwatchdog /m/watchdog.ko\nstick /m/stick.ko\n usb:v9p[1-3]*\n";
        let mut drivers = Drivers { drivers: parse(index), buses: folder.path().into() };
        assert_eq!(drivers.drivers[0].files, [PathBuf::from("/m/bus.ko"), PathBuf::from("/m/disk.ko")]);
        assert_eq!((drivers.load_next(), drivers.load_all()), (None, 0));
        plug("usb", "1-1", "usb:v9p2d1");
        plug("pci", "0000:00:1f.0", "pci:v1d2sv3");
        assert_eq!(drivers.load_next(), Some(()));
        let tried = |drivers: &Drivers| -> Vec<String> {
            drivers.drivers.iter().filter(|d| d.is_tried).map(|d| d.name.clone()).collect()
        };
        assert_eq!(tried(&drivers), ["disk"]);
        assert_eq!(drivers.load_all(), 1);
        assert_eq!(tried(&drivers), ["disk", "stick"]);
        assert_eq!(drivers.load_all(), 0);
        drivers.load_named(&["watchdog"]);
        assert_eq!(tried(&drivers).len(), 3);
    }
}
