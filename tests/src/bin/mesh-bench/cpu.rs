//! Who used the machine's processors during a measurement: we (client, servers, proxies), or others.
use std::fs;

use anyhow::{Context, Result};
use mesh_tests::leaks;

/// Clock ticks per second in `/proc`: fixed in Linux's user interface.
const TICKS: f64 = 100.0;

pub(crate) struct Meter {
    pids: Vec<i32>,
    proxies: Vec<i32>,
    own: u64,
    proxies_own: u64,
    machine: Machine,
}

/// CPU seconds of ours, and the share of the machine that others took.
pub(crate) struct Used {
    pub(crate) own: f64,
    /// The proxies' part of it.
    pub(crate) proxies: f64,
    pub(crate) foreign: f64,
    /// CPU seconds of the whole machine, whoever they belong to.
    pub(crate) machine: f64,
}

struct Machine {
    /// Without interrupts.
    busy: u64,
    interrupts: u64,
    all: u64,
}

impl Meter {
    pub(crate) fn start(pids: Vec<i32>, proxies: Vec<i32>) -> Result<Self> {
        Ok(Self { own: ticks(&pids)?, proxies_own: ticks(&proxies)?, machine: machine()?, pids, proxies })
    }

    pub(crate) fn stop(self) -> Result<Used> {
        let own = ticks(&self.pids)?.saturating_sub(self.own);
        let proxies = ticks(&self.proxies)?.saturating_sub(self.proxies_own);
        let now = machine()?;
        let busy = now.busy.saturating_sub(self.machine.busy);
        let all = now.all.saturating_sub(self.machine.all).max(1);
        Ok(Used {
            own: own as f64 / TICKS,
            proxies: proxies as f64 / TICKS,
            foreign: busy.saturating_sub(own) as f64 / all as f64,
            machine: (busy + now.interrupts.saturating_sub(self.machine.interrupts)) as f64 / TICKS,
        })
    }
}

fn ticks(pids: &[i32]) -> Result<u64> {
    pids.iter().map(|pid| leaks::cpu_ticks(*pid)).sum()
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. Work in soft interrupts belongs
/// to whom it was done for, which nobody records: it is left out of what others took.
fn machine() -> Result<Machine> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or(0);
    Ok(Machine { busy: at(0) + at(1) + at(2) + at(7), interrupts: at(5) + at(6), all: (0..8).map(at).sum() })
}
