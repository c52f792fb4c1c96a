//! What a lab or a cluster leaves in the machine, and its removal: at its end, or by the next one after a kill.
//!
//! Each has a folder that names its owner by process id and start time. Everything else of it (namespaces, pins,
//! processes, cgroups, a second folder for bulk) carries its name, so that the folder alone is enough to remove it all.
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::process::{end_all, start_time};
use crate::{cgroups, netns};

/// Folders of all labs.
const LABS: &str = "/run/nodemesh-lab";
/// What clusters keep on a disk: images and layers are too much for a `/run` that is memory, and overlayfs wants a
/// plain file system below it.
const BULK: &str = "/var/lib/nodemesh-lab";
/// Pin folders of all labs' agents begin like this.
pub(crate) const PINS_PREFIX: &str = "/sys/fs/bpf/nodemesh-lab-";

static SWEPT: Once = Once::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The claim of one lab on its name.
pub(crate) struct Remains {
    name: String,
    cleared: bool,
}

impl Remains {
    /// A name that no other lab has, with a folder that says whose it is.
    pub(crate) fn claim() -> Result<Self> {
        let pid = process::id();
        let started = start_time(pid.cast_signed()).context("cannot read /proc/self")?;
        let name = format!("nm{pid}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(LABS).join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::write(dir.join("owner"), format!("{pid} {started}")).context("cannot sign the lab's folder")?;
        Ok(Self { name, cleared: false })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(LABS).join(&self.name)
    }

    /// A folder on a disk, made when it is asked for.
    pub(crate) fn bulk_dir(&self) -> Result<PathBuf> {
        let dir = Path::new(BULK).join(&self.name);
        // What is in it runs as root: nobody else may look or write.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    pub(crate) fn clear(&mut self) {
        if !self.cleared {
            self.cleared = true;
            remove(&self.name);
        }
    }
}

impl Drop for Remains {
    /// For a lab that failed while it was built.
    fn drop(&mut self) {
        self.clear();
    }
}

/// Once per process: prepares `/run/netns` and removes labs whose owner is gone.
pub(crate) fn sweep() -> Result<()> {
    let mut done = Ok(());
    SWEPT.call_once(|| done = sweep_now());
    done
}

fn sweep_now() -> Result<()> {
    fs::create_dir_all(LABS).context("cannot create /run/nodemesh-lab; the lab needs root")?;
    let lock = File::create(Path::new(LABS).join("lock")).context("cannot create the labs' lock")?;
    lock.lock().context("cannot lock the labs' folder")?;
    netns::prepare_dir()?;
    for entry in fs::read_dir(LABS).context("cannot list labs")?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.path().is_dir() && owner_is_gone(&entry.path()) {
            remove(&name);
        }
    }
    Ok(())
}

/// A folder without an owner's line is being made at this moment, unless its maker died just there.
fn owner_is_gone(dir: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(dir.join("owner")) else { return false };
    let mut fields = owner.split(' ');
    let (Some(pid), Some(started)) = (fields.next(), fields.next()) else { return false };
    match (pid.parse::<i32>(), started.parse::<u64>()) {
        (Ok(pid), Ok(started)) => start_time(pid) != Some(started),
        _ => false,
    }
}

/// Everything of this lab: processes first, because they hold the rest. What cannot be removed is said, not hidden.
fn remove(name: &str) {
    end_all(name);
    for dir in pin_dirs(name) {
        complain(name, &dir.display().to_string(), fs::remove_dir_all(&dir));
    }
    for namespace in netns::named(&format!("{name}-")) {
        complain(name, &namespace, netns::remove(&namespace));
    }
    for dir in cgroups::below_each_hierarchy(name) {
        complain(name, &dir.display().to_string(), cgroups::remove(&dir));
    }
    for dir in [Path::new(BULK).join(name), Path::new(LABS).join(name)] {
        complain(name, &dir.display().to_string(), fs::remove_dir_all(&dir));
    }
}

fn pin_dirs(name: &str) -> Vec<PathBuf> {
    let (Some(parent), Some(prefix)) = (Path::new(PINS_PREFIX).parent(), Path::new(PINS_PREFIX).file_name())
    else {
        return Vec::new();
    };
    let wanted = format!("{}{name}-", prefix.to_string_lossy());
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
        .map(|entry| entry.path())
        .collect()
}

fn complain(lab: &str, what: &str, done: std::io::Result<()>) {
    if let Err(error) = done
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("lab {lab}: {what} stays behind: {error}");
    }
}
