//! Control groups of a cluster's nodes: one folder per node in every hierarchy of the machine, and their removal.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::eventually;

/// The folder of all of ours, below each hierarchy's root.
const OURS: &str = "nodemesh-lab";
/// A process that was killed leaves its group a moment later.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

/// A mounted hierarchy.
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Version 2 of the interface.
    pub(crate) unified: bool,
    /// What `mount -o` names it by: `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub(crate) controllers: String,
}

/// What the calling process sees mounted, each hierarchy once.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        // proc(5): fixed fields, optional ones, a dash, then type, source and the options of the file system.
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (Some(kind), _, Some(options)) = (after.next(), after.next(), after.next()) else { continue };
        let unified = kind == "cgroup2";
        let Some(mount) = before.split(' ').nth(4).filter(|_| unified || kind == "cgroup") else { continue };
        let own =
            options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children"));
        let controllers = if unified { String::new() } else { own.collect::<Vec<_>>().join(",") };
        if !found.iter().any(|other| other.unified == unified && other.controllers == controllers) {
            found.push(Hierarchy { mount: PathBuf::from(mount), unified, controllers });
        }
    }
    Ok(found)
}

/// Makes a folder for one node in every hierarchy; gives them all.
pub(crate) fn create(cluster: &str, node: &str) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.mount.clone();
        for part in [OURS, cluster, node] {
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", dir.display())),
            }
            // Also where it was there: whoever makes it this moment, for the other node, may not have come to it yet.
            prepare(&dir)?;
        }
        made.push(dir);
    }
    Ok(made)
}

/// Version 1: nobody may join a cpuset that names no processor. Version 2: controllers are handed down one by one.
fn prepare(dir: &Path) -> Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(parent.join(setting))
            && dir.join("cgroup.clone_children").exists()
        {
            fs::write(dir.join(setting), value.trim())
                .with_context(|| format!("cannot set {}", dir.join(setting).display()))?;
        }
    }
    if let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) {
        for controller in controllers.split_whitespace() {
            // One that cannot be handed down is missed by whoever needs it, by name.
            fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")).ok();
        }
    }
    Ok(())
}

/// Where version 2 is all there is: a group that hands controllers down may hold no process, so the caller moves into
/// one below.
pub(crate) fn leave_root(root: &Path) -> Result<()> {
    let own = root.join("init");
    fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
    fs::write(own.join("cgroup.procs"), "0").context("cannot move into the node's first cgroup")?;
    let controllers =
        fs::read_to_string(root.join("cgroup.controllers")).context("cannot list controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("cannot hand down the controller {controller}"))?;
    }
    Ok(())
}

/// The folders of a cluster, as far as they are there.
pub(crate) fn below_each_hierarchy(cluster: &str) -> Vec<PathBuf> {
    let all = hierarchies().unwrap_or_default();
    let dirs = all.into_iter().map(|hierarchy| hierarchy.mount.join(OURS).join(cluster));
    dirs.filter(|dir| dir.is_dir()).collect()
}

/// Removes a group with all below it; its processes have been ended.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    let done = eventually("cgroups to empty", EMPTY_DEADLINE, || {
        last = remove_once(dir);
        Ok(last.is_ok())
    });
    // The parent of all clusters: goes with the last of them, so it may well stay.
    if let Some(parent) = dir.parent() {
        fs::remove_dir(parent).ok();
    }
    done.map_or(last, |_| Ok(()))
}

fn remove_once(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_once(&path)?;
        }
    }
    fs::remove_dir(dir)
}
