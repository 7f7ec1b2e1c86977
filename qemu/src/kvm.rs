//! Whether hardware virtualisation really works here.
//!
//! `/dev/kvm` may exist and refuse, or make machines whose every instruction is interpreted and which take minutes to
//! boot. So QEMU runs a hundred million instructions with it: hardware needs a twentieth of a second for them.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cache::cache_folder;
use crate::error::{Context, Result};
use crate::process::Process;
use crate::sys::ChildSetup;

/// Forty times what hardware needs, for a computer that is busy.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// The last 16 bytes of the firmware, where a processor starts:
/// `mov ecx, 100000000; again: dec ecx; jnz again; mov dx, 0xf4; mov al, 0x10; out dx, al`.
const RESET_CODE: [u8; 16] =
    [0x66, 0xb9, 0x00, 0xe1, 0xf5, 0x05, 0x66, 0x49, 0x75, 0xfc, 0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee];

/// `isa-debug-exit` makes this exit status of the 0x10 written to its port: twice that, plus 1.
const EXIT_OF_PROBE: i32 = 0x21;

/// The smallest firmware QEMU takes.
const FIRMWARE_SIZE: usize = 64 * 1024;

/// Asks once per process, and probes once per boot of the computer.
pub(crate) fn kvm_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        // Without permission there is nothing to probe, and the answer must not be kept for those who have it.
        let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        opens && remembered_or_probed().unwrap_or(false)
    })
}

fn remembered_or_probed() -> Result<bool> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let dir = cache_folder("kvm")?;
    let answer = dir.join(boot.trim());
    if let Ok(known) = fs::read_to_string(&answer) {
        return Ok(known == "works");
    }
    let works = probe(&dir)?;
    fs::write(&answer, if works { "works" } else { "does not work" })
        .context("remember whether KVM works")?;
    Ok(works)
}

fn probe(dir: &Path) -> Result<bool> {
    let mut firmware = vec![0; FIRMWARE_SIZE - RESET_CODE.len()];
    firmware.extend(RESET_CODE);
    let rom = dir.join(format!("probe-{}.rom", std::process::id()));
    fs::write(&rom, firmware).context("write the firmware of the KVM probe")?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-machine",
        "q35",
        "-m",
        "32",
    ]);
    command.args(["-accel", "kvm", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"]).arg(&rom);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ChildSetup::default().apply(&mut command);
    let process = Process::spawn(command);
    let exit = process.map(|mut process| {
        let started = Instant::now();
        while process.ended().is_none() && started.elapsed() < PROBE_WITHIN {
            std::thread::sleep(Duration::from_millis(5));
        }
        process.ended().and_then(|status| status.code())
    });
    let _ = fs::remove_file(&rom);
    Ok(exit? == Some(EXIT_OF_PROBE))
}
