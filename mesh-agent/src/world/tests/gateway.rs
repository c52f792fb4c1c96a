//! Routes of the Gateway API: whom they are for, in which order, and where they send.

use super::*;
use crate::compile::{Kind, ObjectKey};
use crate::model::route::{Backend, RuleAction};

const RATINGS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: ratings, namespace: shop}\nspec: {clusterIPs: [10.96.0.2], ports: [{name: http, port: 80}]}\n";

/// A route of `namespace` with the Service reviews of shop as parent; `more` is put beside the parent's name.
fn route(kind: &str, namespace: &str, name: &str, more: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, namespace: shop, name: reviews{more}}}], rules: [{rules}]}}\n"
    )
}

const BACKEND: &str = "backendRefs: [{name: ratings, namespace: shop, port: 80}]";

fn http(namespace: &str, name: &str) -> String {
    route("HTTPRoute", namespace, name, "", &format!("{{name: {namespace}-{name}, {BACKEND}}}"))
}

fn met(world: &World, client: &str) -> Vec<String> {
    let service = world.service_by_host("reviews.shop", "shop").unwrap();
    let (namespace, name) = client.split_once('/').unwrap();
    let source = world.pod(namespace, name).unwrap();
    world.http_rules(source, service, 80).iter().map(|rule| rule.origin.rule.to_string()).collect()
}

#[test]
fn a_producer_s_route_is_for_everybody_and_a_consumer_s_replaces_it_for_its_own_namespace() {
    let mut world = world(&[RATINGS.to_owned(), http("other", "c")]);
    assert_eq!((met(&world, "other/ext").len(), met(&world, "shop/web").len()), (1, 0));
    put(&mut world, &http("shop", "p"));
    assert_eq!(met(&world, "other/ext"), ["other-c"]);
    assert_eq!(met(&world, "shop/web"), ["shop-p"]);
    let key = ObjectKey { kind: Kind::HttpRoute, namespace: "other".into(), name: "c".into() };
    world.apply(Change::Removed(key));
    assert_eq!(met(&world, "other/ext"), ["shop-p"]);
}

#[test]
fn a_route_beats_the_virtual_services_of_its_service() {
    let virtual_service = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [reviews], http: [{name: v, directResponse: {status: 200}}]}\n";
    let mut world = world(&[RATINGS.to_owned(), virtual_service.to_owned(), http("other", "c")]);
    assert_eq!(
        (met(&world, "other/ext"), met(&world, "shop/web")),
        (vec!["other-c".to_owned()], vec!["v".to_owned()])
    );
    put(&mut world, &http("shop", "p"));
    assert_eq!(met(&world, "shop/web"), ["shop-p"]);
}

#[test]
fn a_port_of_the_parent_narrows_the_route_to_it() {
    for (more, expected) in [
        ("", 1),
        (", port: 80", 1),
        (", port: 81", 0),
        (", sectionName: http", 1),
        (", sectionName: grpc", 0),
    ] {
        let world =
            world(&[RATINGS.to_owned(), route("HTTPRoute", "shop", "r", more, &format!("{{{BACKEND}}}"))]);
        assert_eq!(met(&world, "shop/web").len(), expected, "{more}");
    }
}

#[test]
fn matches_of_all_routes_are_tried_from_the_most_specific_and_then_from_the_oldest() {
    let rule = |name: &str, matched: &str| format!("{{name: {name}, matches: [{{{matched}}}], {BACKEND}}}");
    let path = |kind: &str, value: &str| format!("path: {{type: {kind}, value: {value}}}");
    let young = [
        rule("prefix-long", &path("PathPrefix", "/foo/bar")),
        rule("exact", &path("Exact", "/a")),
        rule("method", &format!("{}, method: GET", path("PathPrefix", "/foo"))),
        rule("headers", &format!("{}, headers: [{{name: a, value: b}}]", path("PathPrefix", "/foo"))),
        rule("same", &path("PathPrefix", "/foo")),
    ];
    let old = [
        rule("query", "queryParams: [{name: a, value: b}]"),
        rule("old-same", &path("PathPrefix", "/foo")),
        rule("all", ""),
    ];
    let aged = |name: &str, created: &str, rules: &[String]| {
        route("HTTPRoute", "shop", name, "", &rules.join(", "))
            .replace("namespace: shop}\n", &format!("namespace: shop, creationTimestamp: '{created}'}}\n"))
    };
    let world = world(&[
        RATINGS.to_owned(),
        aged("a", "2025-01-01T00:00:00Z", &young),
        aged("b", "2024-01-01T00:00:00Z", &old),
    ]);
    assert_eq!(
        met(&world, "shop/web"),
        ["exact", "prefix-long", "method", "headers", "old-same", "same", "query", "all"]
    );
}

#[test]
fn a_grpc_route_takes_the_port_from_the_http_routes_of_its_namespace() {
    let grpc = route(
        "GRPCRoute",
        "shop",
        "g",
        "",
        &format!(
            "{{name: any, {BACKEND}}}, {{name: service, matches: [{{method: {{service: a.B}}}}], {BACKEND}}}, {{name: full, matches: [{{method: {{service: a.B, method: C}}}}], {BACKEND}}}"
        ),
    );
    let world = world(&[RATINGS.to_owned(), http("shop", "p"), grpc]);
    assert_eq!(met(&world, "shop/web"), ["full", "service", "any"]);
}

#[test]
fn a_backend_that_is_not_there_is_invalid_until_it_is() {
    let mut world = world(&[http("shop", "p")]);
    let backend = |world: &World| {
        let service = world.service_by_host("reviews.shop", "shop").unwrap();
        let rules = world.http_rules(pod(world, "web"), service, 80);
        let RuleAction::Forward(backends) = &rules[0].action else { panic!() };
        match &backends[0].backend {
            Backend::Host { host, .. } => host.to_string(),
            Backend::Invalid(cause) => cause.to_string(),
        }
    };
    assert_eq!(backend(&world), "ratings.shop.svc.cluster.local does not exist");
    put(&mut world, &RATINGS.replace("port: 80", "port: 81"));
    assert_eq!(backend(&world), "ratings.shop.svc.cluster.local has no port 80");
    put(&mut world, RATINGS);
    assert_eq!(backend(&world), "ratings.shop.svc.cluster.local");
    let key = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "ratings".into() };
    world.apply(Change::Removed(key));
    assert_eq!(backend(&world), "ratings.shop.svc.cluster.local does not exist");
}
