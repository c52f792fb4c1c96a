//! Whose rules for connections hold at which port, and where they lead: from YAML to the plan.

use super::*;
use crate::decide::outbound::{Routed, routed, to_backend};
use crate::model::connection::ConnRules;

/// The Service `db` with ports 1 (says nothing), 2 (TCP), 3 (TLS) and 4 (HTTP), served by reviews and, of version v2,
/// by api; and its DestinationRule with both versions.
const DB: &str = "apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIPs: [10.96.0.9]
  ports: [{name: a, port: 1}, {name: tcp-b, port: 2}, {name: tls-c, port: 3}, {name: http-d, port: 4}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.2], nodeName: n1, targetRef: {kind: Pod, name: reviews}}
- {addresses: [10.2.0.1], nodeName: n2, targetRef: {kind: Pod, name: api}}
ports: [{name: a, port: 9001}, {name: tcp-b, port: 9002}, {name: tls-c, port: 9003}, {name: http-d, port: 9004}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: shop}
spec: {host: db, subsets: [{name: v1, labels: {app: reviews}}, {name: v2, labels: {app: api}}, {name: none, labels: {app: nobody}}]}
";

const TO: &str = "route: [{destination: {host: db}}]";

fn virtual_service(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{}}}\n",
        spec.replace("TO", TO)
    )
}

fn route(kind: &str, namespace: &str, name: &str, more: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, namespace: shop, name: db}}], {more} rules: [{{name: {namespace}-{name}, backendRefs: [{{name: db, namespace: shop, port: 2}}]}}]}}\n"
    )
}

fn rules(world: &World, client: &str, port: u16) -> Option<Arc<ConnRules>> {
    let service = world.service_by_host("db.shop", "shop").unwrap();
    let (namespace, name) = client.split_once('/').unwrap();
    world.conn_rules(world.pod(namespace, name).unwrap(), service, port)
}

/// The rules as `OBJECT RULE`, by the short name of the object.
fn met(world: &World, client: &str, port: u16) -> Vec<String> {
    let found = rules(world, client, port);
    let rules = found.iter().flat_map(|met| met.rules.iter());
    rules.map(|rule| format!("{} {}", rule.origin.object.name, rule.origin.rule)).collect()
}

fn made(texts: &[String]) -> World {
    let mut world = world(&[DB.to_owned()]);
    texts.iter().for_each(|text| put(&mut world, text));
    world
}

#[test]
fn what_a_port_says_decides_which_rules_hold_there() {
    let all = "hosts: [db], http: [{directResponse: {status: 200}}], tcp: [{TO}], tls: [{match: [{sniHosts: [db]}], TO}]";
    let world = made(&[virtual_service("shop", "v", all)]);
    for (port, expected, by_sni) in [
        (1, vec!["v tcp[0]"], false),
        (2, vec!["v tcp[0]"], false),
        (3, vec!["v tls[0]"], true),
        (4, vec![], false),
    ] {
        assert_eq!(met(&world, "shop/web", port), expected, "{port}");
        let found = rules(&world, "shop/web", port);
        assert_eq!(found.as_ref().is_some_and(|met| met.by_sni), by_sni, "{port}");
        assert!(found.is_none_or(|met| !met.exclusive));
    }
}

#[test]
fn exports_ports_and_wider_hosts() {
    let mut world = made(&[
        virtual_service(
            "shop",
            "own",
            "hosts: [db], exportTo: [.], tcp: [{match: [{sourceLabels: {a: b}}], TO}]",
        ),
        virtual_service(
            "shop",
            "all",
            "hosts: ['*.shop.svc.cluster.local'], tcp: [{match: [{port: 2}, {port: 9}], TO}, {TO}]",
        ),
        virtual_service("shop", "widest", "hosts: ['*'], tcp: [{TO}]"),
    ]);
    // The narrowest host first; what takes everything ends the list.
    assert_eq!(met(&world, "shop/web", 2), ["own tcp[0]", "all tcp[0]"]);
    assert_eq!(met(&world, "shop/web", 1), ["own tcp[0]", "all tcp[1]"]);
    assert_eq!(met(&world, "other/ext", 1), ["all tcp[1]"]);
    assert_eq!(rules(&world, "shop/web", 2).unwrap().rules[1].matches.len(), 1, "of another port");
    for name in ["own", "all"] {
        let key = crate::compile::ObjectKey {
            kind: Kind::VirtualService,
            namespace: "shop".into(),
            name: name.into(),
        };
        assert!(world.apply(Change::Removed(key)));
    }
    assert_eq!(met(&world, "shop/web", 2), ["widest tcp[0]"]);
}

