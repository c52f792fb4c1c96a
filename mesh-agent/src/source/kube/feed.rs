//! One kind of object, from its discovery to its last change. Owns: the list and the watch of the kind, and the
//! pauses between tries. Never: publishes.
//! One task each, started and ended by the source's thread in `mod`.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::core::WatchEvent;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use super::intake::{Intake, Taken, text};
use super::kinds::Watched;
use super::wire::{self, Watch, WireError};
use crate::compile::{Kind, MeshSettings};

/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause while the server is away. Whoever finds it back wakes the others.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Pause after a denial: only a person can mend it.
const DENIED_PAUSE: Duration = Duration::from_secs(10);
/// Spread of the tries once the server is back.
const BACK_SPREAD: Duration = Duration::from_millis(300);
/// A watch that ends sooner than this counts as a failure: the server must not be asked in a loop.
const WATCH_MIN: Duration = Duration::from_secs(1);
/// How often a kind that was there must be found missing before its objects are given up: a server that starts
/// does not know its custom resources at once, and a policy must not lapse for that.
const ABSENT_TIMES: u32 = 3;
/// Pause between those.
const ABSENT_PAUSE: Duration = Duration::from_secs(2);
/// Pause before a kind that has just gone is looked for.
const VANISHED_PAUSE: Duration = Duration::from_millis(500);
/// How long a server may take to list by a watch before it is asked for pages: one that ignores the wish never ends.
const STREAM_PATIENCE: Duration = Duration::from_secs(120);

/// What a feed tells the source.
#[derive(Debug)]
pub(super) enum Note {
    Object(Taken),
    /// Everything there was has been told.
    Listed {
        kind: Kind,
        version: &'static str,
        objects: usize,
    },
    /// The watch stands: what is known is current.
    Following {
        kind: Kind,
    },
    /// The server does not have this kind.
    Absent {
        kind: Kind,
    },
    Failed {
        kind: Kind,
        problem: Problem,
    },
}

/// Why a kind cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Access control says no.
    Denied { verb: &'static str, message: String },
    /// The server cannot be reached, or cannot answer.
    Unreachable(String),
    /// It answers something that makes no sense to us.
    Refused(String),
}

/// What all feeds share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) mesh: Arc<MeshSettings>,
    /// Pods of other nodes are kept without what only their own node needs.
    pub(super) node: Arc<str>,
    pub(super) notes: mpsc::Sender<Note>,
    /// The server answers again.
    pub(super) back: Arc<Notify>,
    /// How often a kind that is not installed is looked for.
    pub(super) discovery: Duration,
    /// Page size, where lists by a watch are not wanted.
    pub(super) pages: Option<u32>,
}

/// The source is gone: nobody reads the notes.
struct Ended;

pub(super) struct Feed {
    shared: Shared,
    watched: &'static Watched,
    intake: Intake,
    /// Where the watch goes on; none = everything must be listed first.
    since: Option<String>,
    /// The server has shown everything of this kind at least once.
    installed: bool,
    /// The server lists by a watch.
    streaming: bool,
    /// A failure has been told and not yet its end.
    failing: bool,
    pause: Duration,
}

/// Why following ended.
enum Stop {
    Error(&'static str, WireError),
    Ended,
}

impl From<Ended> for Stop {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl Feed {
    pub(super) fn new(shared: Shared, watched: &'static Watched) -> Self {
        let intake = Intake::new(watched, Arc::clone(&shared.mesh), Arc::clone(&shared.node));
        let streaming = shared.pages.is_none();
        Self {
            shared,
            watched,
            intake,
            since: None,
            installed: false,
            streaming,
            failing: false,
            pause: PAUSE_FIRST,
        }
    }

    /// Follows the kind until the source ends.
    pub(super) async fn run(mut self) {
        while let Ok(version) = self.find().await {
            if self.follow_all(version).await.is_err() {
                return;
            }
        }
    }

