//! What the node must offer before anything is loaded, each lack with an error of its own.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::CaptureError;

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// In every group of the second version.
const CONTROLLERS: &str = "cgroup.controllers";
const BPFFS: &str = "/sys/fs/bpf";
/// The oldest kernel the programs are written for.
const KERNEL_FLOOR: (u32, u32) = (5, 15);
const KERNEL_FLOOR_TEXT: &str = "5.15";
/// `bpf_set_retval` for the connect hooks.
const SET_RETVAL_SINCE: (u32, u32) = (5, 18);
/// `bpf_get_ns_current_pid_tgid` for every kind of program.
const NAMESPACED_PID_SINCE: (u32, u32) = (6, 10);
const DIR_MODE: u32 = 0o700;

/// What was found out about the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) has_set_retval: bool,
    /// The programs can ask for a process's number in a PID namespace other than the initial one.
    pub(super) has_namespaced_pid: bool,
}

pub(super) fn check() -> Result<Kernel, CaptureError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CaptureError::NotRoot);
    }
    let uname = nix::sys::utsname::uname()
        .map_err(|errno| CaptureError::Path { path: "uname".into(), source: errno.into() })?;
    let release = uname.release().to_string_lossy().into_owned();
    let kernel = check_release(&release)?;
    if !Path::new(BTF).exists() {
        return Err(CaptureError::NoBtf { path: BTF });
    }
    Ok(kernel)
}

/// What a kernel of this release offers, if it is new enough.
fn check_release(release: &str) -> Result<Kernel, CaptureError> {
    let version = parse_release(release);
    if version < KERNEL_FLOOR {
        return Err(CaptureError::KernelTooOld { found: release.to_owned(), needed: KERNEL_FLOOR_TEXT });
    }
    Ok(Kernel {
        has_set_retval: version >= SET_RETVAL_SINCE,
        has_namespaced_pid: version >= NAMESPACED_PID_SINCE,
    })
}

/// Major and minor of a release such as `6.18.44-1-generic`; an unreadable one counts as too old.
fn parse_release(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The root of the cgroup v2 hierarchy: the one named, or where it is mounted.
pub(super) fn cgroup_root(named: Option<&Path>) -> Result<PathBuf, CaptureError> {
    let path = match named {
        Some(path) => path.to_path_buf(),
        None => find_cgroup2().ok_or(CaptureError::NoCgroupV2)?,
    };
    if !path.join(CONTROLLERS).exists() {
        return Err(CaptureError::NoCgroupV2);
    }
    if is_inner(&path) && !is_root_of_the_node(&path) {
        return Err(CaptureError::NotCgroupRoot { path });
    }
    Ok(path)
}

/// Every group but the root tells whether it is populated.
fn is_inner(path: &Path) -> bool {
    path.join("cgroup.events").exists()
}

/// Where the node itself is a container (kind, k3d, a test's cluster) its root is an inner group of the machine. It is
/// known by its first process, seen by hostPID: what that has mounted as its root. A first process of this mount
/// namespace is only a container's own, and says nothing.
fn is_root_of_the_node(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let first = Path::new("/proc/1");
    let namespaces = ["/proc/self/ns/mnt", "/proc/1/ns/mnt"].map(|path| identity(Path::new(path)));
    if namespaces[0].is_none() || namespaces[1].is_none() || namespaces[0] == namespaces[1] {
        return false;
    }
    let Ok(mounts) = fs::read_to_string(first.join("mounts")) else { return false };
    let wanted = identity(path);
    cgroup2_mounts(&mounts).any(|mount| {
        let seen = first.join("root").join(mount.strip_prefix("/").unwrap_or(&mount));
        wanted.is_some() && identity(&seen) == wanted
    })
}

fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// Where it can be reached: a mount may lie hidden under another.
fn find_cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    choose_cgroup2(&mounts, &|path| path.join(CONTROLLERS).exists(), &|path| {
        !is_inner(path) || is_root_of_the_node(path)
    })
}

/// A container has its own group mounted first, and the node's root, where it was given that, somewhere else; a mount
/// may lie hidden under another.
fn choose_cgroup2(
    mounts: &str,
    is_reachable: &dyn Fn(&Path) -> bool,
    is_root: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let found = || cgroup2_mounts(mounts).filter(|path| is_reachable(path));
    found().find(|path| is_root(path)).or_else(|| found().next())
}

/// Makes the folder for pins, mounts the BPF file system where that is what is missing, and takes the
/// folder for this process until the lock is dropped.
pub(super) fn bpf_dir(dir: &Path) -> Result<Flock<File>, CaptureError> {
    let at = |source| CaptureError::Path { path: dir.to_path_buf(), source };
    if !on_bpffs(dir) && dir.starts_with(BPFFS) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|errno| CaptureError::MountBpffs { path: BPFFS.into(), source: errno.into() })?;
    }
    if !on_bpffs(dir) {
        return Err(CaptureError::NotBpffs { path: dir.to_path_buf() });
    }
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(at)?;
    // A folder that was there before may be open to others, who could then change the maps.
    fs::set_permissions(dir, fs::Permissions::from_mode(DIR_MODE)).map_err(at)?;
    let file = File::open(dir).map_err(at)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => CaptureError::Busy { path: dir.to_path_buf() },
        errno => at(io::Error::from(errno)),
    })
}

/// Whether the folder, or the nearest one above it that exists, is on a BPF file system.
fn on_bpffs(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|path| path.exists());
    existing.and_then(|path| statfs(path).ok()).is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests;
