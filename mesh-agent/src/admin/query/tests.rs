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
fn a_request_survives_the_way_through_a_url() {
    let mut query = ExplainQuery::parse("shop/web", "reviews:9080").unwrap();
    let headers = ["End-User: jason & co".to_owned(), "x:".to_owned()];
    query.request = Some(RequestQuery::parse("get", "/a?b=c&d=%20", &headers).unwrap());
    let request = query.request.as_ref().unwrap();
    assert_eq!(
        (request.method.as_str(), &request.headers[0]),
        ("GET", &("end-user".to_owned(), "jason & co".to_owned()))
    );
    assert_eq!(ExplainQuery::from_url(&query.to_url()).unwrap(), query);
    for (method, path, header, field) in [
        ("", "/", "a: b", "method"),
        ("G T", "/", "a: b", "method"),
        ("GET", "a", "a: b", "path"),
        ("GET", "/a b", "a: b", "path"),
        ("GET", "/", "a", "header"),
        ("GET", "/", "a b: c", "header"),
        ("GET", "/", "a: b\n", "header"),
    ] {
        let refused = RequestQuery::parse(method, path, &[header.to_owned()]);
        if field == "header" && header.ends_with('\n') {
            assert!(refused.is_ok(), "blanks around a value are none of it");
            continue;
        }
        let error = refused.unwrap_err().to_string();
        assert!(error.starts_with(field), "{method:?} {path:?} {header:?}: {error}");
    }
}
