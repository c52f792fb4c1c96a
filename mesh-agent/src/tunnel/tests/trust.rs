use super::super::testing::*;
use super::super::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::WorkloadCert;
use crate::identity::testing::{Authority, ManualClock, identity};
use crate::model::Identity;

/// Opens a stream and says how each side fared.
async fn attempt(client: &Arc<WorkloadCert>, server: &Arc<WorkloadCert>) -> (Reason, Option<Reason>) {
    let port = Port::new(server, echo()).await;
    let pool = Pool::new(TunnelSettings::default());
    let address = port.address;
    let opened = pool.open(request(client, address, TARGET), move || TcpStream::connect(address)).await;
    until(|| !port.ends.borrow().is_empty()).await;
    let server = port.ends.borrow()[0].as_ref().err().map(|failure| failure.reason);
    (opened.expect_err("refused").reason, server)
}

#[test]
fn a_server_of_another_identity_is_refused() {
    worker(async {
        let authority = Authority::new();
        let (client, server) = (authority.cert("web").await, authority.cert("impostor").await);
        assert_eq!(attempt(&client, &server).await.0, Reason::WrongIdentity);
    });
}

#[test]
fn a_client_of_another_trust_domain_is_refused_though_the_root_is_the_same() {
    worker(async {
        let authority = Authority::new();
        let foreign = authority.cert_of(&Identity::new("elsewhere", "test", "web").unwrap()).await;
        let server = authority.cert("api").await;
        let (client, server) = attempt(&foreign, &server).await;
        assert_eq!((client, server), (Reason::PeerCertificate, Some(Reason::PeerCertificate)));
    });
}

#[test]
fn certificates_of_another_root_are_refused_by_both_sides() {
    worker(async {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (client, server) = attempt(&ours.cert("web").await, &theirs.cert("api").await).await;
        assert_eq!((client, server), (Reason::PeerCertificate, Some(Reason::PeerCertificate)));
    });
}

#[test]
fn an_expired_certificate_is_refused_by_the_peers_clock() {
    worker(async {
        // One folder, two clocks: the server's is ahead.
        let ours = Authority::new();
        let ahead = ManualClock::new();
        ahead.advance(Duration::from_secs(13 * 3600));
        let later = crate::identity::testing::manager(ours.dir.path(), &ahead);
        let client = ours.cert("web").await;
        let server = later.fetch(&identity("api")).await.unwrap();
        // The client refuses first: to its clock the server's certificate is not valid yet. With the client's
        // clock moved up to its beginning, and the server's past the end of the client's, the server does.
        assert_eq!(attempt(&client, &server).await.0, Reason::PeerCertificate);
        ours.clock.advance(Duration::from_secs(13 * 3600));
        ahead.advance(Duration::from_secs(12 * 3600));
        let (client, server) = attempt(&client, &server).await;
        assert_eq!((client, server), (Reason::PeerCertificate, Some(Reason::PeerCertificate)));
    });
}

#[test]
fn a_tunnel_works_while_its_root_rotates() {
    worker(async {
        let old = Authority::new();
        let client = old.cert("web").await;
        // The next root signs the server; both roots are in its bundle, and in the client's once it looks.
        let bundle = old.dir.path().join("root-cert.pem");
        for file in ["ca-key.pem", "ca-cert.pem"] {
            std::fs::remove_file(old.dir.path().join(file)).unwrap();
        }
        let server = old.cert("api").await;
        assert_eq!(std::fs::read_to_string(bundle).unwrap().matches("BEGIN").count(), 2);
        assert_eq!(attempt(&client, &server).await.0, Reason::PeerCertificate);
        old.manager.refresh_roots().await;
        let client = old.cert("web").await;
        let port = Port::new(&server, echo()).await;
        let pool = Pool::new(TunnelSettings::default());
        let address = port.address;
        let stream = pool.open(request(&client, address, TARGET), move || TcpStream::connect(address)).await;
        assert_eq!(ask(&mut stream.unwrap(), "both roots").await, "both roots");
    });
}

/// A client configuration that trusts `mesh`, changed by the test.
fn raw_config(mesh: &Mesh, change: impl Fn(&mut rustls::ClientConfig)) -> Arc<rustls::ClientConfig> {
    let mut config = (*mesh.client.client_config(&[identity("api")])).clone();
    change(&mut config);
    Arc::new(config)
}

/// Connects by hand; the alert or the end of the connection comes with the first read at the latest.
async fn raw_attempt(port: SocketAddr, config: Arc<rustls::ClientConfig>) -> std::io::Result<usize> {
    let tcp = TcpStream::connect(port).await?;
    let name = rustls::pki_types::ServerName::IpAddress(port.ip().into());
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    tls.read(&mut [0; 1]).await
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_certificate_with_a_self_signed_one_or_without_alpn_is_refused() {
    worker(async {
        let mesh = Mesh::new().await;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity("web").to_string().try_into().unwrap())];
        let own = params.self_signed(&key).unwrap();
        let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let signing = provider.key_provider.load_private_key(der.into()).unwrap();
        let own = Arc::new(rustls::sign::CertifiedKey::new(vec![own.der().clone()], signing));

        let none = raw_config(&mesh, |config| config.client_auth_cert_resolver = Arc::new(NoCertificate));
        let self_signed = raw_config(&mesh, |config| {
            config.client_auth_cert_resolver =
                Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&own)));
        });
        let no_alpn = raw_config(&mesh, |config| config.alpn_protocols.clear());
        let http1 = raw_config(&mesh, |config| config.alpn_protocols = vec![b"http/1.1".to_vec()]);
        for (what, config, reason) in [
            ("no certificate", none, Reason::PeerCertificate),
            ("self-signed", self_signed, Reason::PeerCertificate),
            ("no ALPN", no_alpn, Reason::TlsHandshake),
            ("ALPN http/1.1", http1, Reason::TlsHandshake),
        ] {
            let port = Port::new(&mesh.server, echo()).await;
            let refused = raw_attempt(port.address, config).await;
            assert!(!matches!(refused, Ok(1..)), "{what}: {refused:?}");
            until(|| !port.ends.borrow().is_empty()).await;
            let end = port.ends.borrow()[0].clone();
            assert_eq!(end.expect_err(what).reason, reason, "{what}");
        }
    });
}

#[test]
fn a_peer_that_does_not_speak_tls_or_says_nothing_is_let_go() {
    worker(async {
        let mesh = Mesh::new().await;
        let settings =
            TunnelSettings { handshake_timeout: Duration::from_millis(50), ..TunnelSettings::default() };
        let port = Port::with(&mesh.server, echo(), settings).await;
        let silent = TcpStream::connect(port.address).await.unwrap();
        until(|| port.ends.borrow().len() == 1).await;
        let mut talker = TcpStream::connect(port.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut talker, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        until(|| port.ends.borrow().len() == 2).await;
        for end in port.ends.borrow().iter() {
            assert_eq!(end.as_ref().unwrap_err().reason, Reason::TlsHandshake);
        }
        drop(silent);
    });
}
