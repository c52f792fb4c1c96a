//! The mesh-wide settings: in force from the start, and followed as far as they can be.

use mesh_agent::compile::{Kind, mesh_config};
use mesh_tests::ApiServer;

use crate::kit::{Watching, namespace, pod, settings};

fn config_map(mesh: &str) -> String {
    let indented: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: nodemesh-system}}\n---\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {{name: nodemesh, namespace: nodemesh-system}}\ndata:\n  mesh: |\n{indented}"
    )
}

#[test]
fn the_trust_domain_is_read_before_anything_else_and_a_change_of_it_asks_for_a_restart() {
    let api = ApiServer::start().unwrap();
    api.apply(&config_map("trustDomain: example.org\naccessLogFile: ''")).unwrap();
    api.apply(&format!("{}{}", namespace(true), pod("a"))).unwrap();
    let watching = Watching::synced(settings(api.admin_kubeconfig()));
    let identity = |this: &Watching| this.pod("a").unwrap().identity.to_string();
    assert_eq!(identity(&watching), "spiffe://example.org/ns/shop/sa/web");
    assert_eq!(mesh_config::access_log(&watching.world().config), Some(false));
    let mut own = settings(api.admin_kubeconfig());
    own.own_trust_domain = true;
    assert_eq!(identity(&Watching::synced(own)), "spiffe://cluster.local/ns/shop/sa/web");

    api.apply(&config_map("trustDomain: example.net\naccessLogFile: /dev/stdout\nextensionProviders: []"))
        .unwrap();
    watching.until("the access log", |this| mesh_config::access_log(&this.world().config) == Some(true));
    assert_eq!(identity(&watching), "spiffe://example.org/ns/shop/sa/web");
    let world = watching.world();
    let shown = mesh_config::settings(&world.config, &world.mesh);
    let waiting: Vec<_> = shown.iter().filter(|one| !one.in_force).map(|one| one.field).collect();
    assert_eq!(waiting, ["trustDomain", "extensionProviders"]);

    // A slip leaves what was in force, and says so.
    api.apply(&config_map("accessLogFile: [1]")).unwrap();
    watching.until("the finding", |this| !this.world().diagnostics().is_empty());
    let finding = watching.world().diagnostics()[0].to_string();
    assert!(
        finding.contains("accessLogFile") && finding.contains("the settings before stay in force"),
        "{finding}"
    );
    assert_eq!(mesh_config::access_log(&watching.world().config), Some(true));
    api.kubectl(&["delete", "configmap", "nodemesh", "-n", "nodemesh-system"]).unwrap();
    watching.until("no settings", |this| mesh_config::access_log(&this.world().config).is_none());
    watching.until("no finding", |this| this.world().diagnostics().is_empty());
    assert_eq!(watching.status().kinds[&Kind::MeshConfig].version, Some("v1"));
}
