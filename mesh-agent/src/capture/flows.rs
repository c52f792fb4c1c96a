//! The table of live bypassed flows. Owns: its places, which are memory shared with the kernel programs, and what found
//! its places taken. Never: files a flow (that is the programs'). Called by `capture::handle`.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use mesh_common::{FLOW_PLACES, Flow, FlowKey, FlowPlace, SocketRole};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::error::CaptureError;
use super::maps::{open, pin_path};
use super::table::Table;

const NAME: &str = "FLOWS";

#[derive(Debug)]
pub(super) struct FlowTable {
    places: Places,
    spilled: Table<FlowKey, Flow>,
}

impl FlowTable {
    pub(super) fn open(dir: &Path) -> Result<Self, CaptureError> {
        let places = open::<u32, FlowPlace>(dir, NAME)?;
        let places = Places::map(&places).map_err(|source| CaptureError::Map {
            map: NAME,
            path: pin_path(dir, NAME),
            source,
        })?;
        Ok(Self { places, spilled: open(dir, "SPILLED")? })
    }

    pub(super) fn get(&self, key: &FlowKey) -> io::Result<Option<Flow>> {
        let mut filed = key.places().into_iter().filter_map(|at| self.places.read(at));
        match filed.find(|place| place.key.same(key)) {
            Some(place) => Ok(Some(flow(&place))),
            None => self.spilled.get(key),
        }
    }

    /// Every live flow. What comes or goes meanwhile may be in it or not.
    pub(super) fn entries(&self) -> io::Result<Vec<(FlowKey, Flow)>> {
        let mut all = self.spilled.entries()?;
        let filed = (0..FLOW_PLACES).filter_map(|at| self.places.read(at));
        all.extend(filed.map(|place| (place.key, flow(&place))));
        Ok(all)
    }

    /// Forgets the flow of this socket, not one that has its addresses or its place by now.
    pub(super) fn forget(&self, key: &FlowKey, socket_cookie: u64) -> io::Result<()> {
        if key.places().into_iter().any(|at| self.places.free(at, socket_cookie)) {
            return Ok(());
        }
        match self.spilled.get(key)? {
            Some(now) if now.socket_cookie == socket_cookie => self.spilled.remove(key).map(drop),
            _ => Ok(()),
        }
    }
}

fn flow(place: &FlowPlace) -> Flow {
    Flow {
        netns_cookie: place.netns_cookie,
        socket_cookie: place.socket_cookie,
        opened_ns: place.opened_ns,
        slot: place.slot,
        role: SocketRole::BYPASS,
    }
}

/// Words of one place; the first says whose it is.
const WORDS: usize = size_of::<FlowPlace>() / size_of::<u64>();

type Words = [AtomicU64; WORDS];

/// The places as memory.
#[derive(Debug)]
struct Places {
    memory: NonNull<Words>,
}

// SAFETY: the memory is the map's, stays where it is until the drop, and is touched by atomic instructions only.
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

impl Places {
    const BYTES: NonZeroUsize = NonZeroUsize::new(FLOW_PLACES as usize * size_of::<FlowPlace>()).unwrap();

    fn map(map: &Table<u32, FlowPlace>) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory, at an address of the kernel's choice. The kernel refuses more than the map has.
        let memory = unsafe { mmap(None, Self::BYTES, access, MapFlags::MAP_SHARED, map.as_fd(), 0) }?;
        Ok(Self { memory: memory.cast() })
    }

    fn words(&self, at: u32) -> &Words {
        let at = (at % FLOW_PLACES) as usize;
        // SAFETY: within the memory; atomics may be shared with whoever writes them.
        unsafe { self.memory.add(at).as_ref() }
    }

    /// The flow in a place, as it was at one moment; none where there is none.
    fn read(&self, at: u32) -> Option<FlowPlace> {
        let words = self.words(at);
        loop {
            let owner = words[0].load(Ordering::Acquire);
            if !FlowPlace::is_filed(owner) {
                return None;
            }
            let copy: [u64; WORDS] = std::array::from_fn(|word| words[word].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if words[0].load(Ordering::Relaxed) == owner && copy[0] == owner {
                // SAFETY: of one size, and any bytes are a value (Pod).
                return Some(unsafe { std::mem::transmute::<[u64; WORDS], FlowPlace>(copy) });
            }
        }
    }

    /// Returns whether it was this socket's.
    fn free(&self, at: u32, socket_cookie: u64) -> bool {
        if !FlowPlace::is_filed(socket_cookie) {
            return false;
        }
        let owner = &self.words(at)[0];
        owner.compare_exchange(socket_cookie, FlowPlace::FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // SAFETY: what `map` has made, which nobody refers to any more.
        let unmapped = unsafe { munmap(self.memory.cast(), Self::BYTES.get()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "the table of flows could not be unmapped");
        }
    }
}
