//! A CA service over loopback for tests: the real server with the static token, its key in memory.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::auth::Authenticator;
use super::authority::Authority;
use super::issue::{Issue, Lifetimes, Parts};
use super::metrics::CaMetrics;
use super::pods::Pods;
use super::rule::NodeRule;
use super::server::CaServer;
use super::signer::{Material, Signer};
use crate::identity::testing::ManualClock;
use crate::identity::{Ca, CaService, CertManager, CertSettings, Clock, ServiceSettings, pem};

pub(crate) const TOKEN: &str = "lab-token";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct TestCa {
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: Arc<CaMetrics>,
    pub(crate) clock: Arc<ManualClock>,
    /// `root.pem` and `token`, as an agent has them.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    issue: Arc<Issue>,
    stop: watch::Sender<bool>,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl TestCa {
    pub(crate) async fn start() -> Self {
        let clock = ManualClock::new();
        Self::with(&Material::self_made(clock.now()).unwrap(), clock).await
    }

    pub(crate) async fn with(material: &Material, clock: Arc<ManualClock>) -> Self {
        let authority = Authority::new(vec!["localhost".into(), "127.0.0.1".into()]);
        let metrics = CaMetrics::new(Arc::clone(&authority));
        let issue = Issue::new(Parts {
            authority: Arc::clone(&authority),
            authenticator: Authenticator::fixed(TOKEN),
            rule: NodeRule { trusted: Default::default(), trust_domain: "cluster.local".into() },
            pods: Pods::new(None),
            lifetimes: Lifetimes { default: DAY, max: DAY },
            clock: Arc::clone(&clock) as _,
            metrics: Arc::clone(&metrics),
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let mut ca = Self {
            authority,
            metrics,
            clock,
            dir,
            address: "127.0.0.1:0".parse().unwrap(),
            issue,
            stop: watch::channel(false).0,
            task: None,
        };
        let signer = ca.signer(material);
        ca.use_signer(&signer, signer.roots().to_vec());
        ca.spread();
        ca.serve().await;
        ca
    }

    pub(crate) fn signer(&self, material: &Material) -> Arc<Signer> {
        Arc::new(Signer::read(material, "cluster.local", self.clock.now()).unwrap())
    }

    pub(crate) fn use_signer(&self, signer: &Arc<Signer>, roots: Vec<CertificateDer<'static>>) {
        self.authority.set(signer, roots, self.clock.now()).unwrap();
    }

    /// Brings the bundle of the moment to the agents, as the kubelet does.
    pub(crate) fn spread(&self) {
        let active = self.authority.active().unwrap();
        std::fs::write(self.root(), &active.roots_pem).unwrap();
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root.pem")
    }

    pub(crate) fn token(&self) -> std::path::PathBuf {
        self.dir.path().join("token")
    }

    /// Starts serving, on the port of before if there was one.
    pub(crate) async fn serve(&mut self) {
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let server = CaServer::bind(self.address, Arc::clone(&self.issue), &clock).await.unwrap();
        self.address = server.local_addr().unwrap();
        self.stop.send_replace(false);
        let mut stopped = self.stop.subscribe();
        self.task = Some(tokio::spawn(server.run(async move {
            let _gone = stopped.wait_for(|stop| *stop).await;
        })));
    }

    /// Ends gracefully; the port is free afterwards.
    pub(crate) async fn stop(&mut self) {
        self.stop.send_replace(true);
        let task = self.task.take().unwrap();
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
    }

    pub(crate) fn settings(&self) -> ServiceSettings {
        ServiceSettings {
            address: format!("https://localhost:{}", self.address.port()).parse().unwrap(),
            root: self.root(),
            token: self.token(),
            cluster_id: "Kubernetes".into(),
        }
    }

    /// An agent's certificate manager, with the real client.
    pub(crate) fn manager(&self) -> Arc<CertManager> {
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let service = CaService::new(self.settings(), Arc::clone(&clock)).unwrap();
        let settings = CertSettings { jitter: 0.0, ..CertSettings::default() };
        CertManager::new(Ca::Service(Arc::new(service)), clock, settings)
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What a made authority is like.
pub(crate) struct Made {
    pub(crate) params: CertificateParams,
}

impl Made {
    pub(crate) fn authority(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { params }
    }

    pub(crate) fn change(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }
}

/// A root of an operator and the intermediate that it signs, as cert-manager lays them out.
pub(crate) fn intermediate(root: Made, between: Made) -> Material {
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let root_cert = root.params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(root.params, root_key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let cert = between.params.signed_by(&key, &issuer).unwrap();
    Material { chain: cert.pem(), key: key.serialize_pem(), roots: Some(root_cert.pem()) }
}

pub(crate) fn write_roots(path: &Path, roots: &[CertificateDer<'static>]) {
    std::fs::write(path, pem::text("CERTIFICATE", roots)).unwrap();
}
