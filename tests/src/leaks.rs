//! Counts of what a leak would make grow.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Open file descriptors of a process.
pub fn descriptors(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))
        .with_context(|| format!("cannot look at process {pid}"))?
        .count())
}

/// What the descriptors are, for a test's message: `socket` 12, `anon_inode` 3.
pub fn descriptor_kinds(pid: i32) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in
        fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("cannot look at process {pid}"))?
    {
        let Ok(target) =
            entry.context("cannot list descriptors").and_then(|entry| Ok(fs::read_link(entry.path())?))
        else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind).to_owned();
        *kinds.entry(kind).or_insert(0) += 1;
    }
    Ok(kinds)
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: i32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most that it has been so far.
pub fn resident_peak(pid: i32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// A size in `/proc/pid/status` (proc(5)).
fn memory(pid: i32, name: &str) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read a process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a process without memory")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("not a size in kB")?;
    Ok(kilobytes * 1024)
}

/// CPU time of a process so far, in clock ticks.
pub fn cpu_ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("cannot read a process's stat")?;
    let (_, after) = stat.rsplit_once(')').context("a process without a name")?;
    let ticks: Vec<u64> =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum())
}

/// Pinned programs, links and maps below a folder; zero when the folder is gone.
pub fn pins(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { pins(&entry.path()) } else { 1 }).sum()
}
