//! What a node must offer before anything is loaded: each lack has one sentence, exit code 1, and leaves nothing.
//! The lack is made in a mount namespace of the scenario's own, so that the machine keeps what it has.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use mesh_tests::Lab;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::start::{refused, run, with_folders};

const BTF_DIR: &str = "/sys/kernel/btf";
const BPFFS: &str = "/sys/fs/bpf";

/// Does `work` on a thread whose mounts are its own; processes started there have the same.
fn with_own_mounts<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace; the lab needs root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context("cannot keep mounts private")?;
        work()
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Where file systems of a type are mounted, the last first.
fn mounts_of(kind: &str) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/thread-self/mounts")?;
    let path = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == kind).then(|| PathBuf::from(path))
    };
    Ok(text.lines().rev().filter_map(path).collect())
}

fn unmount_all(kind: &str) -> Result<Vec<PathBuf>> {
    let found = mounts_of(kind)?;
    for path in &found {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    ensure!(mounts_of(kind)?.is_empty(), "a {kind} is left");
    Ok(found)
}

fn bind(from: &Path, over: &Path) -> Result<()> {
    mount(Some(from), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount over {}", over.display()))
}

/// A kernel without type information cannot load the programs.
#[test]
fn without_btf_it_names_the_file_and_the_kernel_option() -> Result<()> {
    let lab = Lab::new("no BTF", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let empty = lab.dir().join("empty");
    fs::create_dir(&empty)?;
    let output = with_own_mounts(|| {
        bind(&empty, Path::new(BTF_DIR))?;
        run(&lab, "no-btf", with_folders(&lab, &bpf_dir))
    })?;
    refused(&output, 1, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"])?;
    ensure!(!bpf_dir.exists(), "a refused start left pins");
    Ok(())
}

/// A kernel that says it is older than what the programs need. It says so of itself under the personality that old
/// programs are run with.
#[test]
fn on_an_old_kernel_it_names_both_versions() -> Result<()> {
    let lab = Lab::new("old kernel", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let output = run(&lab, "old-kernel", |command| {
        with_folders(&lab, &bpf_dir)(command);
        let mut old = Command::new("setarch");
        old.arg("--uname-2.6").arg(command.get_program()).args(command.get_args());
        old.env("NODEMESH_LAB", lab.name());
        *command = old;
    })?;
    refused(&output, 1, &["this kernel is 2.6.", "5.15", "upgrade"])?;
    ensure!(!bpf_dir.exists(), "a refused start left pins");
    Ok(())
}

/// Where only cgroup v1 is mounted, or nothing at all.
#[test]
fn without_cgroup_v2_it_says_how_to_mount_it() -> Result<()> {
    let lab = Lab::new("no cgroup v2", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let output = with_own_mounts(|| {
        unmount_all("cgroup2")?;
        run(&lab, "no-cgroup", with_folders(&lab, &bpf_dir))
    })?;
    refused(&output, 1, &["no cgroup v2", "mount -t cgroup2"])?;
    ensure!(!bpf_dir.exists(), "a refused start left pins");
    Ok(())
}

/// A group of the test's own, removed at its end.
struct Group(PathBuf);

impl Group {
    fn new(lab: &Lab) -> Result<Self> {
        let root = mounts_of("cgroup2")?.pop().context("this machine has no cgroup v2")?;
        let path = root.join(format!("{}-group", lab.name()));
        fs::create_dir(&path).context("cannot make a cgroup")?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} is left: {error}", self.0.display());
        }
    }
}

/// In a container with a cgroup namespace the agent would see its own group only, and capture nobody.
#[test]
fn with_a_part_of_the_cgroup_hierarchy_it_wants_the_whole() -> Result<()> {
    let lab = Lab::new("part of the cgroups", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let group = Group::new(&lab)?;
    let at = lab.dir().join("cgroup");
    fs::create_dir(&at)?;
    let output = with_own_mounts(|| {
        let all = mounts_of("cgroup2")?;
        bind(&group.0, &at)?;
        for path in all {
            umount2(&path, MntFlags::MNT_DETACH)?;
        }
        run(&lab, "part", with_folders(&lab, &bpf_dir))
    })?;
    refused(&output, 1, &[&at.display().to_string(), "not the root", "/sys/fs/cgroup"])?;
    ensure!(!bpf_dir.exists(), "a refused start left pins");
    Ok(())
}

/// The BPF file system is mounted by the agent where that is all that is missing.
#[test]
fn without_the_bpf_file_system_it_mounts_it() -> Result<()> {
    let lab = Lab::new("no bpffs", &["node-a"])?;
    lab.manifests().namespace("shop", true)?;
    with_own_mounts(|| {
        unmount_all("bpf")?;
        let agent = lab.agent("node-a")?;
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.pid()))?;
        ensure!(
            mounts.lines().any(|line| line.contains(" /sys/fs/bpf bpf ") && line.contains("mode=700")),
            "not mounted:\n{mounts}"
        );
        ensure!(agent.pins() > 0, "nothing is pinned there");
        ensure!(agent.stop()?.success(), "it did not end well");
        ensure!(!lab.bpf_dir("node-a").exists(), "it left pins");
        Ok(())
    })
}

/// Where it cannot be mounted, the agent says so with the command to try.
#[test]
fn where_the_bpf_file_system_cannot_be_mounted_it_says_so() -> Result<()> {
    let lab = Lab::new("no place for bpffs", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let cgroup = lab.dir().join("cgroup");
    fs::create_dir(&cgroup)?;
    let output = with_own_mounts(|| {
        // An empty /sys/fs has neither, and the cgroups are found wherever they are.
        mount(Some("none"), "/sys/fs", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        mount(Some("none"), &cgroup, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        run(&lab, "no-place", with_folders(&lab, &bpf_dir))
    })?;
    refused(&output, 1, &[BPFFS, "mount -t bpf bpf /sys/fs/bpf"])
}

/// A folder that is on no BPF file system is not used, whatever is in it.
#[test]
fn a_folder_elsewhere_is_refused() -> Result<()> {
    let lab = Lab::new("no bpf folder", &["node-a"])?;
    let elsewhere = lab.dir().join("pins");
    let output = run(&lab, "elsewhere", with_folders(&lab, &elsewhere))?;
    refused(&output, 1, &[&elsewhere.display().to_string(), "below /sys/fs/bpf"])?;
    ensure!(!elsewhere.exists(), "it was made");
    Ok(())
}
