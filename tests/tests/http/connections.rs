//! Routes of connections: by port and client, by the name in a ClientHello, by weight, and how long they may take.
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{self, io_kind};
use mesh_tests::{App, Pod, PodSpec, eventually};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::shop::{SOON, Service, Shop, TARGET};

const NAMESPACE: &str = "default";

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: default}
spec: {host: db, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
";

/// `db` in two versions on two nodes, and `backup`: each says its pod's name first.
fn databases(scenario: &str) -> Result<Shop> {
    let pods = [
        ("db-1", "db", "v1", "node-a"),
        ("db-2", "db", "v2", "node-b"),
        ("backup-1", "backup", "v1", "node-b"),
    ];
    Shop::serving(NAMESPACE, scenario, &pods, |pod| App::greeter(pod, TARGET, &format!("{}\n", pod.name())))
}

/// Which server a client's connection reaches.
fn reached(from: &Pod, to: &Service) -> Result<String> {
    client::line(&mut from.connect(to.at(0))?)
}

fn counted(from: &Pod, to: &Service, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut found = BTreeMap::new();
    for _ in 0..times {
        *found.entry(reached(from, to)?).or_default() += 1;
    }
    Ok(found)
}

fn names(found: &BTreeMap<String, usize>) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}

/// A connection that is refused is reset, not closed in order.
fn refused(from: &Pod, to: &Service) -> Result<()> {
    let failed = reached(from, to).err().context("it was served")?;
    ensure!(io_kind(&failed) == Some(ErrorKind::ConnectionReset), "{failed:#}");
    Ok(())
}

/// A fifth of the connections goes to the other version, those of one client all of them, and of a second Service
/// named by the rule the logs and metrics tell.
#[test]
fn connections_are_split_by_weight_and_by_client() -> Result<()> {
    let shop = databases("tcp split")?;
    let reports = shop.lab.pod(PodSpec::new(NAMESPACE, "reports", "node-a").label("app", "reports"))?;
    let db = shop.service("db", Some("tcp"))?;
    let _backup = shop.service("backup", Some("tcp"))?;
    shop.apply("subsets", SUBSETS)?;
    shop.apply(
        "routes",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db]
  tcp:
  - match: [{sourceLabels: {app: reports}}]
    route: [{destination: {host: backup}}]
  - match: [{port: 80}]
    route:
    - {destination: {host: db, subset: v1}, weight: 80}
    - {destination: {host: db, subset: v2}, weight: 20}
",
    )?;
    let found = counted(&shop.client, &db, 500)?;
    let other = found.get("db-2").copied().unwrap_or_default();
    assert_eq!(found.values().sum::<usize>(), 500, "{found:?}");
    // sqrt(500 * 0.2 * 0.8) = 8.9, five times that.
    assert!(names(&found) == ["db-1", "db-2"] && other.abs_diff(100) <= 45, "{found:?}");
    eventually("the second client to be captured", SOON, || Ok(reached(&reports, &db)? == "backup-1"))?;
    assert_eq!(names(&counted(&reports, &db, 20)?), ["backup-1"]);

    let agent = shop.agent("node-a")?;
    let told = agent.ask(&["explain", "default/reports", "db.default.svc.cluster.local:80"])?;
    assert_eq!(told["connection"]["rule"]["rule"], "tcp[0]", "{told}");
    assert_eq!(told["destination"]["workload"], "default/backup-1", "{told}");
    let told = agent.ask(&["routes", "default/client", "db:80"])?;
    assert_eq!(told["connections"].as_array().map(Vec::len), Some(2), "{told}");
    let opened = |source: &str, service: &str| {
        let labels =
            [("reporter", "source"), ("source_workload", source), ("destination_service_name", service)];
        agent.metric("istio_tcp_connections_opened_total", &labels)
    };
    assert!(opened("reports", "backup")? >= 20.0 && opened("client", "db")? >= 500.0);
    assert_eq!(opened("client", "backup")?, 0.0);
    let parts = [
        "connection complete",
        "src.workload=\"reports\"",
        "dst.service=\"backup.default.svc.cluster.local\"",
        "route_name=VirtualService default/db tcp[0]",
    ];
    eventually("the line of a connection", SOON, || {
        Ok(agent.log().lines().any(|line| parts.iter().all(|part| line.contains(part))))
    })?;
    Ok(())
}

