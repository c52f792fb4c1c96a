use super::*;

#[test]
fn destinations_take_a_port_in_every_form() {
    for (text, name, port) in [
        ("shop/reviews", "shop/reviews", None),
        ("shop/reviews:9080", "shop/reviews", Some(9080)),
        ("reviews.shop:80", "reviews.shop", Some(80)),
        ("10.1.0.2", "10.1.0.2", None),
        ("10.1.0.2:80", "10.1.0.2", Some(80)),
        ("fd00::2", "fd00::2", None),
        ("[fd00::2]", "fd00::2", None),
        ("[fd00::2]:80", "fd00::2", Some(80)),
    ] {
        let query = ExplainQuery::parse("shop/frontend", text).unwrap();
        assert_eq!((query.destination.as_str(), query.port), (name, port), "{text}");
        assert_eq!(ExplainQuery::from_url(&query.to_url()).unwrap(), query, "{text}");
    }
}

#[test]
fn a_connection_may_ask_for_a_server_by_name() {
    let asked = || ExplainQuery::parse("shop/frontend", "db:443").unwrap();
    let query = asked().with_sni("DB.example.com.").unwrap();
    assert_eq!(query.sni.as_deref(), Some("db.example.com"));
    assert_eq!(ExplainQuery::from_url(&query.to_url()).unwrap(), query);
    for bad in ["", "a b", "*.example.com", "a:443", &"a".repeat(NAME_MAX_BYTES + 1)] {
        assert!(asked().with_sni(bad).unwrap_err().to_string().starts_with("sni: "), "{bad}");
    }
}

#[test]
fn bad_questions_are_refused_with_their_field() {
    for (source, destination, field) in [
        ("", "a", "source"),
        ("a", "", "destination"),
        ("a", ":80", "destination"),
        ("a", "b:0", "destination"),
        ("a", "b:99999", "destination"),
        ("a", "b:+80", "destination"),
        ("a", "b:http", "destination"),
        ("a", "[fd00::2]80", "destination"),
        ("a b", "c", "source"),
        ("a", "c\n", "destination"),
    ] {
        let error = ExplainQuery::parse(source, destination).unwrap_err().to_string();
        assert!(error.starts_with(field), "{source:?} {destination:?}: {error}");
    }
    for query in ["src=a&dst=b&x=1", "src=%zz&dst=b", "src=%f", "src=%ff&dst=b", "dst=b", "src=%2Bé%"] {
        assert!(ExplainQuery::from_url(query).is_err(), "{query}");
    }
}

#[test]
fn a_question_may_be_about_a_request() {
    let asked = ExplainQuery::parse("shop/frontend", "shop/reviews").unwrap();
    let headers = ["X-Tenant: blue & green".to_owned(), "x-empty:".to_owned()];
    let query = asked.clone().with_request("GET", "/api?a=b&c=%2F", &headers).unwrap();
    let request = query.request.clone().unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/api?a=b&c=%2F"));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(request.headers, [pair("x-tenant", "blue & green"), pair("x-empty", "")]);
    assert_eq!(ExplainQuery::from_url(&query.to_url()).unwrap(), query);
    for (method, path, header, field) in [
        ("get", "/", "a: b", "method"),
        ("", "/", "a: b", "method"),
        ("GET", "api", "a: b", "path"),
        ("GET", "/a b", "a: b", "path"),
        ("GET", "/", "a", "header"),
        ("GET", "/", "a b: c", "header"),
        ("GET", "/", "a: b\nc", "header"),
    ] {
        let error = asked.clone().with_request(method, path, &[header.to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with(field), "{method} {path} {header}: {error}");
    }
    for half in ["method=GET", "path=%2F", "header=a%3Ab"] {
        assert_eq!(ExplainQuery::from_url(&format!("src=a&dst=b&{half}")), Err(QueryError::Half));
    }
}
