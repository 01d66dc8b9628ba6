//! Bringing a hash map in the kernel to a desired content, by as few changes as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};

use super::batch;

/// How much a call changed in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Entries added, or given another value.
    pub(crate) written: usize,
    /// Entries taken out.
    pub(crate) removed: usize,
}

impl std::ops::AddAssign for Changed {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.removed += other.removed;
    }
}

/// What to do to a map.
#[derive(Debug, PartialEq, Eq)]
struct Plan<K, V> {
    remove: Vec<K>,
    write: Vec<(K, V)>,
}

/// Pure: compares, changes nothing.
fn plan<K: Ord + Copy, V: PartialEq + Copy>(
    observed: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> Plan<K, V> {
    Plan {
        remove: observed
            .keys()
            .filter(|key| !desired.contains_key(key))
            .copied()
            .collect(),
        write: desired
            .iter()
            .filter(|(key, value)| observed.get(key) != Some(value))
            .map(|(key, value)| (*key, *value))
            .collect(),
    }
}

/// Changes `map` until it holds `desired`. Compares with the kernel and not with a memory of it:
/// what somebody else changed is put right.
pub(super) fn reconcile<K: Ord + Pod, V: PartialEq + Pod>(
    map: &mut HashMap<MapData, K, V>,
    desired: &BTreeMap<K, V>,
) -> Result<Changed, MapError> {
    let observed = batch::entries(map)?;
    let plan = plan(&observed, desired);
    // Removals first: they make room in a full map.
    for key in &plan.remove {
        removed(map.remove(key))?;
    }
    for (key, value) in &plan.write {
        map.insert(key, value, 0)?;
    }
    Ok(Changed {
        written: plan.write.len(),
        removed: plan.remove.len(),
    })
}

/// Puts entries in and takes others out, without a look at the rest.
pub(super) fn change<K: Ord + Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    put: &BTreeMap<K, V>,
    remove: &BTreeSet<K>,
) -> Result<(), MapError> {
    // Removals first: they make room in a full map.
    for key in remove {
        removed(map.remove(key))?;
    }
    for (key, value) in put {
        map.insert(key, value, 0)?;
    }
    Ok(())
}

/// As [`reconcile`], of a trie: each key with the number of its bits that count.
pub(super) fn reconcile_trie<K: Ord + Pod, V: PartialEq + Pod>(
    trie: &mut LpmTrie<MapData, K, V>,
    desired: &BTreeMap<(u32, K), V>,
) -> Result<Changed, MapError> {
    let mut observed = BTreeMap::new();
    for entry in trie.iter() {
        let (key, value) = entry?;
        observed.insert((key.prefix_len(), key.data()), value);
    }
    let plan = plan(&observed, desired);
    for (bits, key) in &plan.remove {
        match trie.remove(&Key::new(*bits, *key)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    for ((bits, key), value) in &plan.write {
        trie.insert(&Key::new(*bits, *key), value, 0)?;
    }
    Ok(Changed {
        written: plan.write.len(),
        removed: plan.remove.len(),
    })
}

/// The outcome of removing what may be gone already; of a map by processor aya says so otherwise.
pub(super) fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_differences_are_planned() {
        let observed = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let desired = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let expected = Plan {
            remove: vec![1],
            write: vec![(3, 'x'), (4, 'd')],
        };
        assert_eq!(plan(&observed, &desired), expected);
    }

    proptest! {
        #[test]
        fn a_plan_leads_to_what_is_desired_and_then_rests(
            observed in btree_map(0_u8..16, 0_u8..3, 0..12),
            desired in btree_map(0_u8..16, 0_u8..3, 0..12),
        ) {
            let mut map = observed.clone();
            let plan_made = plan(&observed, &desired);
            for key in &plan_made.remove {
                prop_assert!(map.remove(key).is_some(), "removed what was not there");
            }
            for (key, value) in &plan_made.write {
                prop_assert!(map.insert(*key, *value) != Some(*value), "wrote what was there");
            }
            prop_assert_eq!(&map, &desired);
            prop_assert_eq!(plan(&map, &desired), Plan { remove: vec![], write: vec![] });
        }
    }
}
