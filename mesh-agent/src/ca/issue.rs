//! One request, from token to answer: who calls, what is wanted, may they, is the CSR sound, sign. Owns that order,
//! and the audit line that every request leaves. Called by `server`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::Status;

use super::auth::{AuthError, Authenticator};
use super::authority::Authority;
use super::metrics::{CaMetrics, Outcome};
use super::pods::Pods;
use super::rule::{Caller, NodeRule, Refusal};
use crate::identity::wire::{CertificateRequest, CertificateResponse};
use crate::identity::{CertError, Clock, pem};
use crate::model::Identity;

/// Requests under way at once; further ones are told to come again.
pub const REQUESTS_MAX: usize = 256;
/// How long a request waits for news of a pod before the API server is asked: the agent often hears of a new pod a moment
/// before the controller.
pub const NEWS_WAIT: Duration = Duration::from_millis(500);
/// Largest CSR, bytes of PEM.
const CSR_MAX_BYTES: usize = 16 * 1024;
/// Shortest certificate issued: a renewal needs some of its life.
const LIFETIME_MIN: Duration = Duration::from_secs(2);

/// What the CA grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Where a request names none.
    pub default: Duration,
    pub max: Duration,
}

/// See the module's header.
pub struct Issue {
    pub parts: Parts,
    slots: Semaphore,
}

/// What an [`Issue`] is made of.
pub struct Parts {
    pub authority: Arc<Authority>,
    pub authenticator: Authenticator,
    pub rule: NodeRule,
    pub pods: Arc<Pods>,
    pub lifetimes: Lifetimes,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<CaMetrics>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("{0}")]
    Rule(#[from] Refusal),
    #[error("whether a pod with this identity runs there cannot be asked: {0}")]
    Pods(String),
    #[error("the identity is on the deny list")]
    Denied,
    #[error("{0}")]
    Request(String),
    #[error("{0}")]
    Csr(#[from] CertError),
    #[error("the CA has no signing certificate in force yet; its log says what it waits for")]
    NoSigner,
    #[error("more than {REQUESTS_MAX} requests are under way")]
    Overloaded,
}

impl Failure {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Auth(AuthError::Unavailable(_)) | Self::Pods(_) | Self::NoSigner => Outcome::Unavailable,
            Self::Auth(_) => Outcome::Unauthenticated,
            Self::Rule(_) => Outcome::NotAllowed,
            Self::Denied => Outcome::Denied,
            Self::Request(_) | Self::Csr(CertError::CsrRefused { .. }) => Outcome::BadRequest,
            Self::Csr(_) => Outcome::Unavailable,
            Self::Overloaded => Outcome::Overloaded,
        }
    }

    fn status(&self) -> Status {
        let text = self.to_string();
        match self.outcome() {
            Outcome::Unauthenticated => Status::unauthenticated(text),
            Outcome::NotAllowed | Outcome::Denied => Status::permission_denied(text),
            Outcome::BadRequest => Status::invalid_argument(text),
            Outcome::Overloaded => Status::resource_exhausted(text),
            Outcome::Unavailable | Outcome::Issued => Status::unavailable(text),
        }
    }
}

/// What the audit line says, as far as it is known when the request ends.
#[derive(Default)]
struct Audit {
    caller: Option<Caller>,
    identity: Option<Identity>,
    serial: String,
    not_after: String,
}

