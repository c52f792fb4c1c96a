use std::time::Duration;

use super::*;
use crate::model::pattern::Regex;

fn policy() -> CorsPolicy {
    CorsPolicy {
        allow_origins: vec![
            Pattern::Exact("https://shop.example".into()),
            Pattern::Regex(Regex::new(r"https://.*\.shop\.example").unwrap()),
        ],
        allow_methods: vec!["GET".into(), "POST".into()],
        allow_headers: vec!["x-tenant".into()],
        expose_headers: vec!["x-took".into()],
        max_age: Some(Duration::from_secs(86_400)),
        allow_credentials: true,
        ignore_unmatched_preflights: false,
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn preflight(origin: &str) -> HeaderMap {
    headers(&[
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a,x-b"),
    ])
}

fn text(map: &HeaderMap) -> Vec<(&str, &str)> {
    let mut all: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_preflight_is_answered_here() {
    let Cors::Answer(answer) = decide(&policy(), "OPTIONS", &preflight("https://eu.shop.example")) else {
        panic!()
    };
    assert_eq!(
        text(&answer),
        [
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-tenant"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-origin", "https://eu.shop.example"),
            ("access-control-max-age", "86400"),
            ("vary", "origin"),
        ]
    );
}

#[test]
fn any_other_request_is_sent_on_and_its_answer_decorated() {
    for method in ["GET", "POST", "OPTIONS"] {
        let asked = headers(&[("origin", "https://shop.example")]);
        let Cors::Decorate(answer) = decide(&policy(), method, &asked) else { panic!() };
        assert_eq!(
            text(&answer),
            [
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-origin", "https://shop.example"),
                ("access-control-expose-headers", "x-took"),
                ("vary", "origin"),
            ]
        );
    }
}

#[test]
fn an_origin_that_is_not_listed_is_the_applications_own_affair_unless_the_policy_ignores_it() {
    let ignoring = CorsPolicy { ignore_unmatched_preflights: true, ..policy() };
    for origin in ["https://evil.example", "https://shop.example.evil", "null", "https://shopXexample"] {
        assert_eq!(decide(&policy(), "OPTIONS", &preflight(origin)), Cors::Pass, "{origin}");
        assert_eq!(
            decide(&ignoring, "OPTIONS", &preflight(origin)),
            Cors::Answer(HeaderMap::new()),
            "{origin}"
        );
        assert_eq!(decide(&ignoring, "GET", &headers(&[("origin", origin)])), Cors::Pass, "{origin}");
    }
    assert_eq!(decide(&policy(), "GET", &HeaderMap::new()), Cors::Pass, "the same origin");
}

#[test]
fn a_star_allows_everything_with_credentials_by_name() {
    let star = || vec!["*".into()];
    let any = CorsPolicy {
        allow_origins: vec![Pattern::Exact("*".into())],
        allow_methods: star(),
        allow_headers: star(),
        ..policy()
    };
    let list = |policy: &CorsPolicy| {
        let Cors::Answer(answer) = decide(policy, "OPTIONS", &preflight("https://any.example")) else {
            panic!()
        };
        let get = |name| answer.get(name).unwrap().to_str().unwrap().to_owned();
        (get("access-control-allow-methods"), get("access-control-allow-headers"))
    };
    assert_eq!(list(&any), ("PUT".to_owned(), "x-a,x-b".to_owned()));
    assert_eq!(list(&CorsPolicy { allow_credentials: false, ..any }), ("*".to_owned(), "*".to_owned()));
}

#[test]
fn what_the_policy_does_not_say_is_not_said() {
    let bare = CorsPolicy {
        allow_methods: vec![],
        allow_headers: vec![],
        expose_headers: vec![],
        max_age: None,
        allow_credentials: false,
        ..policy()
    };
    let Cors::Answer(answer) = decide(&bare, "OPTIONS", &preflight("https://shop.example")) else { panic!() };
    assert_eq!(text(&answer), [("access-control-allow-origin", "https://shop.example"), ("vary", "origin")]);
}

#[test]
fn a_decorated_answer_keeps_what_the_application_varies_it_by() {
    let mut answer =
        headers(&[("access-control-allow-origin", "*"), ("vary", "accept-encoding"), ("x", "1")]);
    decorate(headers(&[("access-control-allow-origin", "https://a"), ("vary", "origin")]), &mut answer);
    assert_eq!(
        text(&answer),
        [
            ("access-control-allow-origin", "https://a"),
            ("vary", "accept-encoding"),
            ("vary", "origin"),
            ("x", "1")
        ]
    );
}