/// What no rule takes goes to the Service; what a rule sends to a subset or Service that is not there is refused.
#[test]
fn what_a_rule_does_not_take_and_what_it_cannot_send() -> Result<()> {
    let shop = databases("tcp rest")?;
    let db = shop.service("db", Some("tcp"))?;
    let route = |rule: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: db, namespace: default}}\nspec: {{hosts: [db], tcp: [{rule}]}}\n"
        )
    };
    let to = |destination: &str| route(&format!("{{route: [{{destination: {{{destination}}}}}]}}"));
    shop.apply("subsets", SUBSETS)?;
    shop.apply("routes", &to("host: db, subset: v2"))?;
    assert_eq!(names(&counted(&shop.client, &db, 20)?), ["db-2"]);
    shop.apply(
        "routes",
        &route("{match: [{destinationSubnets: [192.0.2.0/24]}], route: [{destination: {host: gone}}]}"),
    )?;
    assert_eq!(names(&counted(&shop.client, &db, 40)?), ["db-1", "db-2"]);
    for (destination, reason) in [("host: db, subset: v9", "no_subset"), ("host: gone", "backend_invalid")] {
        shop.apply("routes", &to(destination))?;
        refused(&shop.client, &db)?;
        let part = format!("reason=\"{reason}\"");
        eventually("its line", SOON, || Ok(shop.agent("node-a")?.log().contains(&part)))?;
    }
    shop.lab.manifests().remove("routes")?;
    eventually("both versions to be used again", SOON, || {
        let found = [reached(&shop.client, &db), reached(&shop.client, &db)];
        Ok(found.iter().flatten().count() == 2)
    })?;
    Ok(())
}

/// A port that does not say what it is: HTTP goes by the rules for requests, the rest by those for connections.
#[test]
fn a_port_that_says_nothing_has_rules_for_both() -> Result<()> {
    let pods = [("http-1", "db", "v1", "node-b"), ("bytes-1", "backup", "v1", "node-b")];
    let shop = Shop::serving(NAMESPACE, "both", &pods, |pod| match pod.name() {
        "http-1" => App::http(pod, TARGET),
        name => App::greeter(pod, TARGET, &format!("{name}\n")),
    })?;
    let db = shop.service("db", None)?;
    let _backup = shop.service("backup", Some("tcp"))?;
    shop.apply(
        "routes",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db]
  http: [{headers: {response: {set: {x-rule: http}}}, route: [{destination: {host: db}}]}]
  tcp: [{route: [{destination: {host: backup}}]}]
",
    )?;
    assert_eq!(shop.session(&db)?.get("/")?.header("x-rule"), Some("http"));
    assert_eq!(reached(&shop.client, &db)?, "bytes-1");
    Ok(())
}

/// A policy about requests is kept on a port whose connections go by a rule: the agent reads what the rule leads to.
#[test]
fn a_policy_on_requests_holds_behind_a_rule_for_connections() -> Result<()> {
    let pods = [("db-1", "db", "v1", "node-b"), ("near-1", "near", "v1", "node-a")];
    let shop = Shop::within(NAMESPACE, "tcp policy rule", &pods)?;
    let db = shop.service("db", Some("tcp"))?;
    let _near = shop.service("near", Some("tcp"))?;
    shop.apply(
        "routes",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec: {hosts: [db], tcp: [{route: [{destination: {host: near}}]}]}
",
    )?;
    shop.apply(
        "policy",
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: default}
spec:
  selector: {matchLabels: {app: near}}
  rules: [{to: [{operation: {paths: ['/api*']}}]}]
",
    )?;
    for (path, status) in [("/api/items", 200), ("/admin", 403)] {
        let reply = shop.session(&db)?.get(path)?;
        assert_eq!(reply.status, status, "{path}");
        if status == 200 {
            assert_eq!(reply.json()?["pod"], "near-1");
        }
    }
    Ok(())
}

