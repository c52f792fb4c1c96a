//! Hosts outside the mesh: found by the Host of a request, resolved by a real name server, reached over real TLS.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_tests::apps::{NameServer, Nginx, TlsFiles, ZONE};
use mesh_tests::client::{Ask, Session};
use mesh_tests::{Agent, AgentSpec, App, Lab, Pod, PodSpec, eventually};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

use crate::shop::SOON;

/// An address that nobody has: whoever answers has been found by a name.
const NOWHERE: [u8; 4] = [192, 0, 2, 80];
const TARGET: u16 = 8080;

/// A client in the mesh, its agent, a name server, and servers that no manifest tells of.
struct Stage {
    agent: Agent,
    servers: Vec<(App, Pod)>,
    dns: NameServer,
    client: Pod,
    tls_dir: PathBuf,
    lab: Lab,
}

impl Stage {
    fn new(scenario: &str, environment: &[(&str, &Path)]) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace("default", true)?;
        let client = lab.pod(PodSpec::new("default", "client", "node-a").account("frontend"))?;
        let mut servers = Vec::new();
        for name in ["one", "two"] {
            let pod = lab.pod_unlisted(PodSpec::new("outside", name, "node-b"))?;
            servers.push((App::http(&pod, TARGET)?, pod));
        }
        let dns = NameServer::start(&lab, &lab.pod_unlisted(PodSpec::new("outside", "dns", "node-b"))?, &[])?;
        let tls_dir = lab.dir().join("tls");
        let text = |path: &Path| path.display().to_string();
        let spec = AgentSpec {
            arguments: ["--resolv-conf", &text(dns.resolv_conf()), "--tls-dir", &text(&tls_dir)]
                .map(str::to_owned)
                .to_vec(),
            environment: environment.iter().map(|(name, path)| ((*name).to_owned(), text(path))).collect(),
            ..AgentSpec::default()
        };
        let agent = lab.agent_with("node-a", &spec)?;
        eventually("the client to be captured", SOON, || {
            let all = agent.ask(&["workloads"])?;
            Ok(all.as_array().is_some_and(|all| all.iter().any(|one| one["enrolment"] == "captured")))
        })?;
        Ok(Self { agent, servers, dns, client, tls_dir, lab })
    }

    fn ip(&self, server: usize, family: usize) -> IpAddr {
        self.servers[server].1.ips()[family]
    }

    /// Writes manifests and waits until the agent has taken them in.
    fn apply(&self, name: &str, text: &str) -> Result<()> {
        let version = || self.agent.metric("nodemesh_world_version", &[]);
        let before = version()?;
        self.lab.manifests().put_text(name, text)?;
        eventually("the agent to take in a manifest", SOON, || Ok(version()? > before))?;
        Ok(())
    }

    /// A connection to an address of nobody, for requests to this host.
    fn session(&self, host: &str) -> Result<Session> {
        Session::new(self.client.connect(SocketAddr::from((NOWHERE, 80)))?, host)
    }

    /// What one request to a host gets: status, and who answered.
    fn get(&self, host: &str) -> Result<(u16, String)> {
        let reply = self.session(host)?.get("/")?;
        let pod = reply.json().ok().and_then(|said| said["pod"].as_str().map(str::to_owned));
        Ok((reply.status, pod.unwrap_or_else(|| reply.text())))
    }

    fn served_by(&self, host: &str, pod: &str) -> Result<()> {
        eventually(&format!("{host} to be served by {pod}"), SOON, || {
            Ok(self.get(host)? == (200, pod.to_owned()))
        })?;
        Ok(())
    }
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n---\n"
    )
}

fn rule(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n---\n"
    )
}

const WEB: &str = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";

