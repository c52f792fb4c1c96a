//! A directory of manifests as the source of truth: `*.yaml` and `*.yml`, several documents each.
//! Owns: the thread that watches the directory, loads it and publishes worlds. A change is in force within a second:
//! events wake the thread, and a look at every file's stamp twice a second is the net for lost ones (network file
//! systems, a full inotify queue, a swapped symbolic link above the directory).
//! Never: opinions about objects (`compile`), or what is in force of a broken file (`load`).
//! Called by the composition root; its status is shown by `admin`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

use crate::compile::{Diagnostic, MeshSettings, Severity};
use crate::model::Hits;
use crate::world::{World, WorldStore};

mod files;
mod load;
mod parse;

pub use files::{FILE_MAX_BYTES, FILES_MAX, ReadError};
use load::Loader;

/// Longest wait for a file that somebody keeps open for writing.
const WRITER_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two looks at the directory, however many events come.
const LOOK_MIN: Duration = Duration::from_millis(20);

/// How the directory is watched.
#[derive(Clone, Debug)]
pub struct DirSettings {
    /// How often every file's stamp is looked at even if nobody reported a change.
    pub rescan: Duration,
    /// Where files that are too large, and folders with too many, are counted.
    pub hits: Hits,
}

impl Default for DirSettings {
    fn default() -> Self {
        Self { rescan: Duration::from_millis(500), hits: Hits::default() }
    }
}

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error("manifests: {0}")]
    Read(#[from] ReadError),
    #[error("manifests: the watching thread did not start: {0}; raise the limit of tasks")]
    Thread(std::io::Error),
}

/// What the admin API shows of a directory.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DirStatus {
    pub directory: PathBuf,
    pub files: usize,
    pub objects: usize,
    /// Version of the world last published from here.
    pub version: u64,
    /// When the directory was last read with a result (changed or refused).
    pub last_load: SystemTime,
    /// Since when something newer than what is in force has been refused.
    pub stale_since: Option<SystemTime>,
    /// The directory itself cannot be read, or cannot be watched (then only the rescan sees changes).
    pub last_error: Option<String>,
    /// Findings of severity error, in the words of `Diagnostic`.
    pub errors: Vec<Diagnostic>,
}

/// Starts a directory source.
#[derive(Debug)]
pub struct DirSource;

/// A running source; dropping it stops the watching and leaves the world as it is.
pub struct DirHandle {
    status: Arc<Mutex<DirStatus>>,
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl DirHandle {
    pub fn status(&self) -> DirStatus {
        self.status.lock().clone()
    }
}

impl Drop for DirHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full channel means that the thread is about to look anyway.
        let _ = self.wake.try_send(());
    }
}

impl DirSource {
    /// Loads the directory, publishes what it says, and keeps following it. When this returns, the store holds the
    /// first world; broken files do not make it fail, a directory that cannot be read does.
    pub fn start(
        directory: &Path,
        settings: DirSettings,
        store: Arc<WorldStore>,
    ) -> Result<DirHandle, DirError> {
        let (wake, events) = sync_channel(1);
        let watch = Watch::new(directory, wake.clone());
        let mut loader = Loader::new(directory.to_owned(), settings.hits);
        let mesh = Arc::clone(&store.load().mesh);
        let changes = loader.start(&mesh)?;
        let status = DirStatus {
            directory: directory.to_owned(),
            files: 0,
            objects: 0,
            version: 0,
            last_load: SystemTime::now(),
            stale_since: None,
            last_error: None,
            errors: Vec::new(),
        };
        let status = Arc::new(Mutex::new(status));
        let stop = Arc::new(AtomicBool::new(false));
        let mut follower =
            Follower { loader, store, watch, status: Arc::clone(&status), rescan: settings.rescan };
        follower.publish(changes);
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || follower.run(&events, &stopped))
            .map_err(DirError::Thread)?;
        Ok(DirHandle { status, stop, wake })
    }
}

/// Everything that is wrong with a directory's manifests, worst first, without following it.
pub fn analyze(directory: &Path, mesh: MeshSettings) -> Result<Vec<Diagnostic>, DirError> {
    let mut loader = Loader::new(directory.to_owned(), Hits::default());
    let changes = loader.start(&mesh)?;
    let mut world = World::new(mesh);
    for change in changes {
        world.apply(change);
    }
    Ok(loader.diagnostics(&world))
}

/// The thread's state.
struct Follower {
    loader: Loader,
    store: Arc<WorldStore>,
    watch: Watch,
    status: Arc<Mutex<DirStatus>>,
    rescan: Duration,
}

