//! The maps of one agent, by name and type.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_common::{
    ABI_VERSION, Counter, Flow, FlowKey, LocalPod, PodEntry, Setting, SocketState, Verdict, VerdictKey,
};

use super::bpf;
use super::error::CaptureError;
use super::flows::FlowTable;
use super::table::Table;

/// Name of the map that carries events; read through aya's ring buffer.
pub(super) const EVENTS: &str = "EVENTS";

/// Every map that is pinned.
pub(super) const NAMES: [&str; 15] = [
    "PODS", "LOCAL", "SLOTS", "ROLES", "VERDICTS", "FLOWS", "SPILLED", "LEGS", "LISTEN", "SEEDED", "SOCKETS",
    "PROBERS", "CONFIG", "COUNTERS", EVENTS,
];

/// The map of the programs' log lines, which only an object with the feature `log` has. Pinned as well, so
/// that all instances of the steering program write into one.
pub(super) const LOGS: Option<&str> = if cfg!(feature = "ebpf-log") { Some("AYA_LOGS") } else { None };

/// Where a map or link of this ABI is pinned.
pub(super) fn pin_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{}_v{ABI_VERSION}", name.to_lowercase()))
}

/// An address as key: `mesh_common::Address` in the form aya's `Pod` knows.
type AddressKey = [u32; 4];

#[derive(Debug)]
pub(super) struct Maps {
    pub(super) pods: Table<u64, PodEntry>,
    pub(super) local: Table<AddressKey, LocalPod>,
    pub(super) slots: Table<u32, u32>,
    pub(super) roles: Table<i32, SocketState>,
    pub(super) verdicts: Table<VerdictKey, Verdict>,
    pub(super) flows: FlowTable,
    pub(super) legs: Table<FlowKey, Flow>,
    pub(super) listen: Table<u64, u64>,
    pub(super) seeded: Table<u64, u64>,
    pub(super) sockets: Table<u32, u32>,
    pub(super) probers: Table<u32, u64>,
    config: Table<u32, u64>,
    counters: Table<u32, u64>,
}

impl Maps {
    pub(super) fn open(dir: &Path) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: open(dir, "PODS")?,
            local: open(dir, "LOCAL")?,
            slots: open(dir, "SLOTS")?,
            roles: open(dir, "ROLES")?,
            verdicts: open(dir, "VERDICTS")?,
            flows: FlowTable::open(dir)?,
            legs: open(dir, "LEGS")?,
            listen: open(dir, "LISTEN")?,
            seeded: open(dir, "SEEDED")?,
            sockets: open(dir, "SOCKETS")?,
            probers: open(dir, "PROBERS")?,
            config: open(dir, "CONFIG")?,
            counters: open(dir, "COUNTERS")?,
        })
    }

    pub(super) fn setting(&self, setting: Setting) -> io::Result<u64> {
        Ok(self.config.get(&(setting as u32))?.unwrap_or(0))
    }

    pub(super) fn set(&self, setting: Setting, value: u64) -> io::Result<()> {
        self.config.set(&(setting as u32), &value)
    }

    /// A counter, summed over the CPUs.
    pub(super) fn counter(&self, counter: Counter, cpus: usize) -> io::Result<u64> {
        let mut values = vec![0; cpus];
        // SAFETY: the map is per-CPU with 8-byte values, and `cpus` the number of possible CPUs.
        unsafe { bpf::lookup_per_cpu(self.counters.as_fd(), counter as u32, &mut values) }?;
        Ok(values.iter().sum())
    }
}

/// Opens a pinned map.
pub(super) fn open<K: aya::Pod + Default, V: aya::Pod + Default>(
    dir: &Path,
    name: &'static str,
) -> Result<Table<K, V>, CaptureError> {
    let path = pin_path(dir, name);
    Table::open(&path).map_err(|source| CaptureError::Map { map: name, path, source })
}