/// A name is resolved in both families, followed when its time is over, and kept while no name server answers; a name
/// that is gone has no endpoints.
#[test]
fn a_host_is_where_its_name_server_says() -> Result<()> {
    let mut stage = Stage::new("names", &[])?;
    stage.dns.set(&[("api", stage.ip(0, 0)), ("api", stage.ip(0, 1))])?;
    stage.apply("entry", &entry("api", &format!("hosts: [api.{ZONE}], resolution: DNS, {WEB}")))?;
    let host = format!("api.{ZONE}");
    stage.served_by(&host, "one")?;
    let shown = stage.agent.ask(&["services"])?;
    let shown = shown.as_array().and_then(|all| all.iter().find(|one| one["hostname"] == *host));
    let endpoints = shown.context("the host is not listed")?["ports"][0]["endpoints"].clone();
    let mut addresses: Vec<&str> = endpoints
        .as_array()
        .context("no endpoints")?
        .iter()
        .filter_map(|one| one["address"].as_str())
        .collect();
    addresses.sort_unstable();
    let mut expected = [0, 1].map(|family| SocketAddr::new(stage.ip(0, family), TARGET).to_string());
    expected.sort_unstable();
    assert_eq!(addresses, expected);
    // Another answer, in force when the first one's second is over; it is asked for on the same connection.
    stage.dns.set(&[("api", stage.ip(1, 0))])?;
    stage.served_by(&host, "two")?;
    stage.dns.process().kill()?;
    eventually("the agent to miss the name server", SOON, || {
        Ok(stage.agent.log().contains("its last addresses stay"))
    })?;
    assert_eq!(stage.get(&host)?, (200, "two".to_owned()));
    Ok(())
}

#[test]
fn a_name_that_is_gone_has_no_endpoints() -> Result<()> {
    let stage = Stage::new("names gone", &[])?;
    let host = format!("api.{ZONE}");
    stage.apply("entry", &entry("api", &format!("hosts: [{host}], resolution: DNS, {WEB}")))?;
    assert_eq!(stage.get(&host)?.0, 503);
    stage.dns.set(&[("api", stage.ip(0, 0))])?;
    stage.served_by(&host, "one")?;
    stage.dns.set(&[])?;
    eventually("the endpoints to go", SOON, || Ok(stage.get(&host)?.0 == 503))?;
    Ok(())
}

/// Routes, retries and policies of the entry that the Host names; whoever is named by no entry gets what it dialled.
#[test]
fn requests_to_an_address_of_nobody_go_by_their_host() -> Result<()> {
    let stage = Stage::new("names host", &[])?;
    let host = format!("api.{ZONE}");
    let endpoints = format!(
        "endpoints: [{{address: {}, weight: 3, labels: {{v: a}}}}, {{address: {}, labels: {{v: b}}}}]",
        stage.ip(0, 0),
        stage.ip(1, 0)
    );
    let round_robin =
        "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: b, labels: {v: b}}]";
    let text = [
        entry("api", &format!("hosts: [{host}], resolution: STATIC, {WEB}, {endpoints}")),
        entry("wide", &format!("hosts: ['*.{ZONE}'], resolution: NONE, {WEB}")),
        rule("api", &format!("host: {host}, {round_robin}")),
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: api, namespace: default}}\nspec: {{hosts: [{host}], http: [\
             {{match: [{{uri: {{prefix: /b}}}}], route: [{{destination: {{host: {host}, subset: b}}}}]}}, \
             {{name: told, match: [{{uri: {{prefix: /told}}}}], headers: {{request: {{set: {{x-from: 'ip=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%', x-to: '%DOWNSTREAM_LOCAL_ADDRESS%', x-again: '%REQ(x-mine?:path):6% %PROTOCOL%'}}}}, response: {{add: {{x-by: '%UPSTREAM_HOST% %ROUTE_NAME% %RESPONSE_CODE% %REQ(x-mine)%'}}}}}}, route: [{{destination: {{host: {host}, subset: b}}}}]}}, \
             {{match: [{{uri: {{prefix: /slow}}}}], timeout: 200ms, route: [{{destination: {{host: {host}}}}}]}}, \
             {{route: [{{destination: {{host: {host}}}}}]}}]}}\n"
        ),
    ];
    stage.apply("objects", &text.concat())?;
    let mut session = stage.session(&host)?;
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        let said = session.get("/")?.json()?;
        *found.entry(said["pod"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(found, BTreeMap::from([("one".to_owned(), 30), ("two".to_owned(), 10)]), "by weight");
    for _ in 0..8 {
        assert_eq!(session.get("/b")?.json()?["pod"], "two");
    }
    let reply = session.ask(&Ask::get("/told").headers(&[("x-mine", "abcdefgh")]))?;
    let by = format!("{} told 200 abcdefgh", SocketAddr::new(stage.ip(1, 0), TARGET));
    assert_eq!(reply.header("x-by"), Some(by.as_str()));
    let said = reply.json()?;
    assert_eq!(said["headers"]["x-from"][0], format!("ip={}", stage.client.ips()[0]));
    assert_eq!(said["headers"]["x-to"][0], "192.0.2.80:80");
    assert_eq!(said["headers"]["x-again"][0], "abcdef HTTP/1.1");
    assert_eq!(session.get("/slow?delay=5000")?.status, 504);
    // The mesh's retries, which are Istio's own until somebody says otherwise: an answer is an answer.
    assert_eq!(session.get("/?fail=2&key=a")?.status, 503);
    stage.apply(
        "mesh",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: nodemesh, namespace: nodemesh-system}\ndata:\n  mesh: |\n    defaultHttpRetryPolicy: {attempts: 3, retryOn: 5xx}\n",
    )?;
    // Both servers count for themselves: of four tries at most two fail at each.
    assert_eq!(session.get("/?fail=1&key=b")?.status, 200);
    // A wildcard of resolution NONE, and a host of nobody: as dialled.
    let web = App::http(&stage.servers[0].1, 80)?;
    for name in [format!("other.{ZONE}"), "unknown.example".to_owned()] {
        let address = SocketAddr::new(stage.ip(0, 0), 80);
        let mut session = Session::new(stage.client.connect(address)?, &name)?;
        assert_eq!(session.get("/")?.status, 200, "{name}");
    }
    assert_eq!(web.stats().requests(), 2);
    let told = stage.agent.ask(&["explain", "default/client", &host, "GET", "/b/1"])?;
    assert_eq!(told["route"]["service"], *host, "{told}");
    assert!(
        told["http"]["rule"]["action"][0].as_str().is_some_and(|text| text.contains("subset b")),
        "{told}"
    );
    Ok(())
}

