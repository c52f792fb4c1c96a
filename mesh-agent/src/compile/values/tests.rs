use super::*;

/// CVE-2026-39350: a `.` in a name acted as a wildcard.
#[test]
fn only_a_star_at_the_edge_is_a_wildcard() {
    for (text, want) in [
        ("*", StringMatch::Present),
        ("a.b", StringMatch::Exact("a.b".into())),
        ("a*", StringMatch::Prefix("a".into())),
        ("*a", StringMatch::Suffix("a".into())),
        ("*a*", StringMatch::Suffix("a*".into())),
        ("a*b", StringMatch::Exact("a*b".into())),
        ("[ab]+", StringMatch::Exact("[ab]+".into())),
        ("**", StringMatch::Suffix("*".into())),
    ] {
        assert_eq!(pattern(text).unwrap(), want, "{text}");
    }
    assert!(pattern("").is_err());
}

#[test]
fn blocks_are_addresses_or_prefixes_of_either_family() {
    assert_eq!(block("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
    assert_eq!(block("fd00::1").unwrap().to_string(), "fd00::1/128");
    for bad in ["10.0.0.0/33", "10.0.0", "", "10.0.0.0/8 ", "x"] {
        assert!(block(bad).is_err(), "{bad}");
    }
}

/// CVE-2025-66220's class: texts that only look like a name.
#[test]
fn an_account_has_a_strict_character_set() {
    let own: Arc<str> = "shop".into();
    assert_eq!(account(&own, "a.b-c_d").unwrap(), ("shop".into(), "a.b-c_d".into()));
    for bad in ["", "/", "a/", "/a", "a/b/c", "a\0", "*", "a*", "a b", "a%2fb"] {
        assert!(account(&own, bad).is_err(), "{bad:?}");
    }
}
