use http::HeaderMap;

use super::*;
use crate::model::pattern::Regex;

fn by(path: PathMatch) -> HttpMatch {
    HttpMatch { path: Some(path), ..HttpMatch::default() }
}

fn prefix(text: &str) -> HttpMatch {
    by(PathMatch::Prefix { prefix: text.into(), ignore_case: false })
}

fn segments(text: &str) -> HttpMatch {
    by(PathMatch::Segments(text.into()))
}

/// As the mesh's default has it.
fn path<'p>(rewrite: &Rewrite, matched: Option<&HttpMatch>, path: &'p str) -> Cow<'p, str> {
    super::path(rewrite, matched, path, PathNormalization::Base).unwrap()
}

/// CVE-2021-29492's class: what was a harmless segment becomes a way out.
#[test]
fn what_a_rewrite_makes_is_in_the_one_form_too() {
    let root = to(PathRewrite::Prefix("/".into()));
    for (asked, wanted) in [("/a../admin", "/admin"), ("/a./admin", "/admin"), ("/a/admin", "//admin")] {
        assert_eq!(path(&root, Some(&prefix("/a")), asked), wanted, "{asked}");
    }
    let merged = super::path(&root, Some(&prefix("/a")), "/a/admin", PathNormalization::MergeSlashes);
    assert_eq!(merged.as_deref(), Ok("/admin"));
    let escape = to(regex("x", "%"));
    assert_eq!(super::path(&escape, None, "/x", PathNormalization::Base), Err(BadPath::Escape));
    assert_eq!(super::path(&escape, None, "/x", PathNormalization::None).as_deref(), Ok("/%"));
}

fn to(path: PathRewrite) -> Rewrite {
    Rewrite { path: Some(path), authority: None }
}

fn regex(pattern: &str, rewrite: &str) -> PathRewrite {
    PathRewrite::Regex { pattern: Regex::new(pattern).unwrap(), rewrite: rewrite.into() }
}

/// The table of the Gateway API's HTTPPathModifier (`replacePrefixMatch`), and the root.
#[test]
fn a_prefix_of_segments_leaves_one_slash_between_the_parts() {
    for (from, new, asked, wanted) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "/xyz/", "/foo", "/xyz/"),
        ("/foo", "/xyz/", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo/", "/"),
        ("/foo", "", "/foo", "/"),
        ("/foo", "/", "/foo/bar", "/bar"),
        ("/foo", "/", "/foo/", "/"),
        ("/foo", "/", "/foo", "/"),
        ("", "/xyz", "/foo", "/xyz/foo"),
        ("", "/xyz", "/", "/xyz/"),
    ] {
        let new = to(PathRewrite::Prefix(new.into()));
        assert_eq!(path(&new, Some(&segments(from)), asked), wanted, "{from} {new:?} {asked}");
    }
}

/// VirtualService `rewrite.uri`.
#[test]
fn a_plain_prefix_is_plain_text_and_any_other_match_is_replaced_as_a_whole() {
    let exact = by(PathMatch::Exact { path: "/foo".into(), ignore_case: false });
    let any = by(PathMatch::Regex(Regex::new("/f.*").unwrap()));
    for (matched, new, asked, wanted) in [
        (Some(prefix("/foo")), "/bar", "/foo/x", "/bar/x"),
        (Some(prefix("/foo")), "/", "/foo/baz", "//baz"),
        (Some(prefix("/foo/")), "/", "/foo/baz", "/baz"),
        (Some(prefix("/foo")), "/bar", "/foobar", "/barbar"),
        (Some(exact), "/bar", "/foo", "/bar"),
        (Some(any), "/bar", "/foo/x/y", "/bar"),
        (None, "/v2", "/foo", "/v2foo"),
        (None, "/v2/", "/foo", "/v2/foo"),
        (Some(HttpMatch::default()), "/v2/", "/foo", "/v2/foo"),
        (Some(prefix("/foo")), "x", "/foo/y", "/x/y"),
    ] {
        let new = to(PathRewrite::Prefix(new.into()));
        assert_eq!(path(&new, matched.as_ref(), asked), wanted, "{matched:?} {new:?}");
    }
    assert_eq!(path(&to(PathRewrite::Full("/all".into())), None, "/foo"), "/all");
    assert_eq!(path(&Rewrite::default(), None, "/foo"), "/foo");
    let folded = by(PathMatch::Prefix { prefix: "/FOO".into(), ignore_case: true });
    assert_eq!(path(&to(PathRewrite::Prefix("/bar".into())), Some(&folded), "/foo/x"), "/bar/x");
}

