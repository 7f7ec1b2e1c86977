//! One machine: a QEMU process, its disk, its cable, and what can happen to it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::arguments;
use crate::disk::{Disk, Overlay, keep};
use crate::emulation::{self, is_emulated};
use crate::error::{Context, Error, Result};
use crate::gdb;
use crate::image::{Boot, Image};
use crate::lab::LabInner;
use crate::nbd::PoweredDisk;
use crate::network::address_of_host;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::serial::SerialLog;
use crate::sys::ChildSetup;
use crate::wire::{Cable, Impairment, Mac, Wire};

/// What the image needs with some containers; the design's smallest machine.
const DEFAULT_MEMORY_MIB: u32 = 512;

/// The disk of a small machine, bytes; the image leaves what it does not need to the state
/// partition. Only what is written takes room on the host.
const DEFAULT_DISK: u64 = 4 << 30;

const POLL: Duration = Duration::from_millis(25);

/// How to make a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineOptions {
    /// The name in logs, in the lab's DNS (`NAME.lab`) and of the machine's folder.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// What kind of machine it is.
    pub hardware: Hardware,
    /// How to boot.
    pub boot: Boot,
    /// The disk, if any.
    pub disk: Option<Disk>,
    /// The machine configuration, handed over as fw_cfg `opt/org.hivemind/config`.
    pub config: Option<Config>,
    /// The machine's clock minus the host's, in seconds, at power-on.
    pub clock_offset_s: i64,
    /// Whether it has a screen: see [`Machine::screen`].
    pub screen: bool,
    /// Has it boot exactly what it is given also where it is emulated, which takes several seconds longer: for measuring
    /// how long.
    pub as_shipped: bool,
    /// More arguments for QEMU.
    pub extra_args: Vec<OsString>,
}

/// What a machine's disk and network card are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hardware {
    /// Those of virtual machines.
    #[default]
    Virtual,
    /// An NVMe disk and an old card of Intel's.
    Nvme,
    /// A SATA disk and a newer card of Intel's.
    Sata,
    /// A stick at the USB and an old card of Realtek's.
    Stick,
}

impl Hardware {
    /// The model of its network card.
    pub(crate) fn card(self) -> &'static str {
        match self {
            Self::Virtual => "virtio-net-pci",
            Self::Nvme => "e1000",
            Self::Sata => "e1000e",
            Self::Stick => "rtl8139",
        }
    }

    /// The model of its disk.
    pub(crate) fn disk(self) -> &'static str {
        match self {
            Self::Virtual => "virtio-blk-pci",
            Self::Nvme => "nvme,serial=1",
            Self::Sata => "ide-hd",
            Self::Stick => "usb-storage",
        }
    }
}

impl MachineOptions {
    /// A machine without a disk.
    pub fn new(name: impl Into<String>, boot: Boot) -> MachineOptions {
        MachineOptions {
            name: name.into(),
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: 1,
            hardware: Hardware::default(),
            boot,
            disk: None,
            config: None,
            clock_offset_s: 0,
            screen: false,
            as_shipped: false,
            extra_args: Vec::new(),
        }
    }

    /// A machine with the image on its disk.
    pub fn with_image(name: impl Into<String>, image: &Image) -> MachineOptions {
        let disk =
            Disk { base: Some(image.disk.clone()), size: Some(DEFAULT_DISK), cache: Default::default() };
        MachineOptions { disk: Some(disk), ..MachineOptions::new(name, image.boot.clone()) }
    }
}

impl MachineOptions {
    /// Whether it is spared what is slow to emulate.
    pub(crate) fn is_spared(&self) -> bool {
        !self.as_shipped && is_emulated()
    }
}

/// A machine configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// Read when the machine is made.
    File(PathBuf),
    /// The text itself.
    Bytes(Vec<u8>),
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It has power and runs.
    On,
    /// It has none, by a power cut or because it switched itself off.
    Off,
    /// It has power and stands still.
    Frozen,
}

/// A machine of a lab: switched off at first, gone when dropped.
#[derive(Debug)]
pub struct Machine {
    running: Mutex<Option<Running>>,
    serial: SerialLog,
    cable: Arc<Cable>,
    disk: Option<Overlay>,
    host: u8,
    dir: PathBuf,
    options: Mutex<MachineOptions>,
    name: String,
    lab: Arc<LabInner>,
}

/// What exists only while the machine has power. The order of the fields is the order of their end.
#[derive(Debug)]
struct Running {
    process: Process,
    qmp: Qmp,
    _wire: Wire,
    _disk: Option<PoweredDisk>,
}

