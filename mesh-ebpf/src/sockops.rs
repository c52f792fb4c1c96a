//! `mesh_sockops`: milestones in a TCP socket's life. Files who opened a flow before its first packet
//! leaves, keeps the table of listening ports, and reports bypassed flows at their end.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_storage_delete,
        bpf_sk_storage_get, bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    Address, Counter, Event, EventKind, Families, Flow, FlowKey, MESH_MARK, PodEntry, SocketRole,
    SocketState, VerdictAction, VerdictKey, listen_families, listen_key,
};

use crate::flows;
use crate::maps::{LEGS, LISTEN, LOCAL, PODS, ROLES, count, raw, tell, tell_ended, verdict};
use crate::note::note;

const OP_TCP_CONNECT: u32 = 3;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;
const OP_TCP_LISTEN: u32 = 11;
const STATE_CLOSE: u32 = 7;
const STATE_LISTEN: u32 = 10;
const FLAG_STATE: u32 = 1 << 2;
const AF_INET6: u32 = 10;
const STORAGE_CREATE: u64 = 1;
const ANY: u64 = 0;
const NOEXIST: u64 = 1;

#[sock_ops]
pub fn mesh_sockops(ctx: SockOpsContext) -> u32 {
    note!(&ctx, "socket operation {}, local port {}", ctx.op(), ctx.local_port());
    match ctx.op() {
        OP_TCP_CONNECT => opened(ctx.ops),
        OP_TCP_LISTEN => listens(ctx.ops),
        OP_PASSIVE_ESTABLISHED => accepted(ctx.ops),
        OP_STATE => changed(ctx.ops),
        _ => {}
    }
    1
}

/// Runs with the port chosen and the SYN not yet sent: whoever is filed here is known before any
/// packet of his arrives.
#[inline(always)]
fn opened(ops: *mut bpf_sock_ops) {
    let state = role_of(ops);
    if state.is_some_and(|state| state.role == SocketRole::PROBE) {
        return probes(ops);
    }
    // SAFETY: the helper takes this program's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let Some(pod) = pod_of(netns_cookie) else { return };
    let key = key_of(ops);
    let role = match state {
        Some(state) if state.role == SocketRole::LEG => SocketRole::LEG,
        Some(_) => return,
        None if is_bypass(ops, pod, netns_cookie, &key) => SocketRole::BYPASS,
        None => return,
    };
    // SAFETY: the helpers take this program's own context, or nothing.
    let (socket_cookie, opened_ns) = unsafe { (bpf_get_socket_cookie(ops.cast()), bpf_ktime_get_ns()) };
    let flow = Flow { netns_cookie, socket_cookie, opened_ns, slot: pod.slot, role };
    let filed = match role {
        SocketRole::LEG => LEGS.insert(&key, &flow, ANY).is_ok(),
        _ => flows::file(&key, &flow),
    };
    if !filed {
        count(Counter::FlowsFull);
        return;
    }
    watch_state(ops);
}

/// An application's own connection that `connect` did not send to the agent, from the pod's own address and with a
/// verdict that lets it pass. A route may have given the socket another source than the pod's: unfiled, it arrives
/// as a stranger's.
#[inline(always)]
fn is_bypass(ops: *mut bpf_sock_ops, pod: &PodEntry, netns_cookie: u64, key: &FlowKey) -> bool {
    // SAFETY: context field reads, null is checked for.
    let captured = unsafe {
        let socket = (*ops).__bindgen_anon_2.sk;
        socket.is_null() || (*socket).mark == MESH_MARK
    };
    !captured
        && (pod.address4.same(&key.local) || pod.address6.same(&key.local))
        && verdict(&VerdictKey::new(netns_cookie, key.remote, key.remote_port)) == Some(VerdictAction::BYPASS)
}

