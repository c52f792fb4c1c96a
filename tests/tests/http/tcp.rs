//! A port that is called TCP: a DestinationRule holds for its connections, and a policy on requests for what they carry.
use anyhow::Result;
use mesh_tests::eventually;

use crate::shop::{SOON, Shop};

const PODS: [(&str, &str, &str, &str); 2] =
    [("near", "myapp", "v1", "node-a"), ("far", "myapp", "v1", "node-b")];

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: myapp, namespace: default}
spec:
  host: myapp
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 3}}
    loadBalancer: {consistentHash: {useSourceIp: true}}
";

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: default}
spec:
  selector: {matchLabels: {app: myapp}}
  rules: [{to: [{operation: {paths: ['/api*']}}]}]
";

/// One client's connections go to one endpoint, and the fourth at a time is reset until another has ended.
#[test]
fn connections_keep_to_the_rule_of_their_destination() -> Result<()> {
    let shop = Shop::within("default", "tcp rule", &PODS)?;
    let service = shop.service("myapp", Some("tcp"))?;
    shop.apply("destinationrule", RULE)?;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let mut session = shop.session(&service)?;
        assert_eq!(session.get("/")?.status, 200);
        sessions.push(session);
    }
    let used = shop.servers.iter().filter(|server| server.app.stats().requests() > 0).count();
    assert_eq!(used, 1, "one address, one endpoint");
    let once = || shop.session(&service).and_then(|mut session| session.get("/"));
    assert!(once().is_err(), "a fourth connection");
    sessions.pop();
    eventually("a place to be free again", SOON, || Ok(once().is_ok()))?;
    Ok(())
}

/// Whether the endpoint is on the client's node or not, a request gets the answer of its path.
#[test]
fn a_policy_on_requests_holds_on_both_nodes_whatever_the_port_is_called() -> Result<()> {
    let shop = Shop::within("default", "tcp policy", &PODS)?;
    let service = shop.service("myapp", Some("tcp"))?;
    shop.apply("policy", POLICY)?;
    for _ in 0..20 {
        let mut session = shop.session(&service)?;
        for (path, status) in [("/api/items", 200), ("/admin", 403), ("/api/../admin", 403)] {
            assert_eq!(session.get(path)?.status, status, "{path}");
        }
    }
    for server in &shop.servers {
        assert!(server.app.stats().requests() > 0, "{} got none", server.pod.name());
    }
    Ok(())
}
