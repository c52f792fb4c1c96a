//! What can go wrong with certificates: ours (`CertError`) and a peer's (`PeerError`).

use std::path::PathBuf;

use crate::model::{Identity, IdentityError};

/// Why no certificate could be had. Cloneable, because every waiter of one request gets the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    #[error("CA folder: cannot {action} {}: {cause}; check that the agent may write there", path.display())]
    Io { action: &'static str, path: PathBuf, cause: String },
    #[error("CA key {} can be read by others (mode {mode:03o}); run `chmod 600` on it", path.display())]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error("CA file {} cannot be read as PEM: {detail}; restore it or remove it to have a new one made", path.display())]
    Pem { path: PathBuf, detail: String },
    #[error("CA certificate {} does not belong to the key beside it; restore the pair or remove both", path.display())]
    Mismatch { path: PathBuf },
    #[error("CA bundle {} holds {count} certificates, more than {limit}; remove roots that are no longer used", path.display())]
    BundleTooLarge { path: PathBuf, count: usize, limit: usize },
    #[error("key, CSR or certificate for {identity} could not be made: {detail}")]
    Generate { identity: Identity, detail: String },
    #[error("the CSR for {identity} is refused: {detail}")]
    CsrRefused { identity: Identity, detail: String },
    #[error("the CA's answer for {identity} is refused: {detail}; check the CA's root and its clock")]
    AnswerRefused { identity: Identity, detail: String },
    #[error("ca-address: `{address}` is no address of a CA: {problem}; write https://HOST:PORT")]
    Address { address: String, problem: String },
    #[error("ca-token: cannot use {}: {cause}; mount a projected token for the CA's audience there", path.display())]
    Token { path: PathBuf, cause: String },
    #[error(
        "the CA at {address} does not answer for {identity}: {detail}; check that it runs and that --ca-root verifies it"
    )]
    Unavailable { identity: Identity, address: String, detail: String },
    #[error("the CA at {address} refuses {identity} ({code}): {detail}; its audit log has the same line")]
    Refused { identity: Identity, address: String, code: &'static str, detail: String },
    #[error("no certificate for {identity} before the next attempt in {wait_seconds} s: {last}")]
    Backoff { identity: Identity, wait_seconds: u64, last: String },
    #[error("certificates for {limit} identities are held already; {identity} is refused")]
    TooMany { identity: Identity, limit: usize },
    #[error("the request for {identity} was dropped, because the workload left or the agent ends")]
    Dropped { identity: Identity },
}

/// What is wrong with a peer's certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the peer sent no certificate")]
    Missing,
    #[error("the peer's certificate cannot be parsed: {0}")]
    Unreadable(String),
    #[error("the peer's certificate has {0} URI names where exactly one is allowed")]
    UriCount(usize),
    #[error("the peer's URI name is no identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("the peer is {found}, expected {expected}")]
    WrongIdentity { found: Identity, expected: String },
    #[error("the peer {found} is not of the trust domain `{expected}`")]
    TrustDomain { found: Identity, expected: String },
}
