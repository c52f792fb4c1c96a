//! Settings of `mesh-agent controller`: flag > environment > default. Owns: names, defaults and checks.
//! Called by `cli` (parses) and `controller` (reads).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::ca::rule::Account;
use crate::config::{
    ConfigError, DEFAULT_CERT_LIFETIME, DEFAULT_LOG_LEVEL, DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN,
    Span, Switch,
};
use crate::model::identity::check_trust_domain;
use crate::observe::logging::{LogFormat, check_level};

/// Where all of Nodemesh lives.
pub const DEFAULT_NAMESPACE: &str = "nodemesh-system";
/// Time until every agent has read a new bundle: the kubelet takes up to two minutes to bring a ConfigMap into a pod.
pub const DEFAULT_ROOT_SPREAD: &str = "5m";
/// Longest certificate that may be allowed.
const MAX_CERT_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// What `mesh-agent controller` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ControllerArgs {
    /// Kubeconfig file [default: in-cluster, then the usual places]
    #[arg(long, env = "NODEMESH_KUBECONFIG", value_name = "FILE", conflicts_with = "ca_dir")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, env = "NODEMESH_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the Secret, the ConfigMaps and the lease
    #[arg(long, env = "NODEMESH_NAMESPACE", value_name = "NAME", default_value = DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Address of the certificate authority
    #[arg(long, env = "NODEMESH_CA_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:15012")]
    pub ca_listen: SocketAddr,
    /// Address of /metrics
    #[arg(long, env = "NODEMESH_METRICS", value_name = "ADDR:PORT", default_value = "0.0.0.0:15020")]
    pub metrics: SocketAddr,
    /// Address of /healthz/ready
    #[arg(long, env = "NODEMESH_READINESS", value_name = "ADDR:PORT", default_value = "0.0.0.0:15021")]
    pub readiness: SocketAddr,
    /// DNS names of the CA's own certificate [default: nodemesh-controller.NAMESPACE.svc and its longer forms]
    #[arg(long, env = "NODEMESH_SERVER_NAMES", value_name = "NAME,...", value_delimiter = ',')]
    pub server_names: Vec<String>,
    /// ServiceAccounts of node agents, which may ask for the identities of their node
    #[arg(long, env = "NODEMESH_TRUSTED_ACCOUNTS", value_name = "NAMESPACE/NAME,...", value_delimiter = ',')]
    pub trusted_accounts: Vec<String>,
    /// Audience that callers' tokens must be made for
    #[arg(long, env = "NODEMESH_TOKEN_AUDIENCE", value_name = "NAME", default_value = "istio-ca")]
    pub token_audience: String,
    /// Trust domain of the mesh's identities
    #[arg(long, env = "NODEMESH_TRUST_DOMAIN", value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: String,
    /// Namespace whose policies hold for the whole mesh
    #[arg(long, env = "NODEMESH_ROOT_NAMESPACE", value_name = "NAME", default_value = DEFAULT_ROOT_NAMESPACE)]
    pub root_namespace: String,
    /// Longest life of a workload certificate, and what is given where none is asked for
    #[arg(long, env = "NODEMESH_MAX_CERT_LIFETIME", value_name = "DURATION", default_value_t = Span(DEFAULT_CERT_LIFETIME))]
    pub max_cert_lifetime: Span,
    /// How long a new root is published before certificates need it
    #[arg(long, env = "NODEMESH_ROOT_SPREAD", value_name = "DURATION", default_value = DEFAULT_ROOT_SPREAD)]
    pub root_spread: Span,
    /// Make a root where the Secret nodemesh-ca is missing
    #[arg(long, env = "NODEMESH_SELF_SIGNED", value_name = "on|off", default_value = "on")]
    pub self_signed: Switch,
    /// Without Kubernetes: the development CA's directory; needs --static-token
    #[arg(long, env = "NODEMESH_CA_DIR", value_name = "DIR", requires = "static_token")]
    pub ca_dir: Option<PathBuf>,
    /// Without Kubernetes: file with the one token that may ask for any identity
    #[arg(long, env = "NODEMESH_STATIC_TOKEN", value_name = "FILE", requires = "ca_dir")]
    pub static_token: Option<PathBuf>,
    /// Name in the leader lease [default: the host's name]
    #[arg(long, env = "NODEMESH_CONTROLLER_ID", value_name = "NAME")]
    pub id: Option<String>,
    /// How log lines look [default: json]
    #[arg(long, env = "NODEMESH_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Log filter, e.g. `info` or `info,audit=off`
    #[arg(long, env = "NODEMESH_LOG_LEVEL", value_name = "FILTER", default_value = DEFAULT_LOG_LEVEL)]
    pub log_level: String,
}

impl ControllerArgs {
    /// Checks what the parser cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem: String, remedy| Err(ConfigError::Invalid { field, problem, remedy });
        if let Err(error) = check_trust_domain(&self.trust_domain) {
            return invalid("trust-domain", error.to_string(), "all agents of a mesh need the same one");
        }
        if let Err(error) = check_level(&self.log_level) {
            return invalid("log-level", error.to_string(), "see `mesh-agent controller --help`");
        }
        let Span(life) = self.max_cert_lifetime;
        if life < Duration::from_secs(60) || life > MAX_CERT_LIFETIME {
            let problem = format!("{} is outside 1m to 90d", self.max_cert_lifetime);
            return invalid("max-cert-lifetime", problem, "use e.g. 24h");
        }
        self.trusted().map(drop)
    }

    /// The trusted accounts.
    pub fn trusted(&self) -> Result<BTreeSet<Account>, ConfigError> {
        let default = [format!("{}/nodemesh-agent", self.namespace)];
        let texts = if self.trusted_accounts.is_empty() { &default[..] } else { &self.trusted_accounts };
        let account = |text: &String| match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Account { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(ConfigError::Invalid {
                field: "trusted-accounts",
                problem: format!("`{text}` is not NAMESPACE/NAME"),
                remedy: "write e.g. nodemesh-system/nodemesh-agent",
            }),
        };
        texts.iter().map(account).collect()
    }

    /// The names of the serving certificate.
    pub fn names(&self) -> Vec<String> {
        if !self.server_names.is_empty() {
            return self.server_names.clone();
        }
        let service = format!("nodemesh-controller.{}", self.namespace);
        vec![format!("{service}.svc"), service.clone(), format!("{service}.svc.cluster.local")]
    }
}
