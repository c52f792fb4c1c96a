//! The certificate authority as a service: `istio.v1.auth.IstioCertificateService` over TLS, for our agents and for
//! a ztunnel. Owns: who may have which certificate, the signing key while the process lives, the trust bundle, and
//! one audit line per answer. Never: writes the key anywhere but into its Secret.
//! Called by `controller`.
//!
//! | file | owns |
//! |---|---|
//! | `signer` | a signing certificate with its key: the checks that it may sign, and signing |
//! | `rotation` | which roots are published since when, and when a new signer may sign (pure) |
//! | `store` | the Secret, the ConfigMaps, and the step that brings them and the signer together |
//! | `authority` | what is in force now, for the server's threads |
//! | `auth` | tokens into callers: TokenReview, or a static token |
//! | `pods` | which live pod with which account runs on which node |
//! | `rule` | the node rule (pure) |
//! | `issue` | one request from token to answer, with its audit line |
//! | `server` | TLS, HTTP/2 and gRPC around it |

pub mod auth;
pub mod authority;
pub mod issue;
pub mod metrics;
pub mod pods;
pub mod rotation;
pub mod rule;
pub mod server;
pub mod signer;
pub mod store;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
