//! The cluster role, `mesh-agent controller`: the certificate authority on every replica, and on the one that holds
//! the lease the statuses and Events of Istio's resources. Owns: the life of every task of this process.
//! Never: is asked by an agent for anything but certificates; agents compile policies for themselves, so traffic and
//! policy go on when no controller lives. Called by `main`.

pub mod lease;
mod page;
mod routes;
pub mod settings;
pub mod status;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::page::Page;
pub use self::settings::ControllerArgs;
use self::status::StatusWriter;
use crate::admin::HttpServer;
use crate::ca::auth::Authenticator;
use crate::ca::authority::Authority;
use crate::ca::issue::{Issue, Lifetimes, Parts};
use crate::ca::metrics::CaMetrics;
use crate::ca::pods::Pods;
use crate::ca::rotation::Pace;
use crate::ca::rule::NodeRule;
use crate::ca::server::CaServer;
use crate::ca::store::{Standing, Store, StoreSettings};
use crate::compile::MeshSettings;
use crate::config::{Span, Switch};
use crate::identity::{Clock, SystemClock};
use crate::observe::{Metrics, logging};

/// How often the Secret and the ConfigMaps are read.
const STORE_POLL: Duration = Duration::from_secs(5);
/// How long requests under way may take at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest wait for the API server when something is read at the start.
const KUBE_CONNECT: Duration = Duration::from_secs(10);

/// Runs the controller until SIGTERM or SIGINT.
pub fn run(args: ControllerArgs) -> anyhow::Result<()> {
    args.check()?;
    let log = logging::init(args.log_format, &args.log_level)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stop = async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        let metrics = Metrics::new();
        metrics.watch_log(log.dropped_lines());
        Controller::start(args, metrics).await?.live(stop).await
    })
}

/// A running controller.
pub struct Controller {
    stop: watch::Sender<bool>,
    /// The CA's own end is waited for.
    ca: tokio::task::JoinHandle<anyhow::Result<()>>,
    lease: Option<tokio::task::JoinHandle<()>>,
    /// End with the process or with this.
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Where the CA listens.
    pub ca_address: SocketAddr,
    pub page: Arc<Page>,
}

impl Controller {
    /// Starts everything. The key and the bundle may come later: until then `/healthz/ready` says what is missing.
    pub async fn start(args: ControllerArgs, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client = match &args.ca_dir {
            Some(_) => None,
            None => Some(client(args.kubeconfig.as_deref(), args.context.as_deref()).await?),
        };
        let authority = Authority::new(args.names());
        let pods = Pods::new(client.clone());
        let page = Page::new(Arc::clone(&authority), client.as_ref().map(|_| Arc::clone(&pods)));
        let issue = issue(&args, client.as_ref(), &page, &clock)?;
        let (stop, stopped) = watch::channel(false);
        let (mut tasks, scrape, ready) = servers(&args, &page, &metrics).await?;
        let server = CaServer::bind(args.ca_listen, issue, &clock)
            .await
            .with_context(|| format!("ca-listen: cannot listen on {}; name another", args.ca_listen))?;
        let ca_address = server.local_addr()?;
        let ca = tokio::spawn(server.run(ended(stopped.clone())));
        tasks.push(tokio::spawn(keep_store(store(&args, client.as_ref(), &authority, &clock)?)));
        let lease = client.map(|client| {
            tasks.push(tokio::spawn(Arc::clone(&pods).run()));
            let (leading, led) = watch::channel(false);
            page.set_leading(led.clone());
            let id = args.id.clone().unwrap_or_else(host_name);
            let mesh = MeshSettings {
                trust_domain: args.trust_domain.as_str().into(),
                root_namespace: args.root_namespace.as_str().into(),
                ..MeshSettings::default()
            };
            let writer = StatusWriter::new(client.clone(), id.clone(), mesh);
            tasks.push(tokio::spawn(lead(led, writer)));
            let api = lease::api(&client, &args.namespace);
            tokio::spawn(lease::run(api, id, lease::Pace::default(), leading, ended(stopped)))
        });
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"), ca = %ca_address, metrics = %scrape, readiness = %ready,
            "controller started"
        );
        Ok(Self { stop, ca, lease, tasks, ca_address, page })
    }

    /// Serves until `stop` completes, then ends in order: answers what is under way, releases the lease.
    pub async fn live(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut result = Ok(());
        let early = tokio::select! {
            () = stop => None,
            ended = &mut self.ca => Some(ended),
        };
        self.stop.send_replace(true);
        match early {
            Some(ended) => result = ended.map_err(anyhow::Error::from).and_then(|served| served),
            None => {
                if tokio::time::timeout(DRAIN, &mut self.ca).await.is_err() {
                    tracing::warn!("requests were still under way; they are cut");
                    self.ca.abort();
                }
            }
        }
        if let Some(lease) = self.lease.take() {
            result = result.and(lease.await.map_err(Into::into));
        }
        tracing::info!("ended");
        result
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.ca.abort();
        self.tasks.drain(..).for_each(|task| task.abort());
        if let Some(lease) = &self.lease {
            lease.abort();
        }
    }
}