/// Two servers with TLS of their own behind one Service, told apart by the name that the client asks for. Each has a
/// certificate of its own for all names: who trusts only the one has proof which server it speaks to.
#[test]
fn tls_goes_by_the_name_of_the_client_hello_and_is_not_touched() -> Result<()> {
    const NAMES: [&str; 3] = ["a.example.com", "b.example.com", "else.example.com"];
    let pods = [("tls-a", "web", "a", "node-a"), ("tls-b", "web", "b", "node-b")];
    let mut certificates = BTreeMap::new();
    let shop = Shop::serving(NAMESPACE, "tls", &pods, |pod| {
        let (app, certificate) = App::tls(pod, TARGET, &NAMES, &format!("{}\n", pod.name()))?;
        certificates.insert(pod.name().to_owned(), certificate);
        Ok(app)
    })?;
    let web = shop.service("web", Some("https"))?;
    let subsets = SUBSETS.replace("db", "web").replace("v1", "a").replace("v2", "b");
    shop.apply("subsets", &subsets.replace("io/a\n", "io/v1\n"))?;
    let all: Vec<_> = certificates.values().cloned().collect();
    let ask = |name: &str, trusted: &[CertificateDer<'static>]| -> Result<String> {
        let mut stream = client::tls(shop.connect(web.at(0))?, name, trusted)?;
        let said = client::line(&mut stream)?;
        stream.write_all(b"over TLS")?;
        stream.flush()?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        ensure!(&back == b"over TLS", "the echo gave other bytes back");
        Ok(said)
    };
    shop.apply(
        "routes",
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web, '*.example.com']
  tls:
  - match: [{sniHosts: ['b.example.com']}]
    route: [{destination: {host: web, subset: b}}]
  - match: [{port: 80, sniHosts: ['a.example.com', 'web']}]
    route: [{destination: {host: web, subset: a}}]
",
    )?;
    for _ in 0..10 {
        for (name, server) in [("a.example.com", "tls-a"), ("b.example.com", "tls-b")] {
            let own = [certificates.get(server).context("no certificate")?.clone()];
            assert_eq!(ask(name, &own)?, server);
        }
    }
    // Any other name, as in Istio, goes where the client dialled: to one of the Service's endpoints.
    let mut found = BTreeMap::new();
    for _ in 0..30 {
        *found.entry(ask("else.example.com", &all)?).or_insert(0) += 1;
    }
    assert_eq!(names(&found), ["tls-a", "tls-b"]);
    let agent = shop.agent("node-a")?;
    let told = agent.ask(&[
        "explain",
        "default/client",
        "web.default.svc.cluster.local:80",
        "--sni",
        "b.example.com",
    ])?;
    assert_eq!(told["connection"]["rule"]["rule"], "tls[0]", "{told}");
    assert_eq!(told["destination"]["workload"], "default/tls-b", "{told}");

    // A ClientHello without end is not waited for.
    let mut flood = shop.connect(web.at(0))?;
    let mut record = vec![0; 5 + 1024];
    record[..9].copy_from_slice(&[22, 3, 1, 4, 0, 1, 1, 0, 0]);
    let mut next = vec![0; 5 + 1024];
    next[..5].copy_from_slice(&[22, 3, 1, 4, 0]);
    let sent = flood.write_all(&[record, next.repeat(20)].concat());
    let ended = sent.and_then(|()| flood.read_exact(&mut [0])).err().context("it was served")?;
    assert!(matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
    assert!(agent.metric("nodemesh_limit_hits_total", &[("limit", "client_hello")])? >= 1.0);

    // A TLSRoute takes the port over, and has nothing for other names.
    shop.apply(
        "tlsroute",
        "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  hostnames: ['*.example.com']
  rules: [{backendRefs: [{name: only-b, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: exact, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: web, port: 80}]}]
",
    )?;
    // The backend does not exist: refused, and told.
    let failed = ask("b.example.com", &all).err().context("it was served")?;
    ensure!(io_kind(&failed) == Some(ErrorKind::ConnectionReset), "{failed:#}");
    assert!(ask("a.example.com", &all)?.starts_with("tls-"), "the narrower name");
    let nameless = || -> Result<String> {
        let mut stream = shop.connect(web.at(0))?;
        stream.write_all(b"HELO no TLS\r\n")?;
        client::line(&mut stream)
    };
    let failed = nameless().err().context("it was served")?;
    ensure!(io_kind(&failed) == Some(ErrorKind::ConnectionReset), "{failed:#}");
    for reason in ["no_route", "backend_invalid"] {
        let part = format!("reason=\"{reason}\"");
        eventually("the line of a refused connection", SOON, || Ok(agent.log().contains(&part)))?;
    }
    Ok(())
}

/// A TCPRoute takes a port whatever it says, in its weights; a consumer's holds for its own namespace only.
#[test]
fn a_tcp_route_takes_a_port() -> Result<()> {
    let shop = databases("tcproute")?;
    let db = shop.service("db", Some("http"))?;
    let _backup = shop.service("backup", Some("tcp"))?;
    shop.lab.manifests().namespace("other", true)?;
    let stranger = shop.lab.pod(PodSpec::new("other", "stranger", "node-a"))?;
    let route = |namespace: &str, name: &str, weight: u32| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: db, namespace: default, port: 80}}]
  rules:
  - backendRefs:
    - {{name: backup, namespace: default, port: 80, weight: {weight}}}
    - {{name: db, namespace: default, port: 80, weight: 1}}
