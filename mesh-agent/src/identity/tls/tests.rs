use std::io::Write as _;

use rustls::server::Acceptor;
use rustls::{ClientConnection, ProtocolVersion};

use super::*;
use crate::identity::testing::{Authority, identity};

#[tokio::test]
async fn the_hello_offers_tls_13_with_our_suites_and_h2_and_no_name() {
    let authority = Authority::new();
    let config = authority.cert("web").await.client_config(&[identity("api")]);
    // A DNS name: where names are sent at all, this one would be.
    let name = ServerName::try_from("api.test.svc.cluster.local").unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut wire.as_slice()).unwrap();
    let accepted = acceptor.accept().unwrap().unwrap();
    let hello = accepted.client_hello();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
    let suites: Vec<u16> = hello.cipher_suites().iter().map(|suite| u16::from(*suite)).collect();
    // TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256; 0x00ff would be a sign of TLS 1.2.
    assert_eq!(suites, [0x1302, 0x1301]);
}

#[tokio::test]
async fn both_sides_refuse_tls_12() {
    let authority = Authority::new();
    let cert = authority.cert("web").await;
    let server = cert.server_config();
    let mut connection = rustls::ServerConnection::new(server).unwrap();
    // A ClientHello of TLS 1.2: no supported_versions, one ECDHE suite, null compression.
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // signature_algorithms (ECDSA P-256) and supported_groups (P-256), which rustls wants first.
    let extensions = [0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23];
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0, 0, hello.len() as u8]);
    record.extend(hello);
    connection.read_tls(&mut record.as_slice()).unwrap();
    let refused = connection.process_new_packets().unwrap_err();
    assert!(matches!(refused, rustls::Error::PeerIncompatible(_)), "{refused:?}");
}

#[tokio::test]
async fn nothing_is_resumed() {
    let authority = Authority::new();
    let (web, api) = (authority.cert("web").await, authority.cert("api").await);
    let config = web.client_config(&[identity("api")]);
    for _ in 0..2 {
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut server = rustls::ServerConnection::new(api.server_config()).unwrap();
        let _ = client.writer().write(b"x").unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
            }
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
            }
            client.process_new_packets().unwrap();
        }
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(crate::identity::peer_identity(&server), Ok(identity("web")));
    }
}

#[test]
fn every_way_a_handshake_fails_has_its_reason() {
    let wrong = PeerError::WrongIdentity { found: identity("a"), expected: identity("b").to_string() };
    for (error, reason) in [
        (refuse(wrong), Reason::WrongIdentity),
        (refuse(PeerError::UriCount(2)), Reason::PeerCertificate),
        (CertificateError::Expired.into(), Reason::PeerCertificate),
        (rustls::Error::NoCertificatesPresented, Reason::PeerCertificate),
        (rustls::Error::AlertReceived(AlertDescription::UnknownCA), Reason::PeerCertificate),
        (rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol), Reason::TlsHandshake),
        (rustls::Error::NoApplicationProtocol, Reason::TlsHandshake),
    ] {
        assert_eq!(reason_of_tls_error(&error), reason, "{error}");
    }
}
