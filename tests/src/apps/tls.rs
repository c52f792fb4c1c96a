//! A server that speaks TLS itself, whatever the mesh does below.
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Stats;

pub(super) fn acceptor(names: &[&str]) -> Result<(TlsAcceptor, CertificateDer<'static>)> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| anyhow::anyhow!("a key that is none: {error}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no TLS version")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .context("a certificate without its key")?;
    Ok((TlsAcceptor::from(Arc::new(config)), certificate))
}

pub(super) async fn serve(
    stream: TcpStream,
    stats: Arc<Stats>,
    acceptor: TlsAcceptor,
    greeting: Arc<str>,
) -> io::Result<()> {
    super::tcp::greeter(acceptor.accept(stream).await?, stats, greeting).await
}
