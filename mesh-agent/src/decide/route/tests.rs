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
    let at = |path: PathMatch| HttpMatch { path: Some(path), ..HttpMatch::default() };
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
        // What follows the `?` is no part of the path.
        (at(PathMatch::Exact { path: "/a/b".into(), ignore_case: false }), true),
        (at(PathMatch::Exact { path: "/a/b?x=1".into(), ignore_case: false }), false),
        (at(PathMatch::Regex(Regex::new("/a/.").unwrap())), true),
        (HttpMatch { method: Some(exact("GET")), port: Some(80), ..HttpMatch::default() }, false),
    ] {
        assert_eq!(holds(&one), expected, "{one:?}");
    }
}

/// A rule that answers by itself.
fn answering(name: &str, matches: Vec<HttpMatch>) -> Arc<HttpRule> {
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
}

#[test]
fn the_first_rule_that_matches_takes_the_request_and_without_one_nothing_does() {
    let rule = answering;
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

/// The slow reference: every condition as a pattern over a text, and every rule looked at.
mod reference {
    use proptest::prelude::*;

    use super::*;

    fn whole(path: &PathMatch) -> regex::Regex {
        let (text, ignore_case) = match path {
            PathMatch::Exact { path, ignore_case } => (regex::escape(path), *ignore_case),
            PathMatch::Prefix { prefix, ignore_case } => {
                (format!("{}.*", regex::escape(prefix)), *ignore_case)
            }
            PathMatch::Segments(prefix) => (format!("{}(/.*)?", regex::escape(prefix)), false),
            PathMatch::Regex(regex) => (format!("(?:{})", regex.source()), false),
        };
        regex::RegexBuilder::new(&format!("^{text}$")).case_insensitive(ignore_case).build().unwrap()
    }

    fn holds(one: &HttpMatch, request: &RequestView<'_>) -> bool {
        let path = one.path.as_ref().is_none_or(|path| whole(path).is_match(request.path));
        let method = one.method.as_ref().is_none_or(|method| *method == exact(request.method));
        let header = |name: &str| {
            let values: Vec<&str> =
                request.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect();
            (!values.is_empty()).then(|| values.join(","))
        };
        let text = |pattern: &Pattern, value: Option<String>| match (pattern, value) {
            (Pattern::Present, value) => value.is_some(),
            (_, None) => false,
            (Pattern::Exact(wanted), Some(value)) => **wanted == *value,
            (Pattern::Prefix(wanted), Some(value)) => value.find(&**wanted) == Some(0),
            (Pattern::Regex(wanted), Some(value)) => wanted.matches(&value),
        };
        let with = one.headers.iter().all(|(name, pattern)| text(pattern, header(name)));
        let without = one.without_headers.iter().all(|(name, pattern)| match pattern {
            Pattern::Present => header(name).is_none(),
            pattern => !text(pattern, Some(header(name).unwrap_or_default())),
        });
        path && method && with && without
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("a".to_owned()),
            Just("b".to_owned()),
            Just("A".to_owned()),
            Just("ab".to_owned()),
            Just(String::new())
        ]
    }

    fn path_text() -> impl Strategy<Value = String> {
        prop::collection::vec(word(), 1..4).prop_map(|words| format!("/{}", words.join("/")))
    }

    fn path_match() -> impl Strategy<Value = PathMatch> {
        (path_text(), any::<bool>(), 0..4).prop_map(|(text, ignore_case, kind)| match kind {
            0 => PathMatch::Exact { path: text.into(), ignore_case },
            1 => PathMatch::Prefix { prefix: text.into(), ignore_case },
            2 => PathMatch::Segments(text.trim_end_matches('/').into()),
            _ => PathMatch::Regex(Regex::new(&format!("{text}|/b.*")).unwrap()),
        })
    }

    fn pattern() -> impl Strategy<Value = Pattern> {
        (word(), 0..4).prop_map(|(text, kind)| match kind {
            0 => Pattern::Exact(text.into()),
            1 => Pattern::Prefix(text.into()),
            2 => Pattern::Regex(Regex::new(&format!("{text}.?")).unwrap()),
            _ => Pattern::Present,
        })
    }

    fn pairs() -> impl Strategy<Value = Vec<(Arc<str>, Pattern)>> {
        let name = prop_oneof![Just("x"), Just("y")];
        prop::collection::vec((name.prop_map(Arc::from), pattern()), 0..3)
    }

    fn one_match() -> impl Strategy<Value = HttpMatch> {
        let method = prop::option::of(prop_oneof![Just("GET"), Just("PUT")]);
        (prop::option::of(path_match()), method, pairs(), pairs()).prop_map(
            |(path, method, headers, without_headers)| HttpMatch {
                path,
                method: method.map(exact),
                headers,
                without_headers,
                ..HttpMatch::default()
            },
        )
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_reference(
            rules in prop::collection::vec(prop::collection::vec(one_match(), 0..3), 0..5),
            path in path_text(),
            sent in prop::collection::vec((prop_oneof![Just("x"), Just("y")], word()), 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &sent {
                headers.append(*name, value.parse().unwrap());
            }
            let asked = RequestView { path: &path, ..request(&headers) };
            let expected = rules.iter().position(|all| all.is_empty() || all.iter().any(|one| holds(one, &asked)));
            let rules: Vec<Arc<HttpRule>> =
                rules.into_iter().enumerate().map(|(at, all)| answering(&at.to_string(), all)).collect();
            let source = workload("shop", "web", "n1", "10.1.0.1");
            let found = select(&rules, &source, &asked).map(|(rule, _)| rule.origin.rule.to_string());
            prop_assert_eq!(found, expected.map(|at| at.to_string()));
        }
    }
}
