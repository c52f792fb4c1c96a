use std::sync::Arc;

use super::*;
use crate::compile::MeshSettings;
use crate::compile::fixture::authz;
use crate::model::WorkloadId;
use crate::observe::{DecisionId, Party, Path};
use crate::world::fixture::{pod, put, world};

const DENY_WEB: &str =
    "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}";

fn meta(world: &World, direction: Direction, to: &str) -> ConnMeta {
    let (source, destination) = (Arc::clone(pod(world, "web")), Arc::clone(pod(world, to)));
    let address = SocketAddr::new(destination.addresses[0], 8080);
    ConnMeta {
        direction,
        path: Path::Local,
        source: Party::local(Arc::clone(&source), SocketAddr::new(source.addresses[0], 40_000)),
        destination: Party::local(destination, address),
        hbone_address: None,
        service: None,
        rule: None,
        decision_id: DecisionId::new(),
    }
}

fn views(world: &World) -> Vec<(u64, Arc<Workload>)> {
    vec![(1, Arc::clone(pod(world, "web"))), (2, Arc::clone(pod(world, "reviews")))]
}

fn table(world: &World) -> HashMap<(u64, SocketAddr), KernelAction> {
    let pods = views(world);
    let local: Vec<LocalView<'_>> = pods
        .iter()
        .map(|(cookie, workload)| LocalView { cookie: *cookie, workload, ports: vec![80, 8080] })
        .collect();
    let (table, left_out) = verdicts(world, "n1", &local, 100);
    assert_eq!(left_out, 0);
    table
}

#[test]
fn a_policy_change_cuts_what_it_refuses_where_it_is_judged() {
    let before = world(&[]);
    let after = world(&[authz("deny-web", DENY_WEB)]);
    for direction in [Direction::Local, Direction::Inbound] {
        let meta = meta(&before, direction, "reviews");
        assert_eq!(still_allowed(&before, &meta, false), None);
        assert_eq!(still_allowed(&after, &meta, false), Some(Reason::PolicyChanged));
    }
    // The other node's agent judges what leaves this one.
    let outbound = meta(&before, Direction::Outbound, "api");
    assert_eq!(still_allowed(&after, &outbound, false), None);
}

#[test]
fn an_identity_that_comes_on_the_deny_list_loses_its_connections_in_every_direction() {
    let before = world(&[]);
    for name in ["web", "api"] {
        let denied = Arc::new([pod(&before, name).identity.clone()].into());
        let mut after = before.clone();
        after.mesh = Arc::new(MeshSettings { denied, ..MeshSettings::default() });
        for direction in [Direction::Local, Direction::Inbound, Direction::Outbound] {
            let meta = meta(&before, direction, "api");
            assert_eq!(still_allowed(&before, &meta, false), None);
            assert_eq!(
                still_allowed(&after, &meta, false),
                Some(Reason::IdentityDenied),
                "{name} {direction:?}"
            );
        }
    }
    let mut after = before.clone();
    let denied = Arc::new([pod(&before, "web").identity.clone()].into());
    after.mesh = Arc::new(MeshSettings { denied, ..MeshSettings::default() });
    assert!(table(&after).values().all(|action| *action == KernelAction::Refuse), "the kernel refuses too");
    let source = pod(&after, "web");
    let plan = crate::decide::outbound::plan(&after, source, "192.0.2.1:80".parse().unwrap());
    assert_eq!(plan, crate::decide::outbound::OutboundPlan::Refuse(Reason::IdentityDenied));
}

#[test]
fn a_connection_ends_with_its_pod_and_not_with_its_enrolment() {
    let before = world(&[]);
    let meta = meta(&before, Direction::Local, "reviews");
    let mut gone = meta.clone();
    let mut other = Workload::clone(gone.destination.workload.as_ref().unwrap());
    other.id = WorkloadId("shop/reviews/of-another-life".into());
    gone.destination.workload = Some(Arc::new(other));
    assert_eq!(still_allowed(&before, &gone, false), Some(Reason::WorkloadGone));

    let mut withdrawn = world(&[authz("deny-web", DENY_WEB)]);
    let plain = "{name: shop, labels: {nodemesh.io/mesh: disabled}}";
    put(&mut withdrawn, &format!("apiVersion: v1\nkind: Namespace\nmetadata: {plain}\n"));
    assert_eq!(still_allowed(&withdrawn, &meta, false), None, "outside the mesh no policy speaks of it");
}

#[test]
fn the_kernel_is_told_of_every_pair_family_and_port_of_the_node() {
    let open = table(&world(&[]));
    assert_eq!(open.len(), 2 * 2 * 2, "two sources, two addresses of the other pod, two ports");
    assert!(open.values().all(|action| *action == KernelAction::Bypass));
    let denied = table(&world(&[authz("deny-web", DENY_WEB)]));
    for ((cookie, to), action) in denied {
        let expected = if cookie == 1 { KernelAction::Refuse } else { KernelAction::Bypass };
        assert_eq!(action, expected, "{cookie} to {to}");
    }
}

#[test]
fn a_table_that_does_not_fit_says_how_much_is_left_out() {
    let world = world(&[]);
    let pods = views(&world);
    let local: Vec<LocalView<'_>> = pods
        .iter()
        .map(|(cookie, workload)| LocalView { cookie: *cookie, workload, ports: vec![1, 2, 3] })
        .collect();
    let (table, left_out) = verdicts(&world, "n1", &local, 5);
    assert_eq!((table.len(), left_out), (5, 7));
}
