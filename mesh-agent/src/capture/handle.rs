//! What the data plane may ask of capture, from any thread and without a lock on the way of a connection.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::{Address, Counter, Flow, FlowKey, Setting, SocketRole};
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};

use super::error::CaptureError;
use super::host::Kernel;
use super::listeners;
use super::maps::Maps;
use super::verdicts::Installed;
use crate::net::netns::NetNs;
use crate::net::sock_diag;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) maps: Maps,
    pub(super) dir: PathBuf,
    pub(super) kernel: Kernel,
    pub(super) verdicts: Mutex<Installed>,
    pub(super) pods: RwLock<HashMap<u64, LivePod>>,
}

impl Shared {
    pub(super) fn new(maps: Maps, dir: PathBuf, kernel: Kernel) -> Self {
        Self { maps, dir, kernel, verdicts: Mutex::default(), pods: RwLock::default() }
    }
}

/// What the handle needs to know of an enrolled pod.
#[derive(Clone, Debug)]
pub(super) struct LivePod {
    pub(super) slot: u32,
    pub(super) netns: Arc<NetNs>,
}

/// A live flow that bypasses the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFlow {
    /// Cookie of the opener's network namespace: which pod it is.
    pub opener: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// On the monotonic clock.
    pub opened: Duration,
    socket_cookie: u64,
}

/// The namespaces at a flow's ends; none for an end whose pod is not known any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowEnds<'a> {
    pub opener: Option<&'a NetNs>,
    pub server: Option<&'a NetNs>,
}

/// Who opened a connection that the agent has accepted, where the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Cookie of the opener's network namespace.
    pub cookie: u64,
    pub role: OpenerRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenerRole {
    /// An application whose connect was authorised as a bypass (and no longer is, or it would not be here).
    Application,
    /// The agent itself, on the way to an application: accepting it would be a loop.
    Leg,
}

/// Cheap to clone, for workers. See [`super::Capture::handle`].
#[derive(Clone, Debug)]
pub struct CaptureHandle {
    shared: Arc<Shared>,
}