#[test]
fn a_pattern_replaces_every_part_that_it_matches() {
    for (pattern, rewrite, asked, wanted) in [
        ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
        ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
        ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
        ("^/old", r"/\\\0\9$1", "/old/x", "///old$1/x"),
        ("/nothing", "/x", "/other", "/other"),
        ("^/", "", "/other", "/other"),
    ] {
        assert_eq!(path(&to(regex(pattern, rewrite)), None, asked), wanted, "{pattern} {rewrite}");
    }
}

struct Case<'a> {
    redirect: Redirect,
    request: (&'a str, &'a str, u16),
    wanted: &'a str,
}

fn at(location: &Case<'_>) -> String {
    let (scheme, authority, port) = location.request;
    let headers = HeaderMap::new();
    let request = RequestView {
        method: "GET",
        scheme,
        authority,
        path: "/foo/x",
        query: Some("a=/b"),
        headers: &headers,
        port,
    };
    super::location(&location.redirect, Some(&segments("/foo")), &request)
}

#[test]
fn a_location_has_what_was_not_replaced() {
    let same = || Redirect { status: 302, scheme: None, authority: None, port: None, path: None };
    let text = |text: &str| Some(text.into());
    let plain = ("http", "shop:8080", 8080);
    for case in [
        Case { redirect: same(), request: plain, wanted: "http://shop:8080/foo/x?a=/b" },
        Case {
            redirect: Redirect { authority: text("new"), ..same() },
            request: plain,
            wanted: "http://new/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { authority: text("new:81"), ..same() },
            request: plain,
            wanted: "http://new:81/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { scheme: text("https"), ..same() },
            request: ("http", "shop:80", 80),
            wanted: "https://shop/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { scheme: text("https"), ..same() },
            request: plain,
            wanted: "https://shop:8080/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { scheme: text("https"), ..same() },
            request: ("http", "shop", 80),
            wanted: "https://shop/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { scheme: text("https"), port: Some(RedirectPort::OfScheme), ..same() },
            request: plain,
            wanted: "https://shop/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { port: Some(RedirectPort::OfRequest), authority: text("new"), ..same() },
            request: plain,
            wanted: "http://new:8080/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { port: Some(RedirectPort::OfRequest), ..same() },
            request: ("http", "shop", 80),
            wanted: "http://shop/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { port: Some(RedirectPort::Number(8443)), scheme: text("https"), ..same() },
            request: plain,
            wanted: "https://shop:8443/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { port: Some(RedirectPort::Number(443)), scheme: text("https"), ..same() },
            request: ("http", "[fd00::1]:8080", 8080),
            wanted: "https://[fd00::1]/foo/x?a=/b",
        },
        Case {
            redirect: Redirect { path: Some(PathRewrite::Full("/all".into())), ..same() },
            request: plain,
            wanted: "http://shop:8080/all?a=/b",
        },
        Case {
            redirect: Redirect { path: Some(PathRewrite::Full("/all?c=d".into())), ..same() },
            request: plain,
            wanted: "http://shop:8080/all?c=d",
        },
        Case {
            redirect: Redirect { path: Some(PathRewrite::Prefix("/bar/".into())), ..same() },
            request: plain,
            wanted: "http://shop:8080/bar/x?a=/b",
        },
    ] {
        assert_eq!(at(&case), case.wanted, "{:?} {:?}", case.redirect, case.request);
    }
}

proptest::proptest! {
    /// Whatever is rewritten, what comes out is a path.
    #[test]
    fn what_comes_out_begins_with_a_slash(asked in "/[a-c/]{0,8}", new in "[a-c/]{0,4}", kind in 0_usize..5) {
        let matched = [
            None,
            Some(prefix("/")),
            Some(segments("")),
            Some(by(PathMatch::Exact { path: asked.as_str().into(), ignore_case: false })),
            Some(by(PathMatch::Regex(Regex::new(".*").unwrap()))),
        ];
        for rewrite in [PathRewrite::Prefix(new.as_str().into()), PathRewrite::Full(new.as_str().into()), regex("[ab]", &new)] {
            let out = path(&to(rewrite), matched[kind].as_ref(), &asked).into_owned();
            proptest::prop_assert!(out.starts_with('/'), "{}", out);
        }
    }
}
