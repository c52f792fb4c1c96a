//! Where the CA's key and bundle live, and the step that brings them and the signer together. Every replica takes the
//! same step every few seconds; what they disagree on is resolved by the API server's conflict answer.
//! Owns: Secret `nodemesh-ca` (made with a self-made root if nobody provides one) and ConfigMap `nodemesh-ca-root`.
//! Never: watches Secrets; it reads the one it may read. Called by `controller`.
//!
//! **To rotate the root**, replace the Secret's three keys (or delete a self-made one): the new root is published
//! beside the old one at once, certificates come from the new key after it has spread, and the old root is withdrawn
//! after the last certificate of the old key has ended (`rotation`). To stage by hand, put both roots into `ca.crt`
//! first and change `tls.crt` and `tls.key` later. A replica that starts while a new root spreads has no old key: it
//! answers `unavailable` until then, and agents ask another replica.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::authority::Authority;
use super::rotation::{Pace, Published, Record};
use super::signer::{Material, Signer, SignerError};
use crate::compile::denied;
use crate::identity::{CertError, Clock, DirCa, pem};

/// The signing CA: `tls.crt`, `tls.key`, `ca.crt`.
pub const SECRET: &str = "nodemesh-ca";
/// The trust bundle.
pub const BUNDLE_CONFIG_MAP: &str = "nodemesh-ca-root";
/// Its key.
pub const BUNDLE_KEY: &str = "root-cert.pem";
/// Mesh-wide settings; here only the deny list is read.
pub const SETTINGS_CONFIG_MAP: &str = "nodemesh";
/// On the bundle: since when each root is published, JSON.
pub const RECORDS_ANNOTATION: &str = "nodemesh.io/roots";
/// On the Secret: made here, so it may be renewed here.
pub const SELF_MADE_ANNOTATION: &str = "nodemesh.io/self-made";
/// Who writes.
pub const FIELD_MANAGER: &str = "nodemesh.io/controller";
/// Tries of one write against other replicas.
const CONFLICTS_MAX: usize = 5;
/// A self-made root with less than this left is replaced.
const SELF_MADE_RENEW: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action} {object}: {source}; check the API server and the controller's RBAC")]
    Api { action: &'static str, object: &'static str, source: Box<kube::Error> },
    #[error("Secret {SECRET}: {0}")]
    Signer(#[from] SignerError),
    #[error(
        "Secret {SECRET}: key {0} is missing; provide tls.crt, tls.key and ca.crt, or delete the Secret to have a root made"
    )]
    Key(&'static str),
    #[error(
        "Secret {SECRET} does not exist and --self-signed is off; let cert-manager or another issuer make it"
    )]
    NoSecret,
    #[error(
        "ConfigMap {BUNDLE_CONFIG_MAP} key {BUNDLE_KEY}: {0}; delete the ConfigMap to have it published anew"
    )]
    Bundle(String),
    #[error("{0} was changed by another replica {CONFLICTS_MAX} times in a row")]
    Conflict(&'static str),
    #[error("{0}")]
    Dir(#[from] CertError),
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The Secret's key signs.
    InForce,
    /// A new key waits until its root has spread; the former one signs meanwhile, if this process has it.
    Spreading { until: SystemTime, signing: bool },
}

/// How the store works.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    pub namespace: String,
    pub trust_domain: String,
    pub pace: Pace,
    /// Make a root where there is no Secret.
    pub self_signed: bool,
}

/// Where the key is.
#[expect(clippy::large_enum_variant, reason = "there is one per process")]
enum Place {
    Cluster {
        secrets: Api<Secret>,
        configs: Api<ConfigMap>,
    },
    /// A lab without Kubernetes: the development CA's folder, whose bundle is published as it is.
    Dir(PathBuf),
}

/// See the module's header.
pub struct Store {
    place: Place,
    settings: StoreSettings,
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    signing: Option<Arc<Signer>>,
    /// What the Secret holds now.
    latest: Option<Arc<Signer>>,
}

impl Store {
    pub fn cluster(
        client: &Client,
        settings: StoreSettings,
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let place = Place::Cluster {
            secrets: Api::namespaced(client.clone(), &settings.namespace),
            configs: Api::namespaced(client.clone(), &settings.namespace),
        };
        Self { place, settings, authority, clock, signing: None, latest: None }
    }