impl Machine {
    pub(crate) fn create(lab: Arc<LabInner>, host: u8, mut options: MachineOptions) -> Result<Machine> {
        let dir = lab.state.path.join(format!("machine-{}", options.name));
        fs::create_dir(&dir).context(format!("create {}", dir.display()))?;
        let disk = options.disk.as_ref().map(|disk| Overlay::create(&dir, disk)).transpose()?;
        let is_spared = options.is_spared();
        if let Boot::Direct { kernel, initrd, .. } = &mut options.boot {
            let file = if is_spared { emulation::unpacked(kernel)? } else { kernel.clone() };
            *kernel = keep(&file, &dir.join("vmlinuz"))?;
            *initrd = keep(initrd, &dir.join("initrd.img"))?;
        }
        if let Some(config) = &options.config {
            let bytes = match config {
                Config::File(path) => fs::read(path).context(format!("read {}", path.display()))?,
                Config::Bytes(bytes) => bytes.clone(),
            };
            fs::write(dir.join("config"), bytes).context("write the machine configuration")?;
        }
        if options.boot == Boot::Firmware {
            arguments::copy_firmware_variables(&dir)?;
        }
        lab.services().publish(&format!("{}.lab", options.name), address_of_host(host))?;
        let cable = Arc::new(Cable::new(Mac::of_host(host), Mac::of_host(1), Arc::clone(&lab.cuts)));
        Ok(Machine {
            running: Mutex::default(),
            serial: SerialLog::new(dir.join("serial.log")),
            cable,
            disk,
            host,
            dir,
            name: options.name.clone(),
            options: Mutex::new(options),
            lab,
        })
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its network card.
    pub fn mac(&self) -> Mac {
        self.cable.mac
    }

    /// The address the lab's DHCP reserves for it where the lab is now. See [`Machine::wait_for_lease`] for whether it has it yet.
    pub fn address(&self) -> Ipv4Addr {
        self.lab.services().address_of(self.host)
    }

    /// Switches it on.
    pub fn power_on(&self) -> Result<()> {
        let mut running = self.lock();
        if running.as_mut().is_some_and(|running| running.process.ended().is_none()) {
            return Err(self.problem("is already on"));
        }
        *running = None;
        self.serial.mark_boot();
        *running = Some(self.start()?);
        drop(running);
        if !self.cable.plugged.load(Ordering::Relaxed) {
            self.set_link(false)?;
        }
        Ok(())
    }

    /// Cuts the power: nothing is written, nobody is told.
    pub fn power_cut(&self) {
        if let Some(mut running) = self.lock().take() {
            running.process.kill();
        }
    }

    /// Takes the disk out of a machine that is off, gives it to `work` as a raw file, and puts it back as `work` left
    /// it. The file is gone afterwards.
    pub fn open_disk<T>(&self, work: impl FnOnce(&Path) -> T) -> Result<T> {
        let mut running = self.lock();
        if running.as_mut().is_some_and(|running| running.process.ended().is_none()) {
            return Err(self.problem("is on; switch it off first"));
        }
        let disk = self.disk.as_ref().ok_or_else(|| self.problem("has no disk"))?;
        disk.open(&self.dir, work)
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<()> {
        self.serial.mark_boot();
        self.qmp("system_reset", json!({}))
    }

    /// Presses the power button, which asks the system to shut down. See [`Machine::wait_for_off`].
    pub fn press_power_button(&self) -> Result<()> {
        self.qmp("system_powerdown", json!({}))
    }

    /// Stops it in the middle of whatever it does; from outside it looks dead, and it does not notice.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen machine go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops its processors and its clocks, but for the hardware clock, as a hypervisor does that moves it or
    /// saves it to disk; it goes on as if nothing had been.
    pub fn pause(&self) -> Result<()> {
        self.qmp("stop", json!({}))
    }

    /// Lets a paused machine go on.
    pub fn resume(&self) -> Result<()> {
        self.qmp("cont", json!({}))
    }

    /// Has the kernel of a machine with one processor hang, interrupts off: from then on nothing in it runs, and only
    /// its watchdog helps.
    pub fn hang(&self) -> Result<()> {
        let socket = self.dir.join("gdb");
        let server = format!("gdbserver unix:{},server=on,wait=off", socket.display());
        self.qmp("human-monitor-command", json!({ "command-line": server }))?;
        gdb::hang(UnixStream::connect(&socket).context(format!("connect to {}", socket.display()))?)
    }

    /// Plugs in a serial adapter, at which there is nothing; not into a machine of [`Hardware::Virtual`], which has no
    /// USB. The name is for [`Machine::unplug`] and is used once.
    pub fn plug_serial(&self, name: &str) -> Result<()> {
        let nothing = json!({ "type": "null", "data": {} });
        self.qmp("chardev-add", json!({ "id": name, "backend": nothing }))?;
        // Else it would count as pulled out for as long as there is nothing at it.
        let adapter = json!({ "driver": "usb-serial", "id": name, "chardev": name, "always-plugged": true });
        self.qmp("device_add", adapter)
    }

    /// Plugs in a stick with what is in the file, which it writes to; for the rest as [`Machine::plug_serial`].
    pub fn plug_stick(&self, name: &str, file: &Path) -> Result<()> {
        let content = json!({ "driver": "file", "filename": file });
        self.qmp("blockdev-add", json!({ "driver": "raw", "node-name": name, "file": content }))?;
        self.qmp("device_add", json!({ "driver": "usb-storage", "id": name, "drive": name }))
    }

    /// Pulls out what was plugged in by this name.
    pub fn unplug(&self, name: &str) -> Result<()> {
        self.qmp("device_del", json!({ "id": name }))
    }

    /// Pulls the network cable; it stays out over power cuts.
    pub fn link_down(&self) -> Result<()> {
        self.cable.plugged.store(false, Ordering::Relaxed);
        if self.is_on() { self.set_link(false) } else { Ok(()) }
    }

    /// Puts the network cable back.
    pub fn link_up(&self) -> Result<()> {
        self.cable.plugged.store(true, Ordering::Relaxed);
        if self.is_on() { self.set_link(true) } else { Ok(()) }
    }

    /// Makes the cable delay or lose frames, in each direction; `Impairment::default()` makes it perfect again.
    pub fn impair(&self, impairment: Impairment) {
        *self.cable.impairment.lock().unwrap_or_else(PoisonError::into_inner) = impairment;
    }

    /// Sets the clock minus the host's, in seconds, from the next power-on.
    pub fn set_clock_offset_s(&self, offset: i64) {
        self.options().clock_offset_s = offset;
    }

    /// Sets what else QEMU is given, from the next power-on.
    pub fn set_extra_args(&self, arguments: Vec<OsString>) {
        self.options().extra_args = arguments;
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.lock().as_mut().is_some_and(|running| running.process.ended().is_none())
    }

    /// Whether it is on, off or frozen.
    pub fn power(&self) -> Power {
        let mut running = self.lock();
        let Some(running) = running.as_mut() else {
            return Power::Off;
        };
        if running.process.ended().is_some() {
            Power::Off
        } else if running.process.is_stopped() {
            Power::Frozen
        } else {
            Power::On
        }
    }

    /// Waits until it has switched itself off.
    pub fn wait_for_off(&self, within: Duration) -> Result<()> {
        self.wait(within, "it to switch off", || (!self.is_on()).then_some(()))
    }

    /// Waits until DHCP has given it its address.
    pub fn wait_for_lease(&self, within: Duration) -> Result<Ipv4Addr> {
        self.wait(within, "its address", || self.lab.services().lease(self.mac()))
    }

    /// Waits until a line on the serial port, since the last power-on or reset, contains `pattern`; returns it.
    pub fn wait_for_line(&self, pattern: &str, within: Duration) -> Result<String> {
        let find = |off: bool| {
            let text = self.serial.since_boot();
            // A line that is still being written says only a part; of a machine that is off it is all there is.
            let whole = if off { text.len() } else { text.rfind('\n').unwrap_or(0) };
            text[..whole].lines().find(|line| line.contains(pattern)).map(str::to_owned)
        };
        self.wait(within, &format!("`{pattern}` on the serial port"), || {
            // A machine that is off says nothing more, but what it said last may not have been read yet.
            let off = !self.is_on();
            find(off).map(Ok).or_else(|| off.then(|| Err(self.problem("is off"))))
        })?
    }

    /// Everything it said on the serial port since it was made.
    pub fn serial(&self) -> String {
        self.serial.all()
    }

    /// The file of its serial log.
    pub fn serial_path(&self) -> &Path {
        self.serial.path()
    }

    /// What is on its screen, in rows of 80 characters without what is empty at their ends: of a machine with
    /// [`MachineOptions::screen`] that was started without UEFI firmware, as shipped, and so shows text. What is not ASCII
    /// is shown as `?`.
    pub fn screen(&self) -> Result<Vec<String>> {
        // The text of a VGA card: 25 rows of 80 characters, each with a byte for its colours.
        const TEXT: (u64, u64, usize) = (0xb8000, 80 * 25 * 2, 80 * 2);
        let file = self.dir.join("screen");
        let (from, bytes, row) = TEXT;
        self.qmp("pmemsave", json!({ "val": from, "size": bytes, "filename": file }))?;
        let memory = fs::read(&file).context(format!("read {}", file.display()))?;
        let rows = memory.chunks(row).map(|cells| {
            let characters =
                cells.iter().step_by(2).map(|byte| if (b' '..=b'~').contains(byte) { *byte } else { b'?' });
            String::from_utf8_lossy(&characters.collect::<Vec<_>>()).trim_end().to_owned()
        });
        Ok(rows.collect())
    }

    /// Processor time of the host it has used since power-on, emulation and devices included.
    pub fn cpu_time(&self) -> Result<Duration> {
        let running = self.lock();
        let running = running.as_ref().ok_or_else(|| self.problem("is off"))?;
        running.process.cpu_time().context(format!("read the processor time of `{}`", self.name))
    }

    /// The process of its QEMU, while it is on.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.process.id())
    }

    /// Frames carried to and from it since it was made.
    pub fn frames(&self) -> (u64, u64) {
        (self.cable.to_machine.load(Ordering::Relaxed), self.cable.from_machine.load(Ordering::Relaxed))
    }

    fn start(&self) -> Result<Running> {
        let (monitor, monitor_of_qemu) = UnixStream::pair().context("make the monitor's socket")?;
        let (cable, cable_of_qemu) = UnixDatagram::pair().context("make the cable's socket")?;
        cable.set_nonblocking(true).context("set up the cable")?;
        let tap = self.lab.network.add_tap(&format!("m{}", self.host))?;
        let wire = Wire::start(tap, cable, Arc::clone(&self.cable)).context("start the cable")?;
        let (monitor_fd, cable_fd) = (monitor_of_qemu.as_raw_fd(), cable_of_qemu.as_raw_fd());

        let log = self.dir.join("qemu.log");
        let errors = File::create(&log).context("create the log of QEMU")?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments::hardware(&self.options(), &self.dir));
        let hardware = self.options().hardware;
        command.args(arguments::cable(hardware, cable_fd, self.mac()));
        command.args(arguments::monitor(monitor_fd));
        command.args(arguments::serial(self.serial.path()));
        let disk = self.disk.as_ref().map(|disk| disk.power_on(hardware)).transpose()?;
        let (disk_of_qemu, powered_disk) = match disk {
            Some(disk) => {
                command.args(disk.arguments);
                (disk.inherit, disk.disk)
            }
            None => (None, None),
        };
        command.args(&self.options().extra_args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        self.lab.network.label(&mut command);
        let mut inherit = vec![monitor_fd, cable_fd];
        inherit.extend(disk_of_qemu.as_ref().map(AsRawFd::as_raw_fd));
        ChildSetup { inherit, ..ChildSetup::default() }.apply(&mut command);

        let process = Process::spawn(command)?;
        // QEMU's ends belong to QEMU alone from here, so that its end is seen as such.
        drop((monitor_of_qemu, cable_of_qemu, disk_of_qemu));
        let qmp = Qmp::connect(monitor).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            self.problem(&format!("did not start: {error}; QEMU says: {}", said.trim()))
        })?;
        Ok(Running { process, qmp, _wire: wire, _disk: powered_disk })
    }

    fn set_link(&self, up: bool) -> Result<()> {
        self.qmp("set_link", json!({ "name": arguments::NETWORK_CARD, "up": up }))
    }

    fn qmp(&self, command: &str, arguments: serde_json::Value) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().ok_or_else(|| self.problem("is off"))?;
        running.qmp.execute(command, arguments).map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let mut running = self.lock();
        let running = running.as_mut().ok_or_else(|| self.problem("is off"))?;
        running.process.signal(signal).context(format!("send {signal} to `{}`", self.name))
    }

    fn wait<T>(&self, within: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if started.elapsed() >= within {
                return Err(Error::Timeout {
                    what: format!("{what} (machine `{}`)", self.name),
                    waited: within,
                    context: format!("; the serial port ends with:\n{}", self.serial.tail()),
                });
            }
            thread::sleep(POLL);
        }
    }

    fn problem(&self, problem: &str) -> Error {
        Error::Machine { machine: self.name.clone(), problem: problem.into() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self) -> MutexGuard<'_, MachineOptions> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_cut();
        if thread::panicking() {
            // The log goes with the lab, and without it nobody could tell why the test failed.
            eprintln!("--- serial port of `{}`, last lines:\n{}\n---", self.name, self.serial.tail());
        }
        if let Some(dir) = std::env::var_os("HIVEMIND_KEEP_LOGS") {
            let kept = Path::new(&dir).join(format!("{}-{}.log", self.lab.state.id, self.name));
            let _ = fs::create_dir_all(&dir).and_then(|()| fs::copy(self.serial.path(), kept));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
