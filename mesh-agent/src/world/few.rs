//! A set of very few elements, sorted. The world has one for each address, workload and Service, nearly all of a single
//! element: a tree's smallest node has room for dozens and would be most of what a workload costs.

use std::cmp::Ordering;
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

    /// Inserts the value in place of one that counts as equal.
    pub(super) fn put(&mut self, value: T) {
        if let Ok(at) = self.0.binary_search(&value) {
            let others = self.0.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, other)| other);
            self.0 = others.cloned().collect();
        }
        self.insert(value);
    }

    pub(super) fn remove(&mut self, value: &T) {
        if self.0.binary_search(value).is_ok() {
            self.0 = self.0.iter().filter(|other| *other != value).cloned().collect();
        }
    }
}

/// An object under its name, by which alone it is told from others.
#[derive(Debug)]
pub(super) struct Filed<T> {
    pub(super) name: Arc<str>,
    pub(super) object: Arc<T>,
}

impl<T> Clone for Filed<T> {
    fn clone(&self) -> Self {
        Self { name: Arc::clone(&self.name), object: Arc::clone(&self.object) }
    }
}

impl<T> PartialEq for Filed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<T> Eq for Filed<T> {}

impl<T> PartialOrd for Filed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Filed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.cmp(&other.name)
    }
}

impl<T> Few<Filed<T>> {
    pub(super) fn named(&self, name: &str) -> Option<&Arc<T>> {
        let at = self.0.binary_search_by(|filed| (*filed.name).cmp(name)).ok()?;
        Some(&self.0[at].object)
    }

    pub(super) fn remove_named(&mut self, name: &str) {
        if self.named(name).is_some() {
            self.0 = self.0.iter().filter(|filed| &*filed.name != name).cloned().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_objects_with_one_name_it_holds_the_last() {
        let filed = |name: &str, object| Filed { name: name.into(), object: Arc::new(object) };
        let mut few = Few::default();
        [filed("b", 1), filed("a", 2), filed("b", 3)].into_iter().for_each(|value| few.put(value));
        assert_eq!(few.iter().map(|filed| *filed.object).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((few.named("b").map(|object| **object), few.named("c")), (Some(3), None));
        few.remove_named("b");
        few.remove_named("c");
        assert_eq!(few.iter().count(), 1);
    }

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
