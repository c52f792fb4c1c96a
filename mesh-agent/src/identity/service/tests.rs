use std::slice::from_ref;

use super::*;
use crate::identity::leaf;
use crate::identity::root::make_root;
use crate::identity::testing::identity;

fn root(name: &str) -> (rcgen::Issuer<'static, rcgen::KeyPair>, CertificateDer<'static>) {
    let (key, cert) = make_root(name, SystemTime::now()).unwrap();
    (rcgen::Issuer::from_ca_cert_der(cert.der(), key).unwrap(), cert.der().clone())
}

fn leaf(issuer: &rcgen::Issuer<'static, rcgen::KeyPair>) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let now = SystemTime::now();
    let params = leaf::params(&identity("web"), now, now + Duration::from_secs(3600)).unwrap();
    params.signed_by(&key, issuer).unwrap().der().clone()
}

fn answer(texts: &[&[&CertificateDer<'static>]]) -> CertificateResponse {
    let cert_chain = texts.iter().map(|certs| pem::text("CERTIFICATE", certs)).collect();
    CertificateResponse { cert_chain }
}

#[test]
fn the_last_text_holds_the_roots_and_a_root_among_the_intermediates_is_dropped() {
    let ((issuer, one), (_, two)) = (root("one"), root("two"));
    let leaf = leaf(&issuer);
    let read = read_answer(&answer(&[&[&leaf], &[&one], &[&one, &two]])).unwrap();
    assert_eq!((read.chain.as_slice(), read.roots.as_slice()), (&[leaf][..], &[one, two][..]));
    assert_eq!(verify(&read, SystemTime::now()), Ok(()));
}

#[test]
fn answers_without_a_root_without_a_leaf_or_of_another_root_are_refused() {
    let ((issuer, one), (_, two)) = (root("one"), root("two"));
    let leaf = leaf(&issuer);
    for (what, texts) in [
        ("nothing", &[][..]),
        ("no root", &[&[&leaf][..]][..]),
        (
            "too many texts",
            &[&[&leaf][..], &[&one], &[&one], &[&one], &[&one], &[&one], &[&one], &[&one], &[&one]][..],
        ),
        ("no leaf", &[&[&one][..], &[&one]][..]),
    ] {
        assert!(read_answer(&answer(texts)).is_err(), "{what}");
    }
    let foreign = read_answer(&answer(&[&[&leaf], &[&two]])).unwrap();
    assert!(verify(&foreign, SystemTime::now()).unwrap_err().contains("does not verify"));
}

#[test]
fn the_file_is_the_mesh_s_bundle_only_while_it_shares_a_root_with_the_ca_s_answers() {
    let [one, two, other] = [1_u8, 2, 3].map(|byte| CertificateDer::from(vec![byte]));
    assert_eq!(in_force(from_ref(&one), &[one.clone(), two.clone()]), [one.clone(), two.clone()]);
    // The root goes: in force now are both, so the file that holds the new one alone is followed.
    assert_eq!(in_force(&[one.clone(), two.clone()], from_ref(&two)), [two]);
    // istiod whose serving certificate the cluster's own CA signed: that CA signs no workloads.
    assert_eq!(in_force(from_ref(&one), &[other]), [one]);
}

#[tokio::test]
async fn addresses_that_are_no_https_are_refused_at_the_start() {
    let new = |address: &str| {
        let settings = ServiceSettings {
            address: address.parse().unwrap(),
            root: "/root.pem".into(),
            token: "/token".into(),
            cluster_id: "Kubernetes".into(),
        };
        CaService::new(settings, Arc::new(crate::identity::SystemClock))
    };
    assert!(new("https://istiod.istio-system.svc:15012").is_ok());
    assert!(new("https://[::1]:15012").is_ok());
    for bad in ["http://istiod:15012", "istiod:15012"] {
        assert!(matches!(new(bad), Err(CertError::Address { .. })), "{bad}");
    }
}
