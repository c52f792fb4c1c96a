//! Every field of the two kinds: what it means in the model, and what is refused where it cannot be honoured.

use std::time::Duration;

use super::reader::duration;
use super::*;
use crate::compile::fixture::{compile, findings};
use crate::compile::{Object, Severity};
use crate::model::pattern::{PathMatch, Pattern, Regex};
use crate::model::route::*;
use crate::model::traffic::*;

/// A VirtualService `reviews` of namespace shop with this spec.
fn virtual_service(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: shop}}\nspec: {spec}\n"
    )
}

fn facts(spec: &str) -> VirtualServiceFacts {
    let compiled = compile(&virtual_service(spec));
    let errors: Vec<_> = compiled.diagnostics.iter().filter(|one| one.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{spec}: {errors:?}");
    match compiled.objects.into_iter().next() {
        Some((_, Object::VirtualService(facts))) => *facts,
        other => panic!("{spec}: {other:?}"),
    }
}

const HOST: &str = "hosts: [reviews], http:";

/// The only rule of `{http: [{ENTRY}]}`.
fn rule(entry: &str) -> HttpRule {
    match facts(&format!("{{{HOST} [{{{entry}}}]}}")).http.remove(0) {
        HttpEntry::Rule(rule) => HttpRule::clone(&rule),
        other => panic!("{other:?}"),
    }
}

const ROUTE: &str = "route: [{destination: {host: reviews}}]";

fn with(entry: &str) -> HttpRule {
    rule(&format!("{entry}, {ROUTE}"))
}

fn one_match(text: &str) -> HttpMatch {
    with(&format!("match: [{{{text}}}]")).matches.remove(0)
}

fn host(name: &str) -> Backend {
    Backend::Host { host: name.into(), port: None, subset: None, timeout: None }
}

fn exact(text: &str) -> Pattern {
    Pattern::Exact(text.into())
}

/// The errors of an object, each `FIELD: MESSAGE`, and that nothing of it is in force.
fn refused(text: &str) -> Vec<String> {
    let compiled = compile(text);
    assert!(compiled.objects.is_empty(), "{text}");
    let errors = compiled.diagnostics.iter().filter(|one| one.severity == Severity::Error);
    errors
        .map(|one| {
            assert!(!one.remedy.is_empty());
            format!("{}: {}", one.field, one.message)
        })
        .collect()
}

#[test]
fn times() {
    for (text, expected) in [
        ("10s", Some(Duration::from_secs(10))),
        ("0.5s", Some(Duration::from_millis(500))),
        ("0.1s", Some(Duration::from_millis(100))),
        ("1h30m", Some(Duration::from_secs(5400))),
        ("250ms", Some(Duration::from_millis(250))),
        ("0s", Some(Duration::ZERO)),
        ("10", None),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1d", None),
        ("1s2", None),
        ("1.2.3s", None),
    ] {
        assert_eq!(duration(text), expected, "{text}");
    }
}

#[test]
fn the_three_versions_are_one_and_another_is_refused() {
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let text =
            virtual_service(&format!("{{{HOST} [{{{ROUTE}}}]}}")).replace("io/v1", &format!("io/{version}"));
        assert_eq!(compile(&text).objects.len(), 1, "{version}");
    }
    let text = virtual_service(&format!("{{{HOST} [{{{ROUTE}}}]}}")).replace("io/v1", "io/v2");
    assert!(refused(&text)[0].starts_with("apiVersion"));
}

#[test]
fn a_short_host_is_of_the_rule_s_namespace_and_one_with_a_dot_is_left_alone() {
    let facts = facts(
        "{hosts: [Reviews, reviews.prod, '*.example.com', '*', 10.0.0.1], http: [{route: [{destination: {host: ratings}}]}]}",
    );
    assert_eq!(
        facts.hosts.iter().map(|host| &**host).collect::<Vec<_>>(),
        ["reviews.shop.svc.cluster.local", "reviews.prod", "*.example.com", "*", "10.0.0.1"]
    );
    let HttpEntry::Rule(rule) = &facts.http[0] else { panic!() };
    let RuleAction::Forward(backends) = &rule.action else { panic!() };
    assert_eq!(backends[0].backend, host("ratings.shop.svc.cluster.local"));
}

