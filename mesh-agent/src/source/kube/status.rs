//! What is told about the source: which kinds are followed, under which version, what is wrong and what to do.
//! Never: acts on it. Called by the source's thread (writes) and by the agent's view (reads).

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::feed::Problem;
use super::kinds::WATCHED;
use crate::compile::Kind;

/// How one kind is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindState {
    /// Not read yet.
    Starting,
    /// What is known is current.
    Following,
    /// The API server does not have the kind; it is looked for again and again.
    NotInstalled,
    /// What is known may be old.
    Failing,
}

/// One kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindStatus {
    /// `peerauthentications.security.istio.io`.
    pub resource: String,
    /// Under which it is read.
    pub version: Option<&'static str>,
    pub state: KindState,
    pub objects: usize,
    /// Read completely at least once, or known not to be there.
    pub read: bool,
    pub failing_since: Option<SystemTime>,
    pub problem: Option<Problem>,
    /// The problem in a sentence, and what to do about it.
    pub text: Option<(String, String)>,
}

/// The whole source.
#[derive(Clone, Debug)]
pub struct KubeStatus {
    pub server: String,
    pub kinds: BTreeMap<Kind, KindStatus>,
    /// Version of the world last published from here.
    pub version: u64,
    /// When something was last published or found current.
    pub last_load: SystemTime,
}

impl KubeStatus {
    pub(super) fn new(server: String) -> Self {
        let kinds = WATCHED.iter().map(|watched| {
            let status = KindStatus {
                resource: watched.to_string(),
                version: None,
                state: KindState::Starting,
                objects: 0,
                read: false,
                failing_since: None,
                problem: None,
                text: None,
            };
            (watched.kind, status)
        });
        Self { server, kinds: kinds.collect(), version: 0, last_load: SystemTime::now() }
    }

    /// Everything has been read once.
    pub fn is_read(&self) -> bool {
        self.kinds.values().all(|kind| kind.read)
    }

    /// Since when the world may be older than the cluster.
    pub fn stale_since(&self) -> Option<SystemTime> {
        self.kinds.values().filter_map(|kind| kind.failing_since).min()
    }

    /// What is missing before the agent can be ready, in sentences.
    pub fn waiting(&self) -> Vec<String> {
        let missing: Vec<&KindStatus> = self.kinds.values().filter(|kind| !kind.read).collect();
        let mut problems: Vec<String> = Vec::new();
        let texts = missing.iter().filter_map(|kind| kind.text.as_ref());
        for text in texts.map(|(problem, remedy)| format!("{problem}; {remedy}")) {
            if !problems.contains(&text) {
                problems.push(text);
            }
        }
        if problems.is_empty() && !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|kind| kind.resource.as_str()).collect();
            problems.push(format!("{} not read yet from {}", names.join(", "), self.server));
        }
        problems
    }

    pub(super) fn listed(&mut self, kind: Kind, version: &'static str, objects: usize) {
        if let Some(status) = self.kinds.get_mut(&kind) {
            status.version = Some(version);
            status.objects = objects;
            status.read = true;
        }
    }

    pub(super) fn following(&mut self, kind: Kind, now: SystemTime) {
        self.last_load = now;
        if let Some(status) = self.kinds.get_mut(&kind) {
            status.well(KindState::Following);
        }
    }

    pub(super) fn absent(&mut self, kind: Kind) {
        if let Some(status) = self.kinds.get_mut(&kind) {
            status.well(KindState::NotInstalled);
            (status.read, status.version, status.objects) = (true, None, 0);
        }
    }

    /// Returns whether the problem is another than before.
    pub(super) fn failed(&mut self, kind: Kind, problem: Problem, now: SystemTime) -> bool {
        let Some(watched) = WATCHED.iter().find(|watched| watched.kind == kind) else { return false };
        let text = match &problem {
            Problem::Denied { verb, message } => (
                format!("not allowed: {}: {message}", watched.rule(verb)),
                format!("let the agent's account list and watch {watched} ({})", watched.role()),
            ),
            Problem::Unreachable(why) => (
                format!("the API server {} does not answer: {why}", self.server),
                "check the network and the server; the agent tries again".to_owned(),
            ),
            Problem::Refused(why) => (
                format!("the API server's answer for {watched} is of no use: {why}"),
                "check the versions of the API server and of the agent".to_owned(),
            ),
        };
        let Some(status) = self.kinds.get_mut(&kind) else { return false };
        status.state = KindState::Failing;
        status.failing_since.get_or_insert(now);
        status.text = Some(text);
        let same_sort = |a: &Problem, b: &Problem| std::mem::discriminant(a) == std::mem::discriminant(b);
        let changed = status.problem.as_ref().is_none_or(|before| !same_sort(before, &problem));
        status.problem = Some(problem);
        changed
    }

    /// The same, and says so in the log unless it has.
    pub(super) fn failed_aloud(&mut self, kind: Kind, problem: Problem, now: SystemTime) {
        if self.failed(kind, problem, now)
            && let Some((problem, remedy)) = self.kinds.get(&kind).and_then(|kind| kind.text.clone())
        {
            tracing::warn!(target: "kubernetes", "{problem}; {remedy}");
        }
    }
}

impl KindStatus {
    fn well(&mut self, state: KindState) {
        self.state = state;
        self.failing_since = None;
        self.problem = None;
        self.text = None;
    }
}
