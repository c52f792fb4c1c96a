//! `mesh_connect4` and `mesh_connect6`: a process calls connect. Decides whether the connection goes to
//! the agent (by mark and route, the address is never rewritten), passes, or is refused.

use aya_ebpf::{
    bindings::{bpf_pidns_info, bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_ns_current_pid_tgid, bpf_map_lookup_elem,
        bpf_set_retval, bpf_setsockopt, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{
    Address, Counter, MESH_MARK, PodEntry, PodFlags, Setting, SocketKind, SocketRole, SocketState,
    VerdictAction, VerdictKey, listen_key,
};

use crate::maps::{
    LOCAL, PODS, PROBERS, ROLES, SOCKETS, count, heartbeat_is_fresh, listening, raw, setting, verdict,
};
use crate::note::note;
use crate::steer::is_mesh_port;

const ALLOW: i32 = 1;
const DENY: i32 = 0;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const ECONNREFUSED: i32 = 111;
const LOOPBACK_IFINDEX: u32 = 1;
const AF_INET6: u32 = 10;
const STORAGE_CREATE: u64 = 1;

/// Whether this kernel has `bpf_set_retval` for these programs (5.18). Without it a refusal is EPERM.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 0;

/// Whether this kernel tells these programs a process's number in its own PID namespace (6.10). Without it only the
/// initial namespace's numbers are known, and the agent enters no probers unless it sees those.
#[unsafe(no_mangle)]
static HAS_NAMESPACED_PID: u32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier turns these loads of the context into checked field reads.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    let answer = connect(ctx.sock_addr, Address::from_v4_word(address), u16::from_be(port as u16));
    note!(&ctx, "connect to {:i}:{} -> {}", u32::from_be(address), u16::from_be(port as u16), answer);
    answer
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above; word by word, since the context admits no wider read.
    let (address, port) = unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        let word = |at: usize| core::ptr::read_volatile(words.cast::<u32>().add(at));
        ([word(0), word(1), word(2), word(3)], (*ctx.sock_addr).user_port)
    };
    let answer = connect(ctx.sock_addr, Address(address), u16::from_be(port as u16));
    note!(&ctx, "connect to {:i}:{} -> {}", Address(address).octets(), u16::from_be(port as u16), answer);
    answer
}

#[inline(always)]
fn connect(ctx: *mut bpf_sock_addr, to: Address, port: u16) -> i32 {
    // SAFETY: context field reads.
    let (kind, protocol) = unsafe { ((*ctx).type_, (*ctx).protocol) };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return ALLOW;
    }
    // SAFETY: the helper takes this program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    // SAFETY: an element's memory stays its map's (see `maps`).
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        probe(ctx, cookie, &to, port);
        return ALLOW;
    };
    if pod.flags & PodFlags::ACTIVE == 0 {
        return ALLOW;
    }

    // SAFETY: context field read; null is checked for.
    let socket = unsafe { (*ctx).__bindgen_anon_1.sk };
    if socket.is_null() {
        return ALLOW;
    }
    // SAFETY: a null value asks for an existing element only.
    let state: *mut SocketState =
        unsafe { bpf_sk_storage_get(raw(&ROLES), socket.cast(), core::ptr::null_mut(), 0) }.cast();
    if !state.is_null() {
        // SAFETY: not null, and the storage lives as long as its socket.
        let role = unsafe { (*state).role };
        if role == SocketRole::OWN || role == SocketRole::LEG {
            return ALLOW;
        }
        // A socket that connects a second time is judged afresh.
        // SAFETY: the helper takes the socket of this context.
        unsafe { bpf_sk_storage_delete(raw(&ROLES), socket.cast()) };
    }
    if to.is_loopback() || to.is_unspecified() || to.is_link_local_v6() || is_own(pod, &to) {
        return ALLOW;
    }
    match verdict(&VerdictKey::new(cookie, to, port)) {
        // From another's address the agent has to see it, and refuses it: the destination would believe it.
        // Nothing is noted on the socket: without the mesh's mark `sockops` asks for the verdict itself, which costs a
        // connection less than socket storage does.
        Some(VerdictAction::BYPASS) if has_own_source(pod, socket) => {
            count(Counter::Bypassed);
            return ALLOW;
        }
        Some(VerdictAction::REFUSE) => {
            count(Counter::Refused);
            return refuse();
        }
        _ => {}
    }
    if nobody_listens(&to, port) {
        count(Counter::NotListening);
        return ALLOW;
    }
    // SAFETY: null was checked for.
    let device = unsafe { (*socket).bound_dev_if };
    capture(ctx, pod, device)
}