impl CaptureHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Tells the kernel that this socket is the agent's own: its connect is never captured. Before connecting.
    pub fn mark_own(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.shared.maps.roles.set(&socket.as_raw_fd(), &listeners::role(SocketRole::OWN))
    }

    /// Tells the kernel that this socket is a leg to an application of the namespace it was made in: steered
    /// past the agent. Before connecting.
    pub fn mark_leg(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.shared.maps.roles.set(&socket.as_raw_fd(), &listeners::role(SocketRole::LEG))
    }

    /// A sign of life. Needed well within `mesh_common::HEARTBEAT_MAX_NS`, or pods take the agent for dead.
    pub fn heartbeat(&self) -> Result<(), CaptureError> {
        let access = |source| CaptureError::MapAccess { map: "CONFIG", source };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| access(errno.into()))?;
        let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        self.shared.maps.set(Setting::Heartbeat, now).map_err(access)
    }

    /// Tells the kernel which namespace is the node's own, where its kubelet lives.
    pub(super) fn set_node_netns(&self, cookie: u64) -> Result<(), CaptureError> {
        let access = |source| CaptureError::MapAccess { map: "CONFIG", source };
        self.shared.maps.set(Setting::NodeNetns, cookie).map_err(access)
    }

    /// The ports somebody in the pod listens on, beyond its loopback.
    pub fn listening(&self, cookie: u64) -> Result<Vec<u16>, CaptureError> {
        let Some(pod) = self.pod(cookie) else { return Ok(Vec::new()) };
        listeners::ports(&self.shared.maps, pod.slot)
            .map_err(|source| CaptureError::MapAccess { map: "LISTEN", source })
    }

    /// Compares the table of listening ports with the sockets that exist. For when an application refused a
    /// leg: it may have closed a listener from before the enrolment, which the kernel does not report.
    pub fn refresh_listening(&self, cookie: u64) -> Result<(), CaptureError> {
        let Some(pod) = self.pod(cookie) else { return Ok(()) };
        listeners::refresh(&self.shared.maps, &pod.netns, pod.slot)
            .map_err(|source| CaptureError::MapAccess { map: "LISTEN", source })
    }

    fn pod(&self, cookie: u64) -> Option<LivePod> {
        self.shared.pods.read().get(&cookie).cloned()
    }

    /// Every live flow that bypasses the agent.
    pub fn flows(&self) -> Result<Vec<LiveFlow>, CaptureError> {
        let entries = self
            .shared
            .maps
            .flows
            .entries()
            .map_err(|source| CaptureError::MapAccess { map: "FLOWS", source })?;
        Ok(entries.iter().map(|(key, flow)| LiveFlow::new(key, flow)).collect())
    }

    /// How many legs to applications, and probes, the kernel knows; for tests and metrics.
    pub fn legs(&self) -> Result<usize, CaptureError> {
        let entries = self
            .shared
            .maps
            .legs
            .entries()
            .map_err(|source| CaptureError::MapAccess { map: "LEGS", source })?;
        Ok(entries.len())
    }

    /// Ends a bypassed flow at both ends, in the namespaces of its pods as far as they are known, and forgets it.
    /// Each end is named by itself: when a pod is taken away, the reset of the one may never reach the other.
    /// Returns whether the flow still was.
    pub fn destroy(&self, flow: &LiveFlow, ends: FlowEnds<'_>) -> io::Result<bool> {
        let flows = &self.shared.maps.flows;
        let key = FlowKey {
            local: Address::from(flow.local.ip()),
            remote: Address::from(flow.remote.ip()),
            local_port: flow.local.port(),
            remote_port: flow.remote.port(),
        };
        // Another flow may have the same addresses by now: at the server nothing else tells them apart.
        if flows.get(&key)?.is_none_or(|now| now.socket_cookie != flow.socket_cookie) {
            return Ok(false);
        }
        if let Some(netns) = ends.opener {
            netns.run(|| sock_diag::destroy(flow.local, flow.remote, flow.socket_cookie))??;
        }
        if let Some(netns) = ends.server {
            let end = || match sock_diag::connection(flow.remote, flow.local)? {
                Some(cookie) => sock_diag::destroy(flow.remote, flow.local, cookie),
                None => Ok(false),
            };
            netns.run(end)??;
        }
        // The kernel forgets a flow when its opener's socket ends: not for one that it could not be told to end.
        flows.forget(&key, flow.socket_cookie)?;
        Ok(true)
    }

    /// Who opened the connection that was accepted from `peer` at `local`, if it was a pod of this node on an
    /// authorised flow, or the agent. Told by the kernel's own record: an address can be forged, this cannot.
    pub fn opener(&self, peer: SocketAddr, local: SocketAddr) -> io::Result<Option<Opener>> {
        let key = FlowKey {
            local: Address::from(peer.ip()),
            remote: Address::from(local.ip()),
            local_port: peer.port(),
            remote_port: local.port(),
        };
        let maps = &self.shared.maps;
        if let Some(flow) = maps.flows.get(&key)? {
            return Ok(Some(Opener { cookie: flow.netns_cookie, role: OpenerRole::Application }));
        }
        let leg = maps.legs.get(&key)?;
        Ok(leg.map(|leg| Opener { cookie: leg.netns_cookie, role: OpenerRole::Leg }))
    }

    /// The programs' counters by name.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        let access = |source| CaptureError::MapAccess { map: "COUNTERS", source };
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| access(source))?;
        let read = |(counter, name)| Ok((name, self.shared.maps.counter(counter, cpus).map_err(access)?));
        Counter::ALL.into_iter().map(read).collect()
    }
}

impl LiveFlow {
    /// How long the flow has lived.
    pub fn age(&self) -> Duration {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        now.saturating_sub(self.opened)
    }

    fn new(key: &FlowKey, flow: &Flow) -> Self {
        Self {
            opener: flow.netns_cookie,
            local: SocketAddr::new(key.local.to_ip(), key.local_port),
            remote: SocketAddr::new(key.remote.to_ip(), key.remote_port),
            opened: Duration::from_nanos(flow.opened_ns),
            socket_cookie: flow.socket_cookie,
        }
    }
}
