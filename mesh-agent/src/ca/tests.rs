//! The real server and the real client over loopback.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::metrics::Outcome;
use super::signer::Material;
use super::testing::{DAY, Made, TestCa, intermediate, write_roots};
use crate::identity::testing::{ManualClock, identity};
use crate::identity::{CertError, CertManager, CertState, Clock as _, WorkloadCert};

/// A whole handshake of mutual TLS in memory; the identities that each side saw are checked by the verifiers.
fn shake(client: &WorkloadCert, server: &WorkloadCert) -> Result<(), rustls::Error> {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let config = client.client_config(std::slice::from_ref(&server.identity));
    let mut near = ClientConnection::new(config, name).unwrap();
    let mut far = ServerConnection::new(server.server_config()).unwrap();
    while near.is_handshaking() || far.is_handshaking() {
        let mut wire = Vec::new();
        while near.wants_write() {
            near.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            far.read_tls(&mut rest).unwrap();
            far.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while far.wants_write() {
            far.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            near.read_tls(&mut rest).unwrap();
            near.process_new_packets()?;
        }
    }
    Ok(())
}

async fn fetch(manager: &CertManager, account: &str) -> Arc<WorkloadCert> {
    manager.fetch(&identity(account)).await.unwrap()
}

/// Waits for a renewal that is under way.
async fn renewed(manager: &CertManager, old: &WorkloadCert) -> Arc<WorkloadCert> {
    loop {
        match manager.current(&old.identity) {
            Some(cert) if cert.serial != old.serial => return cert,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn agents_of_two_nodes_get_certificates_that_shake_hands() {
    let ca = TestCa::start().await;
    let (one, two) = (ca.manager(), ca.manager());
    let (web, api) = (fetch(&one, "web").await, fetch(&two, "api").await);
    shake(&web, &api).unwrap();
    shake(&api, &web).unwrap();
    let life = web.not_after.duration_since(ca.clock.now()).unwrap();
    assert!(life <= DAY && life > DAY - Duration::from_secs(2));
    assert_eq!(ca.metrics.get(Outcome::Issued), 2);
}

#[tokio::test]
async fn an_operator_s_intermediate_is_sent_along_and_shakes_hands() {
    let material = intermediate(Made::authority("root"), Made::authority("mesh"));
    let ca = TestCa::with(&material, ManualClock::new()).await;
    let manager = ca.manager();
    let (web, api) = (fetch(&manager, "web").await, fetch(&manager, "api").await);
    assert_eq!((web.chain().len(), web.roots().len()), (2, 1));
    shake(&web, &api).unwrap();
}

#[tokio::test]
async fn the_token_is_read_for_each_request_and_a_wrong_one_is_refused() {
    let ca = TestCa::start().await;
    let manager = ca.manager();
    std::fs::write(ca.token(), "stolen").unwrap();
    let refused = manager.fetch(&identity("web")).await.unwrap_err();
    assert!(matches!(refused, CertError::Refused { .. }), "{refused}");
    assert_eq!(ca.metrics.get(Outcome::Unauthenticated), 1);
    std::fs::remove_file(ca.token()).unwrap();
    ca.clock.advance(Duration::from_secs(200));
    assert!(matches!(manager.fetch(&identity("web")).await, Err(CertError::Token { .. })));
    std::fs::write(ca.token(), super::testing::TOKEN).unwrap();
    ca.clock.advance(Duration::from_secs(200));
    fetch(&manager, "web").await;
}

#[tokio::test]
async fn a_server_that_the_bundle_does_not_verify_gets_no_token() {
    let ca = TestCa::start().await;
    let manager = ca.manager();
    let other = Material::self_made(ca.clock.now()).unwrap();
    std::fs::write(ca.root(), other.roots.unwrap()).unwrap();
    let refused = manager.fetch(&identity("web")).await.unwrap_err();
    assert!(matches!(refused, CertError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("UnknownIssuer"), "it says why: {refused}");
    ca.spread();
    ca.clock.advance(Duration::from_secs(5));
    fetch(&manager, "web").await;
    assert_eq!(ca.metrics.get(Outcome::Unauthenticated), 0);
}

#[tokio::test]
async fn while_the_ca_is_down_certificates_stay_and_afterwards_all_come_without_waiting_for_their_back_off() {
    let mut ca = TestCa::start().await;
    let manager = ca.manager();
    let web = fetch(&manager, "web").await;
    ca.stop().await;
    ca.clock.advance(13 * Duration::from_secs(3600));
    manager.renew_due();
    for account in ["new-1", "new-2"] {
        let down = manager.fetch(&identity(account)).await.unwrap_err();
        assert!(matches!(down, CertError::Unavailable { .. }), "{down}");
        let again = manager.fetch(&identity(account)).await.unwrap_err();
        assert!(matches!(again, CertError::Backoff { .. }), "not asked once per connection: {again}");
    }
    assert_eq!(manager.current(&web.identity).unwrap().serial, web.serial);
    ca.serve().await;
    // Only the first one's back-off is over; its success lets the others go.
    let due = manager.list().iter().filter_map(|row| row.next_request).max().unwrap();
    ca.clock.advance(due.duration_since(ca.clock.now()).unwrap_or_default());
    fetch(&manager, "new-1").await;
    manager.renew_due();
    renewed(&manager, &web).await;
    while manager.list().iter().any(|row| row.state != CertState::Valid || row.failures > 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_root_rotates_without_a_failed_handshake() {
    let ca = TestCa::start().await;
    let (one, two) = (ca.manager(), ca.manager());
    let old = Arc::clone(&ca.authority.active().unwrap().signer);
    let (mut web, mut api) = (fetch(&one, "web").await, fetch(&two, "api").await);
    let next = ca.signer(&Material::self_made(ca.clock.now()).unwrap());
    let both = [old.roots(), next.roots()].concat();

    // Published, and on its way: one node has it, the other not yet. The old key signs.
    ca.use_signer(&old, both.clone());
    ca.spread();
    one.refresh_roots().await;
    web = one.current(&web.identity).unwrap();
    assert_eq!(web.roots().len(), 2);
    shake(&web, &api).unwrap();
    shake(&api, &web).unwrap();
    two.refresh_roots().await;
    api = two.current(&api.identity).unwrap();

    // The new key signs: one has renewed, the other not.
    ca.use_signer(&next, both);
    ca.clock.advance(13 * Duration::from_secs(3600));
    one.renew_due();
    web = renewed(&one, &web).await;
    shake(&web, &api).unwrap();
    shake(&api, &web).unwrap();
    two.renew_due();
    api = renewed(&two, &api).await;
    shake(&web, &api).unwrap();

    // The old root is withdrawn, again in some order.
    ca.use_signer(&next, next.roots().to_vec());
    ca.spread();
    two.refresh_roots().await;
    api = two.current(&api.identity).unwrap();
    assert_eq!(api.roots(), next.roots());
    shake(&web, &api).unwrap();
    shake(&api, &web).unwrap();

    // The test can fail: a certificate of the old key is refused now.
    ca.use_signer(&old, old.roots().to_vec());
    write_roots(&ca.root(), &[old.roots(), next.roots()].concat());
    let stale = fetch(&ca.manager(), "stale").await;
    assert!(shake(&stale, &api).is_err());
}

#[tokio::test]
async fn a_denied_identity_and_another_trust_domain_get_nothing() {
    let ca = TestCa::start().await;
    let manager = ca.manager();
    ca.authority.set_denied([identity("web")].into());
    let refused = manager.fetch(&identity("web")).await.unwrap_err();
    assert!(refused.to_string().contains("deny list"), "{refused}");
    let other = "spiffe://other.mesh/ns/shop/sa/web".parse().unwrap();
    let refused = manager.fetch(&other).await.unwrap_err();
    assert!(refused.to_string().contains("trust domain"), "{refused}");
    assert_eq!((ca.metrics.get(Outcome::Denied), ca.metrics.get(Outcome::NotAllowed)), (1, 1));
    fetch(&manager, "api").await;
}

#[tokio::test]
async fn a_pod_that_goes_while_its_request_waits_is_not_asked_for() {
    let mut ca = TestCa::start().await;
    // Takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    ca.address = silent.local_addr().unwrap();
    let manager = ca.manager();
    let wanted: Vec<_> = (0..100).map(|at| identity(&format!("sa-{at}"))).collect();
    let (told, mut answers) = tokio::sync::mpsc::channel(wanted.len());
    for identity in wanted {
        let (manager, told) = (Arc::clone(&manager), told.clone());
        tokio::spawn(async move { told.send(manager.fetch(&identity).await).await });
    }
    while manager.list().len() < 100 {
        tokio::task::yield_now().await;
    }
    manager.retain(&[identity("sa-0")].into());
    for _ in 0..100 - crate::identity::REQUESTS_MAX {
        assert!(matches!(answers.recv().await, Some(Err(CertError::Dropped { .. }))));
    }
    assert_eq!(manager.list().len(), 1);
}
