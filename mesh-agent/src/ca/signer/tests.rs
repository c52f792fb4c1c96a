use rcgen::{BasicConstraints, GeneralSubtree, NameConstraints};

use super::*;
use crate::ca::testing::{Made, intermediate};
use crate::identity::certificate_identity;
use crate::identity::testing::identity;

fn read(material: &Material) -> Result<Signer, SignerError> {
    Signer::read(material, "cluster.local", SystemTime::now())
}

fn csr(names: Vec<SanType>, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.serialize_request(key).unwrap().der().to_vec()
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

#[test]
fn a_self_made_root_signs_and_is_its_own_bundle() {
    let signer = read(&Material::self_made(SystemTime::now()).unwrap()).unwrap();
    assert!(signer.intermediates().is_empty());
    assert_eq!(signer.roots(), [signer.anchor().clone()]);
    let issued =
        signer.sign(&csr(vec![], &p256()), &identity("web"), SERVING_LIFETIME, SystemTime::now()).unwrap();
    assert_eq!(certificate_identity(&issued.leaf), Ok(identity("web")));
}

#[test]
fn an_operator_s_intermediate_signs_with_its_chain_and_ends_at_the_operator_s_root() {
    let signer = read(&intermediate(Made::authority("root"), Made::authority("mesh"))).unwrap();
    assert_eq!(signer.intermediates().len(), 1);
    assert_ne!(*signer.anchor(), signer.intermediates()[0]);
    // A certificate never outlives the one that signed it.
    let later = signer.not_after() - Duration::from_secs(60);
    let issued = signer.sign(&csr(vec![], &p256()), &identity("web"), SERVING_LIFETIME, later).unwrap();
    assert_eq!(issued.not_after, signer.not_after());
    let late = signer.sign(&csr(vec![], &p256()), &identity("web"), SERVING_LIFETIME, signer.not_after());
    assert!(matches!(late, Err(CertError::Generate { .. })), "{late:?}");
}

#[test]
fn certificates_that_may_not_sign_are_refused_with_what_is_wrong() {
    let long_ago = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let cases = [
        ("no CA", Made::authority("mesh").change(|p| p.is_ca = IsCa::ExplicitNoCa), "is no CA"),
        (
            "usage",
            Made::authority("mesh").change(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "may not sign certificates",
        ),
        ("expired", Made::authority("mesh").change(|p| p.not_after = long_ago), "has expired"),
        (
            "names",
            Made::authority("mesh").change(|p| {
                let dns = GeneralSubtree::DnsName("example.com".into());
                p.name_constraints =
                    Some(NameConstraints { permitted_subtrees: vec![], excluded_subtrees: vec![dns] });
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
            "verifies with none",
        ),
    ];
    for (what, between, words) in cases {
        let refused = read(&intermediate(Made::authority("root"), between)).unwrap_err().to_string();
        assert!(refused.contains(words), "{what}: {refused}");
    }
    let short = Made::authority("root").change(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let mut too_deep = intermediate(short, Made::authority("mesh"));
    too_deep.chain.push_str(too_deep.roots.as_ref().unwrap());
    let refused = read(&too_deep).unwrap_err().to_string();
    assert!(refused.contains("pathLen"), "{refused}");
}

#[test]
fn a_foreign_key_a_foreign_root_and_broken_texts_are_named() {
    let good = intermediate(Made::authority("root"), Made::authority("mesh"));
    let other = Material::self_made(SystemTime::now()).unwrap();
    let with = |change: fn(&mut Material, &Material)| {
        let mut material = good.clone();
        change(&mut material, &other);
        read(&material).unwrap_err()
    };
    assert_eq!(with(|m, other| m.key = other.key.clone()), SignerError::Mismatch);
    assert!(matches!(with(|m, other| m.roots = other.roots.clone()), SignerError::NoRoot { roots: 1, .. }));
    assert!(matches!(with(|m, _| m.roots = Some("x".into())), SignerError::Pem { key: "ca.crt", .. }));
    assert!(matches!(with(|m, _| m.chain = "x".into()), SignerError::Pem { key: "tls.crt", .. }));
    assert!(matches!(with(|m, _| m.key = "x".into()), SignerError::Pem { key: "tls.key", .. }));
}

#[test]
fn a_csr_is_of_p_256_is_signed_by_its_key_and_names_the_identity_or_nothing() {
    let signer = read(&Material::self_made(SystemTime::now()).unwrap()).unwrap();
    let uri = |account: &str| SanType::URI(identity(account).to_string().try_into().unwrap());
    let sign = |csr: &[u8]| signer.sign(csr, &identity("web"), SERVING_LIFETIME, SystemTime::now());
    let key = p256();
    assert!(sign(&csr(vec![], &key)).is_ok());
    assert!(sign(&csr(vec![uri("web")], &key)).is_ok());
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let dns = SanType::DnsName("web.shop".try_into().unwrap());
    let mut forged = csr(vec![uri("web")], &key);
    *forged.last_mut().unwrap() ^= 1;
    for (what, csr) in [
        ("another identity", csr(vec![uri("admin")], &key)),
        ("two names", csr(vec![uri("web"), uri("admin")], &key)),
        ("a DNS name", csr(vec![dns], &key)),
        ("P-384", csr(vec![uri("web")], &p384)),
        ("Ed25519", csr(vec![uri("web")], &ed25519)),
        ("a broken signature", forged),
    ] {
        assert!(matches!(sign(&csr), Err(CertError::CsrRefused { .. })), "{what}");
    }
}
