//! A set of very few elements, sorted. The world has one for each address and each workload, nearly all of a single
//! element: a tree's smallest node has room for dozens and would be most of what a workload costs.

use std::sync::Arc;

/// Cheap to clone; a change copies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Few<T>(Arc<[T]>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl<T: Ord + Clone> Few<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.0.first()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.0.last()
    }

    pub(super) fn insert(&mut self, value: T) {
        if let Err(at) = self.0.binary_search(&value) {
            let (before, after) = self.0.split_at(at);
            self.0 = before.iter().cloned().chain([value]).chain(after.iter().cloned()).collect();
        }
    }

    pub(super) fn remove(&mut self, value: &T) {
        if self.0.binary_search(value).is_ok() {
            self.0 = self.0.iter().filter(|other| *other != value).cloned().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_sorted_set() {
        let mut few = Few::default();
        [3, 1, 2, 3, 1].into_iter().for_each(|value| few.insert(value));
        assert_eq!(few.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((few.first(), few.last()), (Some(&1), Some(&3)));
        let before = few.clone();
        few.remove(&2);
        few.remove(&7);
        assert_eq!(few.iter().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(before.iter().count(), 3, "a published set does not change");
        few.remove(&1);
        few.remove(&3);
        assert!(few.is_empty());
    }
}
