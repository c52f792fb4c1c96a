use super::*;
use crate::compile::fixture::{authz, peer};
use crate::world::fixture::world;

/// `explain shop/web shop/reviews:8080`, and of a request where one is given as `METHOD PATH|header: value`.
fn ask(world: &World, request: Option<&str>) -> Explanation {
    let mut query = ExplainQuery::parse("shop/web", "shop/reviews:8080").unwrap();
    if let Some(text) = request {
        let mut parts = text.split('|').map(str::to_owned);
        let line = parts.next().unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        query = query.with_request(method, path, &parts.collect::<Vec<_>>()).unwrap();
    }
    // The name is a pod's and a Service's: the pod's address is as good.
    query.destination = "10.1.0.2".to_owned();
    explain(world, "n1", &query).unwrap()
}

#[test]
fn a_request_is_explained_by_the_policy_and_rule_that_decide_it() {
    let world = world(&[authz(
        "api",
        "{rules: [{to: [{operation: {methods: [GET], paths: ['/api/*']}}]}, \
          {when: [{key: 'request.headers[x-admin]', values: ['yes']}]}]}",
    )]);
    for (request, rule) in [
        (Some("GET /api/items?x=1"), Some("AuthorizationPolicy shop/api, rule 0")),
        (Some("GET /x/../api/items"), Some("AuthorizationPolicy shop/api, rule 0")),
        (Some("PUT /other|X-Admin: yes"), Some("AuthorizationPolicy shop/api, rule 1")),
        (Some("GET /api/../admin"), None),
        (Some("PUT /api/items"), None),
        (None, None),
    ] {
        let told = ask(&world, request);
        assert_eq!(told.rule.as_deref(), rule, "{request:?}");
        assert_eq!(told.allowed, rule.is_some(), "{request:?}");
        assert_eq!(told.reason.is_some(), rule.is_none(), "{request:?}");
        assert_eq!(told.route.path, Some(Path::Local), "never bypassed");
        // Of a connection alone it is said that there is more to ask.
        assert_eq!(
            told.notes.iter().any(|note| note.contains("METHOD PATH")),
            request.is_none(),
            "{request:?}"
        );
    }
}

#[test]
fn a_path_that_is_refused_is_told_as_such() {
    let told = ask(&world(&[]), Some("GET /a%00"));
    assert!(!told.allowed && told.route.why.contains("400"), "{:?}", told.route);
}

#[test]
fn without_a_policy_on_requests_a_request_and_its_connection_are_told_alike() {
    let world = world(&[
        authz("deny", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [web]}}]}]}"),
        peer("shop", "strict", "{mtls: {mode: STRICT}}"),
    ]);
    let (connection, mut request) = (ask(&world, None), ask(&world, Some("GET /")));
    assert!(request.http.take().is_some(), "only a request has a rule");
    assert_eq!(connection, request);
    assert_eq!(connection.rule.as_deref(), Some("AuthorizationPolicy shop/deny, rule 0"));
    assert_eq!(connection.notes, Vec::<String>::new());
}