/// A connect outside every pod of the mesh. One of the kubelet's into such a pod is noted on the socket, and `sockops`
/// files it: told by the process, since addresses and names can be borrowed.
#[inline(always)]
fn probe(ctx: *mut bpf_sock_addr, cookie: u64, to: &Address, port: u16) {
    // SAFETY: as for PODS.
    if cookie != setting(Setting::NodeNetns) || unsafe { LOCAL.get(to) }.is_none() {
        return;
    }
    if is_mesh_port(port) || !is_prober() {
        return;
    }
    // SAFETY: context field read; null is checked for. The helper copies the value before it returns.
    unsafe {
        let socket = (*ctx).__bindgen_anon_1.sk;
        if socket.is_null() {
            return;
        }
        let mut state = SocketState { role: SocketRole::PROBE, epoch: 0 };
        bpf_sk_storage_get(raw(&ROLES), socket.cast(), (&raw mut state).cast(), STORAGE_CREATE);
    }
    count(Counter::Probes);
}

#[inline(always)]
fn is_prober() -> bool {
    // SAFETY: a static of this object, set by the loader before the verifier sees the program.
    let tgid = if unsafe { core::ptr::read_volatile(&raw const HAS_NAMESPACED_PID) } != 0 {
        let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
        let (device, inode) = (setting(Setting::PidNsDevice), setting(Setting::PidNsInode));
        // SAFETY: the target is live and of the size given.
        let other = unsafe {
            bpf_get_ns_current_pid_tgid(device, inode, &raw mut ids, size_of::<bpf_pidns_info>() as u32)
        };
        // The caller lives in another PID namespace: a container.
        if other != 0 {
            return false;
        }
        ids.tgid
    } else {
        // SAFETY: no arguments.
        (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
    };
    // SAFETY: the element is not read, only looked for.
    unsafe { PROBERS.get(&tgid) }.is_some()
}

#[inline(always)]
fn is_own(pod: &PodEntry, to: &Address) -> bool {
    pod.address4.same(to) || pod.address6.same(to)
}

/// Whether the socket is not bound to an address, or to the pod's own.
#[inline(always)]
fn has_own_source(pod: &PodEntry, socket: *mut bpf_sock) -> bool {
    // SAFETY: context field reads, word by word since the context admits no wider one; null was checked for.
    let source = unsafe {
        if (*socket).family == AF_INET6 {
            let words = (&raw const (*socket).src_ip6).cast::<u32>();
            let word = |at: usize| core::ptr::read_volatile(words.add(at));
            Address([word(0), word(1), word(2), word(3)])
        } else {
            Address::from_v4_word((*socket).src_ip4)
        }
    };
    source.is_unspecified() || is_own(pod, &source)
}

/// A pod of this node where nobody listens: the kernel itself says so, as it would without a mesh.
/// Should a listener appear meanwhile, its own steering catches the connection.
#[inline(always)]
fn nobody_listens(to: &Address, port: u16) -> bool {
    // SAFETY: as for PODS.
    match unsafe { LOCAL.get(to) } {
        Some(local) => !listening(listen_key(local.slot, !to.is_v4(), port)),
        None => false,
    }
}

#[inline(always)]
fn capture(ctx: *mut bpf_sock_addr, pod: &PodEntry, device: u32) -> i32 {
    // Bound to a device, the packet would not follow the return route but leave by that device.
    if device != 0 && device != LOOPBACK_IFINDEX {
        count(Counter::BoundDevice);
        return DENY;
    }
    if !heartbeat_is_fresh() || !has_listener(pod.slot) {
        if pod.flags & PodFlags::FAIL_CLOSED == 0 {
            count(Counter::DirectNoAgent);
            return ALLOW;
        }
        count(Counter::RefusedNoAgent);
        return refuse();
    }
    // Whatever mark the application has set gives way: it would lead the packet past the agent.
    let mut mark = MESH_MARK;
    // SAFETY: the value is a live u32 of the length given.
    let set = unsafe { bpf_setsockopt(ctx.cast(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), 4) };
    if set != 0 {
        return DENY;
    }
    count(Counter::Captured);
    ALLOW
}

/// The very socket that steering will choose; a lookup by address could be answered by the pod itself.
#[inline(always)]
fn has_listener(slot: u32) -> bool {
    let index = SocketKind::Outbound.index(slot);
    // SAFETY: the key is a live u32; the reference is released below.
    let socket = unsafe { bpf_map_lookup_elem(raw(&SOCKETS), (&raw const index).cast()) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a reference that the lookup above took.
    unsafe { bpf_sk_release(socket) };
    true
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: a static of this object, set by the loader before the verifier sees the program.
    if unsafe { core::ptr::read_volatile(&raw const HAS_SET_RETVAL) } != 0 {
        // SAFETY: takes a number.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    DENY
}
