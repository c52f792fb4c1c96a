//! A map of the kernel programs, with its types. Needs no lock: each call is one step in the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Pod;

use super::bpf;

/// Elements read from a map in one call.
const BATCH: usize = 4096;

#[derive(Debug)]
pub(super) struct Table<K, V> {
    map: OwnedFd,
    _types: PhantomData<fn(K) -> V>,
}

impl<K: Pod + Default, V: Pod + Default> Table<K, V> {
    /// Opens a pinned map and makes sure that its layout is the one this agent was built with.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let map = bpf::open_pinned(path)?;
        let sizes = bpf::map_sizes(map.as_fd())?;
        if sizes != (size_of::<K>() as u32, size_of::<V>() as u32) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its keys and values are of {} and {} bytes", sizes.0, sizes.1),
            ));
        }
        Ok(Self { map, _types: PhantomData })
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: `open` has checked the sizes; any bytes are a value (Pod).
        unsafe { bpf::lookup(self.map.as_fd(), key) }
    }

    pub(super) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: `open` has checked the sizes.
        unsafe { bpf::update(self.map.as_fd(), key, value) }
    }

    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: `open` has checked the size.
        unsafe { bpf::delete(self.map.as_fd(), key) }
    }

    pub(super) fn take(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: as for `get`.
        unsafe { bpf::take(self.map.as_fd(), key) }
    }

    /// Every element of a hash map. What comes or goes meanwhile may be in it or not.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        let mut cursor = None;
        let mut room = BATCH;
        let mut keys = vec![K::default(); room];
        let mut values = vec![V::default(); room];
        loop {
            let before = cursor;
            // SAFETY: `open` has checked the sizes; both slices are `room` long.
            match unsafe { bpf::lookup_batch(self.map.as_fd(), &mut cursor, &mut keys, &mut values) } {
                Ok((count, end)) => {
                    all.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
                    if end {
                        return Ok(all);
                    }
                }
                // One bucket holds more than there is room for: again from there, with more.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    cursor = before;
                    room *= 2;
                    keys.resize(room, K::default());
                    values.resize(room, V::default());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
