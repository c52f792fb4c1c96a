use super::*;

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

fn suffix(text: &str) -> StringMatch {
    StringMatch::Suffix(text.into())
}

#[test]
fn patterns_hold_against_a_text_in_pieces_as_against_the_whole() {
    let text = "cluster.local/ns/shop/sa/web";
    let pieces = ["cluster.local", "/ns/", "shop", "/sa/", "web"];
    for cut in 0..=text.len() {
        let (head, tail) = text.split_at(cut);
        assert!(matches(&prefix(head), &pieces), "prefix {head}");
        assert!(matches(&suffix(tail), &pieces), "suffix {tail}");
    }
    assert!(matches(&exact(text), &pieces));
    assert!(matches(&StringMatch::Present, &pieces));
    for wrong in
        ["cluster.local/ns/shop/sa/we", "cluster.local/ns/shop/sa/webx", "cluster-local/ns/shop/sa/web", ""]
    {
        assert!(!matches(&exact(wrong), &pieces), "{wrong}");
    }
    assert!(!matches(&prefix("cluster.local/ns/shop/sa/web2"), &pieces));
    assert!(!matches(&suffix("xcluster.local/ns/shop/sa/web"), &pieces));
    assert!(!matches(&suffix("/sa/eb"), &pieces));
}

#[test]
fn presence_means_a_text_that_is_not_empty() {
    assert!(matches(&StringMatch::Present, &["", "a"]));
    assert!(!matches(&StringMatch::Present, &["", ""]));
    assert!(!matches(&StringMatch::Present, &[]));
}

#[test]
fn an_absent_attribute_fails_values_and_passes_not_values() {
    let positive = Values { any: vec![StringMatch::Present], none: vec![] };
    let negative = Values { any: vec![], none: vec![StringMatch::Present] };
    assert!(!text(&positive, None));
    assert!(text(&negative, None));
    assert!(!text(&negative, Some(&["a"])));
    assert!(text(&Values::default(), None));
}

#[test]
fn an_ipv4_client_on_an_ipv6_socket_is_the_ipv4_client() {
    let values = Values { any: vec!["10.0.0.0/8".parse().unwrap()], none: vec![] };
    assert!(address(&values, "::ffff:10.1.2.3".parse().unwrap()));
    assert!(!address(&values, "::ffff:11.1.2.3".parse().unwrap()));
}

proptest::proptest! {
    #[test]
    fn pieces_never_change_the_answer(parts in proptest::collection::vec("[ab/]{0,4}", 0..5), want in "[ab/]{0,6}") {
        let whole = parts.concat();
        let pieces: Vec<&str> = parts.iter().map(String::as_str).collect();
        proptest::prop_assert_eq!(matches(&exact(&want), &pieces), whole == want);
        proptest::prop_assert_eq!(matches(&prefix(&want), &pieces), whole.starts_with(&want));
        proptest::prop_assert_eq!(matches(&suffix(&want), &pieces), whole.ends_with(&want));
    }
}