/// The client of the API server: the kubeconfig named, else the pod's own account, else the usual kubeconfig.
async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = match kubeconfig {
        Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        None if context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await?,
    };
    config.connect_timeout = Some(KUBE_CONNECT);
    Ok(Client::try_from(config)?)
}

fn issue(
    args: &ControllerArgs,
    client: Option<&Client>,
    page: &Page,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<Issue>> {
    let authenticator = match (client, &args.static_token) {
        (Some(client), _) => {
            Authenticator::Review { client: client.clone(), audience: args.token_audience.clone() }
        }
        (None, Some(path)) => {
            let token = std::fs::read_to_string(path)
                .with_context(|| format!("static-token: cannot read {}", path.display()))?;
            anyhow::ensure!(!token.trim().is_empty(), "static-token: {} is empty", path.display());
            Authenticator::fixed(&token)
        }
        (None, None) => anyhow::bail!("ca-dir: needs --static-token, or nobody could ask"),
    };
    let Span(max) = args.max_cert_lifetime;
    Ok(Issue::new(Parts {
        authority: Arc::clone(page.authority()),
        authenticator,
        rule: NodeRule { trusted: args.trusted()?, trust_domain: args.trust_domain.clone() },
        pods: page.pods(),
        lifetimes: Lifetimes { default: max, max },
        clock: Arc::clone(clock),
        metrics: Arc::<CaMetrics>::clone(page.ca_metrics()),
    }))
}

fn store(
    args: &ControllerArgs,
    client: Option<&Client>,
    authority: &Arc<Authority>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Store> {
    let (Span(spread), Span(max)) = (args.root_spread, args.max_cert_lifetime);
    let Switch(self_signed) = args.self_signed;
    let settings = StoreSettings {
        namespace: args.namespace.clone(),
        trust_domain: args.trust_domain.clone(),
        pace: Pace { spread, keep: spread + max },
        self_signed,
    };
    let (authority, clock) = (Arc::clone(authority), Arc::clone(clock));
    match (client, &args.ca_dir) {
        (Some(client), _) => Ok(Store::cluster(client, settings, authority, clock)),
        (None, Some(dir)) => Ok(Store::dir(dir.clone(), settings, authority, clock)),
        (None, None) => anyhow::bail!("neither a cluster nor --ca-dir holds a key"),
    }
}

/// Takes the store's step again and again; says what is wrong once.
async fn keep_store(mut store: Store) {
    let mut said = String::new();
    loop {
        let now = match store.step().await {
            Ok(Standing::InForce) => String::new(),
            Ok(Standing::Spreading { until, signing }) => {
                let until = humantime::format_rfc3339_seconds(until);
                let meanwhile = if signing { "the former key signs" } else { "nothing is signed here" };
                format!("a new root spreads until {until}; meanwhile {meanwhile}")
            }
            Err(error) => error.to_string(),
        };
        if now != said {
            match now.is_empty() {
                true => tracing::info!("the signing certificate is in force"),
                false => tracing::warn!("{now}"),
            }
            said = now;
        }
        tokio::time::sleep(STORE_POLL).await;
    }
}

/// Does the leader's work while this replica leads.
async fn lead(mut leading: watch::Receiver<bool>, writer: StatusWriter) {
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            () = writer.run() => {}
            lost = leading.wait_for(|leads| !*leads) => {
                if lost.is_err() {
                    return;
                }
            }
        }
    }
}

async fn servers(
    args: &ControllerArgs,
    page: &Arc<Page>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Vec<tokio::task::JoinHandle<()>>, SocketAddr, SocketAddr)> {
    metrics.set_extra(Box::new(Arc::clone(page)));
    let scrape = HttpServer::metrics(args.metrics, Arc::clone(metrics))
        .await
        .with_context(|| format!("metrics: cannot listen on {}; name another", args.metrics))?;
    let asked = Arc::clone(page);
    let ready =
        HttpServer::readiness_of(args.readiness, Arc::new(move || asked.missing()), Arc::clone(metrics))
            .await
            .with_context(|| format!("readiness: cannot listen on {}; name another", args.readiness))?;
    let addresses = (scrape.local_addr()?, ready.local_addr()?);
    let tasks = vec![
        tokio::spawn(async move {
            scrape.run().await;
        }),
        tokio::spawn(async move {
            ready.run().await;
        }),
    ];
    Ok((tasks, addresses.0, addresses.1))
}

/// Completes when told to stop, or when nobody is left to tell.
async fn ended(mut stopped: watch::Receiver<bool>) {
    let _gone = stopped.wait_for(|stop| *stop).await;
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "controller".to_owned() } else { name.trim().to_owned() }
}