    /// The version to ask for; waits for a kind that is not installed.
    async fn find(&mut self) -> Result<&'static str, Ended> {
        let newest = self.watched.versions.first().copied().unwrap_or("v1");
        if !self.watched.custom {
            return Ok(newest);
        }
        let mut missed = 0;
        loop {
            match wire::discover(&self.shared.client, self.watched).await {
                Ok(Some(version)) => return Ok(version),
                Ok(None) => {
                    self.recovered();
                    missed += 1;
                    if self.installed && missed < ABSENT_TIMES {
                        tokio::time::sleep(ABSENT_PAUSE).await;
                        continue;
                    }
                    self.installed = false;
                    self.since = None;
                    self.intake.begin_list();
                    self.forget_unseen().await?;
                    self.tell(Note::Absent { kind: self.watched.kind }).await?;
                    tokio::time::sleep(spread(self.shared.discovery)).await;
                }
                Err(error) => self.failed("get", error).await?,
            }
        }
    }

    /// Follows the kind under one version until that is not served any more.
    async fn follow_all(&mut self, version: &'static str) -> Result<(), Ended> {
        loop {
            match self.follow(version).await {
                Ok(()) => {}
                Err(Stop::Ended) => return Err(Ended),
                Err(Stop::Error(_, WireError::NotFound)) if self.watched.custom => {
                    // What discovery still shows may be on its way out, or in.
                    tokio::time::sleep(spread(VANISHED_PAUSE)).await;
                    return Ok(());
                }
                // The gap is too old to be told about: list again.
                Err(Stop::Error(_, WireError::Gone)) => self.since = None,
                // Older servers do not know the wish; one on an etcd without progress requests answers 500.
                Err(Stop::Error(_, WireError::Invalid(reason) | WireError::Incapable(reason)))
                    if self.streaming && self.since.is_none() =>
                {
                    tracing::debug!(resource = %self.watched, reason, "the API server does not list by a watch; asking for pages");
                    self.streaming = false;
                }
                Err(Stop::Error(verb, error)) => self.failed(verb, error).await?,
            }
        }
    }

    /// Lists if need be, then follows changes until the server ends the watch.
    async fn follow(&mut self, version: &'static str) -> Result<(), Stop> {
        let begun = tokio::time::Instant::now();
        let mut watch = match &self.since {
            None if self.streaming => self.stream_all(version).await?,
            None => {
                self.page_all(version).await?;
                self.watch(version).await?
            }
            Some(_) => self.watch(version).await?,
        };
        self.tell(Note::Following { kind: self.watched.kind }).await?;
        self.recovered();
        while let Some(event) = watch.next().await.map_err(|error| Stop::Error("watch", error))? {
            self.event(version, event).await?;
        }
        if begun.elapsed() < WATCH_MIN {
            let error = WireError::Unreachable("the watch ended at once".to_owned());
            return Err(Stop::Error("watch", error));
        }
        Ok(())
    }

    async fn watch(&self, version: &str) -> Result<Watch, Stop> {
        let since = self.since.as_deref().unwrap_or("0");
        wire::watch(&self.shared.client, self.watched, version, since, false)
            .await
            .map_err(|error| Stop::Error("watch", error))
    }

    /// The whole state by a watch that begins with it.
    async fn stream_all(&mut self, version: &'static str) -> Result<Watch, Stop> {
        let error = |error| Stop::Error("watch", error);
        let mut watch =
            wire::watch(&self.shared.client, self.watched, version, "0", true).await.map_err(error)?;
        self.intake.begin_list();
        let end = tokio::time::Instant::now() + STREAM_PATIENCE;
        loop {
            let event = tokio::time::timeout_at(end, watch.next()).await;
            let event = event.map_err(|_elapsed| {
                error(WireError::Invalid("the list by a watch does not end".to_owned()))
            })?;
            let Some(event) = event.map_err(error)? else {
                let problem = "the server ended the watch within the list".to_owned();
                return Err(error(WireError::Unreachable(problem)));
            };
            if let WatchEvent::Bookmark(mark) = &event
                && mark.metadata.annotations.contains_key("k8s.io/initial-events-end")
            {
                self.listed(version, mark.metadata.resource_version.clone()).await?;
                return Ok(watch);
            }
            self.event(version, event).await?;
            // Only a whole list is a place to go on from.
            self.since = None;
        }
    }

