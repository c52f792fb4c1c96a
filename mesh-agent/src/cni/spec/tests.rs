//! What the runtime says, and what it is told.

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::read(|name| {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    })
}

/// A result of the bridge plugin: the pod's addresses are those inside the sandbox, one of each family.
#[test]
fn the_addresses_are_the_pods_own() {
    let config = Config::parse(
        r#"{"cniVersion":"1.0.0","name":"n","type":"nodemesh-cni","prevResult":{"cniVersion":"1.0.0",
        "interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/run/netns/x"}],
        "ips":[{"address":"10.1.0.1/24","interface":0},{"address":"10.1.0.7/24","interface":1},
               {"address":"10.1.0.8/24","interface":1},{"address":"fd00::7/64"}]}}"#,
    )
    .unwrap();
    assert_eq!(
        config.addresses().unwrap(),
        ["10.1.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
    );
    let bad = Config::parse(r#"{"prevResult":{"ips":[{"address":"ten/24"}]}}"#).unwrap();
    assert_eq!(bad.addresses().unwrap_err().code, Code::InvalidConfig);
    assert_eq!(Config::parse("{}").unwrap().addresses().unwrap_err().code, Code::InvalidConfig);
}

/// The result of the plugin before is handed on as it was written, unknown fields and all.
#[test]
fn the_previous_result_is_passed_on_unchanged() {
    let result = "{ \"z\":1.0,\"a\" : [ 1e2 ], \"ips\":[]}";
    let config = format!("{{\"name\":\"n\",\"prevResult\":{result},\"type\":\"x\"}}");
    assert_eq!(previous_result(&config), Some(result));
    assert_eq!(previous_result("{\"name\":\"n\"}"), None);
}

/// A pod is known by the arguments of the kubelet; a container without them is none.
#[test]
fn a_pod_is_named_by_the_arguments() {
    let all = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";
    let pod = environment(&[("CNI_ARGS", all), ("CNI_CONTAINERID", "c")]).pod().unwrap().unwrap();
    assert_eq!(pod.ids().collect::<Vec<_>>(), ["shop/web-0/u-1", "shop/web-0"]);
    assert_eq!(pod.sandbox, "c");
    assert!(environment(&[("CNI_CONTAINERID", "c")]).pod().unwrap().is_none());
    let without = environment(&[("CNI_ARGS", all)]);
    assert_eq!(without.pod().unwrap_err().code, Code::InvalidEnvironment);
    assert_eq!(without.netns().unwrap_err().code, Code::InvalidEnvironment);
}

/// Versions that the plugin does not speak, and commands that there are not, are refused with the code for it.
#[test]
fn what_is_not_understood_is_refused() {
    for version in VERSIONS {
        let config = Config::parse(&format!("{{\"cniVersion\":\"{version}\"}}")).unwrap();
        assert!(config.check_version().is_ok(), "{version}");
    }
    let config = Config::parse("{\"cniVersion\":\"0.1.0\"}").unwrap();
    assert_eq!(config.check_version().unwrap_err().code, Code::IncompatibleVersion);
    assert_eq!(Command::parse("MOVE").unwrap_err().code, Code::InvalidEnvironment);
    assert_eq!(Config::parse("{").unwrap_err().code, Code::Decode);
}

/// An error is what the specification says one is.
#[test]
fn a_failure_has_a_code_and_a_message() {
    let said = Failure::new(Code::TryAgainLater, "not \"now\"").to_json("1.0.0");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"cniVersion": "1.0.0", "code": 11, "msg": "nodemesh-cni: not \"now\""})
    );
    let versions: serde_json::Value = serde_json::from_str(&versions()).unwrap();
    assert_eq!(versions["supportedVersions"].as_array().unwrap().len(), VERSIONS.len());
}
