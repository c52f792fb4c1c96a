//! One request to the API server: what waits poll with, because a kubectl per look would cost more than what it looks at,
//! and what a measurement writes with, because it has to know when the answer came.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

const IO_DEADLINE: Duration = Duration::from_secs(10);

/// The API server as the cluster's owner asks it.
pub(super) struct Https {
    port: u16,
    token: String,
    tls: Arc<ClientConfig>,
}

impl Https {
    pub(super) fn new(port: u16, ca_pem: &str, token: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("the cluster's CA certificate")?)
            .context("the cluster's CA certificate")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("no TLS version")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { port, token: token.to_owned(), tls: Arc::new(tls) })
    }

    /// Status code and body.
    pub(super) fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ask("GET", path, None)
    }

    /// The same of any verb; with a content type and a body if there is something to send.
    pub(super) fn ask(&self, verb: &str, path: &str, content: Option<(&str, &str)>) -> Result<(u16, String)> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = TcpStream::connect_timeout(&to, IO_DEADLINE).context("connecting to the API server")?;
        stream.set_read_timeout(Some(IO_DEADLINE)).context("cannot set a deadline")?;
        stream.set_write_timeout(Some(IO_DEADLINE)).context("cannot set a deadline")?;
        let name = ServerName::IpAddress(to.ip().into());
        let tls = ClientConnection::new(Arc::clone(&self.tls), name).context("cannot start TLS")?;
        let mut stream = StreamOwned::new(tls, stream);
        // HTTP/1.0: the answer ends with the connection.
        write!(
            stream,
            "{verb} {path} HTTP/1.0\r\nHost: {to}\r\nAuthorization: Bearer {}\r\nAccept: application/json\r\n{}",
            self.token,
            content.map_or("\r\n".to_owned(), |(kind, body)| format!(
                "Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
        )
        .with_context(|| format!("asking the API server for {path}"))?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            // Some end without TLS's own farewell; a body that was cut is no JSON, and is found there.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error).with_context(|| format!("reading the API server's {path}")),
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("the API server sent no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
        Ok((status, body.to_owned()))
    }

    /// The object at this path; `None` when there is none.
    pub(super) fn object(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path)? {
            (200, body) => {
                Ok(Some(serde_json::from_str(&body).with_context(|| format!("{path} is no JSON"))?))
            }
            (404, _) => Ok(None),
            (status, body) => bail!("the API server answered {status} to {path}: {}", body.trim()),
        }
    }
}
