//! From the feeds' notes to published worlds. Owns: the batches, and the findings of all objects. Nothing is published
//! before every kind has been read once, so that nobody acts on half a cluster. Called by the source's thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::feed::Note;
use super::intake::Taken;
use super::status::KubeStatus;
use super::{Findings, SOURCE};
use crate::compile::{Diagnostic, Kind, ObjectKey};
use crate::world::{World, WorldStore};

/// Longest wait of a change for others that are published with it.
const BATCH_MAX: Duration = Duration::from_millis(10);
/// Changes that come together come closer than this.
const BATCH_GAP: Duration = Duration::from_millis(1);
/// What a look at all objects for findings between them costs, it may cost again after this many times as long: it
/// grows with the cluster, and is for people.
const LOOK_PAUSE_TIMES: u32 = 20;
/// The shortest pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Notes that are taken at once.
const NOTES_AT_ONCE: usize = 256;
/// Findings that are kept; each names an object, so that a cluster full of mistakes does not fill the memory.
const FINDINGS_MAX: usize = 1000;

pub(super) struct Publisher {
    store: Arc<WorldStore>,
    world: World,
    status: Arc<Mutex<KubeStatus>>,
    told: watch::Sender<bool>,
    findings: Findings,
    /// Between objects, as the world last found them.
    between: Vec<Diagnostic>,
    /// The world says something else than the published one.
    changed: bool,
    /// So do the findings.
    found: bool,
    /// A change since the last look may matter to the findings between objects.
    look: bool,
    /// When the next look may be.
    next_look: Instant,
    synced: bool,
}

impl Publisher {
    pub(super) fn new(
        store: Arc<WorldStore>,
        world: World,
        status: Arc<Mutex<KubeStatus>>,
        told: watch::Sender<bool>,
    ) -> Self {
        Self {
            store,
            world,
            status,
            told,
            findings: Findings::new(),
            between: Vec::new(),
            changed: false,
            found: false,
            look: true,
            next_look: Instant::now(),
            synced: false,
        }
    }

    pub(super) async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        let mut batch = Vec::with_capacity(NOTES_AT_ONCE);
        loop {
            // What has changed is in force by now.
            if self.look && self.synced && Instant::now() >= self.next_look {
                self.look_between();
                self.publish();
            }
            let came = notes.recv_many(&mut batch, NOTES_AT_ONCE);
            let count = match self.look && self.synced {
                true => timeout_at(self.next_look, came).await,
                false => Ok(came.await),
            };
            match count {
                Err(_time_to_look) => continue,
                Ok(0) => return,
                Ok(_) => {}
            }
            let end = Instant::now() + BATCH_MAX;
            loop {
                batch.drain(..).for_each(|note| self.take(note));
                let gap = end.min(Instant::now() + BATCH_GAP);
                let more = timeout_at(gap, notes.recv_many(&mut batch, NOTES_AT_ONCE)).await;
                if !more.is_ok_and(|count| count > 0) || Instant::now() >= end {
                    batch.drain(..).for_each(|note| self.take(note));
                    break;
                }
            }
            self.publish();
        }
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Object(Taken { key, change, diagnostics }) => {
                if let Some(change) = change
                    && self.world.apply(change)
                {
                    self.changed = true;
                    self.look |= matters_between(key.kind);
                }
                self.find(key, diagnostics);
            }
            Note::Listed { kind, version, objects } => {
                self.status.lock().listed(kind, version, objects);
                tracing::debug!(target: "kubernetes", kind = kind.name(), version, objects, "listed");
            }
            Note::Following { kind } => self.status.lock().following(kind, SystemTime::now()),
            Note::Absent { kind } => self.status.lock().absent(kind),
            Note::Failed { kind, problem } => {
                self.status.lock().failed_aloud(kind, problem, SystemTime::now())
            }
        }
    }

    fn find(&mut self, key: ObjectKey, diagnostics: Vec<Diagnostic>) {
        if diagnostics.is_empty() {
            self.found |= self.findings.remove(&key).is_some();
            return;
        }
        if self.findings.get(&key) == Some(&diagnostics) {
            return;
        }
        for finding in &diagnostics {
            tracing::warn!(target: "kubernetes", "{finding}");
        }
        if self.findings.len() < FINDINGS_MAX || self.findings.contains_key(&key) {
            self.findings.insert(key, diagnostics);
            self.found = true;
        }
    }

    /// Looks for findings between objects.
    fn look_between(&mut self) {
        let begun = Instant::now();
        let between = self.world.check(|_| SOURCE.to_owned());
        self.found |= between != self.between;
        self.between = between;
        self.look = false;
        self.next_look = Instant::now() + (begun.elapsed() * LOOK_PAUSE_TIMES).max(LOOK_PAUSE);
    }

    fn publish(&mut self) {
        if !self.synced {
            if !self.status.lock().is_read() {
                return;
            }
            self.changed = true;
            // The first world comes with its findings.
            self.look_between();
        }
        if std::mem::take(&mut self.found) {
            let mut all: Vec<Diagnostic> =
                self.findings.values().flatten().chain(&self.between).cloned().collect();
            all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
            self.world.set_diagnostics(all);
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            let version = self.store.publish(self.world.clone());
            // What is known of names stays with the next world.
            self.world = World::clone(&self.store.load());
            let mut status = self.status.lock();
            (status.version, status.last_load) = (version, SystemTime::now());
        }
        if !std::mem::replace(&mut self.synced, true) {
            tracing::info!(target: "kubernetes", "everything has been read");
            self.told.send_replace(true);
        }
    }
}

/// Kinds that `World::check` looks at.
fn matters_between(kind: Kind) -> bool {
    kind.is_security() || kind.is_traffic() || kind == Kind::Service
}