impl Issue {
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self { parts, slots: Semaphore::new(REQUESTS_MAX) })
    }

    /// Answers a request and leaves its line in the audit log.
    pub async fn answer(
        &self,
        token: Option<&str>,
        request: &CertificateRequest,
        peer: Option<SocketAddr>,
    ) -> Result<CertificateResponse, Status> {
        let mut audit = Audit::default();
        let result = self.issue(token, request, &mut audit).await;
        let outcome = result.as_ref().map_or_else(Failure::outcome, |_| Outcome::Issued);
        self.parts.metrics.count(outcome);
        audit.write(outcome, result.as_ref().err(), peer);
        result.map_err(|failure| failure.status())
    }

    async fn issue(
        &self,
        token: Option<&str>,
        request: &CertificateRequest,
        audit: &mut Audit,
    ) -> Result<CertificateResponse, Failure> {
        let _slot = self.slots.try_acquire().map_err(|_full| Failure::Overloaded)?;
        let caller = self.parts.authenticator.caller(token).await?;
        audit.caller = Some(caller.clone());
        let identity = wanted(request, &caller, &self.parts.rule.trust_domain)?;
        audit.identity = Some(identity.clone());
        self.allowed(&caller, &identity).await?;
        if self.parts.authority.denied().contains(&identity) {
            return Err(Failure::Denied);
        }
        let csr = csr_der(&request.csr).map_err(Failure::Request)?;
        let active = self.parts.authority.active().ok_or(Failure::NoSigner)?;
        let lifetime = self.lifetime(request.validity_duration);
        let issued = active.signer.sign(&csr, &identity, lifetime, self.parts.clock.now())?;
        audit.serial = issued.serial;
        audit.not_after = humantime::format_rfc3339_seconds(issued.not_after).to_string();
        let mut cert_chain = vec![pem::text("CERTIFICATE", &[issued.leaf])];
        cert_chain.extend(active.signer.intermediates().iter().map(|cert| pem::text("CERTIFICATE", &[cert])));
        cert_chain.push(active.roots_pem.clone());
        Ok(CertificateResponse { cert_chain })
    }

    /// The node rule, tried again while it may only be that news has not come. What the API server says itself is final:
    /// it knows all that the caller may have heard of.
    async fn allowed(&self, caller: &Caller, identity: &Identity) -> Result<(), Failure> {
        let mut changes = self.parts.pods.changes();
        let deadline = tokio::time::Instant::now() + NEWS_WAIT;
        let refusal = loop {
            changes.mark_unchanged();
            let refusal = match self.parts.pods.read(|pods| self.parts.rule.check(caller, identity, pods)) {
                Err(refusal) if refusal.may_heal() => refusal,
                decided => return Ok(decided?),
            };
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => break refusal,
            }
        };
        let Caller::Pod { account, pod, .. } = caller else { return Err(refusal.into()) };
        match self.parts.pods.ask((&account.namespace, pod), identity.namespace()).await {
            None => Err(refusal.into()),
            Some(Err(problem)) => Err(Failure::Pods(problem)),
            Some(Ok(pods)) => Ok(self.parts.rule.check(caller, identity, &pods)?),
        }
    }

    fn lifetime(&self, seconds: i64) -> Duration {
        let asked = match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => self.parts.lifetimes.default,
        };
        asked.clamp(LIFETIME_MIN, self.parts.lifetimes.max)
    }
}

/// The impersonated identity; without one the caller asks for its own.
fn wanted(request: &CertificateRequest, caller: &Caller, trust_domain: &str) -> Result<Identity, Failure> {
    if let Some(text) = request.impersonated() {
        return text.parse().map_err(|error| Failure::Request(format!("ImpersonatedIdentity: {error}")));
    }
    match caller {
        Caller::Pod { account, .. } | Caller::Unbound { account } => {
            Identity::new(trust_domain, &account.namespace, &account.name)
                .map_err(|error| Failure::Request(error.to_string()))
        }
        Caller::Static => Err(Failure::Request("ImpersonatedIdentity is missing in the metadata".to_owned())),
    }
}

fn csr_der(text: &str) -> Result<Vec<u8>, String> {
    use rustls::pki_types::CertificateSigningRequestDer;
    use rustls::pki_types::pem::PemObject as _;
    if text.len() > CSR_MAX_BYTES {
        return Err(format!("the CSR is longer than {CSR_MAX_BYTES} bytes"));
    }
    CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|error| format!("the CSR is no PEM: {error}"))
}

impl Audit {
    fn write(self, outcome: Outcome, failure: Option<&Failure>, peer: Option<SocketAddr>) {
        let (pod, node) = match &self.caller {
            Some(Caller::Pod { pod, node, .. }) => (pod.as_str(), node.as_deref().unwrap_or_default()),
            _ => ("", ""),
        };
        let caller = self.caller.as_ref().map(ToString::to_string).unwrap_or_default();
        let identity = self.identity.as_ref().map(ToString::to_string).unwrap_or_default();
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        let (result, serial, not_after) = (outcome.label(), self.serial, self.not_after);
        match failure {
            None => tracing::info!(
                target: "audit", result, caller, pod, node, identity, serial, not_after, peer, "certificate issued"
            ),
            Some(reason) => tracing::warn!(
                target: "audit", result, caller, pod, node, identity, %reason, peer, "certificate refused"
            ),
        }
    }
}