/// Filed among the legs, under the slot of the pod that it goes to: steering lets both through alike.
#[inline(always)]
fn probes(ops: *mut bpf_sock_ops) {
    let key = key_of(ops);
    // SAFETY: an element's memory stays its map's (see `maps`).
    let Some(local) = (unsafe { LOCAL.get(&key.remote) }) else { return };
    let slot = local.slot;
    // SAFETY: the helpers take this program's own context, or nothing.
    let (netns_cookie, socket_cookie, opened_ns) =
        unsafe { (bpf_get_netns_cookie(ops.cast()), bpf_get_socket_cookie(ops.cast()), bpf_ktime_get_ns()) };
    let flow = Flow { netns_cookie, socket_cookie, opened_ns, slot, role: SocketRole::PROBE };
    if LEGS.insert(&key, &flow, ANY).is_err() {
        count(Counter::FlowsFull);
        return;
    }
    watch_state(ops);
}

#[inline(always)]
fn listens(ops: *mut bpf_sock_ops) {
    // SAFETY: the helper takes this program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let Some(pod) = pod_of(cookie) else { return };
    if role_of(ops).is_some() {
        return;
    }
    let key = key_of(ops);
    let families = families_of(ops, &key);
    if !families.v4 && !families.v6 {
        return;
    }
    // SAFETY: context field read, null is checked for; the helper copies the value before it returns.
    unsafe {
        let socket = (*ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        let mut state = SocketState { role: SocketRole::LISTENER, epoch: pod.epoch };
        if bpf_sk_storage_get(raw(&ROLES), socket.cast(), (&raw mut state).cast(), STORAGE_CREATE).is_null() {
            return;
        }
    }
    let mut first = false;
    if families.v4 {
        first |= add(listen_key(pod.slot, false, key.local_port));
    }
    if families.v6 {
        first |= add(listen_key(pod.slot, true, key.local_port));
    }
    watch_state(ops);
    if first {
        tell_listening(EventKind::LISTEN_UP, pod, cookie, &key);
    }
}

/// An accepted socket has its listener's flags, and nobody asks how it ends: to be called at each of its four changes
/// of state would cost a bypassed connection a third of what this program costs it. (A program further down the
/// hierarchy that has asked for them at this same moment loses them; those of other operations stay.)
#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops) {
    // SAFETY: context field read and a helper on this program's own context.
    unsafe {
        let flags = (*ops).bpf_sock_ops_cb_flags;
        if flags & FLAG_STATE != 0 {
            bpf_sock_ops_cb_flags_set(ops, (flags & !FLAG_STATE) as i32);
        }
    }
}

#[inline(always)]
fn changed(ops: *mut bpf_sock_ops) {
    // SAFETY: context field reads.
    let (old, new) = unsafe { ((*ops).__bindgen_anon_1.args[0], (*ops).__bindgen_anon_1.args[1]) };
    if new != STATE_CLOSE {
        return;
    }
    let key = key_of(ops);
    match role_of(ops) {
        Some(state) if state.role == SocketRole::LISTENER && old == STATE_LISTEN => {
            stopped(ops, &key, state.epoch);
        }
        Some(state) if state.role == SocketRole::LEG || state.role == SocketRole::PROBE => {
            let _ = LEGS.remove(&key);
        }
        Some(_) => {}
        // Only flows that were filed are watched.
        None => closed(ops, &key, old),
    }
}

#[inline(always)]
fn stopped(ops: *mut bpf_sock_ops, key: &FlowKey, epoch: u32) {
    // The socket may listen again (after a shutdown), and is then counted again.
    // SAFETY: context field read; the caller has found this socket's storage, so it is not null.
    unsafe {
        let socket = (*ops).__bindgen_anon_2.sk;
        if !socket.is_null() {
            bpf_sk_storage_delete(raw(&ROLES), socket.cast());
        }
    }
    // SAFETY: the helper takes this program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let Some(pod) = pod_of(cookie) else { return };
    if pod.epoch != epoch {
        return;
    }
    let families = families_of(ops, key);
    let mut last = false;
    if families.v4 {
        last |= subtract(listen_key(pod.slot, false, key.local_port));
    }
    if families.v6 {
        last |= subtract(listen_key(pod.slot, true, key.local_port));
    }
    if last {
        tell_listening(EventKind::LISTEN_DOWN, pod, cookie, key);
    }
}

