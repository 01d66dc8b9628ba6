//! Which backend has which place in its slot. Pure.
//!
//! A backend that stays keeps its place, so that UDP sockets that were given it stay with it: when
//! a slot gets shorter only its last ones move, into the places that have become free.

use std::collections::{BTreeMap, BTreeSet};

use swarm_ebpf_common::{Address, SocketBackend};

/// The changes to the maps, in the order in which they are made: at every moment a reader finds a
/// backend of the slot, old or new, at every index below the slot's length, or at index 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotPlan {
    /// Backends to put into their places.
    pub(super) place: Vec<(SocketBackend, Address)>,
    /// Lengths of slots to write.
    pub(super) resize: Vec<(u64, u32)>,
    /// Slots to remove. Nothing may refer to them by then.
    pub(super) remove: Vec<u64>,
    /// Places to clear.
    pub(super) clear: Vec<SocketBackend>,
}

/// What leads from the maps' content to these slots with these backends.
pub(super) fn plan(
    lengths: &BTreeMap<u64, u32>,
    places: &BTreeMap<SocketBackend, Address>,
    desired: &BTreeMap<u64, BTreeSet<Address>>,
) -> SlotPlan {
    let mut plan = SlotPlan::default();
    let mut wanted = BTreeSet::new();
    for (&slot, backends) in desired {
        let before = |index| places.get(&SocketBackend::new(slot, index)).copied();
        let after = arrange(before, backends);
        for (&address, index) in after.iter().zip(0..) {
            let place = SocketBackend::new(slot, index);
            wanted.insert(place);
            if before(index) != Some(address) {
                plan.place.push((place, address));
            }
        }
        let length = u32::try_from(after.len()).unwrap_or(u32::MAX);
        if lengths.get(&slot) != Some(&length) {
            plan.resize.push((slot, length));
        }
    }
    let removed = lengths.keys().filter(|slot| !desired.contains_key(slot));
    plan.remove.extend(removed);
    // From the last to the first.
    let stale = places.keys().rev().filter(|place| !wanted.contains(place));
    plan.clear.extend(stale);
    plan
}

/// The backends by index. `before` tells who had an index.
fn arrange(before: impl Fn(u32) -> Option<Address>, backends: &BTreeSet<Address>) -> Vec<Address> {
    let mut homeless = backends.clone();
    let mut places: Vec<Option<Address>> = (0..)
        .take(backends.len())
        .map(|index| before(index).filter(|address| homeless.remove(address)))
        .collect();
    let mut homeless = homeless.into_iter();
    for place in &mut places {
        *place = place.or_else(|| homeless.next());
    }
    places.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> Address {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn set(last: &[u8]) -> BTreeSet<Address> {
        last.iter().map(|octet| address(*octet)).collect()
    }

    #[test]
    fn who_stays_keeps_its_place() {
        let old = [1, 2, 3, 4].map(address);
        let before = |index: u32| old.get(index as usize).copied();
        let arranged = |last: &[u8]| arrange(before, &set(last));
        assert_eq!(arranged(&[1, 2, 3, 4]), old);
        assert_eq!(arranged(&[1, 3, 4]), [1, 4, 3].map(address));
        assert_eq!(arranged(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5].map(address));
        assert_eq!(arranged(&[0, 3]), [0, 3].map(address));
        assert_eq!(arranged(&[]), []);
    }

    /// The maps while a plan is carried out.
    struct Maps {
        lengths: BTreeMap<u64, u32>,
        places: BTreeMap<SocketBackend, Address>,
    }

    impl Maps {
        fn of(content: &BTreeMap<u64, Vec<u8>>) -> Self {
            let mut maps = Self {
                lengths: BTreeMap::new(),
                places: BTreeMap::new(),
            };
            for (&slot, backends) in content {
                maps.lengths.insert(slot, backends.len() as u32);
                for (last, index) in backends.iter().zip(0..) {
                    let place = SocketBackend::new(slot, index);
                    maps.places.insert(place, address(*last));
                }
            }
            maps
        }

        /// What a reader may be given.
        fn offered(&self, slot: u64) -> Option<Vec<Address>> {
            let length = self.lengths.get(&slot).copied().unwrap_or_default();
            let at = |index| self.places.get(&SocketBackend::new(slot, index)).copied();
            (0..length)
                .map(|index| at(index).or_else(|| at(0)))
                .collect()
        }
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_plan_offers_only_backends_and_the_end_is_what_is_desired(
            content in btree_map(0_u64..4, vec(0_u8..6, 0..5), 0..4),
            desired in btree_map(0_u64..4, btree_set(0_u8..6, 0..5), 0..4),
        ) {
            let mut maps = Maps::of(&content);
            let desired: BTreeMap<u64, BTreeSet<Address>> = desired
                .into_iter()
                .map(|(slot, last)| (slot, last.into_iter().map(address).collect()))
                .collect();
            let kept: Vec<u64> = desired.keys().copied().collect();
            let old: BTreeMap<u64, Vec<Address>> = kept
                .iter()
                .map(|slot| (*slot, maps.offered(*slot).unwrap()))
                .collect();
            let check = |maps: &Maps| {
                for slot in &kept {
                    let offered = maps.offered(*slot);
                    prop_assert!(offered.is_some(), "nobody at an index of slot {slot}");
                    let known = |address: &Address| {
                        old[slot].contains(address) || desired[slot].contains(address)
                    };
                    prop_assert!(offered.unwrap().iter().all(known), "a stranger");
                }
                Ok(())
            };
            let plan_made = plan(&maps.lengths, &maps.places, &desired);
            for (place, address) in plan_made.place {
                maps.places.insert(place, address);
                check(&maps)?;
            }
            for (slot, length) in plan_made.resize {
                maps.lengths.insert(slot, length);
                check(&maps)?;
            }
            for slot in plan_made.remove {
                maps.lengths.remove(&slot);
            }
            for place in plan_made.clear {
                maps.places.remove(&place);
                check(&maps)?;
            }
            for (slot, backends) in &desired {
                let offered = maps.offered(*slot).unwrap();
                prop_assert_eq!(offered.len(), backends.len());
                prop_assert_eq!(&offered.into_iter().collect::<BTreeSet<_>>(), backends);
            }
            prop_assert_eq!(maps.lengths.len(), desired.len());
            let all: usize = desired.values().map(BTreeSet::len).sum();
            prop_assert_eq!(maps.places.len(), all);
            prop_assert_eq!(plan(&maps.lengths, &maps.places, &desired), SlotPlan::default());
        }
    }
}
