//! The agent's listeners in a pod, and the pod's own in the eyes of the kernel programs.

use std::os::fd::AsRawFd;

use mesh_common::{
    Address, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, SocketKind, SocketRole, SocketState, listen_families,
    listen_key, split_listen_key,
};

use super::error::CaptureError;
use super::maps::Maps;
use super::{PodAttachment, WorkerListeners};
use crate::net::netns::NetNs;
use crate::net::{sock, sock_diag};

/// Opens the listeners of all workers inside the pod.
pub(super) fn open(
    maps: &Maps,
    netns: &NetNs,
    pod: &PodAttachment,
    workers: usize,
) -> Result<Vec<WorkerListeners>, CaptureError> {
    let one = |port| {
        sock::listener(port, |socket| maps.roles.set(&socket.as_raw_fd(), &role(SocketRole::OWN))).map_err(
            |source| match source.raw_os_error() {
                Some(libc::EADDRINUSE) => CaptureError::PortTaken { workload: pod.id.clone(), port },
                _ => CaptureError::Listen { workload: pod.id.clone(), port, source },
            },
        )
    };
    let all = || {
        (0..workers.max(1))
            .map(|_| {
                Ok(WorkerListeners {
                    outbound: one(PORT_OUTBOUND)?,
                    inbound: one(PORT_INBOUND)?,
                    hbone: one(PORT_HBONE)?,
                })
            })
            .collect()
    };
    netns.run(all).map_err(|source| CaptureError::Netns {
        workload: pod.id.clone(),
        path: pod.netns.path(),
        source,
    })?
}

pub(super) fn role(role: u32) -> SocketState {
    SocketState { role, epoch: 0 }
}

/// Registers one listener of each kind for steering; the kernel spreads over its `SO_REUSEPORT` group.
pub(super) fn register(maps: &Maps, slot: u32, listeners: &[WorkerListeners]) -> Result<(), CaptureError> {
    let Some(first) = listeners.first() else { return Ok(()) };
    for (kind, listener) in [
        (SocketKind::Outbound, &first.outbound),
        (SocketKind::Inbound, &first.inbound),
        (SocketKind::Hbone, &first.hbone),
    ] {
        maps.sockets
            .set(&kind.index(slot), &(listener.as_raw_fd() as u32))
            .map_err(|source| CaptureError::MapAccess { map: "SOCKETS", source })?;
    }
    Ok(())
}

/// Takes a pod's listeners out of steering.
pub(super) fn unregister(maps: &Maps, slot: u32) -> Result<(), CaptureError> {
    for kind in SocketKind::ALL {
        maps.sockets
            .remove(&kind.index(slot))
            .map_err(|source| CaptureError::MapAccess { map: "SOCKETS", source })?;
    }
    Ok(())
}

/// Brings the seeded ports of a pod in line with the sockets that exist, and sweeps counts that are back at
/// zero. The kernel counts what begins to listen; only a listing shows what listened before, or has closed
/// uncounted.
pub(super) fn refresh(maps: &Maps, netns: &NetNs, slot: u32) -> std::io::Result<()> {
    // Counts first: whatever begins to listen after this is listed below.
    let mut wanted = std::collections::HashSet::new();
    for (key, count) in maps.listen.entries()? {
        // Taken while somebody began to listen: the listing below finds him.
        if split_listen_key(key).0 == slot
            && count == 0
            && maps.listen.take(&key)?.is_some_and(|count| count > 0)
        {
            wanted.insert(key);
        }
    }
    for listener in netns.run(sock_diag::listeners)?? {
        wanted.extend(keys_of(&listener, slot));
    }
    let seeded: Vec<u64> = maps
        .seeded
        .entries()?
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| split_listen_key(*key).0 == slot)
        .collect();
    for key in seeded.iter().filter(|key| !wanted.contains(*key)) {
        maps.seeded.remove(key)?;
    }
    for key in wanted {
        if maps.listen.get(&key)?.is_none_or(|count| count == 0) {
            maps.seeded.set(&key, &1)?;
        }
    }
    Ok(())
}

fn keys_of(listener: &sock_diag::Listener, slot: u32) -> Vec<u64> {
    if [PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE].contains(&listener.port) {
        return Vec::new();
    }
    let mut families = listen_families(&Address::from(listener.address), listener.address.is_ipv6());
    if listener.address.is_ipv6() && listener.one_family {
        families.v4 = false;
    }
    let mut keys = Vec::new();
    if families.v4 {
        keys.push(listen_key(slot, false, listener.port));
    }
    if families.v6 {
        keys.push(listen_key(slot, true, listener.port));
    }
    keys
}

/// Forgets all ports of a pod.
pub(super) fn forget(maps: &Maps, slot: u32) -> std::io::Result<()> {
    for table in [&maps.listen, &maps.seeded] {
        for (key, _) in table.entries()? {
            if split_listen_key(key).0 == slot {
                table.remove(&key)?;
            }
        }
    }
    Ok(())
}

/// The ports somebody in the pod listens on.
pub(super) fn ports(maps: &Maps, slot: u32) -> std::io::Result<Vec<u16>> {
    let counted = maps.listen.entries()?.into_iter().filter(|(_, count)| *count > 0);
    let mut ports: Vec<u16> = counted
        .chain(maps.seeded.entries()?)
        .map(|(key, _)| split_listen_key(key))
        .filter(|(of, _, _)| *of == slot)
        .map(|(_, _, port)| port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}
