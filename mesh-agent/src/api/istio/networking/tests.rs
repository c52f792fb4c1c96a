use super::*;

#[test]
fn names_are_those_of_istio_s_crds() {
    let rule: DestinationRuleSpec = serde_json::from_value(serde_json::json!({
        "host": "a",
        "trafficPolicy": {
            "connectionPool": {"http": {"http1MaxPendingRequests": 1, "http2MaxRequests": 2, "h2UpgradePolicy": "DO_NOT_UPGRADE"}},
            "outlierDetection": {"consecutive5xxErrors": 3, "consecutiveErrors": 4},
            "loadBalancer": {"simple": "LEAST_CONN", "localityLbSetting": {"enabled": true}},
            "tls": {"mode": "ISTIO_MUTUAL"},
        },
    }))
    .unwrap();
    let policy = rule.traffic_policy.unwrap();
    let http = policy.connection_pool.unwrap().http.unwrap();
    assert_eq!((http.http1_max_pending_requests, http.http2_max_requests), (Some(1), Some(2)));
    assert_eq!(http.h2_upgrade_policy, Some(H2UpgradePolicy::DoNotUpgrade));
    let outlier = policy.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_5xx_errors, outlier.consecutive_errors), (Some(3), Some(4)));
    let balancer = policy.load_balancer.unwrap();
    assert_eq!(balancer.simple, Some(SimpleLb::LeastConn));
    assert_eq!(balancer.locality_lb_setting.unwrap().enabled, Some(true));
    assert_eq!(policy.tls.unwrap().mode, Some(TlsMode::IstioMutual));
}
