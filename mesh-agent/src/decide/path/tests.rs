use proptest::prelude::*;

use super::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None as Off};
use super::*;

fn all(path: &str) -> [String; 3] {
    [Base, MergeSlashes, DecodeAndMergeSlashes].map(|how| normalise(path, how).unwrap().into_owned())
}

#[test]
fn a_path_has_one_form_whatever_its_spelling() {
    // Each with what BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES make of it.
    for (path, base, merged, decoded) in [
        ("/", "/", "/", "/"),
        ("/api/v1", "/api/v1", "/api/v1", "/api/v1"),
        ("/%61pi", "/api", "/api", "/api"),
        ("/%7euser/%2d%5f%2E", "/~user/-_.", "/~user/-_.", "/~user/-_."),
        ("/a/%2e%2e/b", "/b", "/b", "/b"),
        ("/a/%2E/b", "/a/b", "/a/b", "/a/b"),
        ("/a/./b/../c", "/a/c", "/a/c", "/a/c"),
        ("/a/..", "/", "/", "/"),
        ("/a/b/..", "/a/", "/a/", "/a/"),
        ("/a/.", "/a/", "/a/", "/a/"),
        ("/../../etc", "/etc", "/etc", "/etc"),
        ("/...", "/...", "/...", "/..."),
        ("/a/..b/.c", "/a/..b/.c", "/a/..b/.c", "/a/..b/.c"),
        (r"/a\b", "/a/b", "/a/b", "/a/b"),
        (r"/a\..\b", "/b", "/b", "/b"),
        ("//admin", "//admin", "/admin", "/admin"),
        ("/a//b///c", "/a//b///c", "/a/b/c", "/a/b/c"),
        ("/a//../b", "/a/b", "/a/b", "/a/b"),
        ("/a/..//b", "//b", "/b", "/b"),
        ("/a%2fb", "/a%2Fb", "/a%2Fb", "/a/b"),
        ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a/..%2f..%2fb", "/a/..%2F..%2Fb", "/a/..%2F..%2Fb", "/b"),
        ("/%2f%2fadmin", "/%2F%2Fadmin", "/%2F%2Fadmin", "/admin"),
        // Decoded once only: what comes out of an escaped percent sign is no escape.
        ("/%252e%252e/b", "/%252e%252e/b", "/%252e%252e/b", "/%252e%252e/b"),
        ("/%252fb", "/%252fb", "/%252fb", "/%252fb"),
        ("/caf%c3%a9", "/caf%C3%A9", "/caf%C3%A9", "/caf%C3%A9"),
        ("/a;x=1/b", "/a;x=1/b", "/a;x=1/b", "/a;x=1/b"),
        ("/a%20b", "/a%20b", "/a%20b", "/a%20b"),
        ("/a/%2e%2e?b=/../%2e//%2f\\", "/?b=/../%2e//%2f\\", "/?b=/../%2e//%2f\\", "/?b=/../%2e//%2f\\"),
        ("/a#/../b", "/a", "/a", "/a"),
        ("/a?b#c", "/a?b", "/a?b", "/a?b"),
        ("*", "*", "*", "*"),
    ] {
        assert_eq!(all(path), [base, merged, decoded], "{path}");
    }
}

#[test]
fn what_cannot_be_read_in_one_way_only_is_refused() {
    for (path, error) in [
        ("", BadPath::Relative),
        ("api", BadPath::Relative),
        ("?a", BadPath::Relative),
        ("*/..", BadPath::Relative),
        ("/a%", BadPath::Escape),
        ("/a%2", BadPath::Escape),
        ("/a%zz", BadPath::Escape),
        ("/%2%46", BadPath::Escape),
        ("/%+2e", BadPath::Escape),
        ("/%é", BadPath::Escape),
        ("/a%00", BadPath::Nul),
    ] {
        for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            assert_eq!(normalise(path, how), Err(error), "{path}");
        }
    }
    assert_eq!(normalise("/a?%zz", Base).unwrap(), "/a?%zz", "the query is the application's");
}

#[test]
fn without_normalisation_only_the_fragment_goes() {
    for path in ["/a/../b", "//x", r"/\", "/%2e%zz"] {
        assert_eq!(normalise(path, Off).unwrap(), path);
        assert_eq!(normalise(&format!("{path}#frag"), Off).unwrap(), path);
    }
}

#[test]
fn a_path_in_its_normal_form_is_not_copied() {
    for path in ["/api/v1?x=%2e", "/a%20b", "/.well-known/x", "/a%2Fb"] {
        assert!(matches!(normalise(path, Base), Ok(Cow::Borrowed(_))), "{path}");
    }
}

/// RFC 3986, 5.2.4, as the steps A to E are written there.
fn by_the_letter(path: &str) -> String {
    let (mut input, mut output) = (path.to_owned(), String::new());
    while !input.is_empty() {
        if input.starts_with("/./") || input == "/." {
            input = format!("/{}", input.get(3..).unwrap_or_default());
        } else if input.starts_with("/../") || input == "/.." {
            input = format!("/{}", input.get(4..).unwrap_or_default());
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input = input[end..].to_owned();
        }
    }
    output
}

proptest! {
    #[test]
    fn dots_go_as_the_rfc_says(path in "/[a./]{0,12}") {
        prop_assert_eq!(normalise(&path, Base).unwrap(), by_the_letter(&path));
    }

    #[test]
    fn a_second_time_changes_nothing(path in r"/([a./\\]|%2[eEfF5]|%5c|%41|%00){0,8}(\?[a./%]{0,4})?") {
        for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            if let Ok(once) = normalise(&path, how) {
                prop_assert_eq!(normalise(&once, how).unwrap(), once.clone());
                let bare = once.split('?').next().unwrap();
                prop_assert!(!bare.contains('\\') && !bare.split('/').any(|segment| segment == ".." || segment == "."));
                prop_assert!(how == Base || !bare.contains("//"));
            }
        }
    }

    /// Whatever an unreserved character's spelling, the outcome is the same.
    #[test]
    fn spelling_does_not_matter(path in "/[a-c./~-]{0,10}", escaped in proptest::collection::vec(any::<bool>(), 11)) {
        let spelt: String = path.chars().zip(escaped.iter().chain(std::iter::repeat(&false))).map(|(c, escape)| {
            if *escape && c != '/' { format!("%{:02x}", u32::from(c)) } else { c.to_string() }
        }).collect();
        for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            prop_assert_eq!(normalise(&path, how).unwrap(), normalise(&spelt, how).unwrap());
        }
    }
}
