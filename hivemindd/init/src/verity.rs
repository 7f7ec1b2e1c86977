//! dm-verity: the root is read through a device that checks every block against a tree of hashes.
//!
//! The tree's root hash is on the kernel command line, which is part of the unified kernel image and signed
//! with it; the tree lies behind the file system in the same slot. A block that does not fit is an error
//! of reading, and from then on [`Root::is_corrupt`].
//!
//! Speaks the device mapper's own interface (`linux/dm-ioctl.h`, version 4) and not through its library,
//! which would bring udev and locks that nobody here waits for.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::cmdline::Verity;

/// Where the device mapper takes its orders.
const CONTROL: &str = "/dev/mapper/control";

/// The device's name, as `dmsetup` would show it.
const NAME: &[u8] = b"root";

/// Bytes in a block of data and of hashes: the page, and what everybody uses.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Bytes in a sector, which the device mapper counts in.
const SECTOR_BYTES: u64 = 512;

/// What it takes, by the names of the modules.
pub(super) const MODULES: [&str; 2] = ["dm_verity", "blake2b_generic"];

/// The device the root is read from.
#[derive(Debug)]
pub(super) struct Root {
    /// Where the device mapper is asked; none for a root that is not verified.
    control: Option<File>,
    node: PathBuf,
}

impl Root {
    /// The slot's partition itself.
    pub(super) fn unverified(node: PathBuf) -> Self {
        Self { control: None, node }
    }

    /// Makes the device over the slot's partition; none when the slot holds another root, or a damaged one: already
    /// its first block does not verify.
    ///
    /// # Errors
    /// When the kernel refuses the device.
    pub(super) fn verified(slot: &Path, verity: &Verity) -> Result<Option<Self>, Error> {
        let control = File::open(CONTROL).map_err(Error::io("opening", CONTROL))?;
        let refused = |error| Error::io("verifying", slot)(error);
        let mut order = Order::new();
        dm::create(&control, &mut order).map_err(refused)?;
        let minor = order.head.device & 0xff | (order.head.device >> 12) & 0xfff00;
        let mut order = Order::new();
        order.head.flags = READ_ONLY;
        order.target(verity.blocks * BLOCK_BYTES / SECTOR_BYTES, &table(slot, verity));
        dm::load(&control, &mut order).map_err(refused)?;
        // Without its flag the order to suspend is the order to resume.
        dm::suspend(&control, &mut Order::new()).map_err(refused)?;
        let node = PathBuf::from(format!("/dev/dm-{minor}"));
        let mut first = vec![0; BLOCK_BYTES as usize];
        let read = File::open(&node).and_then(|mut device| device.read_exact(&mut first));
        let root = Self { control: Some(control), node };
        match read {
            Ok(()) => Ok(Some(root)),
            Err(_) if root.is_corrupt() => {
                root.remove().map_err(Error::io("closing", slot))?;
                Ok(None)
            }
            Err(error) => Err(Error::io("reading", slot)(error)),
        }
    }

    /// Takes the device away, for the next one by its name.
    fn remove(&self) -> std::io::Result<()> {
        self.control.as_ref().map_or(Ok(()), |control| dm::remove(control, &mut Order::new()))
    }

    /// The device's node.
    pub(super) fn node(&self) -> &Path {
        &self.node
    }

    /// Whether the kernel says that a block was read that is not what was built.
    pub(super) fn is_corrupt(&self) -> bool {
        let mut order = Order::new();
        let asked = self.control.as_ref().is_some_and(|control| dm::status(control, &mut order).is_ok());
        asked && order.text() == Some(b'C')
    }
}

/// The target's parameters (kernel documentation, `device-mapper/verity.rst`).
fn table(slot: &Path, verity: &Verity) -> String {
    let (device, blocks) = (slot.display(), verity.blocks);
    // The tree follows its superblock, which nobody here reads and other tools do.
    let tree = blocks + 1;
    let root_hash = &verity.root_hash;
    format!("1 {device} {device} {BLOCK_BYTES} {BLOCK_BYTES} {blocks} {tree} blake2b-512 {root_hash} -")
}

/// `DM_READONLY_FLAG`.
const READ_ONLY: u32 = 1;

