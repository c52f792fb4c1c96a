//! What can keep capture from working, each with its remedy.

use std::io;
use std::path::PathBuf;

use crate::model::{Limit, WorkloadId};
use crate::net::route::Family;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "capture needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run the agent as root, or its container with these capabilities"
    )]
    NotRoot,
    #[error("this kernel has no BTF ({path} is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf { path: &'static str },
    #[error("this kernel is {found}, capture needs {needed} or newer: upgrade the node's kernel")]
    KernelTooOld { found: String, needed: &'static str },
    #[error(
        "no cgroup v2 hierarchy is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroupV2,
    #[error(
        "{path} is not the root of a cgroup v2 hierarchy: give the agent the node's own /sys/fs/cgroup and its cgroup namespace (hostPath, no private cgroup namespace), and in a node that is a container itself hostPID and CAP_SYS_PTRACE"
    )]
    NotCgroupRoot { path: PathBuf },
    #[error(
        "cannot mount the BPF file system at {path}: {source}; run `mount -t bpf bpf {path}` on the node"
    )]
    MountBpffs { path: PathBuf, source: io::Error },
    #[error("{path} is not on a BPF file system: choose a `--bpf-dir` below /sys/fs/bpf")]
    NotBpffs { path: PathBuf },
    #[error("another agent uses {path}: stop it, or give this one its own `--bpf-dir`")]
    Busy { path: PathBuf },
    #[error(
        "the agent that answers on the admin socket does not use {path}: start its successor with the same `--bpf-dir`, or this one with another `--admin-socket`"
    )]
    NotThePredecessors { path: PathBuf },
    #[error("{path}: {source}")]
    Path { path: PathBuf, source: io::Error },
    #[error("the kernel programs could not be loaded: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("the kernel program {program} is missing from the object: run `cargo xtask build-ebpf`")]
    NoProgram { program: &'static str },
    #[error("the kernel refused the program {program}: {source}")]
    Program { program: &'static str, source: aya::programs::ProgramError },
    #[error("{program} cannot be attached to {target}: {source}")]
    Attach { program: &'static str, target: String, source: io::Error },
    #[error(
        "{program} cannot be attached to {target}: a program there allows no other beside it; find it with `bpftool cgroup tree` and detach it"
    )]
    ConflictCgroup { program: &'static str, target: PathBuf },
    #[error(
        "the namespace of {workload} already has a socket lookup program ({programs}): another agent has enrolled the pod, or something else steers its sockets; see `bpftool net list`"
    )]
    ConflictNetns { workload: WorkloadId, programs: String },
    #[error("the map {map} at {path} cannot be used: {source}")]
    Map { map: &'static str, path: PathBuf, source: io::Error },
    #[error("reading or writing the map {map}: {source}")]
    MapAccess { map: &'static str, source: io::Error },
    #[error("the network namespace of {workload} ({path}) cannot be entered: {source}")]
    Netns { workload: WorkloadId, path: PathBuf, source: io::Error },
    #[error(
        "{workload} lives in the agent's own network namespace: pods with hostNetwork cannot be enrolled"
    )]
    OwnNetns { workload: WorkloadId },
    #[error("{workload} is enrolled already")]
    Enrolled { workload: WorkloadId },
    #[error("{workload} has the same network namespace as {other}, which is enrolled already")]
    SharedNetns { workload: WorkloadId, other: WorkloadId },
    #[error("{workload} is not enrolled")]
    Unknown { workload: WorkloadId },
    #[error("{workload} has no address: status.podIPs is empty")]
    NoAddress { workload: WorkloadId },
    #[error("{workload} is one pod too many: a node holds {limit}")]
    TooManyPods { workload: WorkloadId, limit: u32 },
    #[error("port {port} is taken inside {workload}: the mesh needs it, let the application use another")]
    PortTaken { workload: WorkloadId, port: u16 },
    #[error("cannot listen on port {port} inside {workload}: {source}")]
    Listen { workload: WorkloadId, port: u16, source: io::Error },
    #[error("the return route ({family:?}) in the namespace of {workload}: {source}")]
    Route { workload: WorkloadId, family: Family, source: io::Error },
    #[error("the network settings of {workload}: {source}")]
    Settings { workload: WorkloadId, source: io::Error },
    #[error("the sockets of {workload} cannot be listed: {source}")]
    Sockets { workload: WorkloadId, source: io::Error },
}

impl CaptureError {
    /// The limit that was hit, where it was one.
    pub fn limit(&self) -> Option<Limit> {
        matches!(self, Self::TooManyPods { .. }).then_some(Limit::Pods)
    }
}
