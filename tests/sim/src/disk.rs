//! A disk: what was synced stays, what was not may, sector by sector.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use redb::StorageBackend;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// How a disk behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Time of a sync, in microseconds: at least, and at most.
    pub(crate) sync_us: (u64, u64),
    /// Syncs out of a million that say they succeeded and did nothing.
    pub(crate) lies_ppm: u32,
}

/// A disk. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<Content>>);

#[derive(Debug)]
struct Content {
    /// What is read: everything written.
    bytes: Vec<u8>,
    /// What unsynced sectors held when they were synced last. All of a file that was longer once
    /// is here too.
    before: BTreeMap<usize, [u8; SECTOR_BYTES]>,
    /// The length that was synced last.
    length_before: usize,
    /// No more use, since power or process are gone.
    is_dead: bool,
    /// Syncs that succeed before one fails, and everything after it.
    fails_after: Option<u32>,
    habits: Habits,
    rng: ChaCha12Rng,
    /// Time spent in syncs that nobody has accounted for, in microseconds.
    spent_us: u64,
}

impl Disk {
    /// An empty one.
    pub(crate) fn new(habits: Habits, rng: ChaCha12Rng) -> Self {
        Self::with(Vec::new(), habits, rng)
    }

    fn with(bytes: Vec<u8>, habits: Habits, rng: ChaCha12Rng) -> Self {
        Self(Arc::new(Mutex::new(Content {
            length_before: bytes.len(),
            bytes,
            before: BTreeMap::new(),
            is_dead: false,
            fails_after: None,
            habits,
            rng,
            spent_us: 0,
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it behaves like this.
    pub(crate) fn set_habits(&self, habits: Habits) {
        self.content().habits = habits;
    }

    /// Lets `syncs` more succeed; then one fails, and everything after it.
    pub(crate) fn fail_after(&self, syncs: u32) {
        self.content().fails_after = Some(syncs);
    }

    /// Whether it is of no more use.
    pub(crate) fn has_failed(&self) -> bool {
        self.content().is_dead
    }

    /// The time spent in syncs since this was asked last, in microseconds.
    pub(crate) fn take_spent_us(&self) -> u64 {
        std::mem::take(&mut self.content().spent_us)
    }

    /// The disk that the next process finds after this one's was killed: everything written is
    /// there, synced or not. Nothing can be done with this one any more.
    pub(crate) fn after_kill(&self) -> Self {
        let mut content = self.content();
        content.is_dead = true;
        let bytes = std::mem::take(&mut content.bytes);
        let next = Self::with(bytes, content.habits, content.rng.clone());
        // Not synced by dying.
        next.content().before = std::mem::take(&mut content.before);
        next.content().length_before = content.length_before;
        next
    }

    /// The disk after a loss of power: each sector that was not synced is the new one or the old
    /// one. Nothing can be done with this one any more.
    pub(crate) fn after_power_loss(&self) -> Self {
        let mut content = self.content();
        content.is_dead = true;
        let mut bytes = std::mem::take(&mut content.bytes);
        let before = std::mem::take(&mut content.before);
        // Nothing, a little, about half or nearly everything was written.
        let survive = [0.0, 0.1, 0.5, 0.9, 1.0][content.rng.random_range(0..5)];
        if content.rng.random_bool(1.0 - survive) {
            bytes.resize(content.length_before, 0);
        }
        for (sector, old) in before {
            let at = sector * SECTOR_BYTES;
            if at < bytes.len() && !content.rng.random_bool(survive) {
                let end = bytes.len().min(at + SECTOR_BYTES);
                bytes[at..end].copy_from_slice(&old[..end - at]);
            }
        }
        Self::with(bytes, content.habits, content.rng.clone())
    }
}

impl Content {
    fn alive(&self) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("the disk is gone"));
        }
        Ok(())
    }

    /// Remembers what the sectors from byte `from` to byte `to` hold, where that is not known yet.
    fn remember(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES) {
            let bytes = &self.bytes;
            self.before.entry(sector).or_insert_with(|| {
                let mut old = [0; SECTOR_BYTES];
                let at = sector * SECTOR_BYTES;
                if let Some(held) = bytes.get(at..bytes.len().min(at + SECTOR_BYTES)) {
                    old[..held.len()].copy_from_slice(held);
                }
                old
            });
        }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let content = self.content();
        content.alive()?;
        Ok(content.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = position(offset)?;
        let content = self.content();
        content.alive()?;
        let found = content.bytes.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let length = position(len)?;
        let mut content = self.content();
        content.alive()?;
        let held = content.bytes.len();
        if length < held {
            content.remember(length, held);
        }
        content.bytes.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.content();
        content.alive()?;
        let (least, most) = content.habits.sync_us;
        let took = content.rng.random_range(least..=most);
        content.spent_us += took;
        match &mut content.fails_after {
            Some(0) => {
                content.is_dead = true;
                return Err(io::Error::other("the disk failed"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let lies = content.habits.lies_ppm;
        if lies > 0 && content.rng.random_ratio(lies, 1_000_000) {
            return Ok(());
        }
        content.before.clear();
        content.length_before = content.bytes.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = position(offset)?;
        let mut content = self.content();
        content.alive()?;
        let end = at + data.len();
        content.remember(at, end);
        if content.bytes.len() < end {
            content.bytes.resize(end, 0);
        }
        content.bytes[at..end].copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    const HONEST: Habits = Habits {
        sync_us: (1, 1),
        lies_ppm: 0,
    };

    fn disk(habits: Habits, seed: u64) -> Disk {
        Disk::new(habits, ChaCha12Rng::seed_from_u64(seed))
    }

    fn read(disk: &Disk, sector: usize) -> u8 {
        let mut byte = [0];
        disk.read((sector * SECTOR_BYTES) as u64, &mut byte)
            .unwrap();
        byte[0]
    }

    fn written(disk: &Disk, value: u8) {
        disk.write(0, &[value; 8 * SECTOR_BYTES]).unwrap();
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may() {
        let mut seen = [0; 3];
        for seed in 0..100 {
            let disk = disk(HONEST, seed);
            written(&disk, 1);
            disk.sync_data().unwrap();
            written(&disk, 2);
            let after = disk.after_power_loss();
            let new = (0..8).filter(|sector| read(&after, *sector) == 2).count();
            assert!((0..8).all(|sector| [1, 2].contains(&read(&after, sector))));
            assert!(disk.write(0, &[3]).is_err(), "written after the end");
            seen[usize::from(new > 0) + usize::from(new == 8)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    }

    #[test]
    fn a_killed_process_loses_nothing_until_the_power_goes() {
        let disk = disk(HONEST, 1);
        written(&disk, 1);
        disk.sync_data().unwrap();
        written(&disk, 2);
        let next = disk.after_kill();
        assert_eq!(read(&next, 7), 2);
        disk.write(0, &[3]).unwrap_err();
        let lost = (0..100).any(|seed| {
            let disk = super::tests::disk(HONEST, seed);
            written(&disk, 1);
            disk.sync_data().unwrap();
            written(&disk, 2);
            read(&disk.after_kill().after_power_loss(), 0) == 1
        });
        assert!(lost, "synced by dying");
    }

    #[test]
    fn a_liar_loses_what_it_said_was_synced() {
        let lies = Habits {
            lies_ppm: 1_000_000,
            ..HONEST
        };
        let lost = (0..100).any(|seed| {
            let disk = disk(HONEST, seed);
            written(&disk, 1);
            disk.sync_data().unwrap();
            disk.set_habits(lies);
            written(&disk, 2);
            disk.sync_data().unwrap();
            read(&disk.after_power_loss(), 0) == 1
        });
        assert!(lost);
    }

    #[test]
    fn a_planned_failure_comes_when_planned_and_lasts() {
        let disk = disk(HONEST, 1);
        disk.fail_after(1);
        written(&disk, 1);
        disk.sync_data().unwrap();
        disk.sync_data().unwrap_err();
        disk.sync_data().unwrap_err();
        disk.write(0, &[1]).unwrap_err();
    }
}
