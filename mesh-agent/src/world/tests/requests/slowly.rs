//! The same judgement, slowly: from the text of a rule and of a request, with regular expressions and no compilation.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// A request in plain words. The client is `web`, by mutual TLS, from 10.1.0.1, to port 8080.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    path: String,
    host: String,
    tenant: Vec<String>,
    forwarded: Option<u8>,
}

/// `*` at one of the ends, or alone for anything that is not empty.
fn glob(pattern: &str, text: &str) -> bool {
    let (open, inner) = pattern.strip_prefix('*').map_or((false, pattern), |rest| (true, rest));
    let (inner, closed) = match inner.strip_suffix('*') {
        Some(rest) if !open => (rest, true),
        _ => (inner, false),
    };
    if pattern == "*" {
        return !text.is_empty();
    }
    let any = |yes: bool| if yes { ".*" } else { "" };
    let regex = format!("(?s)^{}{}{}$", any(open), regex::escape(inner), any(closed));
    regex::Regex::new(&regex).unwrap().is_match(text)
}

fn path(pattern: &str, path: &str) -> bool {
    if !pattern.contains("{*") {
        return glob(pattern, path);
    }
    let regex = regex::escape(pattern).replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+");
    regex::Regex::new(&format!("^{regex}$")).unwrap().is_match(path)
}

fn one(field: &str, pattern: &str, asked: &Asked) -> bool {
    match field {
        "principals" => glob(pattern, "cluster.local/ns/shop/sa/web"),
        "namespaces" => glob(pattern, "shop"),
        "methods" => glob(pattern, &asked.method),
        "paths" => path(pattern, &asked.path),
        "ports" => pattern == "8080",
        "remoteIpBlocks" => pattern == format!("10.1.0.{}", asked.forwarded.unwrap_or(1)),
        "hosts" => {
            let host = asked.host.to_lowercase();
            let bare = host.split(':').next().unwrap();
            [&host, bare, bare.trim_end_matches('.')].iter().any(|host| glob(&pattern.to_lowercase(), host))
        }
        other => panic!("{other}"),
    }
}

fn fields(object: &Map<String, Value>, asked: &Asked, deny: bool) -> bool {
    object.iter().all(|(name, list)| {
        if name.to_lowercase().contains("requestprincipals") {
            return deny;
        }
        let (negative, name) = match name.strip_prefix("not") {
            Some(rest) => (true, rest[..1].to_lowercase() + &rest[1..]),
            None => (false, name.clone()),
        };
        list.as_array().unwrap().iter().any(|text| one(&name, text.as_str().unwrap(), asked)) != negative
    })
}

fn header(when: &Value, asked: &Asked, deny: bool) -> bool {
    let list = |name: &str| -> Option<Vec<String>> {
        when[name].as_array().map(|all| all.iter().map(|one| one.as_str().unwrap().to_owned()).collect())
    };
    let is_any = |patterns: &[String], text: &str| patterns.iter().any(|pattern| glob(pattern, text));
    let whole = asked.tenant.join(",");
    let mut readings: Vec<&str> = whole.split(',').map(str::trim).collect();
    readings.push(&whole);
    if asked.tenant.is_empty() {
        readings.clear();
    }
    let listed = list("values").is_none_or(|all| match deny {
        true => readings.iter().any(|reading| is_any(&all, reading)),
        false => !readings.is_empty() && is_any(&all, &whole),
    });
    let left = list("notValues").is_none_or(|all| match deny {
        true => readings.is_empty() || readings.iter().any(|reading| !is_any(&all, reading)),
        false => !readings.iter().any(|reading| is_any(&all, reading)),
    });
    listed && left
}

fn holds(rule: &Value, asked: &Asked, deny: bool) -> bool {
    let any = |clause: &str, inner: &str| {
        rule[clause]
            .as_array()
            .is_none_or(|all| all.iter().any(|one| fields(one[inner].as_object().unwrap(), asked, deny)))
    };
    any("from", "source")
        && any("to", "operation")
        && rule["when"].as_array().is_none_or(|all| all.iter().all(|when| header(when, asked, deny)))
}

