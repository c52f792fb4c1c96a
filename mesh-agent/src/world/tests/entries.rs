//! Hosts that are no Services of the cluster.

use super::*;
use crate::compile::{Kind, ObjectKey};
use crate::decide::Destination;
use crate::decide::outbound::{OutboundPlan, Transport, plan, transport};
use crate::model::AppProtocol;
use crate::model::traffic::LoadBalance;

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

const STATIC: &str = "hosts: [api.example.com], addresses: [10.96.7.7], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";

/// The addresses that the plan for 10.96.7.7:80 names.
fn addresses(world: &World) -> Vec<String> {
    match plan(world, pod(world, "web"), "10.96.7.7:80".parse().unwrap()) {
        OutboundPlan::Tcp(tcp) => tcp.endpoints.iter().map(|one| one.address.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_static_entry_is_a_service_with_endpoints_outside_the_mesh() {
    let world = world(&[entry(&format!(
        "{STATIC}, endpoints: [{{address: 192.0.2.1, labels: {{version: v1}}}}, {{address: 192.0.2.2, ports: {{http: 81}}}}, {{address: 10.1.0.2}}]"
    ))]);
    assert_eq!(addresses(&world), ["192.0.2.1:8080", "192.0.2.2:81", "10.1.0.2:8080"]);
    let service = world.service_by_host("api.example.com:80", "other").unwrap();
    assert_eq!(&*service.name, "api.example.com");
    let port = service.port(80).unwrap();
    assert_eq!(transport(&world, "n1", &port.endpoints[0]), Transport::Plain);
    assert!(matches!(transport(&world, "n1", &port.endpoints[2]), Transport::Local(_)), "a pod is a pod");
    let outside = world.workload(port.endpoints[0].workload.as_ref().unwrap()).unwrap();
    assert!(!outside.enrolled && outside.labels["version"] == "v1");
    assert!(world.workload_at([192, 0, 2, 1].into()).is_none(), "an address outside belongs to no pod");
}

#[test]
fn an_entry_s_subsets_hosts_and_end() {
    let subsets = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: api.example.com, subsets: [{name: v1, labels: {version: v1}}]}\n";
    let mut world = world(&[
        entry(&format!(
            "{STATIC}, exportTo: [.], endpoints: [{{address: 192.0.2.1, labels: {{version: v1}}}}, {{address: 192.0.2.2}}]"
        )),
        subsets.to_owned(),
    ]);
    assert!(world.service_by_host("api.example.com", "other").is_none(), "exported to its own namespace");
    let service = world.service_by_host("api.example.com", "shop").unwrap();
    let to = Destination { service, port: 80, subset: Some("v1") };
    assert_eq!(world.endpoints(pod(&world, "web"), &to, [10, 96, 7, 7].into()).unwrap().len(), 1);
    let key = ObjectKey { kind: Kind::ServiceEntry, namespace: "shop".into(), name: "e".into() };
    assert!(world.apply(Change::Removed(key)));
    assert!(world.service_by_host("api.example.com", "shop").is_none());
    assert!(world.service_at([10, 96, 7, 7].into()).is_none());
}

#[test]
fn connections_to_an_entry_without_endpoints_go_where_the_client_meant_them_to() {
    for resolution in ["NONE", "DYNAMIC_DNS"] {
        let world = world(&[entry(&format!(
            "hosts: ['*.example.com'], addresses: [10.96.7.7], resolution: {resolution}, ports: [{{number: 80, name: http, protocol: HTTP}}]"
        ))]);
        assert_eq!(addresses(&world), ["10.96.7.7:80"]);
        let service = world.service_by_host("a.b.example.com", "shop").unwrap();
        let to = Destination { service, port: 80, subset: None };
        let policy = world.traffic(pod(&world, "web"), &to).unwrap();
        assert_eq!(policy.balance, LoadBalance::Passthrough, "{resolution}");
    }
}

#[test]
fn a_selector_finds_pods_and_workload_entries_and_follows_them() {
    let mut world = world(&[entry(&format!("{STATIC}, workloadSelector: {{labels: {{app: reviews}}}}"))]);
    assert_eq!(addresses(&world), ["10.1.0.2:8080", "[fd00::2]:8080"].map(str::to_owned)[..1].to_vec());
    let machine = |label: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop}}\nspec: {{address: 192.0.2.9, labels: {{app: {label}}}}}\n"
        )
    };
    put(&mut world, &machine("reviews"));
    assert_eq!(addresses(&world), ["10.1.0.2:8080", "192.0.2.9:8080"]);
    put(&mut world, &machine("other"));
    assert_eq!(addresses(&world), ["10.1.0.2:8080"]);
    let key = ObjectKey { kind: Kind::Pod, namespace: "shop".into(), name: "reviews".into() };
    world.apply(Change::Removed(key));
    assert_eq!(
        plan(&world, pod(&world, "web"), "10.96.7.7:80".parse().unwrap()),
        OutboundPlan::Refuse(Reason::NoEndpoint)
    );
}

