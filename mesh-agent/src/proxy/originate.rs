//! TLS towards servers outside the mesh, as DestinationRules ask for it (`tls.mode` SIMPLE and MUTUAL). Owns: the
//! configurations made of the files that rules name, and when those are read again. Never: chooses whom to call, or what
//! a server must prove (`identity::external`). Called by `proxy::{outbound, http::target}`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::http::io::HttpIo;
use crate::identity::external::{self, External, Verify};
use crate::model::Reason;
use crate::model::traffic::TlsOrigin;
use crate::tunnel::Failure;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Configurations that are kept; with one more, all are made anew as they are wanted.
pub const CONFIGS_MAX: usize = 1024;
/// How often the files of a configuration are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inside {
    Http1,
    Http2,
    /// Something that the agent does not know.
    Bytes,
}

impl Inside {
    const fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Bytes => &[],
        }
    }
}

/// A destination's TLS: what its rule asks for, and the name that its server is called by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origination {
    pub rule: Arc<TlsOrigin>,
    pub name: Arc<str>,
}

impl Origination {
    /// The name is the rule's, else the destination's host, else (that is a wildcard) the one that was asked for.
    pub fn new(rule: &Arc<TlsOrigin>, host: &str, asked: Option<&str>) -> Self {
        let name = match &rule.sni {
            Some(sni) => Arc::clone(sni),
            None if host.contains('*') => asked.unwrap_or_default().into(),
            None => host.into(),
        };
        Self { rule: Arc::clone(rule), name }
    }
}

/// See the module's header.
pub struct Originator {
    dir: PathBuf,
    configs: Mutex<HashMap<Key, Made>>,
    /// How often files were found to be others.
    changes: AtomicU64,
}

type Key = (Arc<TlsOrigin>, Inside);

#[derive(Clone)]
struct Made {
    config: Arc<ClientConfig>,
    stamps: Stamps,
    looked: Instant,
}

/// When the files were written, and how long they are.
type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Originator {
    /// Files of namespace NS are those under `dir`/NS, and no others: who may write a rule in one namespace must not use
    /// another's keys.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, configs: Mutex::default(), changes: AtomicU64::new(0) }
    }

    /// Grows when files have changed: connections from before were made with what was believed then.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Looks at the files of every configuration whose time has come; what was made of others is forgotten.
    pub async fn look(&self) {
        let due: Vec<(Key, Files, Stamps)> = {
            let mut configs = self.configs.lock();
            let due = configs.iter_mut().filter(|(_, made)| made.looked.elapsed() >= LOOK_EVERY);
            let due = due.map(|(key, made)| {
                made.looked = Instant::now();
                (key.clone(), Files::of(&self.dir, &key.0), made.stamps.clone())
            });
            due.filter(|(_, _, stamps)| !stamps.is_empty()).collect()
        };
        if due.is_empty() {
            return;
        }
        let looking = tokio::task::spawn_blocking(move || {
            let changed = due.into_iter().filter(|(_, files, stamps)| files.stamps() != *stamps);
            changed.map(|(key, ..)| key).collect::<Vec<Key>>()
        });
        // A look that broke off is repeated.
        let Ok(changed) = looking.await else { return };
        if !changed.is_empty() {
            let mut configs = self.configs.lock();
            changed.iter().for_each(|key| drop(configs.remove(key)));
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins TLS on a connection that has just been made.
    pub async fn begin(&self, io: HttpIo, to: &Origination, inside: Inside) -> Result<HttpIo, Failure> {
        let failed =
            |problem: String| Failure::new(Reason::UpstreamTls, format!("TLS to {}: {problem}", to.name));
        let config = self.config(&to.rule, inside).await.map_err(|problem| {
            tracing::warn!(name = %to.name, problem, "TLS cannot be set up as the DestinationRule says");
            failed(problem)
        })?;
        let name = ServerName::try_from(to.name.to_string()).map_err(|error| failed(error.to_string()))?;
        let connecting = TlsConnector::from(config).connect(name, io);
        let stream = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| failed(error.to_string()))?,
            Err(_elapsed) => return Err(failed("no handshake in time".to_owned())),
        };
        // A server that says nothing speaks what it was asked for, but for HTTP/2, which must be agreed on (RFC 9113, 3.2).
        if inside == Inside::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(failed("the server does not speak HTTP/2".to_owned()));
        }
        Ok(HttpIo::tls(stream))
    }

    async fn config(&self, rule: &Arc<TlsOrigin>, inside: Inside) -> Result<Arc<ClientConfig>, String> {
        let key = (Arc::clone(rule), inside);
        let made = self.configs.lock().get(&key).cloned();
        if let Some(made) = made.as_ref().filter(|made| made.looked.elapsed() < LOOK_EVERY) {
            return Ok(Arc::clone(&made.config));
        }
        let files = Files::of(&self.dir, rule);
        let rule = Arc::clone(rule);
        let before = made.as_ref().map(|made| Arc::clone(&made.config));
        // Off the worker's thread: a file may lie on a slow disk.
        let making = tokio::task::spawn_blocking(move || renewed(made, &files, &rule, inside));
        let made = making.await.map_err(|error| error.to_string())??;
        let config = Arc::clone(&made.config);
        if before.is_some_and(|before| !Arc::ptr_eq(&before, &config)) {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        let mut configs = self.configs.lock();
        if configs.len() >= CONFIGS_MAX && !configs.contains_key(&key) {
            configs.clear();
        }
        configs.insert(key, made);
        Ok(config)
    }
}

/// Where a rule's files are.
struct Files {
    roots: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn of(dir: &Path, rule: &TlsOrigin) -> Self {
        // A rule's path is taken for one of its namespace's own file system; `compile` has refused what leads out of it.
        let place = |path: &str| dir.join(&*rule.namespace).join(path.trim_start_matches('/'));
        Self {
            roots: rule.roots.as_deref().map(place),
            client: rule.client.as_ref().map(|(chain, key)| (place(chain), place(key))),
        }
    }

    fn stamps(&self) -> Stamps {
        let client = self.client.iter().flat_map(|(chain, key)| [chain, key]);
        let stamp = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        self.roots.iter().chain(client).map(stamp).collect()
    }
}

/// The configuration as it was, if its files are; else a new one.
fn renewed(made: Option<Made>, files: &Files, rule: &TlsOrigin, inside: Inside) -> Result<Made, String> {
    let (stamps, looked) = (files.stamps(), Instant::now());
    if let Some(made) = made.filter(|made| made.stamps == stamps) {
        return Ok(Made { looked, ..made });
    }
    let verify =
        (!rule.skip_verify).then(|| Verify { roots: files.roots.as_deref(), names: &rule.subject_alt_names });
    let client = files.client.as_ref().map(|(chain, key)| (chain.as_path(), key.as_path()));
    let external = External { verify, client, alpn: inside.alpn() };
    let config = external::client_config(&external).map_err(|error| error.to_string())?;
    Ok(Made { config: Arc::new(config), stamps, looked })
}

#[cfg(test)]
mod tests;
