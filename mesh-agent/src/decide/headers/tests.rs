use super::*;
use crate::model::route::{HeaderText, TextPart};

fn ops(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderOps {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    HeaderOps { set: pairs(set), add: pairs(add), remove: remove.iter().map(|name| (*name).into()).collect() }
}

/// `name: value` of every field after the operations, sorted by name, in the order of values.
fn after(ops: &HeaderOps, before: &[(&'static str, &str)]) -> Vec<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in before {
        headers.append(*name, value.parse().unwrap());
    }
    apply(ops, &mut headers, &NoFacts);
    let mut lines: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort_by(|one, other| one.split(':').next().cmp(&other.split(':').next()));
    lines
}

#[test]
fn set_replaces_add_appends_and_remove_takes_all_values() {
    let before = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1"), ("c", "2")];
    assert_eq!(
        after(&ops(&[("A", "x")], &[("b", "2"), ("d", "1"), ("d", "2")], &["C"]), &before),
        ["a: x", "b: 1", "b: 2", "d: 1", "d: 2"]
    );
    assert_eq!(after(&HeaderOps::default(), &before), ["a: 1", "a: 2", "b: 1", "c: 1", "c: 2"]);
}

#[test]
fn a_field_that_is_removed_and_added_is_replaced() {
    assert_eq!(after(&ops(&[], &[("a", "new")], &["a"]), &[("a", "old")]), ["a: new"]);
    assert_eq!(
        after(&ops(&[("a", "set")], &[("a", "added")], &["a"]), &[("a", "old")]),
        ["a: set", "a: added"]
    );
}

#[test]
fn the_authority_is_no_field() {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("old"));
    for name in ["host", "Host", ":authority"] {
        assert_eq!(apply(&ops(&[(name, "new")], &[], &[]), &mut headers, &NoFacts).as_deref(), Some("new"));
        assert_eq!(
            apply(&ops(&[], &[(name, "new")], &["host"]), &mut headers, &NoFacts).as_deref(),
            Some("new")
        );
    }
    assert_eq!(headers.get(HOST).unwrap(), "old", "the caller writes it where the protocol has it");
    assert_eq!(apply(&ops(&[("x", "1")], &[], &[]), &mut headers, &NoFacts), None);
}

#[test]
fn what_carries_the_message_is_not_for_routes() {
    let all: Vec<(&str, &str)> = CARRYING.iter().map(|name| (name.as_str(), "x")).collect();
    let names: Vec<&str> = CARRYING.iter().map(HeaderName::as_str).collect();
    let before = [("content-length", "3"), ("transfer-encoding", "chunked"), ("connection", "close")];
    let wanted = ["connection: close", "content-length: 3", "transfer-encoding: chunked"];
    assert_eq!(after(&ops(&all, &all, &names), &before), wanted);
}

#[test]
fn a_value_that_would_split_the_message_is_not_written() {
    assert_eq!(after(&ops(&[("a", "1\r\nb: 2")], &[("a b", "1")], &[]), &[("a", "old")]), ["a: old"]);
}

/// A field, or what stands for it, from its beginning on.
#[test]
fn a_field_of_the_request_in_a_value() {
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_static("abcdef"));
    let field = |name: &str, otherwise: Option<&str>, length| Field {
        name: name.into(),
        otherwise: otherwise.map(Into::into),
        length,
    };
    let part = |name: &str| (name == ":path").then(|| "/p".to_owned());
    for (wanted, expected) in [
        (field("x-a", None, None), Some("abcdef")),
        (field("x-a", None, Some(2)), Some("ab")),
        (field("x-a", None, Some(99)), Some("abcdef")),
        (field("x-b", Some("x-a"), None), Some("abcdef")),
        (field("x-b", Some(":path"), None), Some("/p")),
        (field(":method", Some("x-b"), None), None),
    ] {
        assert_eq!(value_of(&wanted, &headers, part).as_deref(), expected, "{wanted:?}");
    }
}

/// What is known is filled in, between plain text; where nothing is left the field stays as it is.
#[test]
fn variables_are_filled_in() {
    struct Known;
    impl Facts for Known {
        fn value(&self, variable: &Variable, edited: &HeaderMap) -> Option<String> {
            match variable {
                Variable::Remote => Some("192.0.2.1:5".to_owned()),
                Variable::Request(field) => value_of(field, edited, |_| None),
                _ => None,
            }
        }
    }
    let filled = |parts: &[TextPart]| HeaderText::Filled { written: "".into(), parts: parts.into() };
    let asked = Field { name: "a".into(), otherwise: None, length: None };
    let ops = HeaderOps {
        set: vec![
            ("b".into(), filled(&[TextPart::Text("<".into()), TextPart::Variable(Variable::Remote)])),
            ("c".into(), filled(&[TextPart::Variable(Variable::Status)])),
        ],
        add: vec![("d".into(), filled(&[TextPart::Variable(Variable::Request(asked))]))],
        remove: Vec::new(),
    };
    let mut headers = HeaderMap::new();
    headers.insert("a", HeaderValue::from_static("1"));
    headers.insert("c", HeaderValue::from_static("old"));
    apply(&ops, &mut headers, &Known);
    let value = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(["b", "c", "d"].map(value), [Some("<192.0.2.1:5"), Some("old"), Some("1")]);
}
