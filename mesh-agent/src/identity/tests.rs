use rcgen::{CertificateParams, KeyPair, OtherNameValue, SanType};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::identity::testing::identity;

fn with_names(names: Vec<SanType>) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn one_uri_name_is_the_identity_and_other_kinds_of_names_say_nothing() {
    let id = identity("web").to_string();
    let dns = SanType::DnsName("reviews.test.svc.cluster.local".try_into().unwrap());
    assert_eq!(certificate_identity(&with_names(vec![uri(&id)])), Ok(identity("web")));
    assert_eq!(certificate_identity(&with_names(vec![dns, uri(&id)])), Ok(identity("web")));
}

#[test]
fn no_name_and_several_uri_names_are_refused() {
    let id = identity("web").to_string();
    let other = identity("admin").to_string();
    assert_eq!(certificate_identity(&with_names(vec![])), Err(PeerError::UriCount(0)));
    assert_eq!(certificate_identity(&with_names(vec![uri(&id), uri(&other)])), Err(PeerError::UriCount(2)));
    assert_eq!(certificate_identity(&with_names(vec![uri(&id), uri(&id)])), Err(PeerError::UriCount(2)));
}

#[test]
fn a_uri_in_an_other_name_is_no_identity() {
    // CVE-2025-66220's class: the value is right, the kind of name is not.
    let value = OtherNameValue::Utf8String(identity("web").to_string());
    let der = with_names(vec![SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311], value))]);
    assert_eq!(certificate_identity(&der), Err(PeerError::UriCount(0)));
}

#[test]
fn uris_that_are_no_identity_are_refused() {
    for text in [
        "https://cluster.local/ns/test/sa/web",
        "spiffe://cluster.local/ns/test/sa/web/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe://cluster.local/ns/test/sa/web%00",
        "spiffe://Cluster.local/ns/test/sa/web",
        "spiffe://cluster.local/ns/test/sa/web?x=1",
    ] {
        let found = certificate_identity(&with_names(vec![uri(text)]));
        assert!(matches!(found, Err(PeerError::Identity(_))), "{text}: {found:?}");
    }
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let good = with_names(vec![uri(&identity("web").to_string())]);
    let mut longer = good.to_vec();
    longer.push(0);
    for bytes in [vec![], vec![0x30, 0x03, 1, 2, 3], longer, good[..good.len() - 1].to_vec()] {
        assert!(matches!(certificate_identity(&bytes.into()), Err(PeerError::Unreadable(_))));
    }
}