    pub fn dir(
        dir: PathBuf,
        settings: StoreSettings,
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { place: Place::Dir(dir), settings, authority, clock, signing: None, latest: None }
    }

    /// Reads what there is, publishes what is due, and puts in force what may be.
    pub async fn step(&mut self) -> Result<Standing, StoreError> {
        let now = self.clock.now();
        match &self.place {
            Place::Dir(dir) => {
                let texts = DirCa::open(dir)?.texts()?;
                let material = Material { chain: texts.cert, key: texts.key, roots: Some(texts.bundle) };
                let signer = self.read(&material, now)?;
                let roots = signer.roots().to_vec();
                self.authority.set(&signer, roots, now)?;
                self.signing = Some(signer);
                Ok(Standing::InForce)
            }
            Place::Cluster { secrets, configs } => {
                let (secrets, configs) = (secrets.clone(), configs.clone());
                self.read_denied(&configs).await;
                let material = self.material(&secrets, now).await?;
                let latest = self.read(&material, now)?;
                let published = self.publish(&configs, &latest, now).await?;
                self.put_in_force(latest, &published, now)
            }
        }
    }

    /// The signer of a key pair, checked once.
    fn read(&mut self, material: &Material, now: SystemTime) -> Result<Arc<Signer>, StoreError> {
        if let Some(latest) = self.latest.as_ref().filter(|latest| latest.material() == material) {
            return Ok(Arc::clone(latest));
        }
        let signer = Arc::new(Signer::read(material, &self.settings.trust_domain, now)?);
        self.latest = Some(Arc::clone(&signer));
        Ok(signer)
    }

    fn put_in_force(
        &mut self,
        latest: Arc<Signer>,
        published: &Published,
        now: SystemTime,
    ) -> Result<Standing, StoreError> {
        let usable_at = published.usable_at(latest.anchor(), self.settings.pace).unwrap_or(now);
        // The same root may have been published long ago, whatever the key: then there is nothing to wait for.
        let waits = usable_at > now;
        if !waits {
            self.signing = Some(latest);
        }
        if let Some(signing) = &self.signing {
            self.authority.set(signing, published.certs(), now)?;
        }
        Ok(match waits {
            false => Standing::InForce,
            true => Standing::Spreading { until: usable_at, signing: self.signing.is_some() },
        })
    }

