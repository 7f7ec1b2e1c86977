//! The disk: which partitions there are, where, and under which fixed identifiers.
//!
//! This table is the only place that knows. The builder writes it, PID 1 finds partitions by the names and GUIDs it
//! put on the disk, and tools that open an image file (to write a configuration, to inspect a slot) read it from here.
//!
//! Every image has the same GUIDs: that makes the build reproducible and the kernel command line a constant. The price
//! is that two disks with Hivemind on them in one machine are ambiguous, which PID 1 refuses.

use uuid::{Uuid, uuid};

/// Bytes in a logical block; GPT addresses count these.
pub const BLOCK_BYTES: u64 = 512;

const MIB: u64 = 1024 * 1024;

/// Where the first partition starts and what all are aligned to: the erase block of common flash media.
pub const ALIGNMENT_BYTES: u64 = MIB;

/// Room after the last partition for the backup partition table (33 blocks), rounded up to the alignment.
const BACKUP_TABLE_BYTES: u64 = MIB;

/// The GUID of the disk itself.
pub const DISK_GUID: Uuid = uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d0000");

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The EFI system partition: boot manager and unified kernel images.
    Esp,
    /// Root file system of slot A.
    RootA,
    /// Root file system of slot B, empty until the first update.
    RootB,
    /// Where the operator puts the machine configuration.
    Config,
    /// Everything mutable; PID 1 formats it at first boot and grows it to the end of the disk.
    State,
}

/// One row of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub role: Role,
    /// The GPT partition name; Linux shows it as `PARTNAME`, tools as `PARTLABEL`.
    pub name: &'static str,
    /// The GPT partition GUID; Linux shows it as `PARTUUID`.
    pub guid: Uuid,
    /// The GPT partition type.
    pub type_guid: Uuid,
    /// Size in the image, in bytes; a multiple of [`ALIGNMENT_BYTES`].
    pub bytes: u64,
}

const TYPE_EFI_SYSTEM: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// "Root partition, x86-64" of the Discoverable Partitions Specification.
const TYPE_ROOT_X86_64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
/// "Microsoft basic data", so that every operating system mounts the configuration of a stick in its slot.
const TYPE_BASIC_DATA: Uuid = uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7");
const TYPE_LINUX_FILESYSTEM: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

/// At least four times what the root takes today (about 40 MB), because a slot can never grow in the field.
pub const ROOT_SLOT_BYTES: u64 = 256 * MIB;

/// The partitions in the order they lie on the disk. `State` is last so that it can grow.
pub const PARTITIONS: [Partition; 5] = [
    Partition {
        role: Role::Esp,
        name: "esp",
        guid: uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d0001"),
        type_guid: TYPE_EFI_SYSTEM,
        // Three unified kernel images (two slots, one being written) of four times today's 19 MB do fit.
        bytes: 256 * MIB,
    },
    Partition {
        role: Role::RootA,
        name: "root-a",
        guid: uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d000a"),
        type_guid: TYPE_ROOT_X86_64,
        bytes: ROOT_SLOT_BYTES,
    },
    Partition {
        role: Role::RootB,
        name: "root-b",
        guid: uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d000b"),
        type_guid: TYPE_ROOT_X86_64,
        bytes: ROOT_SLOT_BYTES,
    },
    Partition {
        role: Role::Config,
        name: "HIVECONF",
        guid: uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d0003"),
        type_guid: TYPE_BASIC_DATA,
        // The smallest round size that is comfortably a FAT16 volume, which all firmware and systems read.
        bytes: 16 * MIB,
    },
    Partition {
        role: Role::State,
        name: "state",
        guid: uuid!("b1f2c7de-5a0e-4f0b-9d53-6869766d0004"),
        type_guid: TYPE_LINUX_FILESYSTEM,
        // Only a place holder in the image: it has no file system until PID 1 has grown it.
        bytes: 16 * MIB,
    },
];

/// The row for a role.
#[must_use]
pub fn partition(role: Role) -> &'static Partition {
    // The table has one row for each role, in the order of the enum; a test holds that.
    &PARTITIONS[role as usize]
}

/// Where the partition starts in the image, in bytes.
#[must_use]
pub fn offset(role: Role) -> u64 {
    let before: u64 = PARTITIONS.iter().take_while(|p| p.role != role).map(|p| p.bytes).sum();
    ALIGNMENT_BYTES + before
}

/// Size of the whole image in bytes.
#[must_use]
pub fn image_bytes() -> u64 {
    ALIGNMENT_BYTES + PARTITIONS.iter().map(|p| p.bytes).sum::<u64>() + BACKUP_TABLE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_has_one_row_for_each_role_in_order() {
        for (index, row) in PARTITIONS.iter().enumerate() {
            assert_eq!(row.role as usize, index);
            assert_eq!(partition(row.role), row);
        }
    }

    #[test]
    fn names_and_guids_are_unique() {
        let names: BTreeSet<_> = PARTITIONS.iter().map(|p| p.name).collect();
        let guids: BTreeSet<_> = PARTITIONS.iter().map(|p| p.guid).chain([DISK_GUID]).collect();
        assert_eq!(names.len(), PARTITIONS.len());
        assert_eq!(guids.len(), PARTITIONS.len() + 1);
    }

    #[test]
    fn partitions_are_aligned_and_do_not_overlap() {
        let mut end = ALIGNMENT_BYTES;
        for row in &PARTITIONS {
            assert_eq!(offset(row.role), end);
            assert_eq!(row.bytes % ALIGNMENT_BYTES, 0);
            end += row.bytes;
        }
        assert!(end + 33 * BLOCK_BYTES <= image_bytes(), "no room for the backup table");
    }

    #[test]
    fn state_is_last_so_that_it_can_grow_and_both_slots_are_alike() {
        assert_eq!(PARTITIONS[PARTITIONS.len() - 1].role, Role::State);
        assert_eq!(partition(Role::RootA).bytes, partition(Role::RootB).bytes);
    }
}
