//! Only a certificate that the mesh's CA signed, for one identity of its trust domain, and that is valid now, opens
//! a tunnel; and only the identity that a pod is known by is accepted at the other end.
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::{AgentSpec, App};

use crate::hbone::{Authority, Credentials, Tunnel, Validity, on_a_runtime};
use crate::mesh::{Fate, Mesh, PORT, SOON, fate_of, probe};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// A tunnel by hand: what is wrong with a certificate keeps it from the pod, in both families, and the agent says so.
#[test]
fn a_bad_client_certificate_opens_no_tunnel() -> Result<()> {
    let mesh = Mesh::new("bad client certificates")?;
    let echo = App::echo(&mesh.far, PORT)?;
    let ours = Authority::of(&mesh.lab.ca_dir())?;
    let foreign = tempfile::tempdir()?;
    let theirs = other_ca(foreign.path())?;
    let other_domain = "spiffe://elsewhere.example/ns/shop/sa/client";
    let bad = [
        ("none", Credentials::none()),
        ("self-signed", Credentials::self_signed(CLIENT)?),
        ("of another CA", theirs.leaf(&[CLIENT], Validity::Now)?),
        ("of another trust domain", ours.leaf(&[other_domain], Validity::Now)?),
        ("expired", ours.leaf(&[CLIENT], Validity::Past)?),
        ("not valid yet", ours.leaf(&[CLIENT], Validity::Future)?),
        ("without a name", ours.leaf(&[], Validity::Now)?),
        ("with two names", ours.leaf(&[CLIENT, "spiffe://cluster.local/ns/shop/sa/root"], Validity::Now)?),
        ("with a name of another shape", ours.leaf(&["spiffe://cluster.local/client"], Validity::Now)?),
        (
            "with a name of another scheme",
            ours.leaf(&["https://cluster.local/ns/shop/sa/client"], Validity::Now)?,
        ),
    ];
    let refusals = |text: &str| text.lines().filter(|line| line.contains("reason=peer_certificate")).count();
    for (count, (what, credentials)) in bad.iter().enumerate() {
        for (family, to) in mesh.far.ips().into_iter().enumerate() {
            let target = mesh.far.both(PORT)[family].to_string();
            let answered = on_a_runtime(async {
                Tunnel::open(&mesh.stranger, to, credentials).await?.ask(&target, b"early").await
            });
            ensure!(answered.is_err(), "a certificate {what} got an answer");
            let wanted = 2 * count + family + 1;
            mesh_tests::eventually(&format!("the refusal of a certificate {what}"), SOON, || {
                Ok(refusals(&mesh.agent("node-b")?.log()) == wanted)
            })?;
        }
    }
    // The same by a good one: it was the certificate.
    let good = ours.leaf(&[CLIENT], Validity::Now)?;
    let target = mesh.far.v4(PORT).to_string();
    let answered = on_a_runtime(async {
        Tunnel::open(&mesh.stranger, mesh.far.ips()[0], &good).await?.ask(&target, b"early").await
    })?;
    assert_eq!((answered.status, answered.reason), (200, None));
    // The 200 comes when the kernel has accepted; the application counts a moment later.
    mesh_tests::eventually("the good one to arrive", SOON, || Ok(echo.stats().accepted() == 1))?;
    Ok(())
}

/// A CA of its own, made by an agent's first start in another folder: here, by copying what such a folder holds.
fn other_ca(dir: &Path) -> Result<Authority> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key)?;
    fs::write(dir.join("ca-key.pem"), key.serialize_pem())?;
    fs::write(dir.join("ca-cert.pem"), cert.pem())?;
    Authority::of(dir)
}

/// Agents with different CA folders, or different trust domains, do not form a mesh: no byte passes, either way.
#[test]
fn agents_of_another_ca_or_trust_domain_are_refused() -> Result<()> {
    let kinds = ["another CA", "another trust domain"];
    for kind in kinds {
        let mesh = Mesh::with(kind, true, |lab| {
            let other = match kind {
                "another CA" => {
                    AgentSpec { ca_dir: Some(lab.dir().join("other-ca")), ..AgentSpec::default() }
                }
                _ => AgentSpec { trust_domain: Some("elsewhere.example".to_owned()), ..AgentSpec::default() },
            };
            Ok([AgentSpec::default(), other])
        })?;
        let (far, client) = (App::echo(&mesh.far, PORT)?, App::echo(&mesh.client, PORT)?);
        for (from, server) in [(&mesh.client, &mesh.far), (&mesh.far, &mesh.client)] {
            for to in server.both(PORT) {
                assert_eq!(probe(from, to)?, Fate::Cut, "{kind}: {} to {to}", from.id());
                let reason = if kind == "another CA" { "peer_certificate" } else { "wrong_identity" };
                let (to, reason) = (format!("dst.addr={to}"), format!("reason=\"{reason}\""));
                mesh.wait_logged(from.node(), &[&to, &reason, "direction=\"outbound\""])?;
            }
        }
        assert_eq!((far.stats().accepted(), client.stats().accepted()), (0, 0), "{kind}");
    }
    Ok(())
}

