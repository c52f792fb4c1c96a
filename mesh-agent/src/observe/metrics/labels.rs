//! The closed label set of Istio's TCP metrics.
//! Owns: names and order of the labels. Never: invents a label at run time.
//! Called by `observe::metrics::flow`.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::model::Workload;
use crate::observe::meta::{ConnMeta, Party, Path};

/// What Istio writes where it knows nothing.
pub const UNKNOWN: &str = "unknown";
/// Every name in the set that takes what no longer fits.
pub const OVERFLOW: &str = "overflow";
/// Istio's id of a mesh's first and only cluster.
pub const CLUSTER: &str = "Kubernetes";
/// Istio's name for traffic to addresses outside the mesh.
pub const PASSTHROUGH: &str = "PassthroughCluster";

/// Whose view a series is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// The labels of one end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub principal: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub cluster: Arc<str>,
}

/// All labels of a flow but `response_flags`, which only failures have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowLabels {
    pub reporter: Reporter,
    pub source: End,
    pub destination: End,
    pub service: Arc<str>,
    pub service_name: Arc<str>,
    pub service_namespace: Arc<str>,
    pub mutual_tls: bool,
}

static UNKNOWN_TEXT: LazyLock<Arc<str>> = LazyLock::new(|| UNKNOWN.into());

fn unknown() -> Arc<str> {
    Arc::clone(&UNKNOWN_TEXT)
}

impl End {
    fn all(text: &Arc<str>) -> Self {
        let text = || Arc::clone(text);
        Self {
            workload: text(),
            namespace: text(),
            principal: text(),
            app: text(),
            version: text(),
            canonical_service: text(),
            canonical_revision: text(),
            cluster: text(),
        }
    }

    fn of(party: &Party) -> Self {
        let principal = party.identity.as_ref().map_or_else(unknown, |id| id.to_string().into());
        let Some(workload) = party.workload.as_deref() else {
            return Self { principal, ..Self::all(&unknown()) };
        };
        Self {
            workload: escaped(&workload.workload_name),
            namespace: escaped(&workload.namespace),
            principal,
            app: pod_label(workload, "app", &workload.canonical_service),
            version: pod_label(workload, "version", &workload.canonical_revision),
            canonical_service: escaped(&workload.canonical_service),
            canonical_revision: escaped(&workload.canonical_revision),
            cluster: CLUSTER.into(),
        }
    }

    fn encode(&self, keys: &[&'static str; 8], encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let values = [
            &self.workload,
            &self.namespace,
            &self.principal,
            &self.app,
            &self.version,
            &self.canonical_service,
            &self.canonical_revision,
            &self.cluster,
        ];
        for (key, value) in keys.iter().zip(values) {
            (*key, &**value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

fn pod_label(workload: &Workload, key: &str, otherwise: &Arc<str>) -> Arc<str> {
    workload.labels.get(key).map_or_else(|| escaped(otherwise), |value| escaped(&value.as_str().into()))
}

/// The encoder writes values as they are; a quote in a pod's label would end the value and forge series
/// (OpenMetrics 1.0, escaped-char).
fn escaped(text: &Arc<str>) -> Arc<str> {
    if !text.contains(['\\', '"', '\n']) {
        return Arc::clone(text);
    }
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n").into()
}

impl FlowLabels {
    pub fn of(reporter: Reporter, meta: &ConnMeta) -> Self {
        let (service, service_name, service_namespace) = match &meta.service {
            Some(s) => (escaped(&s.hostname), escaped(&s.name), escaped(&s.namespace)),
            None if meta.path == Path::Passthrough => (PASSTHROUGH.into(), PASSTHROUGH.into(), unknown()),
            None => (unknown(), unknown(), unknown()),
        };
        Self {
            reporter,
            source: End::of(&meta.source),
            destination: End::of(&meta.destination),
            service,
            service_name,
            service_namespace,
            mutual_tls: meta.path == Path::Hbone,
        }
    }

    pub fn overflow(reporter: Reporter) -> Self {
        let text: Arc<str> = OVERFLOW.into();
        Self {
            reporter,
            source: End::all(&text),
            destination: End::all(&text),
            service: Arc::clone(&text),
            service_name: Arc::clone(&text),
            service_namespace: text,
            mutual_tls: false,
        }
    }

    /// These labels with `response_flags`.
    pub fn with_flags<'a>(&'a self, flags: &'a str) -> Flagged<'a> {
        Flagged { labels: self, flags }
    }
}

/// A full label set, ready to be written.
#[derive(Debug)]
pub struct Flagged<'a> {
    labels: &'a FlowLabels,
    flags: &'a str,
}

const SOURCE_KEYS: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
];
const DESTINATION_KEYS: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
];

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.labels.encode("tcp", self.flags, encoder)
    }
}

/// The label set of Istio's HTTP metrics.
#[derive(Debug)]
pub struct OfRequest<'a> {
    pub labels: &'a FlowLabels,
    pub grpc: bool,
    pub status: u16,
    /// gRPC's own status; none for plain HTTP and where no trailers came.
    pub grpc_status: Option<u8>,
    pub flags: &'a str,
}

impl EncodeLabelSet for OfRequest<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.labels.encode(if self.grpc { "grpc" } else { "http" }, self.flags, encoder)?;
        ("response_code", u64::from(self.status)).encode(encoder.encode_label())?;
        if let Some(status) = self.grpc_status {
            return ("grpc_response_status", u64::from(status)).encode(encoder.encode_label());
        }
        ("grpc_response_status", "").encode(encoder.encode_label())
    }
}

impl FlowLabels {
    fn encode(&self, protocol: &str, flags: &str, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = self;
        ("reporter", labels.reporter.label()).encode(encoder.encode_label())?;
        labels.source.encode(&SOURCE_KEYS, encoder)?;
        labels.destination.encode(&DESTINATION_KEYS, encoder)?;
        ("destination_service", &*labels.service).encode(encoder.encode_label())?;
        ("destination_service_name", &*labels.service_name).encode(encoder.encode_label())?;
        ("destination_service_namespace", &*labels.service_namespace).encode(encoder.encode_label())?;
        ("request_protocol", protocol).encode(encoder.encode_label())?;
        ("response_flags", flags).encode(encoder.encode_label())?;
        let security = if labels.mutual_tls { "mutual_tls" } else { UNKNOWN };
        ("connection_security_policy", security).encode(encoder.encode_label())
    }
}
