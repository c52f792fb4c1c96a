//! Capture: puts pods' connections into the agent's hands. Owns: the kernel programs and their pins, which
//! pods are enrolled, the pods' listeners and return routes, the verdict cache, the table of bypassed flows.
//! Never: decides policy, moves bytes, or knows Kubernetes. Called by `agent` (enrolment, events) and, through
//! [`CaptureHandle`], by `proxy`.
//!
//! Everything is pinned in one folder and survives the agent: dropping a [`Capture`] leaves the pods in the
//! state their `fail_closed` asks for, and the next agent on the same folder takes over. Only
//! [`Capture::shutdown`] undoes it all.

use std::fs::{self, File};
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_common::SavedSettings;
use nix::fcntl::Flock;

use crate::model::WorkloadId;
use crate::net::netns::NetNs;
use crate::net::sysctl;

mod bpf;
mod enrol;
mod error;
mod events;
mod flows;
mod handle;
pub mod handover;
mod host;
mod listeners;
#[cfg(feature = "ebpf-log")]
mod log;
mod maps;
mod object;
mod podns;
mod probers;
mod table;
mod verdicts;

pub use error::CaptureError;
pub use events::{ClosedFlow, Event, Events};
pub use handle::{CaptureHandle, FlowEnds, LiveFlow, Opener, OpenerRole};
#[cfg(feature = "ebpf-log")]
pub use log::KernelLog;
pub use podns::{Namespace, PodNamespaces, Wanted};
pub use probers::{Kubelet, ProbersError, Processes};
pub use verdicts::{KernelAction, VerdictChange};

use enrol::Pods;
use handle::Shared;
use host::Kernel;
use maps::{LOGS, Maps, NAMES, pin_path};

/// How capture is set up on a node.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// Folder for pins, below a BPF file system; one agent each.
    pub bpf_dir: PathBuf,
    /// Listeners of each kind per pod, one for each data-plane worker.
    pub workers: usize,
    /// Root of the cgroup v2 hierarchy; found by itself where none is named.
    pub cgroup_root: Option<PathBuf>,
    /// The agent before is still there and is about to hand over: its hold on the folder is no conflict.
    pub succeeds: bool,
}

/// A pod to enrol.
#[derive(Clone, Debug)]
pub struct PodAttachment {
    pub id: WorkloadId,
    pub netns: Namespace,
    /// At most one address of each family is used.
    pub addresses: Vec<IpAddr>,
    /// Without a live agent: refuse (true) or let through (false).
    pub fail_closed: bool,
}

/// One data-plane worker's listeners in a pod. Non-blocking.
#[derive(Debug)]
pub struct WorkerListeners {
    pub outbound: TcpListener,
    pub inbound: TcpListener,
    pub hbone: TcpListener,
}

/// What enrolment hands to the data plane.
#[derive(Debug)]
pub struct Enrolled {
    /// The pod's name inside the kernel: cookie of its network namespace.
    pub cookie: u64,
    pub netns: Arc<NetNs>,
    pub listeners: Vec<WorkerListeners>,
}

/// The kernel side of one agent.
#[derive(Debug)]
pub struct Capture {
    config: CaptureConfig,
    kernel: Kernel,
    shared: Arc<Shared>,
    pods: Pods,
    #[cfg(feature = "ebpf-log")]
    log: Option<KernelLog>,
    /// Keeps other agents out of the folder; none while a predecessor still holds it.
    lock: Option<Flock<File>>,
    /// No agent had left anything in the folder.
    fresh: bool,
}

impl Capture {
    /// Whether this node and user can have capture at all; nothing is changed.
    pub fn check_node() -> Result<(), CaptureError> {
        host::check().map(drop)
    }

    /// Checks the node, loads the programs and attaches them; takes over what an agent before has left in
    /// the folder. No pod is captured yet.
    pub fn load(config: &CaptureConfig) -> Result<Self, CaptureError> {
        let kernel = host::check()?;
        sysctl::make_writable()
            .map_err(|source| CaptureError::Path { path: "/proc/sys/net".into(), source })?;
        let cgroup = host::cgroup_root(config.cgroup_root.as_deref())?;
        let fresh = !pin_path(&config.bpf_dir, NAMES[0]).exists();
        let lock = match host::bpf_dir(&config.bpf_dir) {
            // The agent that hands over holds its folder to its end: what nobody holds is not its folder.
            Ok(lock) if config.succeeds && fresh => {
                drop(lock);
                // Empty unless somebody else's: then it stays.
                let _kept = fs::remove_dir(&config.bpf_dir);
                return Err(CaptureError::NotThePredecessors { path: config.bpf_dir.clone() });
            }
            Ok(lock) => Some(lock),
            Err(CaptureError::Busy { .. }) if config.succeeds => None,
            Err(error) => return Err(error),
        };
        let own = NetNs::current()
            .map_err(|source| CaptureError::Path { path: "/proc/thread-self/ns/net".into(), source })?;
        let mut object = object::load(&config.bpf_dir, kernel, 0)?;
        let maps = Maps::open(&config.bpf_dir)?;
        let pods = Pods::adopt(&maps, own.cookie())?;
        let shared = Arc::new(Shared::new(maps, config.bpf_dir.clone(), kernel));
        let handle = CaptureHandle::new(Arc::clone(&shared));
        handle.heartbeat()?;
        handle.adopt_generation()?;
        handle.set_node_netns(own.cookie())?;
        attach(&mut object, &cgroup, &config.bpf_dir)?;
        Ok(Self {
            config: config.clone(),
            kernel,
            shared,
            pods,
            #[cfg(feature = "ebpf-log")]
            log: KernelLog::open(&mut object),
            lock,
            fresh,
        })
    }