/// An address that is served by another identity than its Pod says is not talked to.
#[test]
fn a_server_of_another_identity_is_refused() -> Result<()> {
    // Node-b's agent is told another account for the pod: its certificate is another one than node-a expects.
    let mesh = Mesh::with("wrong identity", true, |lab| {
        let dir = lab.dir().join("other-manifests");
        fs::create_dir(&dir)?;
        for entry in fs::read_dir(lab.manifests().dir())? {
            let entry = entry?;
            let text = fs::read_to_string(entry.path())?;
            let text =
                text.replace("\"serviceAccountName\": \"far\"", "\"serviceAccountName\": \"impostor\"");
            fs::write(dir.join(entry.file_name()), text)?;
        }
        Ok([AgentSpec::default(), AgentSpec { manifests: Some(dir), ..AgentSpec::default() }])
    })?;
    let echo = App::echo(&mesh.far, PORT)?;
    for to in mesh.far.both(PORT) {
        assert_eq!(probe(&mesh.client, to)?, Fate::Cut);
        let to = format!("dst.addr={to}");
        mesh.wait_logged("node-a", &[&to, "reason=\"wrong_identity\""])?;
    }
    assert_eq!(echo.stats().accepted(), 0);
    Ok(())
}

/// A tunnel that stands is no way past its server's certificate: when that has ended and cannot be renewed, no
/// connection is made over it any more, what is open on it goes on, and with a new certificate all is well again.
#[test]
fn no_connection_is_made_on_a_tunnel_past_its_certificate() -> Result<()> {
    const LIFETIME: Duration = Duration::from_secs(4);
    let mut key = PathBuf::new();
    let mesh = Mesh::with("certificate ends under a tunnel", true, |lab| {
        // One root, two folders: node-b's agent is to lose its CA, node-a's is not.
        let theirs = lab.dir().join("ca-of-node-b");
        one_root(&[&lab.ca_dir(), &theirs])?;
        key = theirs.join("ca-key.pem");
        let arguments = ["--cert-lifetime", "4s"].map(str::to_owned).to_vec();
        Ok([AgentSpec::default(), AgentSpec { ca_dir: Some(theirs), arguments, ..AgentSpec::default() }])
    })?;
    let _echo = App::echo(&mesh.far, PORT)?;
    let mut live = Vec::new();
    for to in mesh.far.both(PORT) {
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        live.push(mesh.client.connect(to)?);
    }
    // A key that others may read is not signed with.
    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    let broken = Instant::now();
    for to in mesh.far.both(PORT) {
        let took = mesh.wait_fate(&mesh.client, to, Fate::Cut)?;
        println!("refused {took:?} after, {:?} after the CA went", broken.elapsed());
        ensure!(broken.elapsed() < 2 * LIFETIME + SOON / 2, "long past the certificate's end");
        mesh.wait_logged(
            "node-a",
            &[&format!("dst.addr={to}"), "connection failed", "direction=\"outbound\""],
        )?;
    }
    for stream in &mut live {
        ensure!(fate_of(stream)? == Fate::Echoed, "what was open is to drain, not to be cut");
    }
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    for to in mesh.far.both(PORT) {
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
    }
    for stream in &mut live {
        ensure!(fate_of(stream)? == Fate::Echoed, "nor by the renewal");
    }
    Ok(())
}

/// CA folders with the same root.
fn one_root(dirs: &[&Path]) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key)?;
    for dir in dirs {
        fs::create_dir_all(dir)?;
        for name in ["ca-cert.pem", "root-cert.pem"] {
            fs::write(dir.join(name), cert.pem())?;
        }
        let path = dir.join("ca-key.pem");
        fs::write(&path, key.serialize_pem())?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    }
    Ok(())
}