#[test]
fn a_virtual_service_for_connections_hides_no_http_rules_of_a_wider_host() {
    let world = made(&[
        virtual_service("shop", "own", "hosts: [db], tcp: [{TO}]"),
        virtual_service("shop", "all", "hosts: ['*'], http: [{name: all, directResponse: {status: 200}}]"),
    ]);
    let service = world.service_by_host("db.shop", "shop").unwrap();
    assert_eq!(world.http_rules(pod(&world, "web"), service, 4).len(), 1);
    assert!(world.has_http_rules(service));
    let only = made(&[virtual_service("shop", "own", "hosts: [db], tcp: [{TO}]")]);
    assert!(!only.has_http_rules(only.service_by_host("db.shop", "shop").unwrap()));
}

/// GEP-1294: one kind takes a port, the producer's routes are for everybody, a consumer's for its own namespace.
#[test]
fn routes_of_the_gateway_api_take_whole_ports() {
    let mut world = made(&[
        virtual_service("shop", "v", "hosts: [db], tcp: [{TO}]"),
        route("TCPRoute", "other", "c", ""),
    ]);
    assert_eq!(
        (met(&world, "other/ext", 4), met(&world, "shop/web", 4)),
        (vec!["c other-c".to_owned()], vec![])
    );
    assert_eq!(met(&world, "shop/web", 2), ["v tcp[0]"]);
    let taken = rules(&world, "other/ext", 4).unwrap();
    assert!(taken.exclusive && !taken.by_sni);
    put(&mut world, &route("TCPRoute", "shop", "t", ""));
    put(&mut world, &route("TCPRoute", "shop", "s", ""));
    assert_eq!(met(&world, "shop/web", 2), ["s shop-s", "t shop-t"], "of one age by name");
    put(&mut world, &route("TLSRoute", "shop", "n", "hostnames: [a.example],"));
    assert_eq!(met(&world, "shop/web", 2), ["n shop-n"]);
    assert!(rules(&world, "shop/web", 2).unwrap().by_sni);
    assert_eq!(met(&world, "other/ext", 2), ["c other-c"]);
    let http = route("HTTPRoute", "shop", "h", "");
    put(&mut world, &http);
    assert!(met(&world, "shop/web", 2).is_empty(), "an HTTPRoute is more specific");
    for (kind, name) in
        [(Kind::HttpRoute, "h"), (Kind::TlsRoute, "n"), (Kind::TcpRoute, "s"), (Kind::TcpRoute, "t")]
    {
        let key = crate::compile::ObjectKey { kind, namespace: "shop".into(), name: name.into() };
        assert!(world.apply(Change::Removed(key)));
    }
    assert_eq!(met(&world, "shop/web", 2), ["v tcp[0]"]);
}

/// Where a connection of shop/web to `db:PORT` goes: pods by name, or why not.
fn led(world: &World, port: u16, sni: Option<&str>) -> String {
    let (source, dialled) = (pod(world, "web"), SocketAddr::new([10, 96, 0, 9].into(), port));
    match routed(world, source, dialled, sni) {
        Routed::AsDialled => "as dialled".to_owned(),
        Routed::Nowhere => "nowhere".to_owned(),
        Routed::By(rule) => match to_backend(world, source, dialled, &rule.backends[0].backend) {
            Ok(plan) => {
                let names = plan.endpoints.iter().filter_map(|one| one.workload.as_ref());
                let names: Vec<_> = names.filter_map(|id| id.0.split('/').nth(1)).collect();
                format!("{}:{} {}", plan.service.unwrap().name, plan.port, names.join(" "))
            }
            Err(reason) => reason.to_string(),
        },
    }
}

