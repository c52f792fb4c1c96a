use super::*;

#[test]
fn the_protocol_is_said_by_app_protocol_then_by_the_ports_name() {
    for (app, name, want) in [
        (None, "http-web", AppProtocol::Http),
        (None, "http", AppProtocol::Http),
        (None, "http2-x", AppProtocol::Http2),
        (None, "grpc-web", AppProtocol::Grpc),
        (None, "https", AppProtocol::Tls),
        (None, "tcp-db", AppProtocol::Tcp),
        (None, "web", AppProtocol::Auto),
        (None, "", AppProtocol::Auto),
        (Some("HTTP"), "tcp", AppProtocol::Http),
        (Some("kubernetes.io/h2c"), "", AppProtocol::Http2),
        (Some("example.org/own"), "http", AppProtocol::Tcp),
    ] {
        assert_eq!(protocol(app, name), want, "{app:?} {name}");
    }
}
