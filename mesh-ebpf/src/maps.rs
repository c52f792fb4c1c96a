//! The maps that all programs of one agent share, and short accessors for them.
//!
//! What a look-up gives is memory of that map for as long as the program runs. If the entry is deleted meanwhile the memory
//! may already be another entry's (always so in an array, and since Linux 6.1 in all): whatever is read is
//! made of plain integers, so it is a value, if not the one that was looked for. Nobody acts on one for longer than its
//! flow lives: the opener of a flow that has just been deleted has closed its socket, and no packet of it connects.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage, SockHash},
    helpers::generated::bpf_ringbuf_query,
    macros::btf_map,
};
use mesh_common::{
    Address, Counter, EVENTS_BYTES, Event, FLOW_PLACES, Flow, FlowKey, FlowPlace, HEARTBEAT_MAX_NS, LEGS_MAX,
    LISTEN_MAX, LocalPod, POD_ADDRESSES_MAX, PODS_MAX, PROBERS_MAX, PodEntry, SETTINGS, SOCKETS_MAX,
    SPILLED_MAX, Setting, SocketState, VERDICTS_MAX, Verdict, VerdictKey,
};

/// Entries come and go with connections; memory must not be taken for the limit up front.
const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Cookie of a network namespace -> its pod.
#[btf_map]
pub static PODS: HashMap<u64, PodEntry, { PODS_MAX as usize }, LAZY> = HashMap::new();

/// Address of a pod of this node -> its pod.
#[btf_map]
pub static LOCAL: HashMap<Address, LocalPod, { POD_ADDRESSES_MAX as usize }, LAZY> = HashMap::new();

/// Slot -> `PodFlags`, for the programs that cannot ask for a namespace's cookie.
#[btf_map]
pub static SLOTS: Array<u32, { PODS_MAX as usize }> = Array::new();

/// What a socket is to the mesh.
#[btf_map]
pub static ROLES: SkStorage<SocketState> = SkStorage::new();

#[btf_map]
pub static VERDICTS: HashMap<VerdictKey, Verdict, { VERDICTS_MAX as usize }, LAZY> = HashMap::new();

/// Live bypassed flows, each in one of the places that its key gives it. An entry comes and goes with each connection: a hash map's
/// locks and lists cost a short one five times as much as the taking of a place. Memory that the agent shares.
#[btf_map]
pub static FLOWS: Array<FlowPlace, { FLOW_PLACES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Live bypassed flows that found others in their places.
#[btf_map]
pub static SPILLED: HashMap<FlowKey, Flow, { SPILLED_MAX as usize }, LAZY> = HashMap::new();

/// Thread group id of a process -> when it began, in the kernel's clock ticks since boot. Its connections into
/// pods are probes. Written by the agent.
#[btf_map]
pub static PROBERS: HashMap<u32, u64, { PROBERS_MAX as usize }> = HashMap::new();

/// Live legs from the agent to applications, and the kubelet's live probes.
#[btf_map]
pub static LEGS: HashMap<FlowKey, Flow, { LEGS_MAX as usize }, LAZY> = HashMap::new();

/// `listen_key` -> number of listening sockets; written by `sockops` alone.
#[btf_map]
pub static LISTEN: HashMap<u64, u64, { LISTEN_MAX as usize }, LAZY> = HashMap::new();

/// `listen_key` of ports that were listening before the pod was enrolled; written by the agent alone,
/// because only the kernel can count without a race and only the agent can see old sockets.
#[btf_map]
pub static SEEDED: HashMap<u64, u64, { LISTEN_MAX as usize }, LAZY> = HashMap::new();

/// `SocketKind::index` -> the agent's listening socket.
#[btf_map]
pub static SOCKETS: SockHash<u32, { SOCKETS_MAX as usize }> = SockHash::new();

#[btf_map]
pub static CONFIG: Array<u64, { SETTINGS as usize }> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// The map as the helpers take it.
#[inline(always)]
pub fn raw<M>(map: &'static M) -> *mut core::ffi::c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// Returns how often it has been counted on this CPU.
#[inline(always)]
pub fn count(counter: Counter) -> u64 {
    let Some(value) = COUNTERS.get_ptr_mut(counter as u32) else { return 0 };
    // SAFETY: the pointer is to this CPU's element, and programs are not preempted by themselves.
    unsafe {
        *value += 1;
        *value
    }
}

#[inline(always)]
pub fn setting(setting: Setting) -> u64 {
    CONFIG.get(setting as u32).copied().unwrap_or(0)
}

/// The verdict in force for this opener and destination, or none.
#[inline(always)]
pub fn verdict(key: &VerdictKey) -> Option<u32> {
    // SAFETY: an element's memory stays its map's (see `maps`).
    let verdict = unsafe { VERDICTS.get(key) }?;
    (verdict.generation == setting(Setting::Generation)).then_some(verdict.action)
}

/// Whether anybody in the pod listens on the port.
#[inline(always)]
pub fn listening(key: u64) -> bool {
    // SAFETY: as above.
    if let Some(count) = unsafe { LISTEN.get(&key) } {
        if *count > 0 {
            return true;
        }
    }
    // SAFETY: as above.
    unsafe { SEEDED.get(&key) }.is_some()
}

const RB_NO_WAKEUP: u64 = 1;
const RB_FORCE_WAKEUP: u64 = 2;
const RB_AVAIL_DATA: u64 = 0;

#[inline(always)]
pub fn heartbeat_is_fresh() -> bool {
    // SAFETY: no arguments; allowed in every program type.
    let now = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
    now.wrapping_sub(setting(Setting::Heartbeat)) < HEARTBEAT_MAX_NS
}

/// Tells the agent at once.
#[inline(always)]
pub fn tell(event: &Event) {
    output(event, RB_FORCE_WAKEUP);
}

/// Of how many flows that end on a CPU one looks how full the ring is.
const LOOK_EVERY: u64 = 8;

/// Tells the agent of a flow's end when it next looks: waking it for each would cost as much as the flow. It is woken before
/// the ring fills up.
#[inline(always)]
pub fn tell_ended(event: &Event) {
    let looks = count(Counter::FlowsEnded) % LOOK_EVERY == 0;
    // SAFETY: the helper takes a ring map and reads a number.
    let full =
        looks && unsafe { bpf_ringbuf_query(raw(&EVENTS), RB_AVAIL_DATA) } > u64::from(EVENTS_BYTES) / 4;
    output(event, if full { RB_FORCE_WAKEUP } else { RB_NO_WAKEUP });
}

#[inline(always)]
fn output(event: &Event, flags: u64) {
    match EVENTS.reserve(0) {
        Some(mut room) => {
            room.write(*event);
            room.submit(flags);
        }
        None => {
            count(Counter::EventsLost);
        }
    }
}
