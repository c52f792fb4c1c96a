use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    headers
}

fn names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
    names.sort();
    names
}

/// HTTP/2 is never asked of an application by an upgrade, however the wish is written.
#[test]
fn an_upgrade_is_passed_on_but_not_to_http2() {
    for (upgrade_to, connection, passed) in [
        (&["websocket"][..], "Upgrade", Some("websocket")),
        (&["websocket"], "close", None),
        (&["h2c"], "upgrade, http2-settings", None),
        (&["H2C"], "upgrade", None),
        (&["h2c, websocket"], "upgrade", Some("websocket")),
        (&["websocket", "h2c"], "upgrade", Some("websocket")),
        (&["foo/2, h2 ,HTTP/2.0"], "upgrade", Some("foo/2")),
        (&[""], "upgrade", None),
    ] {
        let mut headers = map(&[("connection", connection)]);
        for value in upgrade_to {
            headers.append("upgrade", value.parse().unwrap());
        }
        let found = upgrade(&headers);
        assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), passed, "{upgrade_to:?}");
    }
}

/// Hop-by-hop headers go, and whatever Connection names, but not what frames or routes the message.
#[test]
fn a_hop_keeps_its_own_headers() {
    let mut headers = map(&[
        ("connection", "close, X-Secret, host"),
        ("connection", "content-length"),
        ("x-secret", "1"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
        ("te", "gzip"),
        ("host", "a"),
        ("content-length", "3"),
        ("x-other", "1"),
    ]);
    strip_hop(&mut headers);
    assert_eq!(names(&headers), ["content-length", "host", "x-other"]);
    let mut headers = map(&[("te", "gzip, trailers"), ("connection", "te")]);
    strip_hop(&mut headers);
    assert_eq!(headers["te"], "trailers");
}

/// What a client claims about who it is, is replaced by what the mesh knows, or taken away.
#[test]
fn only_the_mesh_vouches() {
    let ids = || [0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef];
    let mut headers =
        map(&[(XFCC.as_str(), "By=me"), ("nodemesh-reason", "x"), ("x-forwarded-for", "1.1.1.1")]);
    vouch(&mut headers, None, ids);
    assert_eq!(names(&headers), ["x-forwarded-for", "x-forwarded-proto", "x-request-id"]);
    assert_eq!(headers[REQUEST_ID], "01234567-89ab-4def-8123-456789abcdef");
    let mut headers =
        map(&[(XFCC.as_str(), "By=me"), ("x-request-id", "mine"), ("x-forwarded-proto", "https")]);
    vouch(&mut headers, Some(&HeaderValue::from_static("By=a;URI=b")), ids);
    assert_eq!(headers[XFCC], "By=a;URI=b");
    assert_eq!(
        (&headers["x-request-id"], &headers["x-forwarded-proto"]),
        (&"mine".parse().unwrap(), &"https".parse().unwrap())
    );
}

/// An upgrade is one only if Connection says so too (RFC 9110, 7.8).
#[test]
fn an_upgrade_needs_connection() {
    assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
    assert_eq!(
        upgrade(&map(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")])).unwrap(),
        "websocket"
    );
}

/// gRPC by its content type, nothing that only begins alike.
#[test]
fn grpc_is_known_by_its_type() {
    for (kind, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("text/plain", false),
    ] {
        assert_eq!(is_grpc(&map(&[("content-type", kind)])), grpc, "{kind}");
    }
}
