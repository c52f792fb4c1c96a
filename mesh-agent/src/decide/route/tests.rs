use http::HeaderValue;

use super::*;
use crate::decide::fixture::workload;
use crate::model::PolicyRef;
use crate::model::pattern::Regex;
use crate::model::route::{DirectResponse, HeaderOps, Rewrite, RuleAction, RuleRef};

fn exact(text: &str) -> Pattern {
    Pattern::Exact(text.into())
}

fn regex(text: &str) -> Pattern {
    Pattern::Regex(Regex::new(text).unwrap())
}

/// GET http://reviews:9080/a/b?x=1&y=&z with the header `end-user: jason`.
fn request(headers: &HeaderMap) -> RequestView<'_> {
    RequestView {
        method: "GET",
        scheme: "http",
        authority: "reviews:9080",
        path: "/a/b",
        query: Some("x=1&y=&z&x=2"),
        headers,
        port: 9080,
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("end-user", HeaderValue::from_static("jason"));
    headers.insert("empty", HeaderValue::from_static(""));
    headers.append("twice", HeaderValue::from_static("a"));
    headers.append("twice", HeaderValue::from_static("b"));
    headers
}

fn holds(one: &HttpMatch) -> bool {
    matches(one, &workload("shop", "web", "n1", "10.1.0.1"), &request(&headers()))
}

#[test]
fn a_path_is_matched_exactly_by_plain_prefix_by_segments_and_by_the_whole_of_a_pattern() {
    let exact = |text: &str, ignore_case| PathMatch::Exact { path: text.into(), ignore_case };
    let prefix = |text: &str, ignore_case| PathMatch::Prefix { prefix: text.into(), ignore_case };
    let segments = |text: &str| PathMatch::Segments(text.into());
    let regex = |text: &str| PathMatch::Regex(Regex::new(text).unwrap());
    for (wanted, given, expected) in [
        (exact("/foo", false), "/foo", true),
        (exact("/foo", false), "/foo/", false),
        (exact("/foo", false), "/FOO", false),
        (exact("/foo", true), "/FOO", true),
        (prefix("/foo", false), "/foobar", true),
        (prefix("/foo", false), "/fo", false),
        (prefix("/foo", false), "/Foo", false),
        (prefix("/foo", true), "/FOObar", true),
        (prefix("/foo", true), "/fo", false),
        (prefix("/fo", true), "/fé", false),
        (segments("/foo"), "/foo", true),
        (segments("/foo"), "/foo/", true),
        (segments("/foo"), "/foo/bar", true),
        (segments("/foo"), "/foobar", false),
        (segments(""), "/anything", true),
        (regex("/v[12]"), "/v1", true),
        (regex("/v[12]"), "/v1/more", false),
        (regex("/a|/b"), "/b", true),
        (regex("/a|/b"), "/bc", false),
    ] {
        assert_eq!(path(&wanted, given), expected, "{wanted:?} and {given}");
    }
}

#[test]
fn headers_are_matched_joined_and_a_missing_one_counts_as_empty_only_where_it_excludes() {
    let with = |name: &str, pattern: Pattern| HttpMatch {
        headers: vec![(name.into(), pattern)],
        ..HttpMatch::default()
    };
    let without = |name: &str, pattern: Pattern| HttpMatch {
        without_headers: vec![(name.into(), pattern)],
        ..HttpMatch::default()
    };
    for (one, expected) in [
        (with("end-user", exact("jason")), true),
        (with("end-user", exact("jaso")), false),
        (with("end-user", Pattern::Prefix("ja".into())), true),
        (with("end-user", regex("j.*n")), true),
        (with("end-user", regex("j")), false),
        (with("end-user", Pattern::Present), true),
        (with("absent", Pattern::Present), false),
        (with("absent", exact("")), false),
        (with("empty", Pattern::Present), true),
        (with("empty", exact("")), true),
        (with("twice", exact("a,b")), true),
        (with("twice", exact("b")), false),
        (with("host", exact("reviews:9080")), true),
        (without("end-user", exact("jason")), false),
        (without("end-user", exact("mary")), true),
        (without("end-user", Pattern::Present), false),
        (without("absent", Pattern::Present), true),
        (without("absent", exact("x")), true),
        (without("absent", regex(".*")), false),
        (without("absent", Pattern::Prefix("".into())), false),
    ] {
        assert_eq!(holds(&one), expected, "{one:?}");
    }
}