const BY_NAME: &str =
    "addresses: [10.96.7.7], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";

fn resolve(world: &mut World, name: &str, addresses: &[&str]) -> bool {
    let addresses: Arc<[IpAddr]> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    world.resolve(&name.into(), &addresses)
}

/// What an entry asks for, and which endpoints two answers in a row make of it; a turned answer is no change but for
/// DNS_ROUND_ROBIN, whose endpoint is the first of each family.
#[test]
fn names_become_endpoints_as_they_are_answered() {
    let answers: [&[&str]; 2] =
        [&["192.0.2.2", "192.0.2.1", "fd00::9"], &["192.0.2.1", "192.0.2.2", "fd00::9"]];
    let all = ["192.0.2.1:8080", "192.0.2.2:8080"];
    let cases: [(&str, &str, [&[&str]; 2]); 4] = [
        ("hosts: [a.example.com], resolution: DNS", "a.example.com", [&all, &all]),
        (
            "hosts: [a.example.com], resolution: DNS_ROUND_ROBIN",
            "a.example.com",
            [&["192.0.2.2:8080"], &["192.0.2.1:8080"]],
        ),
        (
            "hosts: ['*.example.com'], resolution: DNS, endpoints: [{address: B.example.com., ports: {http: 81}}]",
            "b.example.com",
            [&["192.0.2.1:81", "192.0.2.2:81"], &["192.0.2.1:81", "192.0.2.2:81"]],
        ),
        (
            "hosts: [a.example.com], resolution: DNS, endpoints: [{address: b.example.com}, {address: 192.0.2.7}]",
            "b.example.com",
            [
                &["192.0.2.1:8080", "192.0.2.2:8080", "192.0.2.7:8080"],
                &["192.0.2.1:8080", "192.0.2.2:8080", "192.0.2.7:8080"],
            ],
        ),
    ];
    for (spec, name, expected) in cases {
        let mut world = world(&[entry(&format!("{spec}, {BY_NAME}"))]);
        assert_eq!(world.names().map(|name| &**name).collect::<Vec<_>>(), [name], "{spec}");
        for (answer, expected) in answers.into_iter().zip(expected) {
            resolve(&mut world, name, answer);
            assert_eq!(addresses(&world), expected, "{spec}");
        }
        assert!(!resolve(&mut world, name, answers[1]), "{spec}: the same answer changes nothing");
        assert!(!resolve(&mut world, "c.example.com", answers[1]), "{spec}: nobody wants to know");
        // IPv6 for whoever dials IPv6.
        let service = world.service_by_host("a.example.com", "shop").unwrap();
        let port = service.port(80).unwrap();
        let v6 = port.endpoints_for("fd96::7".parse().unwrap());
        assert_eq!(
            v6.iter().map(|one| one.address.ip().to_string()).collect::<Vec<_>>(),
            ["fd00::9"],
            "{spec}"
        );
    }
}

#[test]
fn a_name_without_an_answer_has_no_endpoints_and_one_that_nobody_names_is_forgotten() {
    let spec = format!("hosts: [a.example.com], resolution: DNS, {BY_NAME}");
    let mut world = world(&[entry(&spec)]);
    let refused = OutboundPlan::Refuse(Reason::NoEndpoint);
    let planned = |world: &World| plan(world, pod(world, "web"), "10.96.7.7:80".parse().unwrap());
    assert_eq!(planned(&world), refused);
    assert!(resolve(&mut world, "a.example.com", &["192.0.2.1"]));
    let service = world.service_by_host("a.example.com", "shop").unwrap();
    assert_eq!(world.names_of(&service.id), [Arc::from("a.example.com")]);
    assert!(resolve(&mut world, "a.example.com", &[]), "it does not exist any more");
    assert_eq!(planned(&world), refused);
    resolve(&mut world, "a.example.com", &["192.0.2.1"]);
    let key = ObjectKey { kind: Kind::ServiceEntry, namespace: "shop".into(), name: "e".into() };
    world.apply(Change::Removed(key));
    assert_eq!((world.names().count(), world.addresses_of("a.example.com")), (0, None));
}

