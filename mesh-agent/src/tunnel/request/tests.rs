use super::*;

#[test]
fn authorities_are_an_address_and_a_port_and_nothing_else() {
    for good in ["10.0.0.1:80", "[fd00::1]:443", "255.255.255.255:65535"] {
        assert_eq!(parse_authority(good).map(|target| target.to_string()).as_deref(), Some(good));
    }
    for bad in [
        "",
        "10.0.0.1",
        ":80",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        " 10.0.0.1:80",
        "10.0.0.1:80 ",
        "fd00::1:80",
        "[fd00::1]",
        "[fe80::1%1]:80",
        "localhost:80",
        "0x7f.1:80",
        "10.0.1:80",
        "010.0.0.1:80",
        "10.0.0.1:80/",
        "u@10.0.0.1:80",
    ] {
        assert_eq!(parse_authority(bad), None, "{bad}");
    }
}

#[test]
fn every_refusal_is_read_back_as_itself() {
    for row in ROWS {
        let answer = refusal(row.reason);
        assert_eq!(answer.status().as_u16(), row.http_status);
        assert_eq!(read_refusal(&answer).reason, row.reason);
    }
}

#[test]
fn header_values_that_cannot_be_sent_are_left_out() {
    let headers = ConnectHeaders {
        forwarded: Some("a\r\nb: c".to_owned()),
        baggage: Some("x".repeat(HEADER_VALUE_MAX_BYTES + 1)),
        traceparent: Some("00-1-2-00".to_owned()),
    };
    let request = connect_request("10.0.0.1:80".parse().unwrap(), &headers).unwrap();
    assert_eq!(request.headers().len(), 1);
    let (target, read) = read_connect(&request).unwrap();
    assert_eq!(target.to_string(), "10.0.0.1:80");
    let expected = ConnectHeaders { traceparent: Some("00-1-2-00".to_owned()), ..ConnectHeaders::default() };
    assert_eq!(read, expected);
}
