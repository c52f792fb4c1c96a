use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};

use super::*;
use crate::identity::BUNDLE_MAX_CERTS;
use crate::identity::certificate_identity;
use crate::identity::issue::key_and_csr;
use crate::identity::testing::identity;

fn request(csr: Vec<u8>, account: &str) -> SignRequest {
    let lifetime = Duration::from_secs(3600);
    SignRequest { identity: identity(account), csr, lifetime, now: SystemTime::now() }
}

#[test]
fn the_first_use_makes_a_root_that_only_the_owner_can_read_and_later_uses_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/ca");
    let first = DirCa::open(&folder).unwrap().roots().unwrap();
    let second = DirCa::open(&folder).unwrap().roots().unwrap();
    assert_eq!(first, second);
    assert_eq!(first.len(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.join(KEY_FILE)), 0o600);
    assert_eq!(mode(&folder), 0o700);
}

#[test]
fn agents_that_start_at_once_in_a_fresh_folder_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (folder, barrier) = (dir.path().to_owned(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                DirCa::open(&folder).unwrap().roots().unwrap()
            })
        })
        .collect();
    let roots: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(roots.iter().all(|root| *root == roots[0] && root.len() == 1));
}

#[test]
fn a_signed_certificate_has_the_identity_the_usages_and_the_lifetime_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DirCa::open(dir.path()).unwrap();
    let request = request(key_and_csr(&identity("web")).unwrap().csr, "web");
    let signed = ca.sign(&request).unwrap();
    assert_eq!(signed.roots, ca.roots().unwrap());
    assert_eq!(signed.chain.len(), 1);
    assert_eq!(certificate_identity(&signed.chain[0]), Ok(identity("web")));
    let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    let now = request.now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!(leaf.validity().not_before.timestamp() < now);
    assert!((leaf.validity().not_after.timestamp() - now - 3600).abs() <= 1);
}

#[test]
fn csrs_that_ask_for_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DirCa::open(dir.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let uri = |account: &str| SanType::URI(identity(account).to_string().try_into().unwrap());
    let csr = |names: Vec<SanType>, subject: Option<&str>| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(subject) = subject {
            params.distinguished_name.push(DnType::CommonName, subject);
        }
        params.subject_alt_names = names;
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    let mut forged = key_and_csr(&identity("web")).unwrap().csr;
    *forged.last_mut().unwrap() ^= 1;
    let dns = SanType::DnsName("web.test".try_into().unwrap());
    for (what, csr) in [
        ("another identity", csr(vec![uri("admin")], None)),
        ("two identities", csr(vec![uri("web"), uri("admin")], None)),
        ("a further DNS name", csr(vec![uri("web"), dns], None)),
        ("no name", csr(vec![], None)),
        ("a subject", csr(vec![uri("web")], Some("admin"))),
        ("a broken signature", forged),
        ("no CSR", b"nothing".to_vec()),
    ] {
        let refused = ca.sign(&request(csr, "web"));
        assert!(matches!(refused, Err(CertError::CsrRefused { .. })), "{what}: {refused:?}");
    }
}

#[test]
fn an_exposed_key_a_foreign_certificate_and_a_broken_bundle_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let ca = DirCa::open(dir.path()).unwrap();
    let key = dir.path().join(KEY_FILE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(DirCa::open(dir.path()), Err(CertError::KeyExposed { mode: 0o640, .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let other = tempfile::tempdir().unwrap();
    DirCa::open(other.path()).unwrap();
    let own = fs::read(dir.path().join(CERT_FILE)).unwrap();
    fs::copy(other.path().join(CERT_FILE), dir.path().join(CERT_FILE)).unwrap();
    assert!(matches!(DirCa::open(dir.path()), Err(CertError::Mismatch { .. })));
    fs::write(dir.path().join(CERT_FILE), own).unwrap();

    let one = fs::read_to_string(dir.path().join(BUNDLE_FILE)).unwrap();
    fs::write(dir.path().join(BUNDLE_FILE), one.repeat(BUNDLE_MAX_CERTS + 1)).unwrap();
    assert!(matches!(ca.roots(), Err(CertError::BundleTooLarge { count: 17, .. })));
    fs::write(dir.path().join(BUNDLE_FILE), "nothing").unwrap();
    assert!(matches!(ca.roots(), Err(CertError::Pem { .. })));
}

#[test]
fn a_new_root_joins_the_bundle_and_an_interrupted_start_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let old = DirCa::open(dir.path()).unwrap().roots().unwrap();
    // The state after a rotation by hand, and after an agent that was killed before it wrote the key.
    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    fs::write(dir.path().join("ca-key.pem.new"), "half a k").unwrap();
    let both = DirCa::open(dir.path()).unwrap().roots().unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], old[0]);
}
