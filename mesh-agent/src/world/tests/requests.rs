//! AuthorizationPolicy from YAML to the verdict on a request (reference sections 4.1 and 4.6).

use http::{HeaderMap, HeaderName};

use super::*;
use crate::decide::bypass::{KernelVerdict, kernel_verdict};
use crate::decide::inbound::{HttpFacts, admit_any_request, admit_stream, judge_request, needs_http};
use crate::decide::path::{PathNormalization, normalise};
use crate::decide::route::RequestView;

mod slowly;

/// A request as a test writes it: `GET /path?query`, then headers as `name: value`, separated by `|`.
fn ask(world: &World, client: Option<&str>, text: &str) -> Verdict {
    let mut parts = text.split('|');
    let (method, target) = parts.next().unwrap().split_once(' ').unwrap();
    let target = normalise(target, PathNormalization::Base).unwrap();
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
    let mut headers = HeaderMap::new();
    let mut authority = "reviews:8080";
    for line in parts {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "host" {
            authority = value;
        } else {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
    }
    let peer = client.map(|name| Identity::new("cluster.local", "shop", name).unwrap());
    let dst = pod(world, "reviews");
    let conn = ConnFacts {
        peer: peer.as_ref(),
        source_ip: [10, 1, 0, 1].into(),
        destination: SocketAddr::new(dst.addresses[0], 8080),
    };
    let request =
        RequestView { method, scheme: "http", authority, path, query, headers: &headers, port: 8080 };
    judge_request(world, dst, &HttpFacts { conn, request })
}

/// Whether one rule matches, by a DENY policy and, where it has to be the same, by an ALLOW policy.
fn matches(rule: &str, text: &str) -> [bool; 2] {
    let deny = world(&[authz("p", &format!("{{action: DENY, rules: [{rule}]}}"))]);
    let allow = world(&[authz("p", &format!("{{rules: [{rule}]}}"))]);
    [!ask(&deny, Some("web"), text).allowed, ask(&allow, Some("web"), text).allowed]
}

/// The policy of the guide, with the lab's names.
#[test]
fn the_guides_policy_allows_get_and_post_below_api_to_one_client() {
    let world = world(&[authz(
        "guide",
        "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], \
          to: [{operation: {methods: [GET, POST], paths: ['/api/*']}}]}]}",
    )]);
    for (client, text, allowed) in [
        (Some("web"), "GET /api/items", true),
        (Some("web"), "POST /api/", true),
        (Some("web"), "GET /api/items?x=/admin", true),
        (Some("web"), "DELETE /api/items", false),
        (Some("web"), "GET /api", false),
        (Some("web"), "GET /apis/x", false),
        (Some("web"), "GET /admin", false),
        (Some("web"), "GET /api/../admin", false),
        (Some("web"), "GET /api/%2e%2e/admin", false),
        (Some("web"), "GET /api\\..\\admin", false),
        (Some("web"), "GET /x/../%61pi/items", true),
        (Some("api"), "GET /api/items", false),
        (None, "GET /api/items", false),
    ] {
        let verdict = ask(&world, client, text);
        assert_eq!(verdict.allowed, allowed, "{client:?} {text}");
        assert_eq!(verdict.reason, (!allowed).then_some(Reason::PolicyNotAllowed), "{client:?} {text}");
    }
    assert!(!from(&world, Some("web"), 8080).allowed, "what is no HTTP is none of it");
}

#[test]
fn methods_hosts_paths_and_their_opposites() {
    for (operation, text, wanted) in [
        ("{methods: [GET]}", "GET /", true),
        ("{methods: [GET]}", "GETX /", false),
        ("{methods: ['P*']}", "PATCH /", true),
        ("{notMethods: [GET, HEAD]}", "POST /", true),
        ("{notMethods: [GET, HEAD]}", "HEAD /", false),
        ("{paths: [/a]}", "GET /a", true),
        ("{paths: [/a]}", "GET /a?b", true),
        ("{paths: [/a]}", "GET /A", false),
        ("{paths: ['/a*']}", "GET /ab/c", true),
        ("{paths: ['*.html']}", "GET /x/y.html?z", true),
        ("{paths: ['*']}", "GET /", true),
        ("{paths: ['/a/{*}/c']}", "GET /a/b/c", true),
        ("{paths: ['/a/{*}/c']}", "GET /a/b/b/c", false),
        ("{paths: ['/a/{**}']}", "GET /a/b/b/c", true),
        ("{notPaths: ['/a/{**}']}", "GET /a/b", false),
        ("{notPaths: ['/healthz']}", "GET /x", true),
        ("{paths: ['/a*'], notPaths: ['/a/b']}", "GET /a/b", false),
        ("{paths: ['/pkg.Service/Get*']}", "POST /pkg.Service/GetItem", true),
        ("{paths: ['/a%2fb']}", "GET /a%2Fb", true),
        ("{hosts: [shop.example]}", "GET /|host: Shop.Example", true),
        ("{hosts: [shop.example]}", "GET /|host: shop.example:8080", true),
        ("{hosts: [shop.example]}", "GET /|host: shop.example.", true),
        ("{hosts: [shop.example]}", "GET /|host: shop.example.:8080", true),
        ("{hosts: ['shop.example:8080']}", "GET /|host: shop.example:8080", true),
        ("{hosts: ['shop.example:8080']}", "GET /|host: shop.example", false),
        ("{hosts: ['*.example']}", "GET /|host: a.example:1", true),
        ("{notHosts: [shop.example]}", "GET /|host: SHOP.example:8080", false),
        ("{notHosts: [shop.example]}", "GET /|host: other", true),
        ("{ports: ['8080'], methods: [GET]}", "GET /", true),
        ("{ports: ['80'], methods: [GET]}", "GET /", false),
        ("{notPorts: ['8080'], methods: [GET]}", "GET /", false),
        ("{methods: [GET], paths: [/a], hosts: [reviews]}", "GET /a", true),
        ("{methods: [GET], paths: [/a], hosts: [ratings]}", "GET /a", false),
    ] {
        let rule = format!("{{to: [{{operation: {operation}}}]}}");
        assert_eq!(matches(&rule, text), [wanted; 2], "{operation} {text}");
    }
}

#[test]
fn headers_and_addresses_in_when_and_from() {
    for (rule, text, wanted) in [
        ("{when: [{key: 'request.headers[X-Tenant]', values: [blue]}]}", "GET /|x-tenant: blue", [true; 2]),
        ("{when: [{key: 'request.headers[x-tenant]', values: [blue]}]}", "GET /|x-tenant: Blue", [false; 2]),
        ("{when: [{key: 'request.headers[x-tenant]', values: [blue]}]}", "GET /", [false; 2]),
        ("{when: [{key: 'request.headers[x-tenant]', values: ['*']}]}", "GET /|x-tenant: a", [true; 2]),
        ("{when: [{key: 'request.headers[x-tenant]', notValues: ['*']}]}", "GET /", [true; 2]),
        ("{when: [{key: 'request.headers[x-tenant]', notValues: ['*']}]}", "GET /|x-tenant: a", [false; 2]),
        (
            "{when: [{key: 'request.headers[user-agent]', values: [Mozilla*]}]}",
            "GET /|user-agent: Mozilla/5",
            [true; 2],
        ),
        ("{when: [{key: 'request.headers[x]', values: [admin]}]}", "GET /|x: user|x: admin", [true, false]),
        ("{when: [{key: 'request.headers[x]', values: [admin]}]}", "GET /|x: admin|x: user", [true, false]),
        (
            "{when: [{key: 'request.headers[x]', values: ['user,admin']}]}",
            "GET /|x: user|x: admin",
            [true; 2],
        ),
        ("{when: [{key: 'request.headers[:authority]', values: ['reviews:8080']}]}", "GET /", [true; 2]),
        ("{when: [{key: 'request.headers[host]', values: ['reviews:8080']}]}", "GET /", [true; 2]),
        (
            "{when: [{key: remote.ip, values: [1.2.3.0/24]}]}",
            "GET /|x-forwarded-for: 6.6.6.6, 1.2.3.4",
            [true; 2],
        ),
        (
            "{when: [{key: remote.ip, values: [1.2.3.0/24]}]}",
            "GET /|x-forwarded-for: 1.2.3.4, 6.6.6.6",
            [false; 2],
        ),
        ("{when: [{key: remote.ip, values: [10.1.0.1]}]}", "GET /", [true; 2]),
        ("{when: [{key: source.ip, values: [10.1.0.1]}]}", "GET /|x-forwarded-for: 6.6.6.6", [true; 2]),
        ("{from: [{source: {remoteIpBlocks: [1.2.3.4]}}]}", "GET /|x-forwarded-for: 1.2.3.4", [true; 2]),
        ("{from: [{source: {notRemoteIpBlocks: [1.2.3.4]}}]}", "GET /|x-forwarded-for: 1.2.3.4", [false; 2]),
        ("{when: [{key: connection.sni, values: ['*']}]}", "GET /", [false; 2]),
        ("{when: [{key: connection.sni, notValues: [a.example]}]}", "GET /", [true; 2]),
        (
            "{when: [{key: source.principal, values: ['*/sa/web']}, {key: destination.port, values: ['8080']}]}",
            "GET /",
            [true; 2],
        ),
    ] {
        assert_eq!(matches(rule, text), wanted, "{rule} {text}");
    }
}

#[test]
fn what_a_token_would_have_to_prove_denies_and_never_allows() {
    for rule in [
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{from: [{source: {requestPrincipals: [iss/sub]}}]}",
        "{from: [{source: {notRequestPrincipals: ['*']}}]}",
        "{when: [{key: 'request.auth.claims[group]', values: [admin]}]}",
        "{when: [{key: request.auth.principal, notValues: [a]}]}",
        "{when: [{key: request.auth.audiences, values: [a]}]}",
    ] {
        assert_eq!(matches(rule, "GET /|authorization: Bearer x.y.z"), [true, false], "{rule}");
    }
    // The rest of the rule still counts, and so does another source beside it.
    assert_eq!(
        matches(
            "{from: [{source: {notRequestPrincipals: ['*']}}], to: [{operation: {paths: [/a]}}]}",
            "GET /b"
        ),
        [false, false]
    );
    assert_eq!(
        matches(
            "{from: [{source: {requestPrincipals: ['*']}}, {source: {serviceAccounts: [web]}}]}",
            "GET /"
        ),
        [true, true]
    );
}

#[test]
fn a_connection_is_read_as_http_only_where_a_policy_in_force_asks_about_requests() {
    let paths = "rules: [{to: [{operation: {paths: [/a]}}]}]";
    let dry = authz("p", &format!("{{{paths}}}"))
        .replace("shop}", "shop, annotations: {istio.io/dry-run: 'true'}}");
    for (policy, wanted) in [
        (authz("p", "{rules: [{from: [{source: {principals: ['*']}}]}]}"), false),
        (authz("p", &format!("{{{paths}}}")), true),
        (authz("p", &format!("{{action: DENY, {paths}}}")), true),
        (authz("p", &format!("{{action: AUDIT, {paths}}}")), false),
        (authz("p", &format!("{{selector: {{matchLabels: {{app: other}}}}, {paths}}}")), false),
        (authz("p", &format!("{{bad: 1, {paths}}}")), false),
        (authz("p", "{rules: [{to: [{operation: {ports: ['90'], paths: [/a]}}]}]}"), false),
        (authz("p", "{rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]}"), true),
        (dry, false),
    ] {
        let world = world(std::slice::from_ref(&policy));
        assert_eq!(needs_http(&world, pod(&world, "reviews"), 8080), wanted, "{policy}");
    }
}

#[test]
fn a_connection_with_requests_is_refused_at_once_only_for_its_identity_and_cut_when_nothing_may_pass() {
    let world = world(&[
        authz(
            "p",
            "{rules: [{from: [{source: {serviceAccounts: [web]}}], to: [{operation: {paths: [/a]}}]}]}",
        ),
        peer("shop", "strict", "{mtls: {mode: STRICT}}"),
    ]);
    let dst = pod(&world, "reviews");
    for (client, stream, any) in [
        (Some("web"), Ok(()), Ok(())),
        (Some("api"), Ok(()), Err(Reason::PolicyNotAllowed)),
        (None, Err(Reason::PlaintextRefused), Err(Reason::PlaintextRefused)),
    ] {
        let peer = client.map(|name| Identity::new("cluster.local", "shop", name).unwrap());
        let destination = SocketAddr::new(dst.addresses[0], 8080);
        let facts = ConnFacts { peer: peer.as_ref(), source_ip: [10, 1, 0, 1].into(), destination };
        assert_eq!(admit_stream(&world, dst, &facts), stream, "{client:?}");
        assert_eq!(admit_any_request(&world, dst, &facts), any, "{client:?}");
    }
}

/// CVE-2026-33726: policy on requests was skipped for traffic of one node.
#[test]
fn a_pod_under_a_policy_on_requests_is_never_bypassed() {
    let verdict = |policies: &[String]| {
        let world = world(policies);
        let (src, dst) = (pod(&world, "web"), pod(&world, "reviews"));
        kernel_verdict(&world, &dst.node, src, SocketAddr::new(dst.addresses[0], 8080))
    };
    assert_eq!(verdict(&[]), KernelVerdict::Bypass);
    for spec in [
        "{rules: [{to: [{operation: {paths: [/a]}}]}, {}]}",
        "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}",
        "{action: DENY, rules: [{from: [{source: {serviceAccounts: [other]}}], to: [{operation: {hosts: [a]}}]}]}",
    ] {
        assert_eq!(verdict(&[authz("p", spec)]), KernelVerdict::Capture, "{spec}");
    }
    let elsewhere = "{rules: [{to: [{operation: {ports: ['80'], paths: [/a]}}]}, {}]}";
    assert_eq!(verdict(&[authz("p", elsewhere)]), KernelVerdict::Bypass);
}
