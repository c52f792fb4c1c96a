//! Several replicas: one root, one leader, and a CA on each.
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::eventually;
use serde_json::Value;

use crate::stage::{SOON, Stage};

/// Two that start at once agree on one root, both sign, and one leads. A leader that ends in order hands over at once;
/// one that is killed does when its lease has run out.
#[test]
fn two_replicas_share_a_root_and_hand_the_lease_over() -> Result<()> {
    let stage = Stage::open()?;
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| stage.controller("two", &[]));
        (stage.controller("one", &[]), other.join())
    });
    let (one, two) = (one?, two.map_err(|_panic| anyhow::anyhow!("a thread panicked"))??);
    ensure!(stage.bundle()?.matches("BEGIN").count() == 1, "two roots were made");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let token = stage.token("nodemesh-agent", Some("agent-1"), "istio-ca")?;
    for controller in [&one, &two] {
        let agent = stage.agent(controller, &token)?;
        runtime.block_on(agent.ask("web")).map_err(anyhow::Error::msg)?;
    }
    eventually("one to lead", SOON, || Ok(one.leads()? != two.leads()?))?;
    let (leader, follower) = if one.leads()? { (one, two) } else { (two, one) };
    ensure!(holder(&stage)? == leader.id, "the lease names another");

    leader.terminate()?;
    let took = eventually("the follower to lead", SOON, || follower.leads())?;
    ensure!(took < Duration::from_secs(10), "a released lease was taken only after {took:?}");
    let third = stage.controller("three", &[])?;
    ensure!(!third.leads()?, "two lead");
    drop(follower);
    let took = eventually("the third to lead", Duration::from_secs(40), || third.leads())?;
    ensure!(took > Duration::from_secs(5), "a lease that was not released was taken after {took:?}");
    ensure!(holder(&stage)? == "three");
    Ok(())
}

fn holder(stage: &Stage) -> Result<String> {
    let path = "/apis/coordination.k8s.io/v1/namespaces/nodemesh-system/leases/nodemesh-controller";
    let lease = stage.server.object(path)?.unwrap_or_default();
    Ok(lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default().to_owned())
}
