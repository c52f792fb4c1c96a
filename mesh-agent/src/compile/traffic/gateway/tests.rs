use std::time::Duration;

use super::*;
use crate::compile::Severity;
use crate::compile::fixture::compile;
use crate::model::pattern::{PathMatch, Pattern, Regex};
use crate::model::route::{HeaderOps, HttpMatch, Millionths, PathRewrite, Redirect, RedirectPort};

fn route(kind: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: reviews}}], rules: [{rules}]}}\n"
    )
}

fn facts(text: &str) -> RouteFacts {
    let compiled = compile(text);
    let errors: Vec<_> = compiled.diagnostics.iter().filter(|one| one.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{text}: {errors:?}");
    match compiled.objects.into_iter().next() {
        Some((_, Object::Route(facts))) => *facts,
        other => panic!("{text}: {other:?}"),
    }
}

fn rule(text: &str) -> HttpRule {
    let facts = facts(&route("HTTPRoute", &format!("{{{text}}}")));
    HttpRule::clone(&facts.rules[0].1)
}

fn one_match(kind: &str, text: &str) -> HttpMatch {
    let facts = facts(&route(kind, &format!("{{matches: [{{{text}}}]}}")));
    facts.rules[0].1.matches[0].clone()
}

#[test]
fn every_condition_of_an_http_route() {
    let none = HttpMatch::default;
    let everything = || Some(PathMatch::Segments("".into()));
    for (text, expected) in [
        ("", HttpMatch { path: everything(), ..none() }),
        ("path: {value: /foo/}", HttpMatch { path: Some(PathMatch::Segments("/foo".into())), ..none() }),
        (
            "path: {type: Exact, value: /foo/}",
            HttpMatch { path: Some(PathMatch::Exact { path: "/foo/".into(), ignore_case: false }), ..none() },
        ),
        (
            "path: {type: RegularExpression, value: '/f.*'}",
            HttpMatch { path: Some(PathMatch::Regex(Regex::new("/f.*").unwrap())), ..none() },
        ),
        (
            "method: PUT",
            HttpMatch { path: everything(), method: Some(Pattern::Exact("PUT".into())), ..none() },
        ),
        (
            "headers: [{name: A, value: x}, {name: a, value: y}]",
            HttpMatch {
                path: everything(),
                headers: vec![("a".into(), Pattern::Exact("x".into()))],
                ..none()
            },
        ),
        (
            "queryParams: [{name: q, type: RegularExpression, value: '[0-9]+'}]",
            HttpMatch {
                path: everything(),
                query: vec![("q".into(), Pattern::Regex(Regex::new("[0-9]+").unwrap()))],
                ..none()
            },
        ),
    ] {
        assert_eq!(one_match("HTTPRoute", text), expected, "{text}");
    }
}

#[test]
fn a_grpc_method_is_a_path() {
    let exact = |path: &str| PathMatch::Exact { path: path.into(), ignore_case: false };
    for (text, expected) in [
        ("", None),
        ("method: {service: a.B, method: C}", Some(exact("/a.B/C"))),
        ("method: {service: a.B}", Some(PathMatch::Prefix { prefix: "/a.B/".into(), ignore_case: false })),
        ("method: {method: C}", Some(PathMatch::Regex(Regex::new("/[^/]+/C").unwrap()))),
        (
            "method: {type: RegularExpression, service: 'a|b'}",
            Some(PathMatch::Regex(Regex::new("/(?:a|b)/[^/]+").unwrap())),
        ),
    ] {
        assert_eq!(one_match("GRPCRoute", text).path, expected, "{text}");
    }
}

#[test]
fn backends_share_by_weight_and_a_wrong_one_is_answered_for() {
    let backends = |text: &str| match rule(&format!("backendRefs: [{text}]")).action {
        RuleAction::Forward(backends) => backends
            .into_iter()
            .map(|one| {
                (
                    one.weight,
                    match one.backend {
                        Backend::Host { host, port, .. } => format!("{host}:{}", port.unwrap()),
                        Backend::Invalid(cause) => cause.to_string(),
                    },
                )
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let full = |name: &str| format!("{name}.svc.cluster.local:80");
    assert_eq!(
        backends(
            "{name: a, port: 80, weight: 9}, {name: b, namespace: other, port: 80}, {name: c, port: 80, weight: 0}"
        ),
        [(9, full("a.shop")), (1, full("b.other"))]
    );
    let none = "the rule has no backend with a weight";
    assert_eq!(backends(""), [(1, none.to_owned())]);
    assert_eq!(backends("{name: a, port: 80, weight: 0}"), [(1, none.to_owned())]);
    assert_eq!(backends("{name: a}"), [(1, "Service a is named without a port".to_owned())]);
    assert_eq!(
        backends("{kind: Bucket, group: example.com, name: a}"),
        [(1, "Bucket a is not a kind that requests can go to".to_owned())]
    );
}

#[test]
fn every_filter() {
    let found = rule(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: '1%'}], add: [{name: b, value: x}], remove: [C]}}, \
           {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: d, value: y}]}}, \
           {type: URLRewrite, urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}}, \
           {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, percent: 20}}, \
           {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, fraction: {numerator: 1, denominator: 1000}}}, \
           {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}}, \
           {type: CORS, cors: {allowOrigins: ['https://*.example.com', 'https://a'], allowCredentials: true}}], \
         timeouts: {request: 5s, backendRequest: 1s}, \
         backendRefs: [{name: a, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [e]}}]}]",
    );
    assert_eq!(
        found.request_headers,
        HeaderOps {
            set: vec![("a".into(), "1%".into())],
            add: vec![("b".into(), "x".into())],
            remove: vec!["c".into()]
        }
    );
    assert_eq!(found.response_headers.set, [("d".into(), "y".into())]);
    assert_eq!(found.rewrite.authority.as_deref(), Some("h"));
    assert_eq!(found.rewrite.path, Some(PathRewrite::Prefix("/z".into())));
    let shares: Vec<_> = found.mirrors.iter().map(|mirror| mirror.share.0).collect();
    assert_eq!(shares, [200_000, 1_000, Millionths::ALWAYS.0]);
    let cors = found.cors.unwrap();
    assert!(cors.allow_origins[0].matches("https://a.b.example.com"));
    assert!(!cors.allow_origins[0].matches("https://example.com"));
    assert_eq!(found.timeout, Some(Duration::from_secs(5)));
    let RuleAction::Forward(backends) = found.action else { panic!() };
    assert_eq!(backends[0].request_headers.remove, ["e".into()]);
    let Backend::Host { timeout, .. } = &backends[0].backend else { panic!() };
    assert_eq!(*timeout, Some(Duration::from_secs(1)));
}