    /// The Secret's texts; a self-made root where there is none, a new one where a self-made one ends.
    async fn material(&self, secrets: &Api<Secret>, now: SystemTime) -> Result<Material, StoreError> {
        for _ in 0..CONFLICTS_MAX {
            let found = secrets.get_opt(SECRET).await.map_err(api("read", "Secret nodemesh-ca"))?;
            let Some(found) = found else {
                if !self.settings.self_signed {
                    return Err(StoreError::NoSecret);
                }
                let fresh = Material::self_made(now)?;
                match secrets.create(&params(), &secret(&fresh, None)).await {
                    Ok(_) => tracing::info!("made a root for the mesh: Secret {SECRET}"),
                    Err(error) if conflict(&error) => {}
                    Err(error) => return Err(api("create", "Secret nodemesh-ca")(error)),
                }
                continue;
            };
            let material = texts(&found)?;
            let ends = self.latest.as_ref().filter(|latest| *latest.material() == material);
            let ends = ends.is_some_and(|latest| latest.not_after() < now + SELF_MADE_RENEW);
            let self_made =
                found.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(SELF_MADE_ANNOTATION));
            if !(ends && self_made) {
                return Ok(material);
            }
            let fresh = secret(&Material::self_made(now)?, found.metadata.resource_version);
            match secrets.replace(SECRET, &params(), &fresh).await {
                Ok(_) => {
                    tracing::warn!("the self-made root ends soon; a new one takes over once it has spread")
                }
                Err(error) if conflict(&error) => {}
                Err(error) => return Err(api("replace", "Secret nodemesh-ca")(error)),
            }
        }
        Err(StoreError::Conflict("Secret nodemesh-ca"))
    }

    /// Brings the ConfigMap up to date with the Secret's roots.
    async fn publish(
        &self,
        configs: &Api<ConfigMap>,
        latest: &Signer,
        now: SystemTime,
    ) -> Result<Published, StoreError> {
        const OBJECT: &str = "ConfigMap nodemesh-ca-root";
        for _ in 0..CONFLICTS_MAX {
            let found = configs.get_opt(BUNDLE_CONFIG_MAP).await.map_err(api("read", OBJECT))?;
            let before = found.as_ref().map(published).transpose()?.unwrap_or_default();
            let after = before.merge(latest.roots(), now, self.settings.pace);
            if found.is_some() && after == before {
                return Ok(after);
            }
            let version = found.as_ref().and_then(|found| found.metadata.resource_version.clone());
            let fresh = bundle(&after, version);
            let written = match found {
                None => configs.create(&params(), &fresh).await,
                Some(_) => configs.replace(BUNDLE_CONFIG_MAP, &params(), &fresh).await,
            };
            match written {
                Ok(_) => {
                    tracing::info!(
                        roots = after.roots.len(),
                        before = before.roots.len(),
                        "trust bundle published"
                    );
                    return Ok(after);
                }
                Err(error) if conflict(&error) => {}
                Err(error) => return Err(api("write", OBJECT)(error)),
            }
        }
        Err(StoreError::Conflict(OBJECT))
    }

    /// The deny list; what cannot be read leaves the last one in force.
    async fn read_denied(&self, configs: &Api<ConfigMap>) {
        let text = match configs.get_opt(SETTINGS_CONFIG_MAP).await {
            Ok(found) => found.and_then(|found| found.data?.remove(denied::DENIED_KEY)).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "ConfigMap {SETTINGS_CONFIG_MAP} cannot be read; the last deny list holds");
                return;
            }
        };
        let (list, faults) = denied::parse(&text);
        if list == *self.authority.denied() {
            return;
        }
        for (line, fault) in faults {
            tracing::warn!(line, %fault, "ConfigMap {SETTINGS_CONFIG_MAP}: a line of the deny list denies nobody");
        }
        tracing::warn!(target: "audit", identities = list.len(), "the deny list has changed");
        self.authority.set_denied(list);
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn api(action: &'static str, object: &'static str) -> impl Fn(kube::Error) -> StoreError {
    move |source| StoreError::Api { action, object, source: Box::new(source) }
}

/// Another replica was first: `AlreadyExists` and `Conflict` are both 409.
fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn texts(secret: &Secret) -> Result<Material, StoreError> {
    let text = |key: &'static str| -> Option<String> {
        let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.clone()).ok().filter(|text| !text.trim().is_empty())
    };
    Ok(Material {
        chain: text("tls.crt").ok_or(StoreError::Key("tls.crt"))?,
        key: text("tls.key").ok_or(StoreError::Key("tls.key"))?,
        roots: text("ca.crt"),
    })
}

fn secret(material: &Material, resource_version: Option<String>) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let mut data = BTreeMap::from([
        ("tls.crt".to_owned(), bytes(&material.chain)),
        ("tls.key".to_owned(), bytes(&material.key)),
    ]);
    if let Some(roots) = &material.roots {
        data.insert("ca.crt".to_owned(), bytes(roots));
    }
    let annotations = BTreeMap::from([(SELF_MADE_ANNOTATION.to_owned(), "true".to_owned())]);
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            annotations: Some(annotations),
            resource_version,
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

fn published(found: &ConfigMap) -> Result<Published, StoreError> {
    let text = found.data.as_ref().and_then(|data| data.get(BUNDLE_KEY));
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(Published::default()) };
    let certs = pem::certificates(text).map_err(StoreError::Bundle)?;
    let records = found.metadata.annotations.as_ref().and_then(|all| all.get(RECORDS_ANNOTATION));
    let records: BTreeMap<String, Record> = match records {
        Some(text) => serde_json::from_str(text).map_err(|error| StoreError::Bundle(error.to_string()))?,
        None => BTreeMap::new(),
    };
    Ok(Published::read(certs, &records))
}

fn bundle(published: &Published, resource_version: Option<String>) -> ConfigMap {
    let records = serde_json::to_string(&published.records()).unwrap_or_default();
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(BUNDLE_CONFIG_MAP.to_owned()),
            annotations: Some(BTreeMap::from([(RECORDS_ANNOTATION.to_owned(), records)])),
            resource_version,
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(BUNDLE_KEY.to_owned(), pem::text("CERTIFICATE", &published.certs()))])),
        ..ConfigMap::default()
    }
}
