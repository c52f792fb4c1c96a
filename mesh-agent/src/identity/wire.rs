//! The messages of `istio.v1.auth.IstioCertificateService` as its proto file has them; few enough to write by hand.
//! Used by the client (`service`) and by the server in `ca`.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// gRPC service name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
/// The one method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Key in `metadata`: the workload that the caller, a node's agent, asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// gRPC header that names the cluster of the token.
pub const CLUSTER_ID_HEADER: &str = "clusterid";
/// Largest message either side reads, bytes: a CSR has less than 1 KiB, a chain with a full bundle some tens.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS #10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// PEM texts: the leaf, then intermediates, and last the roots, all of them in one text.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

impl CertificateRequest {
    /// The identity in the metadata, if there is one.
    pub fn impersonated(&self) -> Option<&str> {
        let value = self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?;
        match value.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }
}

/// Metadata that names the wanted identity.
pub fn impersonating(identity: String) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity)) };
    Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
}