#[test]
fn a_redirect_is_302_and_its_scheme_brings_the_port() {
    let redirect = |text: &str| match rule(&format!(
        "filters: [{{type: RequestRedirect, requestRedirect: {{{text}}}}}]"
    ))
    .action
    {
        RuleAction::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let plain = Redirect {
        status: 302,
        scheme: None,
        authority: Some("h".into()),
        port: Some(RedirectPort::OfRequest),
        path: None,
    };
    assert_eq!(redirect("hostname: h"), plain);
    assert_eq!(
        redirect("hostname: h, scheme: https, statusCode: 301"),
        Redirect {
            status: 301,
            scheme: Some("https".into()),
            port: Some(RedirectPort::OfScheme),
            ..plain.clone()
        }
    );
    assert_eq!(
        redirect("hostname: h, port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /x}"),
        Redirect {
            port: Some(RedirectPort::Number(8443)),
            path: Some(PathRewrite::Full("/x".into())),
            ..plain
        }
    );
}

#[test]
fn what_a_route_may_not_say_and_whose_routes_are_left_alone() {
    for (rule, expected) in [
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]",
            "spec.rules[0].filters[0].type",
        ),
        ("filters: [{type: RequestMirror}]", "spec.rules[0].filters[0].requestMirror"),
        ("matches: [{path: {value: foo}}]", "spec.rules[0].matches[0].path.value"),
        ("matches: [{path: {type: RegularExpression, value: '('}}]", "spec.rules[0].matches[0].path.value"),
        ("timeouts: {request: 1s, backendRequest: 2s}", "spec.rules[0].timeouts.backendRequest"),
        ("retry: {attempts: 1}", "spec.rules[0].retry"),
        (
            "backendRefs: [{name: a, port: 80, filters: [{type: RequestRedirect, requestRedirect: {hostname: h}}]}]",
            "spec.rules[0].backendRefs[0].filters[0].type",
        ),
    ] {
        let compiled = compile(&route("HTTPRoute", &format!("{{{rule}}}")));
        assert!(compiled.objects.is_empty(), "{rule}");
        assert!(
            compiled.diagnostics.iter().any(|one| one.field == expected),
            "{rule}: {:?}",
            compiled.diagnostics
        );
    }
    let gateways =
        route("HTTPRoute", "{retry: {attempts: 1}}").replace("group: '', kind: Service", "kind: Gateway");
    let compiled = compile(&gateways);
    assert!(compiled.objects.is_empty() && compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
}

