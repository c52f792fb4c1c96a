use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::*;

/// An authority with its certificate in a file, and a server with a certificate of it.
struct Outside {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for these names and its key, in files too.
    fn sign(&self, file: &str, dns: &[&str], uri: Option<&str>) -> (CertificateDer<'static>, KeyPair) {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{file}.pem")), cert.pem()).unwrap();
        std::fs::write(self.file(&format!("{file}.key")), key.serialize_pem()).unwrap();
        (cert.der().clone(), key)
    }

    fn server(&self, dns: &[&str], uri: Option<&str>) -> Arc<ServerConfig> {
        let (cert, key) = self.sign("server", dns, uri);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_safe_default_protocol_versions()
            .unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(vec![cert], key).unwrap())
    }
}

/// Both sides in memory until the client has what it wants, or an error.
fn handshake(config: ClientConfig, server: &Arc<ServerConfig>, name: &str) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut read: &[u8] = &wire;
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut read: &[u8] = &wire;
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

/// What is asked for, what the server has, and whether that is enough.
#[test]
fn a_server_proves_its_name_to_an_authority_that_is_trusted() {
    let (outside, other) = (Outside::new(), Outside::new());
    let (own, foreign) = (outside.file("ca.pem"), other.file("ca.pem"));
    let server =
        outside.server(&["api.example", "*.wild.example", "192.0.2.1"], Some("spiffe://a/ns/b/sa/c"));
    for (roots, names, called, good) in [
        (&own, &[][..], "api.example", true),
        (&own, &[], "x.wild.example", true),
        (&own, &[], "x.y.wild.example", false),
        (&own, &[], "192.0.2.1", true),
        (&own, &[], "192.0.2.2", false),
        (&own, &[], "other.example", false),
        (&foreign, &[], "api.example", false),
        // Names that are listed take the place of the one that is called.
        (&own, &["api.example"], "other.example", true),
        (&own, &["b.example", "x.wild.example"], "other.example", true),
        (&own, &["spiffe://a/ns/b/sa/c"], "other.example", true),
        (&own, &["spiffe://a/ns/b/sa/d", "b.example"], "api.example", false),
        (&foreign, &["api.example"], "api.example", false),
    ] {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        let verify = Some(Verify { roots: Some(roots), names: &names });
        let config = client_config(&External { verify, client: None, alpn: &[] }).unwrap();
        let done = handshake(config, &server, called);
        assert_eq!(done.is_ok(), good, "{names:?} {called}: {done:?}");
    }
    let config = client_config(&External { verify: None, client: None, alpn: &[] }).unwrap();
    assert_eq!(handshake(config, &server, "other.example"), Ok(()), "nobody looks");
}

#[test]
fn files_that_are_missing_broken_or_too_large_are_named() {
    let outside = Outside::new();
    outside.sign("client", &["client.example"], None);
    std::fs::write(outside.file("empty"), "").unwrap();
    std::fs::write(outside.file("broken"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
        .unwrap();
    let large = std::fs::File::create(outside.file("large")).unwrap();
    large.set_len(FILE_MAX_BYTES + 1).unwrap();
    let roots = |name: &str| {
        let path = outside.file(name);
        let verify = Some(Verify { roots: Some(&path), names: &[] });
        client_config(&External { verify, client: None, alpn: &[] }).map(|_config| ())
    };
    assert_eq!(roots("ca.pem"), Ok(()));
    for name in ["missing", "empty", "broken", "large"] {
        let error = roots(name).unwrap_err().to_string();
        assert!(error.contains(outside.file(name).to_str().unwrap()), "{error}");
    }
    let client = |chain: &str, key: &str| {
        let (chain, key) = (outside.file(chain), outside.file(key));
        client_config(&External { verify: None, client: Some((&chain, &key)), alpn: &[b"h2"] })
    };
    let config = client("client.pem", "client.key").unwrap();
    assert!(config.client_auth_cert_resolver.has_certs());
    assert_eq!(config.alpn_protocols, [b"h2"]);
    for (chain, key) in [("missing", "client.key"), ("client.pem", "empty"), ("ca.pem", "client.key")] {
        assert!(client(chain, key).is_err(), "{chain} {key}");
    }
}
