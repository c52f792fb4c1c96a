//! The kubelet of this node, whose connections into pods are probes. Owns: finding its process, and the kernel's list
//! of probers. Never: trusts a name or an address alone. Called by `agent`.
//!
//! A process is the kubelet if its program has a kubelet's name **and** it shares the mount, PID and user namespaces
//! of the node's first process and the network namespace of the agent. A container has a mount namespace of its own,
//! also with host network and host PID; one that can leave it is root on the node anyway.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use mesh_common::Setting;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::CaptureError;
use super::handle::CaptureHandle;

/// Programs that are a kubelet, or have one inside (k3s, MicroK8s, older OpenShift).
const KUBELETS: [&str; 4] = ["kubelet", "k3s", "kubelite", "hyperkube"];

/// The name that the kernel shows as a process's own is cut to this, bytes.
const COMM_MAX_BYTES: usize = 15;
/// The initial PID namespace (`PROC_PID_INIT_INO`).
const INITIAL_PIDNS_INODE: u64 = 0xEFFF_FFFC;
/// Bit of the flags in `stat` (the ninth field) that threads of the kernel have.
const PF_KTHREAD: u32 = 0x0020_0000;
/// The namespaces that a process of the node itself has in common with the node's first process.
const SHARED_WITH_INIT: [&str; 3] = ["mnt", "pid", "user"];

/// Where this node's processes are seen.
#[derive(Clone, Debug)]
pub struct Processes {
    proc_dir: PathBuf,
    /// A process that lives in the node's own namespaces.
    anchor: u32,
    /// Device (as the kernel numbers it) and inode of the PID namespace that the folder shows.
    pidns: (u64, u64),
    /// Device and inode of the node's network namespace.
    netns: (u64, u64),
}

/// Why no kubelet can be recognised on this node.
#[derive(Debug, thiserror::Error)]
pub enum ProbersError {
    #[error("proc-dir: {path}: {source}; name the node's own /proc, and let the agent's pod have hostPID")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "proc-dir: {path} shows other processes than the agent's own number space; let the agent's pod have hostPID"
    )]
    OtherNumbers { path: PathBuf },
    #[error(
        "this kernel cannot tell the programs a process's number below the initial PID namespace (that needs 6.10): \
         run the agent in the node's initial PID namespace, or upgrade"
    )]
    Nested,
}

/// A kubelet that lives; it stays this one process, whatever becomes of its number.
#[derive(Debug)]
pub struct Kubelet {
    pub pid: u32,
    /// Clock ticks since boot.
    started: u64,
    handle: OwnedFd,
}

impl Kubelet {
    /// Completes when the process has ended. Must be called inside a tokio runtime.
    pub async fn ended(self) -> io::Result<()> {
        // SAFETY: the descriptor is the future's own and stays open until it is taken out of the reactor.
        let handle = unsafe { AsyncFd::register_with_interest(self.handle, Interest::READABLE) };
        let _ended = handle.map_err(io::Error::from)?.readable().await?;
        Ok(())
    }
}

