//! The API server goes and comes back; what happened meanwhile is seen, and nothing else is disturbed.

use std::time::Duration;

use mesh_agent::compile::Kind;
use mesh_agent::source::kube::KindState;
use mesh_tests::ApiServer;

use crate::gate::Gate;
use crate::kit::{Watching, definition, namespace, peer_authentication, pod, settings};

#[test]
fn ten_seconds_without_the_api_server_leave_the_world_as_it_was_and_the_status_says_so() {
    let api = ApiServer::start().unwrap();
    api.apply(&definition("v1")).unwrap();
    api.apply(&format!("{}{}", namespace(true), pod("a"))).unwrap();
    let watching = Watching::start(settings(api.admin_kubeconfig()));
    watching.until("the policies are followed", |this| {
        this.state(Kind::PeerAuthentication) == KindState::Following
    });
    api.apply(&peer_authentication("v1", "STRICT")).unwrap();
    watching.until("the policy", |this| this.world().all_peer_auths().count() == 1);
    let before = watching.world();
    api.kill().unwrap();
    watching.until("the loss is noticed", |this| this.status().stale_since().is_some());
    let since = watching.status().stale_since().unwrap();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(watching.status().stale_since(), Some(since), "stale since the first failure, not the last");
    let (problem, _) = watching.status().kinds[&Kind::Pod].text.clone().unwrap();
    assert!(problem.contains("does not answer"), "{problem}");
    api.boot().unwrap();
    // A server that starts knows its custom kinds last: the policy must not lapse meanwhile.
    let took = watching.until("the world is current again", |this| {
        assert_eq!(this.world().all_peer_auths().count(), 1, "the policy lapsed");
        this.status().stale_since().is_none()
    });
    eprintln!("current again {took:?} after the server's return");
    assert_eq!(watching.world().version, before.version, "nothing had changed, so nothing was published");
    api.apply(&pod("b")).unwrap();
    watching.until("a change after the outage", |this| this.pod("b").is_some());
}

#[test]
fn after_a_gap_that_the_server_has_forgotten_only_the_differences_are_published() {
    let api = ApiServer::start().unwrap();
    api.apply(&format!("{}{}{}{}", namespace(true), pod("a"), pod("b"), pod("c"))).unwrap();
    let gate = Gate::before(&api);
    let watching = Watching::synced(settings(gate.kubeconfig(&api)));
    let before = watching.world();
    gate.close();
    watching.until("the loss is noticed", |this| this.status().stale_since().is_some());
    api.kubectl(&["delete", "pod", "b", "-n", "shop", "--grace-period=0", "--force"]).unwrap();
    api.apply(&pod("d")).unwrap();
    // The server's memory of changes begins anew with it: to go on after the last one seen is «410 Gone».
    api.kill().unwrap();
    api.boot().unwrap();
    assert!(watching.pod("b").is_some() && watching.pod("d").is_none(), "the source is cut off");
    gate.open();
    watching.until("both differences", |this| this.pod("b").is_none() && this.pod("d").is_some());
    watching.until("the world is current again", |this| this.status().stale_since().is_none());
    let after = watching.world();
    for name in ["a", "c"] {
        let (was, is) = (before.pod("shop", name).unwrap(), after.pod("shop", name).unwrap());
        assert!(std::sync::Arc::ptr_eq(was, is), "{name} was told again though nothing has changed");
    }
}