#[test]
fn a_parameter_s_first_value_counts_and_an_empty_one_is_there() {
    let with = |name: &str, pattern: Pattern| HttpMatch {
        query: vec![(name.into(), pattern)],
        ..HttpMatch::default()
    };
    for (one, expected) in [
        (with("x", exact("1")), true),
        (with("x", exact("2")), false),
        (with("y", exact("")), true),
        (with("z", exact("")), true),
        (with("z", Pattern::Present), true),
        (with("w", Pattern::Present), false),
        (with("w", exact("")), false),
    ] {
        assert_eq!(holds(&one), expected, "{one:?}");
    }
}

#[test]
fn the_other_conditions() {
    let labels = |value: &str| [("app".to_owned(), value.to_owned())].into();
    for (one, expected) in [
        (HttpMatch::default(), true),
        (HttpMatch { method: Some(exact("GET")), ..HttpMatch::default() }, true),
        (HttpMatch { method: Some(exact("get")), ..HttpMatch::default() }, false),
        (HttpMatch { scheme: Some(exact("https")), ..HttpMatch::default() }, false),
        (HttpMatch { port: Some(9080), ..HttpMatch::default() }, true),
        (HttpMatch { port: Some(80), ..HttpMatch::default() }, false),
        (HttpMatch { authority: Some(exact("reviews:9080")), ..HttpMatch::default() }, true),
        (HttpMatch { authority: Some(exact("Reviews")), ..HttpMatch::default() }, true),
        (HttpMatch { authority: Some(exact("reviews:80")), ..HttpMatch::default() }, false),
        (HttpMatch { authority: Some(regex("reviews")), ..HttpMatch::default() }, true),
        (HttpMatch { source_namespace: Some("shop".into()), ..HttpMatch::default() }, true),
        (HttpMatch { source_namespace: Some("other".into()), ..HttpMatch::default() }, false),
        (HttpMatch { source_labels: labels("web"), ..HttpMatch::default() }, true),
        (HttpMatch { source_labels: labels("api"), ..HttpMatch::default() }, false),
        (HttpMatch { method: Some(exact("GET")), port: Some(80), ..HttpMatch::default() }, false),
    ] {
        assert_eq!(holds(&one), expected, "{one:?}");
    }
}

#[test]
fn the_first_rule_that_matches_takes_the_request_and_without_one_nothing_does() {
    let rule = |name: &str, matches: Vec<HttpMatch>| {
        let object = PolicyRef { kind: "VirtualService", namespace: "shop".into(), name: "reviews".into() };
        Arc::new(HttpRule {
            origin: RuleRef { object, rule: name.into() },
            matches,
            action: RuleAction::Respond(DirectResponse { status: 200, body: Arc::new([]) }),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            rewrite: Rewrite::default(),
            timeout: None,
            retry: None,
            fault: Default::default(),
            mirrors: Vec::new(),
            cors: None,
        })
    };
    let post = HttpMatch { method: Some(exact("POST")), ..HttpMatch::default() };
    let get = HttpMatch { method: Some(exact("GET")), ..HttpMatch::default() };
    let source = workload("shop", "web", "n1", "10.1.0.1");
    let headers = headers();
    let rules =
        [rule("a", vec![post.clone()]), rule("b", vec![post.clone(), get.clone()]), rule("c", Vec::new())];
    let (found, which) = select(&rules, &source, &request(&headers)).unwrap();
    assert_eq!((&*found.origin.rule, which), ("b", Some(&get)));
    let (found, which) = select(&rules[2..], &source, &request(&headers)).unwrap();
    assert_eq!((&*found.origin.rule, which), ("c", None));
    assert!(select(&rules[..1], &source, &request(&headers)).is_none());
}

#[test]
fn an_authority_s_host() {
    for (authority, host) in [
        ("a", "a"),
        ("a:80", "a"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[fd00::1]:80", "[fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("fd00::1", "fd00::1"),
        ("a:x", "a:x"),
    ] {
        assert_eq!(host_of(authority), host);
    }
}