/// A TCPRoute or TLSRoute of a version.
fn layer4(kind: &str, version: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: db, port: 5432}}], {spec}}}\n"
    )
}

#[test]
fn connections_are_split_by_a_tcp_route_and_told_apart_by_a_tls_route() {
    let rules = "rules: [{name: main, backendRefs: [{name: db-v1, port: 5432, weight: 9}, {name: db-v2, namespace: other, port: 5433}, {name: off, port: 1, weight: 0}]}]";
    let to = |host: &str, port: u16, weight: u32| WeightedDestination {
        weight,
        backend: Backend::Host { host: host.into(), port: Some(port), subset: None, timeout: None },
    };
    let backends =
        [to("db-v1.shop.svc.cluster.local", 5432, 9), to("db-v2.other.svc.cluster.local", 5433, 1)];
    for version in ["v1alpha2", "v1"] {
        let facts = facts(&layer4("TCPRoute", version, rules));
        assert_eq!((facts.kind, facts.parents[0].port), (Kind::TcpRoute, Some(5432)));
        assert!(facts.connections[0].matches.is_empty() && facts.rules.is_empty());
        assert_eq!(facts.connections[0].backends, backends);
        assert_eq!(facts.connections[0].origin.to_string(), "TCPRoute shop/r main");
    }
    for (version, names, expected) in [
        (
            "v1",
            "hostnames: [A.example, '*.b.example'],",
            vec![SniPattern::Exact("a.example".into()), SniPattern::Under(".b.example".into())],
        ),
        ("v1alpha3", "hostnames: [a],", vec![SniPattern::Exact("a".into())]),
        // Only the alpha versions let them be left out.
        ("v1alpha2", "", vec![SniPattern::Any]),
    ] {
        let facts = facts(&layer4("TLSRoute", version, &format!("{names} {rules}")));
        assert_eq!(facts.connections[0].matches[0].sni, expected, "{version}");
        assert_eq!(facts.connections[0].backends, backends);
    }
}

#[test]
fn what_is_wrong_with_them_is_told() {
    let good = "rules: [{backendRefs: [{name: db, port: 5432}]}]";
    for (text, expected) in [
        (layer4("TCPRoute", "v1alpha2", "rules: []"), "spec.rules: are missing"),
        (layer4("TCPRoute", "v1beta1", good), "apiVersion: `gateway.networking.k8s.io/v1beta1` is not known"),
        (
            layer4("TCPRoute", "v1alpha2", &format!("hostnames: [a], {good}")),
            "spec.hostnames: is not a field",
        ),
        (layer4("TLSRoute", "v1", good), "missing field `hostnames`"),
        (
            layer4("TLSRoute", "v1", &format!("hostnames: ['a b'], {good}")),
            "spec.hostnames[0]: `a b` is not a server's name",
        ),
        (
            layer4("TCPRoute", "v1alpha2", "rules: [{matches: [], backendRefs: [{name: db}]}]"),
            "spec.rules[0].matches: is not a field",
        ),
    ] {
        let compiled = compile(&text);
        let errors: Vec<_> = compiled.diagnostics.iter().map(ToString::to_string).collect();
        assert!(
            compiled.objects.is_empty() && errors.iter().any(|one| one.contains(expected)),
            "{text}: {errors:?}"
        );
    }
    let second = layer4(
        "TCPRoute",
        "v1alpha2",
        "rules: [{backendRefs: [{name: a, port: 1}]}, {backendRefs: [{name: b, port: 1}]}]",
    );
    let found: Vec<_> = compile(&second).diagnostics.iter().map(ToString::to_string).collect();
    assert!(found.len() == 1 && found[0].contains("spec.rules[1]: is never reached"), "{found:?}");
    // Wrong references refuse no route: what falls on them is refused.
    let bad = "rules: [{backendRefs: [{kind: Bucket, name: b}, {name: c}]}]";
    for one in &facts(&layer4("TCPRoute", "v1alpha2", bad)).connections[0].backends {
        assert!(matches!(one.backend, Backend::Invalid(_)), "{one:?}");
    }
    let edge = layer4("TCPRoute", "v1alpha2", good).replace("kind: Service", "kind: Gateway");
    assert!(
        compile(&edge).objects.is_empty() && compile(&edge).diagnostics.is_empty(),
        "another controller's"
    );
}