    /// Whether nothing was in the folder before this agent: after a failed start nothing shall be in it either.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes note of what the predecessor has enrolled since this agent was loaded.
    pub fn adopt_late(&mut self) -> Result<(), CaptureError> {
        self.pods.adopt_late(&self.shared.maps)
    }

    /// Takes the hold on the folder that a predecessor had when this agent was loaded; harmless to repeat.
    /// Returns whether it has it; until then the predecessor may still be draining.
    pub fn claim(&mut self) -> bool {
        if self.lock.is_none() {
            self.lock = host::bpf_dir(&self.config.bpf_dir).ok();
        }
        self.lock.is_some()
    }

    /// Changes what becomes of an enrolled pod's connections while no agent lives.
    pub fn set_fail_closed(&mut self, id: &WorkloadId, fail_closed: bool) -> Result<(), CaptureError> {
        enrol::set_fail_closed(self, id, fail_closed)
    }

    /// Enrols a pod with new listeners. Its live connections are left alone.
    pub fn enrol(&mut self, pod: &PodAttachment) -> Result<Enrolled, CaptureError> {
        self.enrol_with(pod, None)
    }

    /// Enrols a pod with listeners that a predecessor has handed over, where there are any.
    pub fn enrol_with(
        &mut self,
        pod: &PodAttachment,
        listeners: Option<Vec<WorkerListeners>>,
    ) -> Result<Enrolled, CaptureError> {
        enrol::enrol(self, pod, listeners)
    }

    /// Withdraws a pod that an agent before had enrolled and that shall not be enrolled any more. Returns whether
    /// there was such a one; then it is to be released like any other.
    pub fn disown(&mut self, pod: &PodAttachment) -> Result<bool, CaptureError> {
        enrol::disown(self, pod)
    }

    /// Stops capturing for a pod, at once. What the agent relays for it goes on; once that has ended,
    /// [`Capture::release`] takes the rest away.
    pub fn withdraw(&mut self, id: &WorkloadId) -> Result<(), CaptureError> {
        enrol::withdraw(self, id)
    }

    /// Takes back route, rules and settings of a withdrawn pod. A namespace that is gone needs nothing.
    pub fn release(&mut self, id: &WorkloadId) -> Result<(), CaptureError> {
        enrol::release(self, id)
    }

    /// Forgets the pods of an agent before that have not been enrolled again: for after the first round of
    /// enrolments. Returns how many there were.
    pub fn prune(&mut self) -> Result<usize, CaptureError> {
        enrol::prune(self)
    }

    /// Pods that are enrolled, by id.
    pub fn enrolled(&self) -> Vec<WorkloadId> {
        self.pods.enrolled()
    }

    pub fn handle(&self) -> CaptureHandle {
        CaptureHandle::new(Arc::clone(&self.shared))
    }

    /// What the kernel programs report. One reader; must be called inside a tokio runtime.
    pub fn events(&self) -> Result<Events, CaptureError> {
        Events::open(self.handle())
    }

    /// The lines of the kernel programs, once; none where they were built without their feature `log`.
    #[cfg(feature = "ebpf-log")]
    pub fn kernel_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// Undoes everything: pods, programs, maps, pins. Goes on past errors and returns the first.
    pub fn shutdown(mut self) -> Result<(), CaptureError> {
        let mut result = Ok(());
        let mut keep_first = |step: Result<(), CaptureError>| {
            if result.is_ok() {
                result = step;
            }
        };
        for id in self.pods.all() {
            if self.pods.is_enrolled(&id) {
                keep_first(self.withdraw(&id));
            }
            keep_first(self.release(&id));
        }
        keep_first(self.prune().map(drop));
        for (_, pin, _) in object::CGROUP_PROGRAMS {
            keep_first(object::detach(&pin_path(&self.config.bpf_dir, pin)));
        }
        for name in NAMES.into_iter().chain(LOGS) {
            keep_first(object::unpin(&pin_path(&self.config.bpf_dir, name)));
        }
        let path = self.config.bpf_dir.clone();
        keep_first(fs::remove_dir(&path).map_err(|source| CaptureError::Path { path, source }));
        result
    }
}

/// Loads the cgroup programs and attaches them to a group.
fn attach(object: &mut aya::Ebpf, cgroup: &Path, bpf_dir: &Path) -> Result<(), CaptureError> {
    let target =
        File::open(cgroup).map_err(|source| CaptureError::Path { path: cgroup.to_path_buf(), source })?;
    for (program, pin, kind) in object::CGROUP_PROGRAMS {
        let loaded = object::load_program(object, program)?;
        object::attach(&loaded, target.as_fd(), kind, &pin_path(bpf_dir, pin)).map_err(|source| {
            match source.raw_os_error() {
                // As root, and with the program loaded: somebody holds the group exclusively.
                Some(libc::EPERM) => CaptureError::ConflictCgroup { program, target: cgroup.to_path_buf() },
                _ => CaptureError::Attach { program, target: cgroup.display().to_string(), source },
            }
        })?;
    }
    Ok(())
}

/// What is remembered of a pod while it is enrolled or being withdrawn.
#[derive(Debug)]
struct Record {
    slot: u32,
    cookie: u64,
    netns: Arc<NetNs>,
    addresses: Vec<IpAddr>,
    saved: SavedSettings,
    enrolled: bool,
}

#[cfg(test)]
mod tests;
