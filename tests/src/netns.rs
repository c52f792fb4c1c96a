//! Network namespaces: made, named under `/run/netns`, entered by a thread of their own, removed.
//!
//! A thread that entered one ends with its work: no other code ever runs in the wrong namespace. `ip netns exec` is
//! not used anywhere: it mounts a new `/sys`, which hides cgroups and pinned maps.
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where iproute2 and the manifests expect named namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace. Does not remove itself: the lab does, so that handles can be shared freely.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
    file: File,
}

impl NetNs {
    /// Makes the namespace and runs `setup` inside it on the thread that made it.
    pub fn create(name: &str, setup: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        let path = Path::new(NETNS_DIR).join(name);
        File::create_new(&path).with_context(|| format!("namespace {name} is there already"))?;
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace; the lab needs root")?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot name the namespace {name}"))?;
            setup()
        })?;
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path, file })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path a manifest names it by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does `work` inside the namespace, on a thread that ends with it. Sockets made there stay in the namespace and
    /// can be used anywhere. A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Moves the calling thread into the namespace for good; for threads that live and die there.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name))
    }

    /// A second handle for a thread of its own.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone().context("cannot duplicate a namespace handle")?;
        Ok(Self { name: self.name.clone(), path: self.path.clone(), file })
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `/run/netns` what iproute2 makes of it: a mount of its own that shares what is mounted inside. Without it,
/// the first `ip netns add` on the machine would lay a mount over our names, and unmounting them would free nothing.
pub(crate) fn prepare_dir() -> Result<()> {
    fs::create_dir_all(NETNS_DIR).context("cannot create /run/netns; the lab needs root")?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    if mount(None::<&str>, NETNS_DIR, None::<&str>, shared, None::<&str>).is_ok() {
        return Ok(());
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, bind, None::<&str>).context("cannot mount /run/netns")?;
    mount(None::<&str>, NETNS_DIR, None::<&str>, shared, None::<&str>).context("cannot share /run/netns")
}

/// Removes a name; the namespace goes when its last socket and process are gone. No error when it is not there.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    let path = Path::new(NETNS_DIR).join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file that was never mounted on.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(nix::Error::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    fs::remove_file(&path)
}

/// The names below `/run/netns` that begin like this.
pub(crate) fn named(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
