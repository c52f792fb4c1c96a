//! The addresses of names in ServiceEntries, from the name servers of a `resolv.conf`. Owns: the one task that asks, and
//! when it asks again (`schedule`): when an answer's time is over, sooner where there was none. What was answered last
//! stays in force while nobody answers. Never: opinions about entries (`compile`), or what the addresses become (`world`).
//! Called by the composition root.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep_until, timeout};

use crate::model::Hits;
use crate::world::WorldStore;

mod schedule;

use schedule::{Answer, Outcome, Schedule};

/// Names that are resolved; further ones have no endpoints.
pub const NAMES_MAX: usize = 1024;
/// Addresses of one name that become endpoints.
pub const ADDRESSES_MAX: usize = 64;
/// Questions under way at once; others wait.
pub const LOOKUPS_MAX: usize = 16;
/// Longest time for one name, both families and all name servers together.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest `resolv.conf` that is read, bytes.
const CONFIG_MAX_BYTES: u64 = 64 * 1024;
/// Answers that come this close together are published as one.
const GATHER: Duration = Duration::from_millis(10);

/// How names are resolved.
#[derive(Clone, Debug)]
pub struct NamesSettings {
    /// Read again when it has changed.
    pub resolv_conf: PathBuf,
    pub hits: Hits,
}

/// The running task; dropping it ends it.
pub struct NamesHandle {
    task: JoinHandle<()>,
    tried: watch::Receiver<u64>,
}

impl NamesHandle {
    /// Completes when every name of this version of the world, or of a later one, has been asked for, with whatever
    /// result.
    pub async fn tried(&self, version: u64) {
        // Without the task nobody asks any more.
        drop(self.tried.clone().wait_for(|tried| *tried >= version).await);
    }
}

impl Drop for NamesHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to follow the names of the store's worlds. Must be called on a runtime.
pub fn start(store: Arc<WorldStore>, settings: NamesSettings) -> NamesHandle {
    let (published, changed) = watch::channel(());
    store.on_publish(Box::new(move |_version| {
        published.send_replace(());
    }));
    let (tell, tried) = watch::channel(0);
    let asker = Asker {
        store,
        servers: Servers { path: settings.resolv_conf, text: Vec::new(), resolver: None },
        schedule: Schedule::new(NAMES_MAX, ADDRESSES_MAX, settings.hits),
        asked: JoinSet::new(),
        answers: Vec::new(),
        followed: 0,
        tell,
    };
    NamesHandle { task: tokio::spawn(asker.run(changed)), tried }
}

struct Asker {
    store: Arc<WorldStore>,
    servers: Servers,
    schedule: Schedule,
    asked: JoinSet<(Arc<str>, Answer)>,
    /// Not yet published.
    answers: Vec<(Arc<str>, Arc<[IpAddr]>)>,
    /// The world whose names these are.
    followed: u64,
    tell: watch::Sender<u64>,
}

impl Asker {
    async fn run(mut self, mut changed: watch::Receiver<()>) {
        changed.mark_changed();
        let mut publish: Option<Instant> = None;
        loop {
            let free = self.asked.len() < LOOKUPS_MAX;
            let due = self.schedule.next_due().filter(|_| free);
            tokio::select! {
                told = changed.changed() => {
                    if told.is_err() {
                        return;
                    }
                    self.follow();
                }
                Some(done) = self.asked.join_next() => self.take(done),
                () = at(due) => self.ask(),
                () = at(publish) => {
                    publish = None;
                    self.store.resolve(&std::mem::take(&mut self.answers));
                }
            }
            if !self.answers.is_empty() {
                publish.get_or_insert_with(|| Instant::now() + GATHER);
            } else if self.schedule.all_tried() {
                self.tell.send_replace(self.followed);
            }
        }
    }

