//! Keeps the plugin's files in place while the agent runs. Owns: the thread that watches the folder of network
//! configurations, because the network plugin's own installer writes its file anew whenever it starts. Never: takes
//! anything away; an agent that restarts leaves the plugin, which then refuses pods of the mesh until it is back.
//! Called by `agent`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::files::{self, FilesError, Placed};

/// How often the files are looked at even if nobody reported a change.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Shortest time between two looks: two installers that fight must not take a core.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// Which files are kept, and where.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The node's folder of plugins, usually `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// The node's folder of network configurations, usually `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// The program that is to be the plugin: this one.
    pub program: PathBuf,
    /// Where the plugin asks, as the node names it.
    pub socket: PathBuf,
}

/// The thread; dropping it ends the thread and leaves the files.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn start(kept: Kept) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (wake, woken) = sync_channel(1);
        let (stopped, wakes) = (Arc::clone(&stop), wake.clone());
        let thread = std::thread::Builder::new()
            .name("cni-files".to_owned())
            .spawn(move || keep(&kept, &wakes, &woken, &stopped))?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full channel means that the thread is about to look anyway.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say at its end.
            let _ended = thread.join();
        }
    }
}

fn keep(kept: &Kept, wakes: &SyncSender<()>, woken: &Receiver<()>, stop: &AtomicBool) {
    let mut watcher = None;
    let mut last = String::new();
    while !stop.load(Ordering::Acquire) {
        if watcher.is_none() {
            // The folder may not be there yet. Watched before it is read, so that no change falls in between.
            watcher = watch(kept, wakes.clone()).ok();
        }
        let (changed, said) = look(kept)
            .unwrap_or_else(|error| (false, format!("the plugin's files are not in place: {error}")));
        if changed || said != last {
            tracing::info!("cni: {said}");
            last = said;
        }
        // Time out or woken: both mean another look.
        let _woken = woken.recv_timeout(LOOK_AGAIN);
        if !stop.load(Ordering::Acquire) {
            std::thread::sleep(LOOK_MIN);
        }
    }
}

/// One look: puts what is missing. Returns whether anything was, and what there is.
fn look(kept: &Kept) -> Result<(bool, String), FilesError> {
    // The program first: a configuration that names a missing one starts no pod at all.
    files::put_program(&kept.bin_dir, &kept.program)?;
    Ok(match files::put_entry(&kept.conf_dir, &files::entry(&kept.socket))? {
        Placed::Now(path) => (true, format!("the plugin is in {}", path.display())),
        Placed::Already(path) => (false, format!("the plugin is in {}", path.display())),
        Placed::Nowhere => (
            false,
            format!(
                "no network configuration in {} has a place for the plugin; waiting for the node's network plugin",
                kept.conf_dir.display()
            ),
        ),
    })
}

fn watch(kept: &Kept, wakes: SyncSender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading makes events too, which must not wake us again.
        if event.as_ref().map_or(true, |event| !matches!(event.kind, EventKind::Access(_))) {
            // One pending wake-up says as much as many.
            let _ = wakes.try_send(());
        }
    })?;
    watcher.watch(&kept.conf_dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests;
