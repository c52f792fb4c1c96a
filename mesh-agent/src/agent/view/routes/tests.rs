use super::*;
use crate::world::fixture::world;

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}, uri: {prefix: /v2}}]
    timeout: 10s
    retries: {attempts: 3, perTryTimeout: 2s}
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{method: {exact: GET}}]
    name: reads
    route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: ratings, port: {number: 81}}, weight: 10}
    mirror: {host: ratings}
    mirrorPercentage: {value: 0.5}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: shop}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {maxConnections: 100}}
    outlierDetection: {consecutive5xxErrors: 3}
";

#[test]
fn rules_are_told_in_order_with_the_policy_behind_them() {
    let world = world(&[RULES.to_owned()]);
    let told = routes(&world, &ExplainQuery::parse("web.shop", "reviews").unwrap()).unwrap();
    assert_eq!((told.service.as_str(), told.port), ("reviews.shop.svc.cluster.local", 80));
    let [first, second] = told.rules.as_slice() else { panic!("{told:?}") };
    assert_eq!(first.matches, ["path /v2* and header end-user = jason"]);
    assert_eq!(first.action, ["to reviews.shop.svc.cluster.local subset v2"]);
    assert_eq!(first.options, ["timeout 10s", "up to 3 retries of 2s each"]);
    assert_eq!((second.object.as_str(), second.rule.as_str()), ("VirtualService shop/reviews", "reads"));
    assert_eq!(
        second.action,
        ["90% to reviews.shop.svc.cluster.local subset v1", "10% to ratings.shop.svc.cluster.local:81"]
    );
    assert_eq!(second.options, ["0.5% mirrored to ratings.shop.svc.cluster.local"]);
    assert_eq!(told.policy.object.as_deref(), Some("DestinationRule shop/d"));
    assert_eq!(told.policy.balance, "at random");
    assert_eq!(told.policy.settings.len(), 3, "{:?}", told.policy.settings);
    assert_eq!(told.notes, ["a request that no rule takes is answered with 404"]);
}

#[test]
fn a_workload_or_a_host_that_is_not_there_is_said() {
    let world = world(&[]);
    let ask = |source: &str, host: &str| routes(&world, &ExplainQuery::parse(source, host).unwrap());
    assert!(matches!(ask("nobody.shop", "reviews"), Err(ExplainError::UnknownSource(_))));
    assert!(matches!(ask("web.shop", "nothing"), Err(ExplainError::UnknownDestination(_))));
    let told = ask("web.shop", "reviews:81").unwrap();
    assert_eq!(told.notes, ["reviews.shop.svc.cluster.local has no port 81"]);
    assert!(told.rules.is_empty() && told.policy.object.is_none());
}

#[test]
fn the_rule_that_takes_a_request_is_named_and_none_is_404() {
    let world = world(&[RULES.to_owned()]);
    let source = world.pod("shop", "web").unwrap();
    let service = world.services().find(|service| &*service.name == "reviews").unwrap();
    let mut headers = http::HeaderMap::new();
    let ask = |method: &str, headers: &http::HeaderMap, service: Option<&Service>| {
        let asked = RequestView {
            method,
            scheme: "http",
            authority: "reviews",
            path: "/v2/x",
            query: Some("a=b"),
            headers,
            port: 80,
        };
        request(&world, source, service, &asked)
    };
    let named = |story: &RequestStory| story.rule.as_ref().map(|rule| rule.rule.clone());
    assert_eq!(named(&ask("GET", &headers, Some(service))).as_deref(), Some("reads"));
    let lost = ask("POST", &headers, Some(service));
    assert_eq!((lost.path.as_str(), lost.outcome.as_str()), ("/v2/x?a=b", "none of 2 rules takes it: 404"));
    headers.insert("end-user", http::HeaderValue::from_static("jason"));
    assert_eq!(named(&ask("POST", &headers, Some(service))).as_deref(), Some("http[0]"));
    assert_eq!(named(&ask("POST", &headers, None)).as_deref(), Some("http[0]"), "by its host");
}