/// Room for one target and its parameters: a table takes about 200 bytes.
const PAYLOAD_BYTES: usize = 1024;

/// `struct dm_ioctl`.
#[repr(C)]
struct Head {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
struct Target {
    start: u64,
    sectors: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
}

/// An order, and the room behind it for what is sent and answered.
#[repr(C)]
struct Order {
    head: Head,
    target: Target,
    payload: [u8; PAYLOAD_BYTES],
}

impl Order {
    fn new() -> Self {
        let mut name = [0; 128];
        name[..NAME.len()].copy_from_slice(NAME);
        let head = Head {
            version: [4, 0, 0],
            // A constant far below the limit of the field.
            data_size: size_of::<Self>() as u32,
            data_start: std::mem::offset_of!(Self, target) as u32,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: 0,
            padding: 0,
            device: 0,
            name,
            uuid: [0; 129],
            data: [0; 7],
        };
        let target = Target { start: 0, sectors: 0, status: 0, next: 0, kind: [0; 16] };
        Self { head, target, payload: [0; PAYLOAD_BYTES] }
    }

    /// Puts the one target in; what does not fit is cut, and refused by the kernel.
    fn target(&mut self, sectors: u64, parameters: &str) {
        self.head.target_count = 1;
        self.target.sectors = sectors;
        self.target.kind[..6].copy_from_slice(b"verity");
        let room = &mut self.payload[..PAYLOAD_BYTES - 1];
        for (to, from) in room.iter_mut().zip(parameters.bytes()) {
            *to = from;
        }
    }

    /// The first letter of what the kernel says of the target.
    fn text(&self) -> Option<u8> {
        self.payload.first().copied().filter(|letter| *letter != 0)
    }
}

/// The orders themselves.
mod dm {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use nix::libc;

    use super::{Head, Order};

    const KIND: u8 = 0xfd;

    nix::ioctl_readwrite!(dev_create, KIND, 3, Head);
    nix::ioctl_readwrite!(dev_remove, KIND, 4, Head);
    nix::ioctl_readwrite!(dev_suspend, KIND, 6, Head);
    nix::ioctl_readwrite!(table_load, KIND, 9, Head);
    nix::ioctl_readwrite!(table_status, KIND, 12, Head);

    type Call = unsafe fn(libc::c_int, *mut Head) -> nix::Result<libc::c_int>;

    fn call(call: Call, control: &File, order: &mut Order) -> std::io::Result<()> {
        let head = std::ptr::from_mut(order).cast::<Head>();
        // SAFETY: an `Order` begins with its head, which says how many bytes there are in all; the kernel
        // reads and writes no more than those, and the order lives until the call returns.
        unsafe { call(control.as_raw_fd(), head) }?;
        Ok(())
    }

    pub(super) fn create(control: &File, order: &mut Order) -> std::io::Result<()> {
        call(dev_create, control, order)
    }

    pub(super) fn remove(control: &File, order: &mut Order) -> std::io::Result<()> {
        call(dev_remove, control, order)
    }

    pub(super) fn suspend(control: &File, order: &mut Order) -> std::io::Result<()> {
        call(dev_suspend, control, order)
    }

    pub(super) fn load(control: &File, order: &mut Order) -> std::io::Result<()> {
        call(table_load, control, order)
    }

    pub(super) fn status(control: &File, order: &mut Order) -> std::io::Result<()> {
        call(table_status, control, order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_the_kernels_layout() {
        assert_eq!(size_of::<Head>(), 312);
        assert_eq!(size_of::<Target>(), 40);
        assert_eq!(std::mem::offset_of!(Order, target), 312);
        assert_eq!(std::mem::offset_of!(Order, payload), 352);
    }

    #[test]
    fn the_table_names_the_slot_twice_and_the_tree_behind_its_superblock() {
        let verity = Verity { root_hash: "ab".repeat(32), blocks: 1000 };
        let hash = &verity.root_hash;
        let wanted = format!("1 /dev/vda2 /dev/vda2 4096 4096 1000 1001 blake2b-512 {hash} -");
        assert_eq!(table(Path::new("/dev/vda2"), &verity), wanted);
    }
}
