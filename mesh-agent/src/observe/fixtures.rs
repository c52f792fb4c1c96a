//! Workloads and Services for the tests of this folder.

use std::net::SocketAddr;
use std::sync::Arc;

use super::meta::{ConnMeta, DecisionId, Direction, Party, Path};
use crate::model::{Balance, Identity, Labels, Service, ServiceId, Workload, WorkloadId};

pub(super) fn workload(name: &str, address: &str) -> Arc<Workload> {
    let labels = Labels::from([("app".to_owned(), name.to_owned()), ("version".to_owned(), "v1".to_owned())]);
    Arc::new(Workload {
        id: WorkloadId(format!("shop/{name}-0").into()),
        name: format!("{name}-0").into(),
        namespace: "shop".into(),
        identity: Identity::new("cluster.local", "shop", name).unwrap(),
        addresses: vec![address.parse().unwrap()],
        node: "node-a".into(),
        labels: Arc::new(labels),
        locality: "".into(),
        enrolled: true,
        netns: None,
        containers: Box::default(),
        workload_name: name.into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        ended: false,
        host_network: false,
    })
}

pub(super) fn service(name: &str) -> Arc<Service> {
    Arc::new(Service {
        id: ServiceId(format!("shop/{name}").into()),
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        vips: vec!["10.96.0.10".parse().unwrap()],
        ports: Vec::new(),
        balance: Balance::RoundRobin,
    })
}

pub(super) fn meta(direction: Direction, path: Path) -> ConnMeta {
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    ConnMeta {
        direction,
        path,
        source: Party::local(workload("frontend", "10.1.0.2"), address("10.1.0.2:40000")),
        destination: Party::local(workload("reviews", "10.2.0.3"), address("10.2.0.3:9080")),
        hbone_address: (path == Path::Hbone).then(|| address("10.2.0.3:15008")),
        service: Some(service("reviews")),
        rule: None,
        decision_id: DecisionId(0x0123_4567_89ab_cdef),
    }
}
