//! An ordered map whose clones share what they have in common.
//!
//! What a node is told of a large swarm changes by a few entries at a time, and is handed from one
//! part of the agent to the next as a whole. With this map a clone costs a count and no copies, a
//! change copies the list of chunks and the one chunk it falls into, and two maps of which one was made from
//! the other are compared by looking only at the chunks that are not the same in memory.
//!
//! | | cost, for `n` entries and `d` differences |
//! |---|---|
//! | clone | one count |
//! | `get` | two binary searches |
//! | `insert`, `remove` | where it is shared, `n / CHUNK_MAX` counts and a copy of one chunk |
//! | `differences`, `==` | `n / CHUNK_MAX` comparisons of pointers and `d` chunks of entries |

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Entries of a chunk: with more a change copies more of them, with fewer more counts.
const CHUNK_MAX: usize = 32;

/// See the [module](self).
pub(crate) struct SharedMap<K, V> {
    /// In ascending order, none of them empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

/// Neighbouring entries, in ascending order.
type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// An entry that is not the same in two maps: what it is in the one and in the other.
pub(crate) type Difference<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

impl<K, V> SharedMap<K, V> {
    /// Without an entry.
    pub(crate) fn new() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in ascending order of their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        let entries = self.chunks.iter().flat_map(|chunk| chunk.iter());
        entries.map(|(key, value)| (key, value))
    }

    /// The keys in ascending order.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values in ascending order of their keys.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The chunk in which `key` is, or would be; the first one for a key before all others.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let begins_before = |chunk: &Chunk<K, V>| chunk[0].0.borrow() <= key;
        self.chunks.partition_point(begins_before).saturating_sub(1)
    }

    /// The value of `key`.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk
            .binary_search_by(|(of, _)| of.borrow().cmp(key))
            .ok()?;
        Some(&chunk[at].1)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Puts an entry in, in the place of an earlier one, which is returned.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let number = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let count = chunks.len();
        let Some(chunk) = chunks.get_mut(number) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let found = chunk.binary_search_by(|(of, _)| of.cmp(&key));
        let at = match found {
            Ok(at) => {
                let entries = Arc::make_mut(chunk);
                return Some(std::mem::replace(&mut entries[at].1, value));
            }
            Err(at) => at,
        };
        self.len += 1;
        if chunk.len() < CHUNK_MAX {
            Arc::make_mut(chunk).insert(at, (key, value));
            return None;
        }
        if at == CHUNK_MAX && number + 1 == count {
            // Filled in ascending order, as mostly, chunks stay full.
            chunks.push(Arc::new(vec![(key, value)]));
            return None;
        }
        let entries = Arc::make_mut(chunk);
        let mut rest = entries.split_off(CHUNK_MAX / 2);
        entries.shrink_to_fit();
        match at.checked_sub(entries.len()) {
            None => entries.insert(at, (key, value)),
            Some(at) => rest.insert(at, (key, value)),
        }
        chunks.insert(number + 1, Arc::new(rest));
        None
    }

    /// Takes an entry out.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let number = self.chunk_of(key);
        let chunk = self.chunks.get(number)?;
        let found = chunk.binary_search_by(|(of, _)| of.borrow().cmp(key));
        let at = found.ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(&mut chunks[number]);
        let (_, value) = entries.remove(at);
        self.len -= 1;
        if entries.is_empty() {
            chunks.remove(number);
        } else {
            self.join(number);
        }
        Some(value)
    }

    /// Keeps chunks from staying small for ever.
    fn join(&mut self, number: usize) {
        let length = |at: usize| self.chunks.get(at).map_or(usize::MAX, |chunk| chunk.len());
        if length(number).saturating_add(length(number + 1)) > CHUNK_MAX / 2 {
            return;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        let next = chunks.remove(number + 1);
        let entries = Arc::make_mut(&mut chunks[number]);
        entries.extend(next.iter().cloned());
    }

    /// The values in ascending order of their keys, to be changed: what is shared is copied.
    #[cfg(test)]
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let entries = Arc::make_mut(&mut self.chunks).iter_mut();
        entries.flat_map(|chunk| Arc::make_mut(chunk).iter_mut().map(|(_, value)| value))
    }

    /// The value of `key`, to be changed.
    #[cfg(test)]
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let number = self.chunk_of(key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(chunks.get_mut(number)?);
        let at = entries.binary_search_by(|(of, _)| of.cmp(key)).ok()?;
        Some(&mut entries[at].1)
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// The entries that are not the same in `other`, in ascending order of their keys: what each is
    /// here, and there.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> Vec<Difference<'a, K, V>> {
        let mut found = Vec::new();
        if Arc::ptr_eq(&self.chunks, &other.chunks) {
            return found;
        }
        let (mut here, mut there) = (Cursor::new(&self.chunks), Cursor::new(&other.chunks));
        loop {
            while let (Some(one), Some(another)) = (here.chunk_begun(), there.chunk_begun())
                && Arc::ptr_eq(one, another)
            {
                here.skip_chunk();
                there.skip_chunk();
            }
            let order = match (here.entry(), there.entry()) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((one, _)), Some((another, _))) => one.cmp(another),
            };
            let left = (order != Ordering::Greater).then(|| here.take()).flatten();
            let right = (order != Ordering::Less).then(|| there.take()).flatten();
            let values = (left.map(|(_, value)| value), right.map(|(_, value)| value));
            let key = left.or(right).map(|(key, _)| key);
            if let Some(key) = key.filter(|_| values.0 != values.1) {
                found.push((key, values.0, values.1));
            }
        }
    }
}

