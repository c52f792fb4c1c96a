//! The table of live bypassed flows. A flow is filed by its opener's socket and taken out by the same; between the two
//! everybody may look. Owns: how a place is taken and freed while others look.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};

use mesh_common::{Flow, FlowKey, FlowPlace, SocketRole};

use crate::maps::{FLOWS, SPILLED};

const ANY: u64 = 0;

/// Returns whether there was room.
#[inline(always)]
pub fn file(key: &FlowKey, flow: &Flow) -> bool {
    let [first, second] = key.places();
    let Some(place) = taken(first).or_else(|| taken(second)) else {
        return SPILLED.insert(key, flow, ANY).is_ok();
    };
    // SAFETY: the place is this program's until its name is written.
    unsafe {
        (*place).netns_cookie = flow.netns_cookie;
        (*place).opened_ns = flow.opened_ns;
        (*place).key = *key;
        (*place).slot = flow.slot;
    }
    name(place, flow.socket_cookie);
    true
}

/// Cookie of the opener's network namespace.
#[inline(always)]
pub fn opener(key: &FlowKey) -> Option<u64> {
    if let Some(place) = filed(key) {
        // SAFETY: an element of an array stays; see `maps` for what it may hold.
        return Some(unsafe { (*place).netns_cookie });
    }
    // SAFETY: an element's memory stays its map's (see `maps`).
    unsafe { SPILLED.get(key) }.map(|flow| flow.netns_cookie)
}

/// Takes out the flow of the socket that this program runs for, if it was filed.
#[inline(always)]
pub fn end(key: &FlowKey) -> Option<Flow> {
    if let Some(place) = filed(key) {
        // SAFETY: only its own socket frees a place, and that is the caller's.
        let flow = unsafe {
            Flow {
                netns_cookie: (*place).netns_cookie,
                socket_cookie: (*place).socket_cookie,
                opened_ns: (*place).opened_ns,
                slot: (*place).slot,
                role: SocketRole::BYPASS,
            }
        };
        name(place, FlowPlace::FREE);
        return Some(flow);
    }
    // SAFETY: as above.
    let flow = unsafe { SPILLED.get(key) }.copied()?;
    let _ = SPILLED.remove(key);
    Some(flow)
}

#[inline(always)]
fn filed(key: &FlowKey) -> Option<*mut FlowPlace> {
    let [first, second] = key.places();
    filed_at(first, key).or_else(|| filed_at(second, key))
}

#[inline(always)]
fn filed_at(at: u32, key: &FlowKey) -> Option<*mut FlowPlace> {
    let place = FLOWS.get_ptr_mut(at)?;
    // SAFETY: a live element of an array.
    let found = unsafe {
        let cookie = core::ptr::read_volatile(&raw const (*place).socket_cookie);
        FlowPlace::is_filed(cookie) && (*place).key.same(key)
    };
    found.then_some(place)
}

/// A place that was free until now.
#[inline(always)]
fn taken(at: u32) -> Option<*mut FlowPlace> {
    let place = FLOWS.get_ptr_mut(at)?;
    // SAFETY: a live, aligned element, whose first word is changed by atomic instructions only.
    let (_before, taken) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*place).socket_cookie,
            FlowPlace::FREE,
            FlowPlace::TAKEN,
        )
    };
    taken.then_some(place)
}

/// What was written or read before is so for whoever sees the name: the instruction is a full barrier.
#[inline(always)]
fn name(place: *mut FlowPlace, socket_cookie: u64) {
    // SAFETY: as in `taken`.
    unsafe {
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut (*place).socket_cookie, socket_cookie);
    }
}
