use super::*;

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
    apply(ops, &mut headers);
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
        assert_eq!(apply(&ops(&[(name, "new")], &[], &[]), &mut headers).as_deref(), Some("new"));
        assert_eq!(apply(&ops(&[], &[(name, "new")], &["host"]), &mut headers).as_deref(), Some("new"));
    }
    assert_eq!(headers.get(HOST).unwrap(), "old", "the caller writes it where the protocol has it");
    assert_eq!(apply(&ops(&[("x", "1")], &[], &[]), &mut headers), None);
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