/// Whoever publishes, the addresses of names stay; what is not asked for any more goes.
#[test]
fn a_store_takes_the_addresses_of_names_along() {
    let spec = format!("hosts: [a.example.com], resolution: DNS, {BY_NAME}");
    let store = WorldStore::new(world(&[entry(&spec)]));
    let fresh = World::clone(&store.load());
    let answer: [(Arc<str>, Arc<[IpAddr]>); 1] =
        [("a.example.com".into(), Arc::new([[192, 0, 2, 1].into()]))];
    assert!(store.resolve(&answer));
    assert_eq!((store.load().version, store.resolve(&answer)), (1, false));
    assert_eq!(store.publish(fresh), 2);
    assert_eq!(addresses(&store.load()), ["192.0.2.1:8080"]);
    store.publish(world(&[]));
    assert_eq!(store.load().addresses_of("a.example.com"), None);
}

/// Which entry takes a request to an address of nobody: by host (the narrowest), port, and who may see it.
#[test]
fn a_request_s_host_names_an_entry_without_addresses() {
    let named = |name: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let world = world(&[
        named(
            "one",
            "hosts: [api.example.com], ports: [{number: 80, name: http}, {number: 9000, name: tcp}]",
        ),
        named("wide", "hosts: ['*.example.com'], ports: [{number: 80, name: http}, {number: 81, name: x}]"),
        named("own", "hosts: [own.example.org], exportTo: [.], ports: [{number: 82, name: http}]"),
        named("vip", "hosts: [vip.example.org], addresses: [10.96.7.8], ports: [{number: 80, name: http}]"),
    ]);
    for (host, port, namespace, expected) in [
        ("api.example.com", 80, "shop", Some("api.example.com")),
        ("API.example.com.:80", 80, "other", Some("api.example.com")),
        ("api.example.com", 81, "shop", Some("*.example.com")),
        ("b.c.example.com", 80, "shop", Some("*.example.com")),
        ("example.com", 80, "shop", None),
        ("api.example.com", 83, "shop", None),
        ("own.example.org", 82, "shop", Some("own.example.org")),
        ("own.example.org", 82, "other", None),
        // Whoever means an address of its own is found by that.
        ("vip.example.org", 80, "shop", None),
        ("reviews", 80, "shop", None),
        ("reviews.shop.svc.cluster.local", 80, "shop", None),
    ] {
        let found = world.entry_by_host(host, port, namespace).map(|service| service.hostname.to_string());
        assert_eq!(found.as_deref(), expected, "{host}:{port} from {namespace}");
    }
    for (port, namespace, expected) in [
        (80, "other", Some(AppProtocol::Http)),
        (81, "other", Some(AppProtocol::Auto)),
        (82, "shop", Some(AppProtocol::Http)),
        (82, "other", None),
        (9000, "shop", None),
        (443, "shop", None),
    ] {
        assert_eq!(world.unaddressed_http(port, namespace), expected, "{port} from {namespace}");
    }
}

#[test]
fn an_endpoint_s_weight_place_account_and_network_count() {
    let mut world = world(&[entry(&format!("{STATIC}, workloadSelector: {{labels: {{app: vm}}}}"))]);
    put(
        &mut world,
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 192.0.2.9, labels: {app: vm, version: v1}, weight: 5, locality: eu/a/b, network: dc, serviceAccount: legacy}\n",
    );
    put(
        &mut world,
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: api.example.com, subsets: [{name: v1, labels: {version: v1}}]}\n",
    );
    let service = world.service_by_host("api.example.com", "shop").unwrap();
    let to = Destination { service, port: 80, subset: Some("v1") };
    let endpoints = world.endpoints(pod(&world, "web"), &to, [10, 96, 7, 7].into()).unwrap();
    let [endpoint] = &endpoints[..] else { panic!("{endpoints:?}") };
    let workload = world.workload(endpoint.workload.as_ref().unwrap()).unwrap();
    assert_eq!((endpoint.weight, &*workload.locality), (5, "eu/a/b"));
    assert_eq!(workload.labels["topology.istio.io/network"], "dc");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/legacy");
}

/// Of two entries of one host in a namespace the older counts, and the other takes its place when it goes.
#[test]
fn a_host_belongs_to_one_entry() {
    let named = |name: &str, address: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{STATIC}, endpoints: [{{address: {address}}}]}}\n"
        )
    };
    let mut world = world(&[named("b", "192.0.2.2"), named("a", "192.0.2.1")]);
    assert_eq!(addresses(&world), ["192.0.2.1:8080"]);
    let key = ObjectKey { kind: Kind::ServiceEntry, namespace: "shop".into(), name: "a".into() };
    world.apply(Change::Removed(key));
    assert_eq!(addresses(&world), ["192.0.2.2:8080"]);
}
