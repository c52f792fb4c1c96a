//! A Kubernetes API server as the source of truth. Owns: the thread that follows it, one `feed` for each kind, the
//! batches in which changes are published, and what is told about all that. When the server is away the last world
//! stays, and the status says for how long. Never: opinions about objects (`compile`), or writes to the cluster.
//! Called by the composition root; its status is shown by `admin`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::api::istio::mesh::MeshConfig;
use crate::compile::{self, Context, MeshSettings, Object, Origin};
use crate::world::{World, WorldStore};

mod feed;
mod intake;
mod kinds;
mod publish;
mod status;
mod wire;

pub use feed::Problem;
pub use intake::{Intake, Taken};
pub use status::{KindState, KindStatus, KubeStatus};

use feed::{Feed, Shared};
use kinds::{MESH_CONFIG, WATCHED};
use publish::Publisher;
use wire::PAGE;

/// Changes waiting to be published; a feed that is ahead of that waits.
pub const NOTES_MAX: usize = 1024;
/// How often a kind that is not installed is looked for.
pub const DISCOVERY: Duration = Duration::from_secs(10);
/// Longest wait for a connection to the API server.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries to read the mesh-wide settings before anything else.
const CONFIG_PAUSE: Duration = Duration::from_secs(1);

/// How the API server is found and what its objects are compiled against.
#[derive(Clone, Debug)]
pub struct KubeSettings {
    /// None = the pod's own account, else the usual kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    pub node: Arc<str>,
    /// What holds where the ConfigMap does not say.
    pub mesh: MeshSettings,
    /// The trust domain was given to this agent, which beats the ConfigMap.
    pub own_trust_domain: bool,
    /// The same of the root namespace.
    pub own_root_namespace: bool,
    pub discovery: Duration,
    /// Lists come in pages of this many objects; none = by a watch that begins with them, where the server can.
    pub pages: Option<u32>,
}

/// Why the API server cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    #[error(
        "kubeconfig: {0}; name a file by --kubeconfig, a context of it by --context, or a directory by --manifests"
    )]
    Config(String),
    #[error("kubernetes: the client cannot be made: {0}")]
    Client(kube::Error),
    #[error("kubernetes: the watching thread did not start: {0}; raise the limit of tasks")]
    Thread(std::io::Error),
}

/// A running source; dropping it ends the watches and leaves the world as it is.
pub struct KubeHandle {
    status: Arc<Mutex<KubeStatus>>,
    synced: watch::Receiver<bool>,
    /// Its end is the thread's.
    _stop: watch::Sender<()>,
}

impl KubeHandle {
    pub fn status(&self) -> KubeStatus {
        self.status.lock().clone()
    }

    /// Completes once everything that the mesh reads has been read.
    pub async fn synced(&self) {
        // A sender that is gone has nothing more to say; its status tells why.
        if self.synced.clone().wait_for(|synced| *synced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }
}

/// Reads the client's configuration and starts to follow the API server. Does not wait for it.
pub async fn start(settings: KubeSettings, store: Arc<WorldStore>) -> Result<KubeHandle, KubeError> {
    let mut config = config(&settings).await?;
    config.connect_timeout = Some(CONNECT_MAX);
    // Whoever waits for an answer does so with a limit of its own, and a watch is silent for a minute at a time.
    config.read_timeout = None;
    let status = Arc::new(Mutex::new(KubeStatus::new(config.cluster_url.to_string())));
    let (stop, stopped) = watch::channel(());
    let (told, synced) = watch::channel(false);
    let shown = Arc::clone(&status);
    // The client has tasks of its own: it is made where they shall run.
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (made, client) = oneshot::channel();
    std::thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || {
            let runtime = match build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(made.send(Err(KubeError::Thread(error)))),
            };
            runtime.block_on(async move {
                let client = match Client::try_from(config) {
                    Ok(client) => client,
                    Err(error) => return drop(made.send(Err(KubeError::Client(error)))),
                };
                // A receiver that is gone has dropped the handle too, which ends the source.
                drop(made.send(Ok(())));
                Source { client, settings, store, status: shown, told }.run(stopped).await;
            });
        })
        .map_err(KubeError::Thread)?;
    client.await.map_err(|_gone| KubeError::Config("the client's thread ended".to_owned()))??;
    Ok(KubeHandle { status, synced, _stop: stop })
}