"
        )
    };
    shop.apply("tcproute", &route("default", "db", 1))?;
    let found = counted(&shop.client, &db, 200)?;
    let backup = found.get("backup-1").copied().unwrap_or_default();
    // sqrt(200 / 4) = 7.1, five times that.
    assert!(backup.abs_diff(100) <= 36 && found.values().sum::<usize>() == 200, "{found:?}");
    eventually("the other namespace's client to be captured", SOON, || Ok(reached(&stranger, &db).is_ok()))?;
    // All of its connections go to the backend that has all the weight.
    shop.apply("consumer", &route("other", "own", 1_000_000))?;
    assert_eq!(names(&counted(&stranger, &db, 20)?), ["backup-1"]);
    assert!(counted(&shop.client, &db, 60)?.len() > 1, "the producer's route is as it was");
    Ok(())
}

/// A listener that nobody accepts from and whose queue is full: connecting to it takes for ever.
struct Full {
    _listener: TcpListener,
    _waiting: TcpStream,
}

impl Full {
    fn new(pod: &Pod, port: u16) -> Result<Self> {
        pod.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            let any: std::net::SocketAddr = ([0, 0, 0, 0], port).into();
            socket.bind(&any.into())?;
            // A queue of one.
            socket.listen(0)?;
            let waiting = TcpStream::connect(("127.0.0.1", port))?;
            Ok(Self { _listener: socket.into(), _waiting: waiting })
        })
    }
}

/// On this node and on another one, an endpoint that does not answer is given up after the rule's time. By the default
/// two of them would take longer than the client waits.
#[test]
fn an_endpoint_that_does_not_answer_is_given_up_in_the_rules_time() -> Result<()> {
    const SILENT: u16 = 9091;
    let shop = databases("connect timeout")?;
    let full: Vec<Full> =
        shop.servers.iter().map(|server| Full::new(&server.pod, SILENT)).collect::<Result<_>>()?;
    let db = shop.service_to("db", Some("tcp"), SILENT)?;
    shop.apply(
        "rule",
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: default}
spec: {host: db, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 300ms}}}}
",
    )?;
    refused(&shop.client, &db)?;
    let agent = shop.agent("node-a")?;
    for path in ["path=\"local\"", "path=\"hbone\""] {
        let parts = ["reason=\"connect_timeout\"", path];
        eventually("the line of each endpoint", SOON, || {
            Ok(agent.log().lines().any(|line| parts.iter().all(|part| line.contains(part))))
        })?;
    }
    drop(full);
    Ok(())
}

/// A connection ends when it is as old as the rule lets it become, or as idle; one for requests takes no more of them.
#[test]
fn connections_end_at_the_age_and_after_the_rest_that_their_rule_says() -> Result<()> {
    let pods = [("db-1", "db", "v1", "node-b"), ("web-1", "web", "v1", "node-b")];
    let shop = Shop::serving(NAMESPACE, "ages", &pods, |pod| match pod.name() {
        "web-1" => App::http(pod, TARGET),
        _ => App::echo(pod, TARGET),
    })?;
    let (db, web) = (shop.service("db", Some("tcp"))?, shop.service("web", Some("http"))?);
    let rule = |host: &str, pool: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {host}, namespace: default}}\nspec: {{host: {host}, trafficPolicy: {{connectionPool: {pool}}}}}\n"
        )
    };
    let agent = shop.agent("node-a")?;
    for (pool, reason) in
        [("{tcp: {maxConnectionDuration: 1s}}", "max_duration"), ("{tcp: {idleTimeout: 1s}}", "idle_timeout")]
    {
        shop.apply("db-rule", &rule("db", pool))?;
        let mut stream = shop.connect(db.at(0))?;
        client::echo(&mut stream, b"well")?;
        let ended = stream.read(&mut [0]).err().context("it ended in order")?;
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{reason}");
        let part = format!("reason=\"{reason}\"");
        eventually("its line", SOON, || Ok(agent.log().contains(&part)))?;
    }
    shop.apply("web-rule", &rule("web", "{tcp: {maxConnectionDuration: 1s}}"))?;
    let server = shop.server("web-1")?;
    let mut session = shop.session(&web)?;
    for _ in 0..2 {
        assert_eq!(session.get("/")?.status, 200);
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(server.app.stats().accepted(), 2, "the first was too old for the second request");
    shop.apply("web-rule", &rule("web", "{http: {idleTimeout: 1s}}"))?;
    let before = server.app.stats().accepted();
    for _ in 0..2 {
        assert_eq!(session.get("/")?.status, 200);
        std::thread::sleep(Duration::from_millis(1200));
    }
    assert_eq!(server.app.stats().accepted(), before + 2, "the first had rested for too long");
    Ok(())
}