impl Follower {
    fn run(&mut self, events: &Receiver<()>, stop: &AtomicBool) {
        let mesh = Arc::clone(&self.store.load().mesh);
        let mut wait = self.rescan;
        loop {
            // Told or not, the directory is looked at: an event is only a reason to look sooner.
            let _ = events.recv_timeout(wait);
            if stop.load(Ordering::Acquire) {
                return;
            }
            self.watch.renew();
            let refreshed = {
                let watch = &self.watch;
                self.loader.refresh(&mesh, Instant::now(), &|name| watch.writing(name))
            };
            if refreshed.looked {
                self.publish(refreshed.changes);
            }
            wait = refreshed.again.map_or(self.rescan, |again| again.min(self.rescan));
            std::thread::sleep(LOOK_MIN);
        }
    }

    /// Takes changes into a new world and publishes it, unless it would say the same.
    fn publish(&mut self, changes: Vec<crate::world::Change>) {
        let current = self.store.load();
        let mut world = (*current).clone();
        let changed = !changes.is_empty();
        changes.into_iter().for_each(|change| {
            world.apply(change);
        });
        let diagnostics = self.loader.diagnostics(&world);
        let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).cloned().collect();
        let reported = diagnostics != current.diagnostics();
        for finding in diagnostics.iter().filter(|_| reported) {
            report(finding, current.diagnostics());
        }
        let mut version = current.version;
        if changed || reported || version == 0 {
            world.set_diagnostics(diagnostics);
            version = self.store.publish(world);
        }
        let now = SystemTime::now();
        let (files, objects) = self.loader.counts();
        let mut status = self.status.lock();
        status.stale_since = self.loader.stale().then(|| status.stale_since.unwrap_or(now));
        status.last_error = self.loader.directory_error.clone().or_else(|| self.watch.error.clone());
        status.errors = errors;
        status.last_load = now;
        status.version = version;
        (status.files, status.objects) = (files, objects);
    }
}

/// Logs a finding that was not there before.
fn report(finding: &Diagnostic, before: &[Diagnostic]) {
    if before.contains(finding) {
        return;
    }
    match finding.severity {
        Severity::Error | Severity::Warning => tracing::warn!(target: "manifests", "{finding}"),
        Severity::Info => tracing::debug!(target: "manifests", "{finding}"),
    }
}

/// The inotify watch, and which files somebody is writing now.
struct Watch {
    directory: PathBuf,
    wake: SyncSender<()>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of what is watched: another directory may come under the same name.
    watched: Option<(u64, u64)>,
    error: Option<String>,
    writers: Arc<Mutex<Writers>>,
}

type Writers = BTreeMap<String, Instant>;

impl Watch {
    fn new(directory: &Path, wake: SyncSender<()>) -> Self {
        let mut watch = Self {
            directory: directory.to_owned(),
            wake,
            watcher: None,
            watched: None,
            error: None,
            writers: Arc::new(Mutex::new(Writers::new())),
        };
        watch.renew();
        watch
    }

    /// Watches the directory that now has the name, if that is another one than before.
    fn renew(&mut self) {
        let now = std::fs::metadata(&self.directory).ok().map(|found| (found.dev(), found.ino()));
        if now == self.watched && (self.watcher.is_some() || now.is_none()) {
            return;
        }
        self.watched = now;
        self.writers.lock().clear();
        let (wake, writers) = (self.wake.clone(), Arc::clone(&self.writers));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| note(event, &writers)) {
                // One pending wake-up says as much as many.
                let _ = wake.try_send(());
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        (self.watcher, self.error) = match watcher {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(format!("cannot watch {}: {error}", self.directory.display()))),
        };
    }

    fn writing(&self, name: &str) -> bool {
        self.writers.lock().get(name).is_some_and(|since| since.elapsed() < WRITER_MAX)
    }
}

/// Keeps account of files that are open for writing; true if the event is one to look for. Our own reading makes
/// events too, which must not wake us again.
fn note(event: &notify::Event, writers: &Mutex<Writers>) -> bool {
    let names = event.paths.iter().filter_map(|path| path.file_name()?.to_str());
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => {
            let mut writers = writers.lock();
            writers.extend(names.map(|name| (name.to_owned(), Instant::now())));
            true
        }
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(_) => {
            let mut writers = writers.lock();
            for name in names {
                writers.remove(name);
            }
            true
        }
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests;