/// A place in the entries of a map.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    at: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Chunk<K, V>]) -> Self {
        Self { chunks, at: 0 }
    }

    /// The chunk of which this is the first entry.
    fn chunk_begun(&self) -> Option<&'a Chunk<K, V>> {
        self.chunks.first().filter(|_| self.at == 0)
    }

    fn skip_chunk(&mut self) {
        self.chunks = &self.chunks[1..];
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.chunks.first()?.get(self.at)
    }

    /// The entry here; the place is the next one's then.
    fn take(&mut self) -> Option<&'a (K, V)> {
        let chunk = self.chunks.first()?;
        let entry = &chunk[self.at];
        self.at += 1;
        if self.at == chunk.len() {
            self.skip_chunk();
            self.at = 0;
        }
        Some(entry)
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Puts in a value, or takes out what is there.
    fn changes() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        vec((0_u16..300, proptest::option::of(0_u8..3)), 0..400)
    }

    fn make(map: &mut SharedMap<u16, u8>, model: &mut BTreeMap<u16, u8>, to: &[(u16, Option<u8>)]) {
        for (key, value) in to {
            let before = match value {
                Some(value) => (map.insert(*key, *value), model.insert(*key, *value)),
                None => (map.remove(key), model.remove(key)),
            };
            assert_eq!(before.0, before.1);
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_an_ordinary_map_holds(first in changes(), second in changes()) {
            let (mut map, mut model) = (SharedMap::new(), BTreeMap::new());
            make(&mut map, &mut model, &first);
            let (kept, kept_model) = (map.clone(), model.clone());
            make(&mut map, &mut model, &second);
            for (map, model) in [(&map, &model), (&kept, &kept_model)] {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
                for key in 0..300 {
                    prop_assert_eq!(map.get(&key), model.get(&key));
                }
            }
            let all: std::collections::BTreeSet<_> = kept_model.keys().chain(model.keys()).collect();
            let expected: Vec<_> = all
                .into_iter()
                .map(|key| (key, kept_model.get(key), model.get(key)))
                .filter(|(_, before, after)| before != after)
                .collect();
            prop_assert_eq!(kept.differences(&map), expected);
            prop_assert_eq!(kept == map, kept_model == model);
            let anew: SharedMap<u16, u8> = model.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&anew, &map);
        }
    }

    #[test]
    fn filled_in_order_it_has_no_room_left_over() {
        let map: SharedMap<u32, u32> = (0..10_000).map(|key| (key, 0)).collect();
        let room: usize = map.chunks.iter().map(|chunk| chunk.capacity()).sum();
        assert!(room < 10_000 + CHUNK_MAX, "{room}");
        assert_eq!(
            map.chunks.len(),
            10_000_usize.div_ceil(CHUNK_MAX),
            "all full"
        );
        let mut anyhow = SharedMap::new();
        anyhow.extend((0_u32..10_000).map(|key| (key.wrapping_mul(2_654_435_761), 0)));
        let room: usize = anyhow.chunks.iter().map(|chunk| chunk.capacity()).sum();
        assert!(room < 2 * 10_000, "{room}");
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let before: SharedMap<u32, u32> = (0..10_000).map(|key| (key, 0)).collect();
        let mut after = before.clone();
        after.insert(5_000, 1);
        let shared = before.chunks.iter().zip(after.chunks.iter());
        let copied = shared.filter(|(one, other)| !Arc::ptr_eq(one, other));
        assert_eq!(copied.count(), 1);
        assert_eq!(before.differences(&after), [(&5_000, Some(&0), Some(&1))]);
    }
}