/// The end of a bypassed flow: the only moment at which its figures are complete.
#[inline(always)]
fn closed(ops: *mut bpf_sock_ops, key: &FlowKey, old_state: u32) {
    let Some(flow) = flows::end(key) else { return };
    // SAFETY: context field reads, and a helper without arguments.
    let event = unsafe {
        Event {
            kind: EventKind::FLOW_CLOSED,
            slot: flow.slot,
            netns_cookie: flow.netns_cookie,
            socket_cookie: flow.socket_cookie,
            opened_ns: flow.opened_ns,
            closed_ns: bpf_ktime_get_ns(),
            bytes_acked: (*ops).bytes_acked,
            bytes_received: (*ops).bytes_received,
            srtt_us: (*ops).srtt_us >> 3,
            retransmits: (*ops).total_retrans,
            old_state,
            key: *key,
        }
    };
    tell_ended(&event);
}

#[inline(always)]
fn role_of(ops: *mut bpf_sock_ops) -> Option<SocketState> {
    // SAFETY: context field read, null is checked for; a null value asks for an existing element only.
    unsafe {
        let socket = (*ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let state: *mut SocketState =
            bpf_sk_storage_get(raw(&ROLES), socket.cast(), core::ptr::null_mut(), 0).cast();
        if state.is_null() { None } else { Some(*state) }
    }
}

#[inline(always)]
fn pod_of(cookie: u64) -> Option<&'static PodEntry> {
    // SAFETY: an element's memory stays its map's (see `maps`).
    unsafe { PODS.get(&cookie) }
}

#[inline(always)]
fn key_of(ops: *mut bpf_sock_ops) -> FlowKey {
    // SAFETY: context field reads, word by word since the context admits no wider one. The remote port
    // is the one field in network order, in the low half of its word.
    unsafe {
        let remote_port = u32::from_be((*ops).remote_port) as u16;
        let local_port = (*ops).local_port as u16;
        if (*ops).family == AF_INET6 {
            let local = (&raw const (*ops).local_ip6).cast::<u32>();
            let remote = (&raw const (*ops).remote_ip6).cast::<u32>();
            let word = |from: *const u32, at: usize| core::ptr::read_volatile(from.add(at));
            return FlowKey {
                local: Address([word(local, 0), word(local, 1), word(local, 2), word(local, 3)]),
                remote: Address([word(remote, 0), word(remote, 1), word(remote, 2), word(remote, 3)]),
                local_port,
                remote_port,
            };
        }
        FlowKey {
            local: Address::from_v4_word((*ops).local_ip4),
            remote: Address::from_v4_word((*ops).remote_ip4),
            local_port,
            remote_port,
        }
    }
}

#[inline(always)]
fn families_of(ops: *mut bpf_sock_ops, key: &FlowKey) -> Families {
    // SAFETY: context field read.
    let is_v6 = unsafe { (*ops).family } == AF_INET6;
    listen_families(&key.local, is_v6)
}

#[inline(always)]
fn watch_state(ops: *mut bpf_sock_ops) {
    // Other programs' flags are kept: the helper replaces the whole set.
    // SAFETY: context field read and a helper on this program's own context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, ((*ops).bpf_sock_ops_cb_flags | FLAG_STATE) as i32) };
}

/// Returns whether the port had no listener before (a hint: the count is exact, what is read beside it
/// is not, because the baseline instruction set has no add that returns the old value).
#[inline(always)]
fn add(key: u64) -> bool {
    if LISTEN.insert(&key, &1, NOEXIST).is_ok() {
        return true;
    }
    let Some(value) = LISTEN.get_ptr_mut(&key) else {
        count(Counter::ListenFull);
        return false;
    };
    // SAFETY: a live, aligned element; every program changes it by atomic instructions only.
    unsafe {
        let first = core::ptr::read_volatile(value) == 0;
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(value, 1);
        first
    }
}

/// Returns whether that was the last listener (a hint, as above). The entry stays at zero: to delete it
/// here could lose a listener that is being added, so the agent sweeps.
#[inline(always)]
fn subtract(key: u64) -> bool {
    let Some(value) = LISTEN.get_ptr_mut(&key) else { return false };
    // SAFETY: as in `add`.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(value, u64::MAX);
        core::ptr::read_volatile(value) == 0
    }
}

#[inline(always)]
fn tell_listening(kind: u32, pod: &PodEntry, cookie: u64, key: &FlowKey) {
    tell(&Event { kind, slot: pod.slot, netns_cookie: cookie, key: *key, ..Event::default() });
}
