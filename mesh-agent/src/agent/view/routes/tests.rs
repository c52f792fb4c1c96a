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
    assert_eq!(
        named(&ask("POST", &headers, None)),
        None,
        "a Host is a ServiceEntry's without addresses only"
    );
}

const DB: &str = "apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIPs: [10.96.0.9], ports: [{name: tcp, port: 5432}, {name: tls, port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.2], nodeName: n1, targetRef: {kind: Pod, name: reviews}}
- {addresses: [10.2.0.1], nodeName: n2, targetRef: {kind: Pod, name: api}}
ports: [{name: tcp, port: 5432}, {name: tls, port: 443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: shop}
spec: {host: db, subsets: [{name: v1, labels: {app: reviews}}, {name: v2, labels: {app: api}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: shop}
spec:
  hosts: [db, '*.example.com']
  tcp:
  - match: [{sourceLabels: {app: web}, destinationSubnets: [10.96.0.0/12]}]
    route: [{destination: {host: db, subset: v1}, weight: 3}, {destination: {host: gone}, weight: 1}]
  tls:
  - match: [{sniHosts: [db]}, {sniHosts: [a.example.com], port: 443}]
    route: [{destination: {host: db, subset: v2}}]
";

#[test]
fn rules_for_connections_are_told_by_routes_and_by_explain() {
    let world = world(&[DB.to_owned()]);
    let told = routes(&world, &ExplainQuery::parse("web.shop", "db:5432").unwrap()).unwrap();
    let [rule] = told.connections.as_slice() else { panic!("{told:?}") };
    assert_eq!((rule.object.as_str(), rule.rule.as_str()), ("VirtualService shop/db", "tcp[0]"));
    assert_eq!(rule.matches, ["destination = 10.96.0.0/12 and source label app = web"]);
    assert_eq!(
        rule.action,
        ["75% to db.shop.svc.cluster.local subset v1", "25% to gone.shop.svc.cluster.local"]
    );
    assert_eq!(told.notes, ["a connection that no rule takes goes to the Service"]);
    assert!(told.rules.is_empty());

    let explain = |source: &str, to: &str, sni: Option<&str>| {
        let query = ExplainQuery::parse(source, to).unwrap();
        let query = match sni {
            Some(name) => query.with_sni(name).unwrap(),
            None => query,
        };
        super::super::explain::explain(&world, "n1", &query).unwrap()
    };
    let rule = |told: &crate::admin::Explanation| {
        told.connection.as_ref().and_then(|story| story.rule.as_ref()).map(|rule| rule.rule.clone())
    };
    let told = explain("web.shop", "db:5432", None);
    assert_eq!(rule(&told).as_deref(), Some("tcp[0]"));
    assert_eq!(told.destination.workload.as_deref(), Some("shop/reviews"), "of the subset");
    assert_eq!(told.route.endpoints.len(), 1);
    assert!(
        told.notes.iter().any(|note| note.contains("gone.shop.svc.cluster.local: the route's backend")),
        "{told:?}"
    );
    let told = explain("api.shop", "db:5432", None);
    assert_eq!((rule(&told), told.route.endpoints.len()), (None, 2));
    for (to, sni, expected, name) in [
        ("db:443", None, Some("tls[0]"), "db"),
        ("db:443", Some("A.example.com"), Some("tls[0]"), "a.example.com"),
        ("db.shop:443", None, None, "db.shop"),
    ] {
        let told = explain("web.shop", to, sni);
        let story = told.connection.as_ref().unwrap();
        assert_eq!((rule(&told).as_deref(), story.sni.as_deref()), (expected, Some(name)), "{to} {sni:?}");
        let endpoints = if expected.is_some() { 1 } else { 2 };
        assert_eq!(told.route.endpoints.len(), endpoints, "{to} {sni:?}");
    }
}

#[test]
fn a_connection_that_a_route_of_the_gateway_api_does_not_take_is_refused() {
    let tls = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: db, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: db, port: 443}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: db, port: 443}]}]
";
    let world = world(&[DB.to_owned(), tls.to_owned()]);
    let query = ExplainQuery::parse("web.shop", "db:443").unwrap();
    let told = super::super::explain::explain(&world, "n1", &query).unwrap();
    assert_eq!((told.allowed, told.reason.as_deref()), (false, Some("no_route")));
    let told =
        super::super::explain::explain(&world, "n1", &query.with_sni("a.example.com").unwrap()).unwrap();
    assert!(
        told.allowed && told.connection.unwrap().rule.is_some_and(|rule| rule.object == "TLSRoute shop/db")
    );
}