#[test]
fn every_condition_of_a_match() {
    let regex = |text: &str| Pattern::Regex(Regex::new(text).unwrap());
    let none = HttpMatch::default;
    for (text, expected) in [
        (
            "uri: {exact: /a}",
            HttpMatch { path: Some(PathMatch::Exact { path: "/a".into(), ignore_case: false }), ..none() },
        ),
        (
            "uri: {prefix: /a}, ignoreUriCase: true",
            HttpMatch { path: Some(PathMatch::Prefix { prefix: "/a".into(), ignore_case: true }), ..none() },
        ),
        (
            "uri: {regex: '/a.*'}",
            HttpMatch { path: Some(PathMatch::Regex(Regex::new("/a.*").unwrap())), ..none() },
        ),
        // A pattern says by itself what case it minds.
        (
            "uri: {regex: '/A'}, ignoreUriCase: true",
            HttpMatch { path: Some(PathMatch::Regex(Regex::new("/A").unwrap())), ..none() },
        ),
        ("scheme: {exact: https}", HttpMatch { scheme: Some(exact("https")), ..none() }),
        ("method: {regex: 'GET|PUT'}", HttpMatch { method: Some(regex("GET|PUT")), ..none() }),
        ("authority: {prefix: a}", HttpMatch { authority: Some(Pattern::Prefix("a".into())), ..none() }),
        (
            "headers: {End-User: {exact: jason}}",
            HttpMatch { headers: vec![("end-user".into(), exact("jason"))], ..none() },
        ),
        ("headers: {a: {}}", HttpMatch { headers: vec![("a".into(), Pattern::Present)], ..none() }),
        ("headers: {a: {regex: '*'}}", HttpMatch { headers: vec![("a".into(), Pattern::Present)], ..none() }),
        (
            "withoutHeaders: {a: {exact: x}}",
            HttpMatch { without_headers: vec![("a".into(), exact("x"))], ..none() },
        ),
        ("queryParams: {v: {exact: ''}}", HttpMatch { query: vec![("v".into(), exact(""))], ..none() }),
        ("port: 80", HttpMatch { port: Some(80), ..none() }),
        (
            "sourceLabels: {app: web}",
            HttpMatch { source_labels: [("app".to_owned(), "web".to_owned())].into(), ..none() },
        ),
        ("sourceNamespace: web", HttpMatch { source_namespace: Some("web".into()), ..none() }),
        // Where gateways are named, the source is not looked at.
        ("gateways: [mesh], sourceLabels: {app: web}, port: 80", HttpMatch { port: Some(80), ..none() }),
    ] {
        assert_eq!(one_match(text), expected, "{text}");
    }
    let found = findings(&virtual_service(&format!(
        "{{{HOST} [{{match: [{{port: 80, headers: {{uri: {{exact: /a}}}}}}], {ROUTE}}}]}}"
    )));
    assert!(found[0].contains("spec.http[0].match[0].headers.uri: is not looked at"), "{found:?}");
}

#[test]
fn gateways_keep_a_rule_or_the_whole_object_from_the_mesh() {
    let rules = facts(&format!(
        "{{{HOST} [{{name: edge, match: [{{port: 80, gateways: [edge]}}], {ROUTE}}}, \
         {{name: both, match: [{{port: 80, gateways: [edge]}}, {{port: 81, gateways: [mesh]}}], {ROUTE}}}]}}"
    ));
    let [HttpEntry::Rule(rule)] = rules.http.as_slice() else { panic!("{rules:?}") };
    assert_eq!((&*rule.origin.rule, rule.matches.len()), ("both", 1));
    for (gateways, held) in [("[edge]", 0), ("[edge, mesh]", 1), ("[]", 1)] {
        let text = virtual_service(&format!("{{gateways: {gateways}, {HOST} [{{{ROUTE}}}]}}"));
        let compiled = compile(&text);
        assert_eq!((compiled.objects.len(), compiled.diagnostics.len()), (held, 0), "{gateways}");
    }
}

