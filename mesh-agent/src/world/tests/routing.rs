//! Where connections go, by which transport, and what the kernel may do alone.

use super::*;
use crate::decide::bypass::{KernelVerdict, kernel_verdict};
use crate::decide::outbound::{OutboundPlan, Transport, plan, secured, transport};
use crate::model::traffic::ClientTls;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_service_a_pod_and_the_rest_of_the_world() {
    let world = world(&[]);
    let web = pod(&world, "web");
    let OutboundPlan::Tcp(service) = plan(&world, web, at("10.96.0.1:80")) else { panic!() };
    assert_eq!(service.service.unwrap().hostname.as_ref(), "reviews.shop.svc.cluster.local");
    assert_eq!(service.endpoints[0].address, at("10.1.0.2:8080"));
    assert_eq!(service.endpoints[0].workload, Some(pod(&world, "reviews").id.clone()));
    let OutboundPlan::Tcp(direct) = plan(&world, web, at("[::ffff:10.1.0.2]:8080")) else { panic!() };
    assert!(direct.service.is_none() && direct.endpoints[0].address == at("10.1.0.2:8080"));
    assert_eq!(plan(&world, web, at("10.96.0.1:81")), OutboundPlan::Refuse(Reason::NoSuchPort));
    assert_eq!(plan(&world, web, at("192.0.2.7:443")), OutboundPlan::Passthrough(at("192.0.2.7:443")));
    assert_eq!(plan(&world, web, at("10.1.0.2:15008")), OutboundPlan::Refuse(Reason::ConnectMeshPort));
}

#[test]
fn a_service_without_a_ready_endpoint_refuses_and_one_that_ends_is_better_than_none() {
    let slice = |condition: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: reviews-1, namespace: shop, labels: {{kubernetes.io/service-name: reviews}}}}\naddressType: IPv4\nendpoints: [{{addresses: [10.1.0.2], conditions: {{{condition}}}}}]\nports: [{{name: http, port: 8080}}]\n"
        )
    };
    let go = |condition: &str| {
        let world = world(&[slice(condition)]);
        plan(&world, pod(&world, "web"), at("10.96.0.1:80"))
    };
    assert_eq!(go("ready: false"), OutboundPlan::Refuse(Reason::NoEndpoint));
    assert!(matches!(go("ready: false, serving: true, terminating: true"), OutboundPlan::Tcp(_)));
    assert!(matches!(go(""), OutboundPlan::Tcp(_)), "absent = ready");
}

#[test]
fn a_service_is_served_in_the_family_that_was_dialled() {
    let slice = |name: &str, kind: &str, address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: reviews}}}}\naddressType: {kind}\nendpoints: [{{addresses: ['{address}']}}]\nports: [{{name: http, port: 8080}}]\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {clusterIPs: [10.96.0.1, 'fd96::1'], ports: [{name: http, port: 80}]}\n";
    let mut world = world(&[service.to_owned()]);
    let endpoints = |world: &World, vip: &str| -> Vec<SocketAddr> {
        let OutboundPlan::Tcp(plan) = plan(world, pod(world, "web"), at(vip)) else { panic!() };
        plan.endpoints.iter().map(|endpoint| endpoint.address).collect()
    };
    assert_eq!(
        endpoints(&world, "[fd96::1]:80"),
        [at("10.1.0.2:8080")],
        "another family is better than none"
    );
    put(&mut world, &slice("reviews-2", "IPv6", "fd00::2"));
    assert_eq!(endpoints(&world, "[fd96::1]:80"), [at("[fd00::2]:8080")]);
    assert_eq!(endpoints(&world, "10.96.0.1:80"), [at("10.1.0.2:8080")]);
}

#[test]
fn the_transport_follows_node_enrolment_and_disable() {
    let world = world(&[peer(
        "shop",
        "w",
        "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {9090: {mode: DISABLE}}}",
    )]);
    assert!(matches!(transport(&world, "n1", at("10.1.0.2:8080")), Transport::Local(_)));
    assert!(matches!(transport(&world, "n2", at("10.1.0.2:8080")), Transport::Hbone(_)));
    assert_eq!(transport(&world, "n1", at("10.1.0.2:9090")), Transport::Plain, "DISABLE");
    for (node, at) in [("n1", at("10.1.0.2:8080")), ("n2", at("10.1.0.2:8080"))] {
        assert_eq!(
            secured(transport(&world, node, at), &ClientTls::Disable),
            Ok(Transport::Plain),
            "the client's own word"
        );
        for tls in [ClientTls::Mesh, ClientTls::Mutual] {
            assert_ne!(secured(transport(&world, node, at), &tls), Ok(Transport::Plain));
        }
    }
    assert_eq!(transport(&world, "n1", at("10.2.0.9:80")), Transport::Plain, "not enrolled");
    let outside = transport(&world, "n1", at("192.0.2.7:80"));
    assert_eq!(outside, Transport::Plain, "unknown");
    assert_eq!(secured(outside, &ClientTls::Mutual), Err(Reason::NoMutualTls), "never in plaintext");
}

#[test]
fn a_reused_address_never_has_the_former_pods_identity() {
    let mut world = world(&[]);
    let OutboundPlan::Tcp(plan) = plan(&world, pod(&world, "web"), at("10.96.0.1:80")) else { panic!() };
    put(
        &mut world,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: thief, namespace: shop}\nspec: {nodeName: n1, serviceAccountName: thief, containers: []}\nstatus: {podIPs: [{ip: 10.1.0.2}]}\n",
    );
    assert_eq!(&*world.workload_at([10, 1, 0, 2].into()).unwrap().name, "thief", "the newer claim");
    let Transport::Local(workload) = transport(&world, "n1", &plan.endpoints[0]) else { panic!() };
    assert_eq!(&*workload.name, "thief");
}

#[test]
fn the_kernel_lets_through_what_the_agent_would_allow_and_refuses_what_it_would_not() {
    let deny = authz("p", "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}");
    let world = world(&[deny, peer("shop", "n", "{mtls: {mode: STRICT}}")]);
    let web = pod(&world, "web");
    let verdict = |dst: &str| kernel_verdict(&world, "n1", web, at(dst));
    assert_eq!(verdict("10.1.0.2:8080"), KernelVerdict::Bypass, "STRICT: the kernel knows who it is");
    assert_eq!(verdict("[fd00::2]:8080"), KernelVerdict::Bypass);
    assert_eq!(verdict("10.1.0.2:9090"), KernelVerdict::Refuse(Reason::PolicyDenied));
    assert_eq!(verdict("10.1.0.2:15006"), KernelVerdict::Refuse(Reason::ConnectMeshPort));
    assert_eq!(verdict("10.96.0.1:80"), KernelVerdict::Capture, "a Service needs balancing");
    assert_eq!(verdict("10.2.0.1:80"), KernelVerdict::Capture, "another node");
    assert_eq!(verdict("192.0.2.7:80"), KernelVerdict::Capture, "outside");
    let api = pod(&world, "api");
    assert_eq!(kernel_verdict(&world, "n1", api, at("10.1.0.2:80")), KernelVerdict::Capture, "not our pod");
    assert_eq!(kernel_verdict(&world, "n2", api, at("[fd00::2]:80")), KernelVerdict::Capture);
}