/// One field with one or two of these texts, positive or negative.
fn list(name: &'static str, texts: &'static [&'static str]) -> impl Strategy<Value = (String, Value)> {
    (any::<bool>(), proptest::sample::subsequence(texts, 1..=2)).prop_map(move |(negative, texts)| {
        let name =
            if negative { format!("not{}{}", name[..1].to_uppercase(), &name[1..]) } else { name.to_owned() };
        (name, json!(texts))
    })
}

fn object(
    fields: impl Strategy<Value = Vec<(String, Value)>>,
    clause: &'static str,
    inner: &'static str,
) -> impl Strategy<Value = Option<(String, Value)>> {
    proptest::option::of(proptest::collection::vec(fields, 1..=2)).prop_map(move |all| {
        let of = |fields: Vec<(String, Value)>| json!({inner: fields.into_iter().collect::<Map<_, _>>()});
        all.map(|all| (clause.to_owned(), Value::Array(all.into_iter().map(of).collect())))
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let source = prop_oneof![
        list("principals", &["cluster.local/ns/shop/sa/web", "*/sa/web", "*", "cluster.local/ns/other/*"]),
        list("namespaces", &["shop", "sho*", "other"]),
        list("remoteIpBlocks", &["10.1.0.1", "10.1.0.2"]),
        list("requestPrincipals", &["*", "iss/sub"]),
    ];
    let operation = prop_oneof![
        list("methods", &["GET", "P*", "*T"]),
        list("paths", &["/a", "/a*", "*/b", "*", "/{*}/b", "/a/{**}", "/{*}/{**}/b"]),
        list("hosts", &["reviews", "*.shop", "Reviews.shop:8080", "rev*"]),
        list("ports", &["8080", "81"]),
    ];
    let values = || {
        proptest::option::of(proptest::sample::subsequence(&["blue", "b*", "*d", "*", "blue,red"][..], 1..=2))
    };
    let when = (values(), values()).prop_filter_map("says something", |(any, none)| {
        let mut when = json!({"key": "request.headers[X-Tenant]"});
        any.iter().for_each(|any| when["values"] = json!(any));
        none.iter().for_each(|none| when["notValues"] = json!(none));
        (any.is_some() || none.is_some()).then_some(when)
    });
    let whens = proptest::option::of(proptest::collection::vec(when, 1..=2))
        .prop_map(|when| when.map(|when| ("when".to_owned(), Value::Array(when))));
    (
        object(proptest::collection::vec(source, 1..=2), "from", "source"),
        object(proptest::collection::vec(operation, 1..=3), "to", "operation"),
        whens,
    )
        .prop_map(|(from, to, when)| Value::Object([from, to, when].into_iter().flatten().collect()))
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        "GET|PUT|POST",
        "(/a|/a/b|/a/b/c|/b|/x/b|/a/|/x//b|/)",
        r"(reviews|Reviews\.shop|reviews\.shop:8080|reviews\.shop\.|other)",
        proptest::collection::vec("blue|red|blue, red|", 0..3),
        proptest::option::of(1_u8..4),
    )
        .prop_map(|(method, path, host, tenant, forwarded)| Asked {
            method,
            path,
            host,
            tenant,
            forwarded,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_policy_means_what_its_text_says(rules in proptest::collection::vec(rule(), 1..3), requests in proptest::collection::vec(asked(), 8)) {
        let with = |action: &str| {
            let text = authz("p", &json!({"action": action, "rules": &rules}).to_string());
            let world = world(std::slice::from_ref(&text));
            let invalid = world.authz_policies("shop").find_map(|policy| policy.invalid.clone());
            assert_eq!(invalid, None, "{text}");
            world
        };
        let (deny, allow) = (with("DENY"), with("ALLOW"));
        for asked in requests {
            let mut text = format!("{} {}|host: {}", asked.method, asked.path, asked.host);
            asked.tenant.iter().for_each(|value| text.push_str(&format!("|x-tenant: {value}")));
            asked.forwarded.iter().for_each(|last| text.push_str(&format!("|x-forwarded-for: 10.1.0.{last}")));
            let any = |deny| rules.iter().any(|rule| holds(rule, &asked, deny));
            prop_assert_eq!(!ask(&deny, Some("web"), &text).allowed, any(true), "DENY {}", text);
            prop_assert_eq!(ask(&allow, Some("web"), &text).allowed, any(false), "ALLOW {}", text);
        }
    }
}
