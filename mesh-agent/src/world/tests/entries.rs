//! Hosts that are no Services of the cluster.

use super::*;
use crate::compile::{Kind, ObjectKey};
use crate::decide::Destination;
use crate::decide::outbound::{OutboundPlan, Transport, plan, transport};
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
    for resolution in ["NONE", "DNS"] {
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