impl Processes {
    /// Makes sure that the numbers seen in the folder are the ones the kernel programs will see. Must be called in the
    /// node's network namespace, which is remembered: threads of the agent visit pods', and `/proc/self/ns/net` is then
    /// the pod's.
    pub fn new(proc_dir: &Path, has_namespaced_pid: bool) -> Result<Self, ProbersError> {
        let pidns = |path: PathBuf| -> Result<(u64, u64), ProbersError> {
            let found = fs::metadata(&path).map_err(|source| ProbersError::Unreadable { path, source })?;
            // A device number as the kernel keeps it, not as `stat` packs it.
            let device = found.st_dev();
            let device = u64::from(libc::major(device)) << 20 | u64::from(libc::minor(device));
            Ok((device, found.st_ino()))
        };
        let anchor = anchor(proc_dir);
        let shown = pidns(proc_dir.join(anchor.to_string()).join("ns/pid"))?;
        if shown != pidns("/proc/self/ns/pid".into())? {
            return Err(ProbersError::OtherNumbers { path: proc_dir.to_owned() });
        }
        if !has_namespaced_pid && shown.1 != INITIAL_PIDNS_INODE {
            return Err(ProbersError::Nested);
        }
        let netns = PathBuf::from("/proc/thread-self/ns/net");
        let Some(netns) = namespace(&netns) else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(ProbersError::Unreadable { path: netns, source });
        };
        Ok(Self { proc_dir: proc_dir.to_owned(), anchor, pidns: shown, netns })
    }

    /// The kubelets among the node's processes. Reads a small file for each process: not for the control loop.
    pub fn kubelets(&self) -> io::Result<Vec<Kubelet>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.proc_dir)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            if self.has_name(pid)
                && let Some(kubelet) = self.open(pid)
            {
                found.push(kubelet);
            }
        }
        Ok(found)
    }

    /// Whether the process looks like a kubelet at the first glance, which is all that most ever get.
    fn has_name(&self, pid: u32) -> bool {
        let comm = fs::read_to_string(self.of(pid, "comm")).unwrap_or_default();
        KUBELETS.iter().any(|name| comm.trim_end().starts_with(&name[..name.len().min(COMM_MAX_BYTES)]))
    }

    fn open(&self, pid: u32) -> Option<Kubelet> {
        let handle = pidfd(pid).ok()?;
        let started = start_time(&fs::read_to_string(self.of(pid, "stat")).ok()?)?;
        // Looked at after the handle was opened: should the number have changed hands before, this is the new one's.
        let is_kubelet = self.is_kubelet(pid) && is_alive(handle.as_fd());
        is_kubelet.then_some(Kubelet { pid, started, handle })
    }

    fn is_kubelet(&self, pid: u32) -> bool {
        let program = fs::read_link(self.of(pid, "exe")).unwrap_or_default();
        let program = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // An upgrade replaces the file under the running process.
        let program = program.strip_suffix(" (deleted)").unwrap_or(program);
        KUBELETS.contains(&program)
            && SHARED_WITH_INIT.iter().all(|kind| {
                let of = |pid| namespace(&self.of(pid, &format!("ns/{kind}")));
                of(pid).is_some() && of(pid) == of(self.anchor)
            })
            && namespace(&self.of(pid, "ns/net")) == Some(self.netns)
    }

    fn of(&self, pid: u32, what: &str) -> PathBuf {
        self.proc_dir.join(pid.to_string()).join(what)
    }
}

impl CaptureHandle {
    /// Where the node's processes are seen, for [`Self::set_probers`].
    pub fn processes(&self, proc_dir: &Path) -> Result<Processes, ProbersError> {
        Processes::new(proc_dir, self.shared().kernel.has_namespaced_pid)
    }

    /// Makes these, and no others, the processes whose connections into pods are probes.
    pub fn set_probers(&self, processes: &Processes, kubelets: &[Kubelet]) -> Result<(), CaptureError> {
        let access = |map| move |source| CaptureError::MapAccess { map, source };
        let maps = &self.shared().maps;
        let (device, inode) = processes.pidns;
        maps.set(Setting::PidNsDevice, device).map_err(access("CONFIG"))?;
        maps.set(Setting::PidNsInode, inode).map_err(access("CONFIG"))?;
        for (pid, started) in maps.probers.entries().map_err(access("PROBERS"))? {
            if !kubelets.iter().any(|kubelet| kubelet.pid == pid && kubelet.started == started) {
                maps.probers.remove(&pid).map_err(access("PROBERS"))?;
            }
        }
        for kubelet in kubelets.iter().take(mesh_common::PROBERS_MAX as usize) {
            maps.probers.set(&kubelet.pid, &kubelet.started).map_err(access("PROBERS"))?;
        }
        Ok(())
    }
}

/// The node's first process; or, where a security module hides that from everybody, the first thread of the kernel,
/// which lives in the initial namespaces and in no others.
fn anchor(proc_dir: &Path) -> u32 {
    let hidden = fs::metadata(proc_dir.join("1/ns/mnt"))
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let stat = fs::read_to_string(proc_dir.join("2/stat")).unwrap_or_default();
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
    let is_kernel_thread = flags.is_some_and(|flags| flags & PF_KTHREAD != 0);
    if hidden && is_kernel_thread { 2 } else { 1 }
}

/// Device and inode.
fn namespace(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.st_dev(), found.st_ino()))
}

/// When a process began, from the text of its `stat`: the 22nd field. The second is its name, which may hold anything
/// but ends with the last parenthesis.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::O_NONBLOCK) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_alive(handle: BorrowedFd<'_>) -> bool {
    let mut wanted = libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live element, as the count says; no waiting.
    unsafe { libc::poll(&raw mut wanted, 1, 0) == 0 }
}

#[cfg(test)]
mod tests;
