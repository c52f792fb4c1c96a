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

fn template(segments: &[Option<&str>], rest: Option<&str>) -> PathTemplate {
    PathTemplate {
        segments: segments.iter().map(|one| one.map(Into::into)).collect(),
        rest: rest.map(Into::into),
    }
}

#[test]
fn a_template_takes_one_segment_or_any_text() {
    let one = template(&[Some("foo"), None], None);
    let all = template(&[Some("foo")], Some(""));
    let ended = template(&[Some("foo")], Some("/end"));
    let both = template(&[Some("foo"), None, Some("bar")], Some(""));
    for (path, wanted) in [
        ("/foo/bar", [true, true, false, false]),
        ("/foo/bar/", [false, true, false, false]),
        ("/foo/", [false, true, false, false]),
        ("/foo", [false, false, false, false]),
        ("/foo//", [false, true, false, false]),
        ("/foo/bar/baz", [false, true, false, false]),
        ("/foo/end", [true, true, false, false]),
        ("/foo//end", [false, true, true, false]),
        ("/foo/a/b/end", [false, true, true, false]),
        ("/foo/a/bar/", [false, true, false, true]),
        ("/foo/a/bar/baz/x", [false, true, false, true]),
        ("/foo/a/bar", [false, true, false, false]),
        ("/food/a", [false, false, false, false]),
        ("foo/a", [false, false, false, false]),
        ("*", [false, false, false, false]),
    ] {
        assert_eq!([&one, &all, &ended, &both].map(|t| template_matches(t, path)), wanted, "{path}");
    }
    assert!(template_matches(&template(&[Some("a"), None, Some("")], None), "/a/b/"));
    assert!(template_matches(&template(&[], Some("")), "/"));
}

#[test]
fn a_host_has_no_case() {
    let hosts = |patterns: &[StringMatch]| Values { any: patterns.to_vec(), none: vec![] };
    for (pattern, host, wanted) in [
        (exact("shop.example"), "SHOP.example", true),
        (exact("shop.example"), "shop.example.org", false),
        (prefix("shop."), "Shop.Example", true),
        (prefix("shop."), "sho", false),
        (suffix(".example"), "a.EXAMPLE", true),
        (suffix(".example"), "example", false),
        (StringMatch::Present, "", false),
    ] {
        assert_eq!(
            super::host(&hosts(std::slice::from_ref(&pattern)), &[host]),
            wanted,
            "{pattern:?} {host}"
        );
    }
}

/// CVE-2026-26308: of a header that was sent twice only the first value was judged.
#[test]
fn a_rule_that_denies_sees_every_reading_of_a_header_and_one_that_allows_the_whole() {
    let any = Values { any: vec![exact("admin")], none: vec![] };
    let none = Values { any: vec![], none: vec![exact("admin")] };
    for (value, [any_wide, any_narrow, none_wide, none_narrow]) in [
        (Some("admin"), [true, true, false, false]),
        (Some("user"), [false, false, true, true]),
        (Some("user,admin"), [true, false, true, false]),
        (Some("admin, user"), [true, false, true, false]),
        (Some(""), [false, false, true, true]),
        (None, [false, false, true, true]),
    ] {
        assert_eq!(header(&any, value, true), any_wide, "values, deny, {value:?}");
        assert_eq!(header(&any, value, false), any_narrow, "values, allow, {value:?}");
        assert_eq!(header(&none, value, true), none_wide, "notValues, deny, {value:?}");
        assert_eq!(header(&none, value, false), none_narrow, "notValues, allow, {value:?}");
    }
    let list = Values { any: vec![exact("a,b")], none: vec![] };
    assert!(header(&list, Some("a,b"), false), "a list that is allowed as a whole");
}

/// Envoy's way: the template as a regular expression.
fn as_regex(template: &PathTemplate) -> regex::Regex {
    let mut text = "^".to_owned();
    for segment in &template.segments {
        text.push('/');
        text.push_str(&segment.as_ref().map_or_else(|| "[^/]+".to_owned(), |literal| regex::escape(literal)));
    }
    if let Some(rest) = &template.rest {
        text.push_str("/.*");
        text.push_str(&regex::escape(rest));
    }
    regex::Regex::new(&(text + "$")).unwrap()
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

    #[test]
    fn a_template_is_what_its_regular_expression_is(
        segments in proptest::collection::vec(proptest::option::of("[ab]{0,2}"), 0..4),
        rest in proptest::option::of("(/[ab]{0,2}){0,2}"),
        paths in proptest::collection::vec("/?[ab]{0,2}(/[ab]{0,2}){0,4}", 8),
    ) {
        proptest::prop_assume!(!segments.is_empty() || rest.is_some());
        let template = PathTemplate {
            segments: segments.into_iter().map(|one| one.map(Into::into)).collect(),
            rest: rest.map(Into::into),
        };
        let regex = as_regex(&template);
        for path in paths {
            proptest::prop_assert_eq!(template_matches(&template, &path), regex.is_match(&path), "{:?} {}", template, path);
        }
    }

    /// One header, sent in one line or in several, is one header.
    #[test]
    fn denying_is_never_narrower_than_allowing(value in "[ab, ]{0,6}", any in "[ab]{0,2}", none in "[ab]{1,2}") {
        let any = if any.is_empty() { vec![] } else { vec![prefix(&any), suffix(&any)] };
        let values = Values { any, none: vec![exact(&none)] };
        if header(&values, Some(&value), false) {
            proptest::prop_assert!(header(&values, Some(&value), true));
        }
    }
}
