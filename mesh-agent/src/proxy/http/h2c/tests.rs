use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::tunnel::testing::{pair, worker};

const GOOD: [(&str, &str); 5] = [
    ("host", "shop:80"),
    ("connection", "Upgrade, HTTP2-Settings"),
    ("upgrade", "h2c"),
    ("http2-settings", "AAMAAABkAAQAAP__"),
    ("x-mine", "1"),
];

fn fields(listed: &[(&'static str, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in listed {
        fields.append(*name, value.parse().unwrap());
    }
    fields
}

fn asked(uri: &str, version: Version, empty: bool, fields: &HeaderMap) -> Option<Bytes> {
    let uri = uri.parse().unwrap();
    first_stream(&Asked { method: &Method::GET, uri: &uri, version, headers: fields, empty })
}

#[test]
fn only_a_request_that_asks_as_the_rfc_says_becomes_a_stream() {
    let good = fields(&GOOD);
    let without = |name: &str| {
        let mut fields = good.clone();
        fields.remove(name);
        fields
    };
    let with = |name: &'static str, value: &str| {
        let mut fields = good.clone();
        fields.insert(name, value.parse().unwrap());
        fields
    };
    let twice = |name: &'static str, value: &str| {
        let mut fields = good.clone();
        fields.append(name, value.parse().unwrap());
        fields
    };
    for (which, fields, switches) in [
        ("as it should be", good.clone(), true),
        ("another protocol beside it", with("upgrade", "foo, H2C"), true),
        ("no Upgrade", without("upgrade"), false),
        ("another protocol", with("upgrade", "websocket"), false),
        ("no settings", without("http2-settings"), false),
        ("settings twice", twice("http2-settings", "AAMAAABk"), false),
        ("settings that are none", with("http2-settings", "AAMA*"), false),
        ("half a setting", with("http2-settings", "AAMAAAB"), false),
        ("settings that are for others to see", with("connection", "Upgrade"), false),
        ("no Connection", without("connection"), false),
        ("no Host", without("host"), false),
        ("two Hosts", twice("host", "other"), false),
        ("a head that no frame holds", with("x-mine", &"v".repeat(17_000)), false),
    ] {
        assert_eq!(asked("/a?b=c", Version::HTTP_11, true, &fields).is_some(), switches, "{which}");
    }
    assert!(asked("/", Version::HTTP_10, true, &good).is_none());
    assert!(asked("/", Version::HTTP_11, false, &good).is_none(), "it has a body");
    assert!(asked("http://other/", Version::HTTP_11, true, &good).is_none(), "it names a host twice");
}

/// What a server of HTTP/2 then reads; the client's own next request is the second.
#[test]
fn the_request_is_stream_one_and_the_client_goes_on_with_the_next() {
    worker(async {
        let (client, server) = pair().await;
        let mut long = fields(&GOOD);
        long.insert("x-long", "l".repeat(9_000).parse().unwrap());
        let first = asked("/first?a=b", Version::HTTP_11, true, &long).unwrap();
        let serving = async {
            let io = begin(HttpIo::tcp(server), &first).await.unwrap();
            let mut conn = h2::server::handshake(io).await.unwrap();
            let mut seen = Vec::new();
            for _ in 0..2 {
                let (request, _respond) = conn.accept().await.unwrap().unwrap();
                seen.push(request.map(|body| body.is_end_stream()));
            }
            seen
        };
        let seen = tokio::join!(serving, talk(client)).0;
        let [one, two] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(one.uri(), "http://shop:80/first?a=b");
        assert_eq!((one.method(), one.version(), one.body()), (&Method::GET, Version::HTTP_2, &true));
        let mut names: Vec<&str> = one.headers().keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-long", "x-mine"], "nothing of the hop that is over");
        assert_eq!(one.headers()["x-long"].len(), 9_000);
        assert_eq!(two.uri(), "http://shop/second");
    });
}

/// A client after its 101, in bytes: preface, settings, a request on stream 3.
async fn talk(mut client: TcpStream) {
    let mut said = PREFACE.to_vec();
    said.extend(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]));
    let mut block = BytesMut::new();
    for (name, value) in
        [(":method", "GET"), (":scheme", "http"), (":authority", "shop"), (":path", "/second")]
    {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    said.extend(frame(HEADERS, END_HEADERS | END_STREAM, 3, &block));
    client.write_all(&said).await.unwrap();
    // Until the server goes; it need not do so in order.
    drop(client.read_to_end(&mut Vec::new()).await);
}

#[test]
fn what_is_no_http2_after_the_switch_ends_it() {
    worker(async {
        let text = vec![b'G'; 64];
        let mut other = PREFACE.to_vec();
        other.extend(frame(HEADERS, 0, 1, b"x"));
        let mut cut = PREFACE.to_vec();
        cut.extend(&frame(SETTINGS, 0, 0, &[0; 6])[..12]);
        for bytes in [text, other, cut] {
            let (mut client, server) = pair().await;
            client.write_all(&bytes).await.unwrap();
            drop(client);
            assert!(begin(HttpIo::tcp(server), b"").await.is_err(), "{bytes:?}");
        }
    });
}
