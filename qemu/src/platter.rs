//! A disk with a cache of its own that a power cut empties.
//!
//! What was written since the last flush is in the cache. When the power goes, each block of it has reached the
//! platter or not, as chance will have it, in no order: what a real disk promises, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::random::Random;

/// What reaches the platter as a whole, as on disks with 4 KiB sectors.
pub(crate) const BLOCK: usize = 4096;

/// Blocks in the cache: 64 MiB, as on real disks. A full cache puts blocks on the platter by itself.
const CACHE_BLOCKS: usize = (64 << 20) / BLOCK;

/// The share of cached blocks that a power cut finds already on the platter.
const SURVIVES: f64 = 0.5;

type Block = Box<[u8; BLOCK]>;

/// The disk. Its content lasts as long as this.
#[derive(Debug)]
pub(crate) struct Platter {
    base: Option<File>,
    written: File,
    on_platter: BTreeSet<u64>,
    cache: BTreeMap<u64, Block>,
    random: Random,
    size: u64,
}

impl Platter {
    /// A disk that starts with the content of `base`. `written` is an empty file for what is written.
    pub(crate) fn new(base: Option<File>, written: File, size: u64, seed: u64) -> Platter {
        let random = Random(seed);
        Platter { base, written, on_platter: BTreeSet::new(), cache: BTreeMap::new(), random, size }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        for (number, start, part) in parts(offset, into.len()) {
            let block = self.block(number)?;
            into[part.clone()].copy_from_slice(&block[start..start + part.len()]);
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (number, start, part) in parts(offset, data.len()) {
            let mut block = self.block(number)?;
            block[start..start + part.len()].copy_from_slice(&data[part]);
            self.cache.insert(number, block);
        }
        while self.cache.len() > CACHE_BLOCKS
            && let Some((number, block)) = self.cache.pop_first()
        {
            self.settle(number, &block)?;
        }
        Ok(())
    }

    /// Puts the blocks of a range on the platter.
    pub(crate) fn flush_range(&mut self, offset: u64, length: usize) -> io::Result<()> {
        for (number, ..) in parts(offset, length) {
            if let Some(block) = self.cache.remove(&number) {
                self.settle(number, &block)?;
            }
        }
        Ok(())
    }

    /// Puts everything on the platter.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some((number, block)) = self.cache.pop_first() {
            self.settle(number, &block)?;
        }
        Ok(())
    }

    /// The power goes: chance decides what of the cache is on the platter.
    pub(crate) fn lose_power(&mut self) -> io::Result<()> {
        while let Some((number, block)) = self.cache.pop_first() {
            if self.random.chance(SURVIVES) {
                self.settle(number, &block)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, number: u64, block: &Block) -> io::Result<()> {
        self.written.write_all_at(&block[..], number * BLOCK as u64)?;
        self.on_platter.insert(number);
        Ok(())
    }

    fn block(&self, number: u64) -> io::Result<Block> {
        if let Some(block) = self.cache.get(&number) {
            return Ok(block.clone());
        }
        let mut block = Box::new([0; BLOCK]);
        let file = if self.on_platter.contains(&number) { Some(&self.written) } else { self.base.as_ref() };
        let mut filled = 0;
        while let Some(file) = file {
            // Beyond the end of the image the disk is empty.
            match file.read_at(&mut block[filled..], number * BLOCK as u64 + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(block)
    }
}

/// The blocks that a range touches: number, start within the block, and the part of the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let position = offset + done as u64;
        let start = (position % BLOCK as u64) as usize;
        let part = done..length.min(done + BLOCK - start);
        done = part.end;
        Some((position / BLOCK as u64, start, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platter(seed: u64) -> Platter {
        let file = |name: &str| {
            let path =
                std::env::temp_dir().join(format!("hivemind-platter-{name}-{seed}-{}", std::process::id()));
            let file =
                File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            file
        };
        let base = file("base");
        base.write_all_at(b"from the image", 0).unwrap();
        Platter::new(Some(base), file("written"), 1 << 20, seed)
    }

    fn read(platter: &Platter, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        platter.read(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_power_cut_keeps_what_was_flushed_and_some_of_the_rest() {
        let mut disk = platter(1);
        disk.write(0, &[1; 64 * BLOCK]).unwrap();
        disk.flush().unwrap();
        disk.write(0, &[2; 64 * BLOCK]).unwrap();
        disk.lose_power().unwrap();
        let after = read(&disk, 0, 64 * BLOCK);
        let blocks: Vec<_> = after.chunks(BLOCK).collect();
        assert!(
            blocks.iter().all(|block| **block == [1; BLOCK] || **block == [2; BLOCK]),
            "no block is torn"
        );
        let survived = blocks.iter().filter(|block| block[0] == 2).count();
        assert!((16..48).contains(&survived), "{survived} of 64 unflushed blocks survived");
    }

    #[test]
    fn a_range_that_was_written_through_survives_alone() {
        let mut disk = platter(2);
        disk.write(BLOCK as u64, &[7; 100]).unwrap();
        disk.flush_range(BLOCK as u64, 100).unwrap();
        for _ in 0..64 {
            disk.write(0, b"unflushed text").unwrap();
            disk.lose_power().unwrap();
        }
        assert_eq!(read(&disk, BLOCK as u64, 100), [7; 100]);
    }

    #[test]
    fn reads_see_the_cache_then_the_platter_then_the_image_then_nothing() {
        let mut disk = platter(3);
        assert_eq!(read(&disk, 0, 14), b"from the image");
        disk.write(5, b"my").unwrap();
        assert_eq!(read(&disk, 0, 14), b"from mye image");
        disk.flush().unwrap();
        assert_eq!(read(&disk, 0, 14), b"from mye image");
        assert_eq!(read(&disk, 12, 4096), [&b"ge"[..], &[0; 4094]].concat());
    }

    #[test]
    fn a_full_cache_puts_blocks_on_the_platter_by_itself() {
        let mut disk = platter(4);
        disk.write(0, &vec![9; (CACHE_BLOCKS + 100) * BLOCK]).unwrap();
        assert_eq!(disk.cache.len(), CACHE_BLOCKS);
        assert_eq!(disk.on_platter.len(), 100);
    }
}
