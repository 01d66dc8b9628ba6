//! Secondary indexes.

use std::collections::{BTreeMap, BTreeSet};

/// The keys of the objects that share a value. A function of its contents alone: the order in
/// which entries came leaves no trace, so a state read from a snapshot equals the replayed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index<V, K>(BTreeMap<V, BTreeSet<K>>);

impl<V, K> Default for Index<V, K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Ord + Clone, K: Ord + Clone> Index<V, K> {
    pub(super) fn insert(&mut self, value: &V, key: &K) {
        self.0.entry(value.clone()).or_default().insert(key.clone());
    }

    pub(super) fn remove(&mut self, value: &V, key: &K) {
        if let Some(keys) = self.0.get_mut(value) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(value);
            }
        }
    }

    /// The keys under `value`, in order.
    pub(super) fn get<Q>(&self, value: &Q) -> impl Iterator<Item = &K> + use<'_, V, K, Q>
    where
        V: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get(value).into_iter().flatten()
    }
}