    /// The whole state page by page.
    async fn page_all(&mut self, version: &'static str) -> Result<(), Stop> {
        self.intake.begin_list();
        let mut token = None;
        loop {
            let size = self.shared.pages.unwrap_or(wire::PAGE);
            let page = wire::page(&self.shared.client, self.watched, version, size, token.as_deref()).await;
            let page = page.map_err(|error| Stop::Error("list", error))?;
            let (more, at) = (page.more().map(str::to_owned), page.version().to_owned());
            for item in page.items {
                self.put(version, item).await?;
            }
            if more.is_none() {
                return Ok(self.listed(version, at).await?);
            }
            token = more;
        }
    }

    async fn listed(&mut self, version: &'static str, at: String) -> Result<(), Ended> {
        self.forget_unseen().await?;
        self.since = Some(at);
        self.installed = true;
        let (kind, objects) = (self.watched.kind, self.intake.len());
        self.tell(Note::Listed { kind, version, objects }).await
    }

    async fn event(&mut self, version: &str, event: WatchEvent<Value>) -> Result<(), Ended> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => self.put(version, object).await,
            WatchEvent::Deleted(object) => self.deleted(&object).await,
            WatchEvent::Bookmark(mark) => {
                self.since = Some(mark.metadata.resource_version);
                Ok(())
            }
            // `Watch::next` has made an error of it.
            WatchEvent::Error(_) => Ok(()),
        }
    }

    async fn put(&mut self, version: &str, object: Value) -> Result<(), Ended> {
        self.pass(&object);
        match self.intake.put(version, object) {
            Some(taken) => self.tell(Note::Object(taken)).await,
            None => Ok(()),
        }
    }

    async fn deleted(&mut self, object: &Value) -> Result<(), Ended> {
        self.pass(object);
        match self.intake.deleted(object) {
            Some(taken) => self.tell(Note::Object(taken)).await,
            None => Ok(()),
        }
    }

    /// The watch goes on after this object.
    fn pass(&mut self, object: &Value) {
        let at = text(object, "/metadata/resourceVersion");
        if !at.is_empty() {
            self.since = Some(at.to_owned());
        }
    }

    /// What the last list did not show any more is gone.
    async fn forget_unseen(&mut self) -> Result<(), Ended> {
        for taken in self.intake.end_list() {
            self.tell(Note::Object(taken)).await?;
        }
        Ok(())
    }

    async fn tell(&self, note: Note) -> Result<(), Ended> {
        self.shared.notes.send(note).await.map_err(|_closed| Ended)
    }

    /// The server answers: wakes whoever waits for that.
    fn recovered(&mut self) {
        self.pause = PAUSE_FIRST;
        if std::mem::take(&mut self.failing) {
            self.shared.back.notify_waiters();
        }
    }

    /// Tells what went wrong and waits before the next try.
    async fn failed(&mut self, verb: &'static str, error: WireError) -> Result<(), Ended> {
        let pause = if matches!(error, WireError::Denied(_)) { DENIED_PAUSE } else { self.pause };
        let problem = problem(verb, error);
        self.failing = true;
        self.tell(Note::Failed { kind: self.watched.kind, problem }).await?;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = tokio::time::sleep(spread(pause)) => {}
            () = self.shared.back.notified() => tokio::time::sleep(BACK_SPREAD.mul_f64(fastrand::f64())).await,
        }
        Ok(())
    }
}

pub(super) fn problem(verb: &'static str, error: WireError) -> Problem {
    match error {
        WireError::Denied(message) => Problem::Denied { verb, message },
        WireError::Unreachable(message) | WireError::Incapable(message) => Problem::Unreachable(message),
        other => Problem::Refused(other.to_string()),
    }
}

/// Half to one and a half times as long: agents that failed together must not try together.
fn spread(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64())
}
