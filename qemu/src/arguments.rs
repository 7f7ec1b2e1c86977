//! QEMU's command line.

use std::ffi::OsString;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::emulation::{CMDLINE, is_emulated};
use crate::error::{Context, Error, Result};
use crate::image::Boot;
use crate::machine::{Hardware, MachineOptions};
use crate::wire::Mac;

/// The id of the network card's back end, for the monitor.
pub(crate) const NETWORK_CARD: &str = "net0";

/// Translated code kept per machine. Once it is full all of it is dropped and translated again, which an emulated machine
/// spends most of its time with: 50 s of containers that come and go make 250 MiB. QEMU would take twice as much, and a
/// cluster's worth of that does not fit in memory.
const TRANSLATION_CACHE_MIB: u32 = 512;

/// Where Debian's `ovmf` package has the firmware: code, and the template of its variables.
const FIRMWARE: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

fn firmware() -> Result<(&'static Path, &'static Path)> {
    let found = FIRMWARE.iter().map(|(code, variables)| (Path::new(*code), Path::new(*variables)));
    found.clone().find(|(code, variables)| code.exists() && variables.exists()).ok_or_else(|| {
        Error::NoImage { what: "UEFI firmware (package ovmf)", path: PathBuf::from(FIRMWARE[0].0) }
    })
}

/// Every machine has firmware variables of its own, which last over power cuts.
pub(crate) fn copy_firmware_variables(dir: &Path) -> Result<()> {
    let (_, variables) = firmware()?;
    fs::copy(variables, dir.join("variables.fd")).map(drop).context("copy the firmware's variables")
}

pub(crate) fn hardware(options: &MachineOptions, dir: &Path) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.option("-name", &options.name);
    args.flag("-nodefaults").flag("-no-user-config");
    args.option("-display", "none").option("-vga", if options.screen { "std" } else { "none" });
    args.option("-machine", "q35");
    if is_emulated() {
        args.option("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"));
        args.option("-cpu", "max");
    } else {
        args.option("-accel", "kvm").option("-cpu", "host");
    }
    args.option("-m", options.memory_mib.to_string());
    args.option("-smp", options.cpus.to_string());
    args.option("-device", "virtio-rng-pci");
    if options.hardware != Hardware::Virtual {
        args.option("-device", "qemu-xhci");
    }
    // A watchdog, which resets the machine.
    args.option("-device", "i6300esb");
    if options.clock_offset_s != 0 {
        args.option("-rtc", format!("base={}", clock(SystemTime::now(), options.clock_offset_s)));
    }
    match &options.boot {
        Boot::Direct { kernel, initrd, cmdline } => {
            let more = if options.is_spared() { format!(" {CMDLINE}") } else { String::new() };
            args.option("-kernel", kernel)
                .option("-initrd", initrd)
                .option("-append", cmdline.clone() + &more);
        }
        Boot::Firmware => {
            // Its variables were copied when the machine was made, so the firmware is there.
            let code = firmware().map_or(Path::new(FIRMWARE[0].0), |(code, _)| code);
            let flash = |file: &Path| escape(file);
            args.option("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", flash(code)));
            let variables = dir.join("variables.fd");
            args.option("-drive", format!("if=pflash,unit=1,format=raw,file={}", flash(&variables)));
            if options.is_spared() {
                // systemd-stub(7) appends it. In QEMU's option syntax a comma in a value is written twice.
                let words = CMDLINE.replace(',', ",,");
                let extra = format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={words}");
                args.option("-smbios", extra);
            }
        }
    }
    if options.config.is_some() {
        let file = escape(&dir.join("config"));
        args.option("-fw_cfg", format!("name=opt/org.hivemind/config,file={file}"));
    }
    args.0
}

pub(crate) fn cable(hardware: Hardware, fd: RawFd, mac: Mac) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.option("-netdev", format!("dgram,id={NETWORK_CARD},local.type=fd,local.str={fd}"));
    // Booting from the network is never wanted, and its ROM would be searched for at every start.
    args.option("-device", format!("{},netdev={NETWORK_CARD},mac={mac},romfile=", hardware.card()));
    args.0
}

pub(crate) fn monitor(fd: RawFd) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.option("-chardev", format!("socket,id=monitor0,fd={fd}"));
    args.option("-mon", "chardev=monitor0,mode=control");
    args.0
}

pub(crate) fn serial(log: &Path) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.option("-chardev", format!("file,id=serial0,path={},append=on", escape(log)));
    args.option("-serial", "chardev:serial0");
    args.0
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

/// In QEMU's option syntax a comma in a value is written twice.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The date QEMU's clock starts at, as `YYYY-MM-DDTHH:MM:SS` in UTC.
fn clock(now: SystemTime, offset_s: i64) -> String {
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    // The clock chip cannot show a date before 1970.
    let time_s = now_s.saturating_add(offset_s).max(0);
    let (days, second) = (time_s / 86_400, time_s % 86_400);
    let (year, month, day) = civil_date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar counted in eras of 400 years that
/// start in March, so that the leap day is the last of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_clock_starts_at_the_host_time_plus_the_offset() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(clock(at(0), 0), "1970-01-01T00:00:00");
        assert_eq!(clock(at(951_782_400), 86_399), "2000-02-29T23:59:59");
        assert_eq!(clock(at(1_709_164_800), 86_400), "2024-03-01T00:00:00");
        assert_eq!(clock(at(1_800_000_000), -4_000_000_000), "1970-01-01T00:00:00");
        assert_eq!(clock(at(4_070_908_800), 0), "2099-01-01T00:00:00");
    }
}