/// A server's authority, and certificates of it.
struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "outside");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(dir.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn sign(&self, name: &str, names: &[String]) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(self.dir.join(format!("{name}.pem")), params.signed_by(&key, &self.issuer)?.pem())?;
        std::fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    fn server(&self) -> TlsFiles {
        let file = |name: &str| self.dir.join(name);
        TlsFiles { chain: file("server.pem"), key: file("server.key"), clients: file("ca.pem") }
    }
}

/// TLS in the client's stead: verified by name and authority, with a certificate where that is asked for, or refused.
#[test]
fn tls_is_spoken_in_the_client_s_stead_and_verified() -> Result<()> {
    let stage = Stage::new("names tls", &[])?;
    let pki = Pki::new(&stage.tls_dir.join("default"))?;
    pki.sign("server", &[format!("api.{ZONE}"), format!("*.wild.{ZONE}")])?;
    pki.sign("client", &["client.example".to_owned()])?;
    let mut nginx = Nginx::tls(&stage.lab, &stage.servers[0].1, 8443, &pki.server())?;
    let address = stage.ip(0, 0);
    const CA: &str = "caCertificates: /ca.pem";
    // Host, tls of its rule, and what the answer says (none = 503).
    let cases = [
        (
            "api",
            format!("mode: SIMPLE, {CA}"),
            Some("scheme=https sni=api.example.test client= protocol=HTTP/1.1"),
        ),
        ("x.wild", format!("mode: SIMPLE, {CA}"), Some("sni=x.wild.example.test")),
        ("wrong", format!("mode: SIMPLE, {CA}"), None),
        ("sni", format!("mode: SIMPLE, {CA}, sni: api.{ZONE}"), Some("sni=api.example.test")),
        ("san", format!("mode: SIMPLE, {CA}, subjectAltNames: [api.{ZONE}]"), Some("sni=san.example.test")),
        ("badsan", format!("mode: SIMPLE, {CA}, sni: api.{ZONE}, subjectAltNames: [b.{ZONE}]"), None),
        ("unsure", "mode: SIMPLE, insecureSkipVerify: true".to_owned(), Some("sni=unsure.example.test")),
        ("system", format!("mode: SIMPLE, sni: api.{ZONE}"), None),
        (
            "known",
            format!(
                "mode: MUTUAL, {CA}, sni: api.{ZONE}, clientCertificate: client.pem, privateKey: client.key"
            ),
            Some("client=CN=client protocol"),
        ),
        ("lost", format!("mode: MUTUAL, {CA}, clientCertificate: no.pem, privateKey: no.key"), None),
        ("plain", "mode: DISABLE".to_owned(), None),
        ("mesh", "mode: ISTIO_MUTUAL".to_owned(), None),
    ];
    let mut text = String::new();
    for (name, tls, _) in &cases {
        let ports = "ports: [{number: 80, name: http, targetPort: 8443}]";
        let endpoints = format!("resolution: STATIC, endpoints: [{{address: {address}}}]");
        text += &entry(name, &format!("hosts: [{name}.{ZONE}], {ports}, {endpoints}"));
        text += &rule(name, &format!("host: {name}.{ZONE}, trafficPolicy: {{tls: {{{tls}}}}}"));
    }
    // By address, as bytes: the client speaks HTTP to a port that is called tcp.
    let vip = stage.lab.vips()[0];
    text += &entry(
        "tcp",
        &format!(
            "hosts: [tcp.{ZONE}], addresses: [{vip}], ports: [{{number: 80, name: tcp, targetPort: 8443}}], resolution: STATIC, endpoints: [{{address: {address}}}], subjectAltNames: [api.{ZONE}]"
        ),
    );
    text += &rule("tcp", &format!("host: tcp.{ZONE}, trafficPolicy: {{tls: {{mode: SIMPLE, {CA}}}}}"));
    stage.apply("objects", &text)?;
    for (name, tls, expected) in &cases {
        let (status, said) = stage.get(&format!("{name}.{ZONE}"))?;
        match expected {
            Some(part) => assert!(status == 200 && said.contains(part), "{name} {tls}: {status} {said}"),
            // nginx answers plaintext on its port with 400.
            None => {
                assert!(status == 503 || (*name == "plain" && status == 400), "{name} {tls}: {status} {said}")
            }
        }
    }
    let mut session = Session::new(stage.client.connect(SocketAddr::new(vip, 80))?, "any")?;
    let said = session.get("/")?.text();
    assert!(said.contains("sni=tcp.example.test"), "{said}");
    // Another authority takes the place of the file: what it signed is believed, what the old one signed is not.
    drop(session);
    let other = Pki::new(&stage.lab.dir().join("other"))?;
    other.sign("server", &[format!("api.{ZONE}")])?;
    std::fs::copy(other.dir.join("ca.pem"), stage.tls_dir.join("default/ca.pem"))?;
    eventually("the old authority's server to be refused", SOON, || {
        Ok(stage.get(&format!("san.{ZONE}"))?.0 == 503)
    })?;
    nginx.process().kill()?;
    let _nginx = Nginx::tls(&stage.lab, &stage.servers[1].1, 8443, &other.server())?;
    let moved = text.replace(&address.to_string(), &stage.ip(1, 0).to_string());
    stage.apply("objects", &moved)?;
    let (status, said) = stage.get(&format!("api.{ZONE}"))?;
    assert!(status == 200 && said.contains("pod=two"), "{status} {said}");
    Ok(())
}

/// Where a rule names no file, the authorities of the system the agent runs on count.
#[test]
fn the_system_s_authorities_count_where_no_file_is_named() -> Result<()> {
    let outside = tempfile::tempdir()?;
    let pki = Pki::new(outside.path())?;
    pki.sign("server", &[format!("api.{ZONE}")])?;
    let stage = Stage::new("names roots", &[("SSL_CERT_FILE", &outside.path().join("ca.pem"))])?;
    let _nginx = Nginx::tls(&stage.lab, &stage.servers[0].1, 8443, &pki.server())?;
    let host = format!("api.{ZONE}");
    let spec = format!(
        "hosts: [{host}], ports: [{{number: 80, name: http, targetPort: 8443}}], resolution: STATIC, endpoints: [{{address: {}}}]",
        stage.ip(0, 0)
    );
    let text = entry("api", &spec)
        + &rule("api", &format!("host: {host}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}"));
    stage.apply("objects", &text)?;
    let (status, said) = stage.get(&host)?;
    assert!(status == 200 && said.contains("scheme=https"), "{status} {said}");
    Ok(())
}
