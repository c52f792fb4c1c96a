use super::*;

fn check(
    method: &str,
    uri: &str,
    version: Version,
    fields: &[(&'static str, &str)],
) -> Result<Option<String>, Malformed> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, value.parse().unwrap());
    }
    head(&method.parse().unwrap(), &uri.parse().unwrap(), version, &headers)
        .map(|authority| authority.map(|authority| authority.to_string()))
}

/// Method, target, version, fields, and what comes of them.
type Case = (
    &'static str,
    &'static str,
    Version,
    &'static [(&'static str, &'static str)],
    Result<Option<&'static str>, Malformed>,
);

/// One request, one meaning: whatever two readers could take differently is refused.
#[test]
fn a_request_with_two_meanings_is_refused() {
    const H: (&str, &str) = ("host", "a");
    let h1 = Version::HTTP_11;
    let cases: [Case; 20] = [
        ("GET", "/", h1, &[H], Ok(Some("a"))),
        ("GET", "/", h1, &[("host", "a:8080")], Ok(Some("a:8080"))),
        ("GET", "/", h1, &[("host", "")], Ok(None)),
        ("GET", "/", Version::HTTP_10, &[], Ok(None)),
        ("GET", "http://a/x", h1, &[H], Ok(Some("a"))),
        ("GET", "http://a/x", Version::HTTP_2, &[], Ok(Some("a"))),
        ("OPTIONS", "*", h1, &[H], Ok(Some("a"))),
        ("GET", "/", h1, &[], Err(Malformed::Host)),
        ("GET", "/", h1, &[H, H], Err(Malformed::Host)),
        ("GET", "http://a/x", h1, &[("host", "b")], Err(Malformed::TwoHosts)),
        ("GET", "http://a/x", Version::HTTP_2, &[("host", "b")], Err(Malformed::TwoHosts)),
        ("GET", "/", h1, &[("host", "a b")], Err(Malformed::Authority)),
        ("GET", "/", h1, &[("host", "u@a")], Err(Malformed::Authority)),
        ("GET", "/", h1, &[("host", "a:99999")], Err(Malformed::Authority)),
        ("GET", "/", h1, &[("host", "a/b")], Err(Malformed::Authority)),
        ("get", "/", h1, &[H], Err(Malformed::Method)),
        ("CONNECT", "a:1", h1, &[H], Err(Malformed::Connect)),
        ("GET", "*", h1, &[H], Err(Malformed::Target)),
        ("GET", "/", h1, &[H, ("transfer-encoding", "gzip, chunked")], Err(Malformed::Coding)),
        (
            "GET",
            "/",
            h1,
            &[H, ("content-length", "1"), ("transfer-encoding", "chunked")],
            Err(Malformed::Length),
        ),
    ];
    for (method, uri, version, fields, wanted) in cases {
        let got = check(method, uri, version, fields);
        assert_eq!(got, wanted.map(|host| host.map(str::to_owned)), "{method} {uri} {fields:?}");
    }
}

/// The limits on targets, fields and bytes, each at its edge.
#[test]
fn sizes_have_limits() {
    let path = |length: usize| format!("/{}", "a".repeat(length - 1));
    let ask = |uri: &str, fields: &[(&'static str, &str)]| check("GET", uri, Version::HTTP_11, fields);
    assert!(ask(&path(TARGET_MAX_BYTES), &[("host", "a")]).is_ok());
    assert_eq!(ask(&path(TARGET_MAX_BYTES + 1), &[("host", "a")]), Err(Malformed::TargetLength));
    let mut fields = vec![("host", "a")];
    fields.extend(std::iter::repeat_n(("x", "1"), HEADER_FIELDS_MAX - 1));
    assert!(ask("/", &fields).is_ok());
    fields.push(("x", "1"));
    assert_eq!(ask("/", &fields), Err(Malformed::Headers));
    let large = "v".repeat(HEADER_LIST_MAX_BYTES);
    assert_eq!(ask("/", &[("host", "a"), ("x", &large)]), Err(Malformed::Headers));
    assert_eq!((Malformed::Headers.status(), Malformed::TargetLength.status()), (431, 414));
}