/// A file or context that was named; else the pod's own account; else the kubeconfig that kubectl would use.
async fn config(settings: &KubeSettings) -> Result<Config, KubeError> {
    let error = |error: &dyn std::error::Error| KubeError::Config(error.to_string());
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    if let Some(path) = &settings.kubeconfig {
        let file = Kubeconfig::read_from(path).map_err(|e| error(&e))?;
        return Config::from_custom_kubeconfig(file, &options).await.map_err(|e| error(&e));
    }
    if settings.context.is_none()
        && let Ok(config) = Config::incluster()
    {
        return Ok(config);
    }
    Config::from_kubeconfig(&options).await.map_err(|e| error(&e))
}

/// What the thread works with.
struct Source {
    client: Client,
    settings: KubeSettings,
    store: Arc<WorldStore>,
    status: Arc<Mutex<KubeStatus>>,
    told: watch::Sender<bool>,
}

impl Source {
    async fn run(self, mut stopped: watch::Receiver<()>) {
        let mut feeds = tokio::task::JoinSet::new();
        tokio::select! {
            () = self.follow(&mut feeds) => {}
            // Nothing is ever sent: this is the handle's end.
            _ = stopped.changed() => {}
        }
        feeds.shutdown().await;
    }

    async fn follow(&self, feeds: &mut tokio::task::JoinSet<()>) {
        let mesh = Arc::new(self.mesh().await);
        let world = World::new(MeshSettings::clone(&mesh));
        self.store.publish(world.clone());
        let (notes, received) = mpsc::channel(NOTES_MAX);
        let shared = Shared {
            client: self.client.clone(),
            mesh,
            node: Arc::clone(&self.settings.node),
            notes,
            back: Arc::new(Notify::new()),
            discovery: self.settings.discovery,
            pages: self.settings.pages,
        };
        for watched in &WATCHED {
            feeds.spawn(Feed::new(shared.clone(), watched).run());
        }
        drop(shared);
        let status = Arc::clone(&self.status);
        Publisher::new(Arc::clone(&self.store), world, status, self.told.clone()).run(received).await;
    }

    /// The settings that every object is compiled against: what the ConfigMap says, where this agent was not told
    /// otherwise. Identities are made of them, so nothing is read before they are known.
    async fn mesh(&self) -> MeshSettings {
        let mut mesh = self.settings.mesh.clone();
        let config = loop {
            match wire::page(&self.client, &MESH_CONFIG, "v1", PAGE, None).await {
                Ok(page) => break mesh_config(&mesh, page.items.into_iter().next()),
                Err(error) => {
                    let problem = feed::problem("list", error);
                    self.status.lock().failed_aloud(MESH_CONFIG.kind, problem, SystemTime::now());
                    tokio::time::sleep(CONFIG_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
                }
            }
        };
        if let Some(name) = config.trust_domain.filter(|_| !self.settings.own_trust_domain) {
            mesh.trust_domain = name.into();
        }
        if let Some(name) = config.root_namespace.filter(|_| !self.settings.own_root_namespace) {
            mesh.root_namespace = name.into();
        }
        mesh
    }
}

/// The ConfigMap's settings; defaults where there is none or it is refused, which its feed will tell.
fn mesh_config(mesh: &MeshSettings, object: Option<serde_json::Value>) -> MeshConfig {
    let Some(mut object) = object else { return MeshConfig::default() };
    intake::trim(&MESH_CONFIG, "v1", &mut object);
    let context = Context { mesh, source: SOURCE, origin: Origin::Cluster };
    let objects = compile::document(&context, &object).objects;
    let found = objects.into_iter().find_map(|(_, object)| match object {
        Object::MeshConfig(facts) => facts.config,
        _ => None,
    });
    found.unwrap_or_default()
}

/// What diagnostics name where a manifest would be a file.
const SOURCE: &str = "cluster";

/// Findings by object; only objects with findings are in it.
type Findings = BTreeMap<compile::ObjectKey, Vec<compile::Diagnostic>>;