#[test]
fn weights_share_and_a_single_destination_takes_everything() {
    let weights = |route: &str| {
        let RuleAction::Forward(backends) = rule(&format!("route: [{route}]")).action else { panic!() };
        backends.iter().map(|one| one.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights("{destination: {host: a}, weight: 0}"), [1]);
    assert_eq!(
        weights("{destination: {host: a}, weight: 90}, {destination: {host: b}, weight: 10}"),
        [90, 10]
    );
    assert_eq!(weights("{destination: {host: a}, weight: 5}, {destination: {host: b}}"), [5]);
    let all_zero = "route: [{destination: {host: a}}, {destination: {host: b}, weight: 0}]";
    assert_eq!(
        refused(&virtual_service(&format!("{{{HOST} [{{{all_zero}}}]}}"))),
        ["spec.http[0].route: has weights that are all 0"]
    );
    let RuleAction::Forward(full) = rule(
        "route: [{destination: {host: a, subset: v1, port: {number: 81}}, headers: {request: {set: {x-a: '1'}}, response: {remove: [X-B]}}}]",
    )
    .action
    else {
        panic!()
    };
    assert_eq!(
        full[0].backend,
        Backend::Host {
            host: "a.shop.svc.cluster.local".into(),
            port: Some(81),
            subset: Some("v1".into()),
            timeout: None
        }
    );
    assert_eq!(full[0].request_headers.set, [("x-a".into(), "1".into())]);
    assert_eq!(full[0].response_headers.remove, ["x-b".into()]);
}

#[test]
fn redirects_direct_responses_and_rewrites() {
    let redirect = |text: &str| match rule(&format!("redirect: {{{text}}}")).action {
        RuleAction::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let plain = Redirect { status: 301, scheme: None, authority: None, port: None, path: None };
    assert_eq!(
        redirect("uri: /new"),
        Redirect { path: Some(PathRewrite::Full("/new".into())), ..plain.clone() }
    );
    assert_eq!(
        redirect("authority: a.example.com, redirectCode: 308, scheme: https, port: 8443"),
        Redirect {
            status: 308,
            scheme: Some("https".into()),
            authority: Some("a.example.com".into()),
            port: Some(RedirectPort::Number(8443)),
            path: None
        }
    );
    assert_eq!(redirect("derivePort: FROM_PROTOCOL_DEFAULT").port, Some(RedirectPort::OfScheme));
    assert_eq!(redirect("derivePort: FROM_REQUEST_PORT").port, Some(RedirectPort::OfRequest));
    for (text, body) in [("{string: hi}", "hi"), ("{bytes: aGk=}", "hi")] {
        let found = rule(&format!("directResponse: {{status: 418, body: {text}}}")).action;
        let expected = DirectResponse { status: 418, body: body.as_bytes().into() };
        assert_eq!(found, RuleAction::Respond(expected));
    }
    let path = |entry: &str| with(entry).rewrite.path;
    assert_eq!(
        path("match: [{uri: {prefix: /a}}], rewrite: {uri: /b}"),
        Some(PathRewrite::Prefix("/b".into()))
    );
    // What it takes the place of is for the match to say that takes the request.
    assert_eq!(
        path("match: [{uri: {exact: /a}}], rewrite: {uri: /b}"),
        Some(PathRewrite::Prefix("/b".into()))
    );
    assert_eq!(
        path("rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/\\1'}}"),
        Some(PathRewrite::Regex { pattern: Regex::new("/a/(.*)").unwrap(), rewrite: "/\\1".into() })
    );
    assert_eq!(with("rewrite: {authority: b}").rewrite.authority.as_deref(), Some("b"));
    let host = with("headers: {request: {set: {Host: b, x-a: '100%%'}}}");
    assert_eq!(host.rewrite.authority.as_deref(), Some("b"), "a Host that is set is a rewrite");
    assert_eq!(host.request_headers.set, [("x-a".into(), "100%".into())]);
}

#[test]
fn a_timeout_of_zero_is_none_and_retries_have_istio_s_defaults() {
    assert_eq!(with("timeout: 10s").timeout, Some(Duration::from_secs(10)));
    assert_eq!(with("timeout: 0s").timeout, None);
    assert_eq!(with("name: a").retry, None, "the mesh's own policy");
    let off = with("retries: {attempts: 0}").retry.unwrap();
    assert_eq!(off.attempts, 0);
    let defaults = with("retries: {attempts: 2}").retry.unwrap();
    assert_eq!(
        defaults,
        RetryPolicy {
            attempts: 2,
            per_try_timeout: None,
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                grpc: vec![14, 1],
                ..RetryOn::default()
            },
            backoff: Duration::from_millis(25),
            exclude_previous_hosts: true,
        }
    );
    let full = with(
        "retries: {attempts: 3, perTryTimeout: 2s, backoff: 1s, retryIgnorePreviousHosts: false, \
         retryOn: '5xx, gateway-error,reset,reset-before-request,connect-failure,retriable-4xx,refused-stream,retriable-status-codes,503,cancelled,deadline-exceeded,internal,resource-exhausted,unavailable'}",
    );
    assert_eq!(
        full.retry.unwrap(),
        RetryPolicy {
            attempts: 3,
            per_try_timeout: Some(Duration::from_secs(2)),
            on: RetryOn {
                server_error: true,
                gateway_error: true,
                reset: true,
                reset_before_request: true,
                connect_failure: true,
                retriable_4xx: true,
                refused_stream: true,
                statuses: vec![503],
                grpc: vec![1, 4, 13, 8, 14],
            },
            backoff: Duration::from_secs(1),
            exclude_previous_hosts: false,
        }
    );
}

#[test]
fn a_fault_without_a_percentage_never_happens_and_a_mirror_without_one_always_does() {
    let fault = |text: &str| with(&format!("fault: {{{text}}}")).fault;
    let second = Duration::from_secs(1);
    assert_eq!(fault("delay: {fixedDelay: 1s}").delay, Some((Millionths::NEVER, second)));
    assert_eq!(
        fault("delay: {fixedDelay: 1s, percentage: {value: 0.5}}").delay,
        Some((Millionths(5_000), second))
    );
    assert_eq!(fault("delay: {fixedDelay: 1s, percent: 5}").delay, Some((Millionths(50_000), second)));
    assert_eq!(
        fault("abort: {httpStatus: 500, percentage: {value: 100}}").abort,
        Some((Millionths::ALWAYS, Abort::Http(500)))
    );
    assert_eq!(
        fault("abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}").abort,
        Some((Millionths::ALWAYS, Abort::Grpc(14)))
    );
    for (fault, told) in
        [("delay: {fixedDelay: 1s, percentage: {value: 1}}", 2), ("delay: {fixedDelay: 1s}", 0)]
    {
        let entry = format!("{{fault: {{{fault}}}, timeout: 1s, retries: {{attempts: 1}}, {ROUTE}}}");
        let found = findings(&virtual_service(&format!("{{{HOST} [{entry}]}}")));
        let beside = found.iter().filter(|one| one.contains("has no effect beside a fault")).count();
        assert_eq!(beside, told, "{found:?}");
    }
    let mirrors = |text: &str| {
        with(text).mirrors.iter().map(|one| (one.share, one.backend.clone())).collect::<Vec<_>>()
    };
    let b = || host("b.shop.svc.cluster.local");
    assert_eq!(mirrors("mirror: {host: b}"), [(Millionths::ALWAYS, b())]);
    assert_eq!(mirrors("mirror: {host: b}, mirrorPercentage: {value: 10}"), [(Millionths(100_000), b())]);
    assert_eq!(mirrors("mirror: {host: b}, mirrorPercent: 10"), [(Millionths(100_000), b())]);
    assert_eq!(mirrors("mirror: {host: b}, mirrorPercentage: {value: 0}"), []);
    assert_eq!(
        mirrors("mirrors: [{destination: {host: b}}, {destination: {host: b}, percentage: {value: 1}}]"),
        [(Millionths::ALWAYS, b()), (Millionths(10_000), b())]
    );
}

#[test]
fn cors() {
    let found = with(
        "corsPolicy: {allowOrigin: ['*'], allowOrigins: [{exact: 'https://a'}, {regex: 'https://.*'}], allowMethods: [GET], \
         allowHeaders: [x-a], exposeHeaders: [x-b], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE}",
    );
    assert_eq!(
        found.cors.unwrap(),
        CorsPolicy {
            allow_origins: vec![
                exact("https://a"),
                Pattern::Regex(Regex::new("https://.*").unwrap()),
                Pattern::Present
            ],
            allow_methods: vec!["GET".into()],
            allow_headers: vec!["x-a".into()],
            expose_headers: vec!["x-b".into()],
            max_age: Some(Duration::from_secs(86_400)),
            allow_credentials: true,
            ignore_unmatched_preflights: true,
        }
    );
}

#[test]
fn what_a_virtual_service_may_not_say() {
    for (entry, expected) in [
        ("match: [{}], ROUTE", "spec.http[0].match[0]: says nothing"),
        ("match: [{uri: {}}], ROUTE", "spec.http[0].match[0].uri: is empty"),
        ("match: [{uri: {exact: /a, prefix: /b}}], ROUTE", "spec.http[0].match[0].uri: says more than one"),
        ("match: [{uri: {regex: '('}}], ROUTE", "spec.http[0].match[0].uri.regex: `(` is not a pattern"),
        ("match: [{uri: {suffix: /a}}], ROUTE", "spec.http[0].match[0].uri.suffix: is not a field"),
        ("match: [{port: 70000}], ROUTE", "spec.http[0].match[0].port: 70000 is not a port"),
        (
            "match: [{headers: {':path': {exact: a}}}], ROUTE",
            "spec.http[0].match[0].headers.:path: `:path` is not",
        ),
        ("name: a", "spec.http[0]: does nothing"),
        ("redirect: {uri: /a}, ROUTE", "spec.http[0]: does more than one thing"),
        ("redirect: {}", "spec.http[0].redirect: says nothing"),
        ("redirect: {uri: /a, redirectCode: 200}", "spec.http[0].redirect.redirectCode: 200 is not"),
        ("directResponse: {status: 100}", "spec.http[0].directResponse.status: 100 is not"),
        ("delegate: {name: a}, ROUTE", "spec.http[0].delegate: stands beside"),
        ("delegate: {}", "spec.http[0].delegate.name: is missing"),
        ("route: [{destination: {host: '*.a'}}]", "spec.http[0].route[0].destination.host: `*.a` is not"),
        ("route: [{weight: 1}]", "spec.http[0].route[0].destination.host: is missing"),
        ("route: [{destination: {host: a}, weight: -1}]", "spec.http[0].route[0].weight: -1 is negative"),
        ("rewrite: {}, ROUTE", "spec.http[0].rewrite: says nothing"),
        ("rewrite: {uri: /a, uriRegexRewrite: {match: a}}, ROUTE", "spec.http[0].rewrite: has both"),
        ("timeout: soon, ROUTE", "spec.http[0].timeout: `soon` is not a time"),
        ("retries: {attempts: -1}, ROUTE", "spec.http[0].retries.attempts: -1 is negative"),
        (
            "retries: {attempts: 1, retryOn: sometimes}, ROUTE",
            "spec.http[0].retries.retryOn: `sometimes` is not",
        ),
        (
            "retries: {attempts: 1, perTryTimeout: 10us}, ROUTE",
            "spec.http[0].retries.perTryTimeout: is shorter than 1ms",
        ),
        (
            "retries: {attempts: 1, retryRemoteLocalities: true}, ROUTE",
            "spec.http[0].retries.retryRemoteLocalities: is not supported",
        ),
        ("fault: {}, ROUTE", "spec.http[0].fault: says nothing"),
        (
            "fault: {delay: {percentage: {value: 1}}}, ROUTE",
            "spec.http[0].fault.delay.fixedDelay: is missing",
        ),
        (
            "fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, ROUTE",
            "spec.http[0].fault.delay.percentage.value: 101 is not",
        ),
        (
            "fault: {delay: {exponentialDelay: 1s}}, ROUTE",
            "spec.http[0].fault.delay.exponentialDelay: is not",
        ),
        ("fault: {abort: {}}, ROUTE", "spec.http[0].fault.abort: has no status"),
        ("fault: {abort: {httpStatus: 700}}, ROUTE", "spec.http[0].fault.abort.httpStatus: is not"),
        ("fault: {abort: {grpcStatus: ILL}}, ROUTE", "spec.http[0].fault.abort.grpcStatus: `ILL` is not"),
        ("fault: {abort: {http2Error: A}}, ROUTE", "spec.http[0].fault.abort.http2Error: is not"),
        ("mirrorPercentage: {value: 1}, ROUTE", "spec.http[0].mirrorPercentage: has no mirror"),
        (
            "mirror: {host: a}, mirrors: [{destination: {host: a}}], ROUTE",
            "spec.http[0].mirror: stands beside",
        ),
        (
            "headers: {request: {set: {'a b': c}}}, ROUTE",
            "spec.http[0].headers.request.set.a b: `a b` is not a header's name",
        ),
        (
            "headers: {request: {set: {a: '%NOBODY%'}}}, ROUTE",
            "spec.http[0].headers.request.set.a: `%NOBODY%` is not supported",
        ),
        ("match: [{port: soon}], ROUTE", "spec.http[0].match[0].port: invalid type"),
    ] {
        let entry = entry.replace("ROUTE", ROUTE);
        let errors = refused(&virtual_service(&format!("{{{HOST} [{{{entry}}}]}}")));
        assert!(errors.iter().any(|one| one.starts_with(expected)), "{entry}: {errors:?}");
    }
    for (spec, expected) in [
        ("{hosts: [reviews]}", "spec.http: is missing"),
        ("{hosts: [a, a], http: [{ROUTE}]}", "spec.hosts[1]: `a.shop.svc.cluster.local` is listed twice"),
        ("{hosts: ['a b'], http: [{ROUTE}]}", "spec.hosts[0]: `a b` is not a host's name"),
        ("{hosts: [a], exportTo: [~, b], http: [{ROUTE}]}", "spec.exportTo[0]:"),
        ("{hosts: [a], exportTo: ['~', b], http: [{ROUTE}]}", "spec.exportTo[0]: `~` is not a namespace"),
        (
            "{http: [{delegate: {name: b}}]}",
            "spec.http[0].delegate: stands in a VirtualService without hosts",
        ),
    ] {
        let errors = refused(&virtual_service(&spec.replace("ROUTE", ROUTE)));
        assert!(errors.iter().any(|one| one.starts_with(expected)), "{spec}: {errors:?}");
    }
}

#[test]
fn a_rule_behind_one_that_takes_everything_is_reported() {
    let found =
        findings(&virtual_service(&format!("{{{HOST} [{{{ROUTE}}}, {{match: [{{port: 80}}], {ROUTE}}}]}}")));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("spec.http[1]: is never reached: http[0] takes every request"), "{found:?}");
}

mod connections;
mod destination_rules;
mod service_entries;