    /// What the current world wants to know.
    fn follow(&mut self) {
        let world = self.store.load();
        self.followed = world.version;
        let refused = self.schedule.follow(world.names(), Instant::now());
        if refused > 0 {
            tracing::warn!(refused, limit = NAMES_MAX, "more names than are resolved");
        }
        // A name that came back in the meantime starts with what is still known of it.
        let known = world.names().filter(|name| world.addresses_of(name).is_none());
        let known = known.filter_map(|name| Some((Arc::clone(name), self.schedule.addresses(name)?)));
        self.answers.extend(known);
    }

    fn ask(&mut self) {
        let resolver = self.servers.current();
        let room = LOOKUPS_MAX.saturating_sub(self.asked.len());
        for name in self.schedule.take_due(Instant::now(), room) {
            let resolver = resolver.clone();
            self.asked.spawn(async move {
                let answer = match resolver {
                    Ok(resolver) => both(&resolver, &name).await,
                    Err(problem) => Answer::failed(&problem),
                };
                (name, answer)
            });
        }
    }

    fn take(&mut self, done: Result<(Arc<str>, Answer), tokio::task::JoinError>) {
        let (name, answer) = match done {
            Ok(done) => done,
            // A panic of the library's: its name stays marked as asked, and the others go on.
            Err(error) => return tracing::error!(%error, "a question to a name server broke off"),
        };
        let random = fastrand::u64(..);
        if let Some(addresses) = self.schedule.answered(&name, answer, Instant::now(), random) {
            self.answers.push((name, addresses));
        }
    }
}

/// Both families of a name. Absolute: a node's search list means nothing to the mesh.
async fn both(resolver: &TokioResolver, name: &str) -> Answer {
    let Ok(mut full) = Name::from_ascii(name) else { return Answer::failed("not a name of the DNS") };
    full.set_fqdn(true);
    let one = |family: RecordType| {
        let full = full.clone();
        async move {
            // No answer twice: its time is over when it is asked for again.
            resolver.clear_lookup_cache(full.clone(), family);
            match timeout(LOOKUP_TIMEOUT, resolver.lookup(full, family)).await {
                Ok(answer) => outcome(answer),
                Err(_elapsed) => Outcome::Failed("no answer in time".to_owned()),
            }
        }
    };
    let (v4, v6) = tokio::join!(one(RecordType::A), one(RecordType::AAAA));
    Answer { families: [v4, v6] }
}

fn outcome(answer: Result<Lookup, NetError>) -> Outcome {
    match answer {
        Ok(found) => {
            let address = |data: &RData| match data {
                RData::A(address) => Some(IpAddr::from(address.0)),
                RData::AAAA(address) => Some(IpAddr::from(address.0)),
                _ => None,
            };
            let records = found.answers();
            let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
            let addresses = records.iter().filter_map(|record| address(&record.data)).collect();
            Outcome::Addresses(addresses, Duration::from_secs(ttl.into()))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
            let ttl = nothing.negative_ttl.unwrap_or_default();
            Outcome::Nothing(Duration::from_secs(ttl.into()))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// The name servers as `resolv.conf` names them now.
struct Servers {
    path: PathBuf,
    /// What the resolver was made of.
    text: Vec<u8>,
    resolver: Option<TokioResolver>,
}

impl Servers {
    fn current(&mut self) -> Result<TokioResolver, String> {
        let text = read(&self.path)?;
        if let Some(resolver) = self.resolver.as_ref().filter(|_| text == self.text) {
            return Ok(resolver.clone());
        }
        let broken = |error: NetError| format!("{}: {error}", self.path.display());
        let (config, mut options) = parse_resolv_conf(&text).map_err(broken)?;
        options.cache_size = 0;
        // The name server's word, on every node the same.
        options.use_hosts_file = ResolveHosts::Never;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build().map_err(broken)?;
        self.text = text;
        self.resolver = Some(resolver.clone());
        Ok(resolver)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > CONFIG_MAX_BYTES {
        return Err(format!("{}: {length} bytes are too many", path.display()));
    }
    std::fs::read(path).map_err(failed)
}

/// Completes at a point in time; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
