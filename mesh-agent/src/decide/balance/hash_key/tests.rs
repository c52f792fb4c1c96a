use std::time::Duration;

use super::*;

fn of(key: &HashKey, headers: &HeaderMap, query: Option<&str>) -> Keyed {
    let request =
        RequestView { method: "GET", scheme: "http", authority: "shop", path: "/", query, headers, port: 80 };
    keyed(key, &request, "::ffff:10.0.0.1".parse().unwrap(), 0xabc)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, value.parse().unwrap());
    }
    map
}

fn hashed(text: &str) -> Keyed {
    Keyed { hash: Some(hash(text.as_bytes())), set_cookie: None }
}

#[test]
fn headers_addresses_and_parameters_are_keys() {
    let none = HeaderMap::new();
    let user = HashKey::Header("x-user".into());
    assert_eq!(of(&user, &headers(&[("x-user", "ada")]), None), hashed("ada"));
    assert_eq!(of(&user, &headers(&[("x-user", "a"), ("x-user", "b")]), None), hashed("a,b"));
    assert_eq!(of(&user, &none, None), Keyed::default());
    assert_eq!(of(&HashKey::SourceAddress, &none, None), hashed("10.0.0.1"));
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(of_connection(&HashKey::SourceAddress, address), hashed("10.0.0.1").hash);
    assert_eq!(of_connection(&user, address), None);
    let parameter = HashKey::QueryParameter("id".into());
    assert_eq!(of(&parameter, &none, Some("x=1&id=7&id=8")), hashed("7"));
    assert_eq!(of(&parameter, &none, Some("xid=7")), Keyed::default());
    assert_eq!(of(&parameter, &none, None), Keyed::default());
}

#[test]
fn a_cookie_is_found_wherever_it_stands_and_made_where_there_is_none() {
    let cookie =
        |path: Option<&str>, ttl| HashKey::Cookie { name: "sid".into(), path: path.map(Into::into), ttl };
    for line in ["sid=7", "a=b; sid=7; c=d", "sid=\"7\"", "xsid=1; sid=7", "sid=; sid=7"] {
        assert_eq!(of(&cookie(None, None), &headers(&[("cookie", line)]), None), hashed("7"), "{line}");
    }
    assert_eq!(
        of(&cookie(None, None), &headers(&[("cookie", "a=b"), ("cookie", "sid=7")]), None),
        hashed("7")
    );
    let none = HeaderMap::new();
    assert_eq!(of(&cookie(None, None), &none, None), Keyed::default(), "the application makes it");
    let hour = of(&cookie(Some("/shop"), Some(Duration::from_secs(3600))), &none, None);
    assert_eq!(hour.set_cookie.as_deref(), Some("sid=0000000000000abc; Max-Age=3600; Path=/shop; HttpOnly"));
    let session = of(&cookie(None, Some(Duration::ZERO)), &none, None);
    assert_eq!(session.set_cookie.as_deref(), Some("sid=0000000000000abc; HttpOnly"));
    // The client comes back with it, and to the same endpoint.
    let again =
        of(&cookie(None, Some(Duration::ZERO)), &headers(&[("cookie", "sid=0000000000000abc")]), None);
    assert_eq!((again.hash, again.set_cookie), (session.hash, None));
}
