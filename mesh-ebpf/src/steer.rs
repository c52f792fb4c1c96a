//! `mesh_steer`: a packet looks for a listening socket in a pod's namespace. One instance per pod,
//! because this program type cannot ask which namespace it runs in; the slot is written into it.

use aya_ebpf::{
    bindings::{
        bpf_sk_lookup,
        sk_action::{SK_DROP, SK_PASS},
    },
    macros::sk_lookup,
    programs::SkLookupContext,
};
use mesh_common::{
    Address, Counter, FlowKey, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, PodFlags, SocketKind, VerdictAction,
    VerdictKey, listen_key,
};

use crate::flows;
use crate::maps::{LEGS, SLOTS, SOCKETS, count, heartbeat_is_fresh, listening, verdict};
use crate::note::note;

const IPPROTO_TCP: u32 = 6;
const AF_INET6: u32 = 10;
const LOOPBACK_IFINDEX: u32 = 1;

/// Which pod this instance serves; set by the loader.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

#[sk_lookup]
pub fn mesh_steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: context field read.
    if unsafe { (*ctx.lookup).protocol } != IPPROTO_TCP {
        return SK_PASS;
    }
    // SAFETY: a static of this object, set before the verifier sees the program.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    let key = key_of(ctx.lookup);
    let answer = choose(&ctx, &key, slot);
    note!(
        &ctx,
        "slot {}: {:i}:{} to {:i}:{} -> {}",
        slot,
        key.local.octets(),
        key.local_port,
        key.remote.octets(),
        key.remote_port,
        answer
    );
    answer
}

#[inline(always)]
fn choose(ctx: &SkLookupContext, key: &FlowKey, slot: u32) -> u32 {
    let port = key.remote_port;
    if same_host(key) {
        return if is_mesh_port(port) { drop() } else { SK_PASS };
    }
    if is_known(key, slot) {
        count(Counter::PassedToApplication);
        return SK_PASS;
    }
    // SAFETY: context field read.
    if unsafe { (*ctx.lookup).ingress_ifindex } == LOOPBACK_IFINDEX {
        return steer(ctx, slot, SocketKind::Outbound, Counter::SteeredOutbound);
    }
    if port == PORT_HBONE {
        return steer(ctx, slot, SocketKind::Hbone, Counter::SteeredHbone);
    }
    // Dropped here means answered with a reset, as for any port without a listener. A port that opens
    // this very moment is refused once more rather than reached without a judgement.
    if is_mesh_port(port) || !listening(listen_key(slot, !key.remote.is_v4(), port)) {
        return drop();
    }
    inbound(ctx, slot)
}

/// Connections of the pod to itself. From outside the kernel refuses such packets as martians, or
/// (IPv6) answers them to itself.
#[inline(always)]
fn same_host(key: &FlowKey) -> bool {
    key.remote.is_loopback() || key.local.is_loopback() || key.remote.same(&key.local)
}

#[inline(always)]
pub fn is_mesh_port(port: u16) -> bool {
    port == PORT_OUTBOUND || port == PORT_INBOUND || port == PORT_HBONE
}

/// A leg of the agent or a probe of the kubelet into this very pod, or a flow that is authorised at this moment: the verdict is
/// asked again, so that one withdrawn between the connect and the packet does not count.
#[inline(always)]
fn is_known(key: &FlowKey, slot: u32) -> bool {
    if let Some(opener) = flows::opener(key) {
        let asked = VerdictKey::new(opener, key.remote, key.remote_port);
        return verdict(&asked) == Some(VerdictAction::BYPASS);
    }
    // SAFETY: an element's memory stays its map's (see `maps`).
    unsafe { LEGS.get(key) }.is_some_and(|leg| leg.slot == slot)
}

#[inline(always)]
fn inbound(ctx: &SkLookupContext, slot: u32) -> u32 {
    let fail_closed = match SLOTS.get(slot) {
        Some(flags) => flags & PodFlags::FAIL_CLOSED != 0,
        None => true,
    };
    if !fail_closed && !heartbeat_is_fresh() {
        return SK_PASS;
    }
    match SOCKETS.redirect_sk_lookup(ctx, SocketKind::Inbound.index(slot), 0) {
        Ok(()) => {
            count(Counter::SteeredInbound);
            SK_PASS
        }
        Err(_) if !fail_closed => SK_PASS,
        Err(_) => drop(),
    }
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, slot: u32, kind: SocketKind, counter: Counter) -> u32 {
    if SOCKETS.redirect_sk_lookup(ctx, kind.index(slot), 0).is_err() {
        return drop();
    }
    count(counter);
    SK_PASS
}

#[inline(always)]
fn drop() -> u32 {
    count(Counter::Dropped);
    SK_DROP
}

/// As the opener sees the connection: the packet's source is his local side.
#[inline(always)]
fn key_of(lookup: *mut bpf_sk_lookup) -> FlowKey {
    // SAFETY: context field reads, word by word since the context admits no wider one.
    unsafe {
        let local_port = u16::from_be((*lookup).remote_port as u16);
        let remote_port = (*lookup).local_port as u16;
        if (*lookup).family == AF_INET6 {
            let from = (&raw const (*lookup).remote_ip6).cast::<u32>();
            let to = (&raw const (*lookup).local_ip6).cast::<u32>();
            let word = |at: *const u32, index: usize| core::ptr::read_volatile(at.add(index));
            return FlowKey {
                local: Address([word(from, 0), word(from, 1), word(from, 2), word(from, 3)]),
                remote: Address([word(to, 0), word(to, 1), word(to, 2), word(to, 3)]),
                local_port,
                remote_port,
            };
        }
        FlowKey {
            local: Address::from_v4_word((*lookup).remote_ip4),
            remote: Address::from_v4_word((*lookup).local_ip4),
            local_port,
            remote_port,
        }
    }
}
