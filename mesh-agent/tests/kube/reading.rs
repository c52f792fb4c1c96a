//! The first read, what follows, kinds that come late, rights that are missing.

use mesh_agent::compile::Kind;
use mesh_agent::source::kube::KindState;
use mesh_tests::ApiServer;

use crate::kit::{
    Watching, definition, namespace, peer_authentication, pod, service, set_address, settings, slice,
};

#[test]
fn a_cluster_is_read_as_a_whole_and_then_followed_change_by_change() {
    let api = ApiServer::start().unwrap();
    api.apply(&format!("{}{}{}", namespace(true), pod("a"), service())).unwrap();
    set_address(&api, "a", "10.244.1.5");
    api.apply(&slice("a", "10.244.1.5")).unwrap();
    let watching = Watching::synced(settings(api.admin_kubeconfig()));
    let a = watching.pod("a").expect("the pod was there before the source");
    assert!(a.enrolled);
    assert_eq!(a.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(a.uid().is_some_and(|uid| uid.len() == 36), "{:?}", a.id);
    let vip = watching.world().services().find(|service| &*service.name == "web").unwrap().vips[0];
    let world = watching.world();
    let endpoint = &world.service_at(vip).unwrap().ports[0].endpoints[0];
    assert_eq!(endpoint.workload.as_ref(), Some(&a.id));

    api.apply(&pod("b")).unwrap();
    watching.until("a new pod", |this| this.pod("b").is_some());
    set_address(&api, "b", "10.244.1.6");
    let took =
        watching.until("its address", |this| this.pod("b").is_some_and(|pod| !pod.addresses.is_empty()));
    eprintln!("an address was in force {took:?} after the API server's answer");
    api.apply(&namespace(false)).unwrap();
    watching.until("the namespace's label", |this| this.pod("a").is_some_and(|pod| !pod.enrolled));
    api.kubectl(&["delete", "pod", "b", "-n", "shop", "--grace-period=0", "--force"]).unwrap();
    watching.until("the pod's end", |this| this.pod("b").is_none());
    let status = watching.status();
    assert_eq!(status.stale_since(), None);
    assert_eq!(status.kinds[&Kind::Pod].version, Some("v1"));
}

#[test]
fn pages_give_the_same_world_as_a_list_by_a_watch() {
    let api = ApiServer::start().unwrap();
    let pods: String = ["a", "b", "c", "d", "e"].map(pod).concat();
    api.apply(&format!("{}{pods}", namespace(true))).unwrap();
    let names = |watching: &Watching| -> Vec<String> {
        let world = watching.world();
        world.workloads().map(|workload| workload.name.to_string()).collect()
    };
    let streamed = Watching::synced(settings(api.admin_kubeconfig()));
    let mut paged = settings(api.admin_kubeconfig());
    paged.pages = Some(2);
    let paged = Watching::synced(paged);
    assert_eq!(names(&paged), ["a", "b", "c", "d", "e"]);
    assert_eq!(names(&paged), names(&streamed));
    api.apply(&pod("f")).unwrap();
    for watching in [&paged, &streamed] {
        watching.until("a pod after the list", |this| this.pod("f").is_some());
    }
}

#[test]
fn a_kind_that_is_installed_late_is_picked_up_and_given_up_when_its_definition_goes() {
    let api = ApiServer::start().unwrap();
    api.apply(&namespace(true)).unwrap();
    let watching = Watching::synced(settings(api.admin_kubeconfig()));
    assert_eq!(watching.state(Kind::PeerAuthentication), KindState::NotInstalled);
    assert_eq!(watching.status().stale_since(), None, "what is not there is not missing");
    // An older Istio serves only v1beta1.
    api.apply(&definition("v1beta1")).unwrap();
    watching.until("the new kind", |this| this.state(Kind::PeerAuthentication) == KindState::Following);
    assert_eq!(watching.status().kinds[&Kind::PeerAuthentication].version, Some("v1beta1"));
    api.apply(&peer_authentication("v1beta1", "STRICT")).unwrap();
    watching.until("the policy", |this| this.world().all_peer_auths().count() == 1);
    assert_eq!(watching.state(Kind::AuthorizationPolicy), KindState::NotInstalled);
    api.kubectl(&["delete", "crd", "peerauthentications.security.istio.io"]).unwrap();
    watching.until("the policy's end", |this| this.world().all_peer_auths().count() == 0);
    watching.until("the kind's end", |this| this.state(Kind::PeerAuthentication) == KindState::NotInstalled);
}

#[test]
fn a_denial_names_resource_verb_and_role_and_ends_when_the_right_is_given() {
    let api = ApiServer::start().unwrap();
    let watching = Watching::start(settings(api.kubeconfig_for("watcher", None).unwrap()));
    watching.until("the denial of the settings", |this| {
        this.status().waiting().iter().any(|text| {
            text.contains("list on configmaps named nodemesh in namespace nodemesh-system")
                && text.contains("Role nodemesh-agent in namespace nodemesh-system")
        })
    });
    assert!(!watching.handle.is_synced());
    let rights = |resources: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: nodemesh-agent}}\nrules:\n\
             - {{apiGroups: [\"\"], resources: [{resources}], verbs: [get, list, watch]}}\n\
             - {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: nodemesh-agent}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nodemesh-agent}}\n\
             subjects: [{{kind: User, name: watcher, apiGroup: rbac.authorization.k8s.io}}]\n"
        )
    };
    api.apply(&rights("configmaps, namespaces, nodes, services")).unwrap();
    watching.until("only pods are denied", |this| {
        this.state(Kind::Service) == KindState::Following && this.state(Kind::Pod) == KindState::Failing
    });
    let (problem, remedy) = watching.status().kinds[&Kind::Pod].text.clone().unwrap();
    assert!(
        problem.contains("watch on pods") && remedy.contains("list and watch pods"),
        "{problem}; {remedy}"
    );
    assert!(!watching.handle.is_synced(), "without the pods the agent must not be ready");
    api.apply(&rights("configmaps, namespaces, nodes, services, pods")).unwrap();
    watching.until("everything is read", |this| this.handle.is_synced());
    watching.until("nothing is stale", |this| this.status().stale_since().is_none());
}