#[test]
fn a_rule_leads_to_the_endpoints_of_its_backend() {
    for (spec, port, sni, expected) in [
        ("tcp: [{route: [{destination: {host: db, subset: v2}}]}]", 2, None, "db:2 api"),
        ("tcp: [{route: [{destination: {host: db, subset: v1}}]}]", 1, None, "db:1 reviews"),
        ("tcp: [{route: [{destination: {host: db, port: {number: 3}}}]}]", 2, None, "db:3 reviews api"),
        // The only port of a Service that has no such one.
        ("tcp: [{route: [{destination: {host: reviews}}]}]", 2, None, "reviews:80 reviews"),
        ("tcp: [{route: [{destination: {host: db, subset: v3}}]}]", 2, None, "no_subset"),
        ("tcp: [{route: [{destination: {host: db, subset: none}}]}]", 2, None, "no_endpoint"),
        ("tcp: [{route: [{destination: {host: db, port: {number: 7}}}]}]", 2, None, "no_such_port"),
        ("tcp: [{route: [{destination: {host: gone}}]}]", 2, None, "backend_invalid"),
        ("tcp: [{match: [{sourceLabels: {app: api}}], TO}]", 2, None, "as dialled"),
        ("tcp: [{match: [{sourceLabels: {app: web}}], TO}]", 2, None, "db:2 reviews api"),
        ("tcp: [{TO}]", 3, Some("db"), "as dialled"),
        (
            "tls: [{match: [{sniHosts: [db]}], route: [{destination: {host: db, subset: v1}}]}]",
            3,
            Some("db"),
            "db:3 reviews",
        ),
        ("tls: [{match: [{sniHosts: [db]}], TO}]", 3, Some("other"), "as dialled"),
        ("tls: [{match: [{sniHosts: [db]}], TO}]", 3, None, "as dialled"),
    ] {
        let world = made(&[virtual_service("shop", "v", &format!("hosts: [db], {spec}"))]);
        assert_eq!(led(&world, port, sni), expected, "{spec} {sni:?}");
    }
    let world = made(&[route("TLSRoute", "shop", "n", "hostnames: [a.example],")]);
    assert_eq!(led(&world, 3, Some("a.example")), "db:2 reviews api");
    assert_eq!(
        (led(&world, 3, Some("b.example")), led(&world, 3, None)),
        ("nowhere".to_owned(), "nowhere".to_owned())
    );
}

#[test]
fn what_never_holds_is_found() {
    let vs = |spec: &str| virtual_service("shop", "v", spec);
    for (texts, expected) in [
        (
            vec![vs("hosts: [db], tcp: [{match: [{port: 7}], TO}]")],
            "spec.tcp[0].match.port: no host of the object has a port 7",
        ),
        (
            vec![vs("hosts: [db], tcp: [{match: [{port: 4}], TO}]")],
            "spec.tcp[0]: is never reached: no port that it is for says neither HTTP nor TLS",
        ),
        (
            vec![vs("hosts: [reviews], tls: [{match: [{sniHosts: [reviews]}], TO}]")],
            "spec.tls[0]: is never reached: no port that it is for says TLS",
        ),
        (
            vec![vs("hosts: [db], tcp: [{route: [{destination: {host: db, subset: v9}}]}]")],
            "spec.tcp[0].route: no DestinationRule gives db.shop.svc.cluster.local a subset `v9`",
        ),
        (
            vec![vs("hosts: [db], tcp: [{route: [{destination: {host: db, port: {number: 7}}}]}]")],
            "spec.tcp[0].route: db.shop.svc.cluster.local has no port 7",
        ),
        (
            vec![vs("hosts: [db], tls: [{match: [{sniHosts: [db]}], route: [{destination: {host: gone}}]}]")],
            "spec.tls[0].route: gone.shop.svc.cluster.local does not exist",
        ),
        (
            vec![vs("hosts: [gone], tcp: [{TO}]")],
            "spec.hosts[0]: `gone.shop.svc.cluster.local` is the host of no Service",
        ),
        (
            vec![route("TCPRoute", "shop", "a", ""), route("TCPRoute", "shop", "b", "")],
            "TCPRoute shop/b: spec.parentRefs[0]: TCPRoute shop/a has port 1 of shop/db",
        ),
        (
            vec![route("TLSRoute", "shop", "a", "hostnames: [a.b],"), route("TCPRoute", "shop", "b", "")],
            "TCPRoute shop/b: spec.parentRefs[0]: TLSRoute shop/a has port 1",
        ),
        (
            vec![route("TCPRoute", "shop", "a", "").replace("port: 2", "port: 7")],
            "spec.shop-a.backendRefs: db.shop.svc.cluster.local has no port 7",
        ),
        (
            vec![route("TCPRoute", "shop", "a", "").replace("name: db}", "name: db, port: 7}")],
            "spec.parentRefs[0]: Service shop/db does not exist, or has no such port",
        ),
    ] {
        let found: Vec<String> =
            made(&texts).check(|_| "x".to_owned()).iter().map(ToString::to_string).collect();
        assert!(found.len() == 1 && found[0].contains(expected), "{texts:?}: {found:?}");
    }
    let good = [
        vs("hosts: [db], tcp: [{match: [{port: 2}], TO}], tls: [{match: [{sniHosts: [db]}], TO}]"),
        route("TCPRoute", "other", "c", ""),
        route("TLSRoute", "shop", "p", "hostnames: [a.b],").replace("name: db}", "name: db, port: 3}"),
        route("TCPRoute", "shop", "q", "").replace("name: db}", "name: db, port: 2}"),
    ];
    // That routes of the Gateway API come before VirtualServices is told of each host.
    let found = made(&good).check(|_| "x".to_owned());
    assert!(found.iter().all(|one| one.message.contains("has routes of the Gateway API too")), "{found:?}");
}
