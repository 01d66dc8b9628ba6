//! Secondary indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The objects that share a value, by their keys. A function of its contents alone: the order in
/// which entries came leaves no trace, so a state read from a snapshot equals the replayed one.
///
/// It holds the objects themselves, not only their keys: passes go through the tasks of every node and
/// service, and looking each up again would cost more than all else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index<V, K, T>(BTreeMap<V, BTreeMap<K, Arc<T>>>);

impl<V, K, T> Default for Index<V, K, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Ord + Clone, K: Ord + Clone, T> Index<V, K, T> {
    pub(super) fn insert(&mut self, value: &V, key: &K, object: &Arc<T>) {
        let objects = self.0.entry(value.clone()).or_default();
        objects.insert(key.clone(), Arc::clone(object));
    }

    pub(super) fn remove(&mut self, value: &V, key: &K) {
        if let Some(objects) = self.0.get_mut(value) {
            objects.remove(key);
            if objects.is_empty() {
                self.0.remove(value);
            }
        }
    }

    /// The objects under `value`, in the order of their keys.
    pub(super) fn get<Q>(&self, value: &Q) -> impl Iterator<Item = &Arc<T>> + use<'_, V, K, T, Q>
    where
        V: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.0.get(value).into_iter().flat_map(BTreeMap::values)
    }
}
