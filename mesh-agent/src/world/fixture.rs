//! The shop that tests decide about.

use std::sync::Arc;

use super::*;
use crate::compile::fixture::compile;

/// Namespace `shop` with `web` and `reviews` on n1 and `api` on n2, `other/ext` on n2 outside the mesh, and the
/// Service `reviews` (10.96.0.1:80 to 8080).
pub(crate) const SHOP: &str = r"apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {nodemesh.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews, namespace: shop, labels: {app: reviews, version: v1}}
spec: {nodeName: n1, serviceAccountName: reviews, containers: []}
status: {podIPs: [{ip: 10.1.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n2, serviceAccountName: api, containers: []}
status: {podIPs: [{ip: 10.2.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ext, namespace: other, labels: {app: reviews}}
spec: {nodeName: n2, containers: []}
status: {podIPs: [{ip: 10.2.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2], nodeName: n1, targetRef: {kind: Pod, name: reviews}}]
ports: [{name: http, port: 8080}]
";

pub(crate) fn world(texts: &[String]) -> World {
    let mut world = World::new(MeshSettings::default());
    put(&mut world, SHOP);
    texts.iter().for_each(|text| put(&mut world, text));
    world
}

pub(crate) fn put(world: &mut World, text: &str) {
    for (key, object) in compile(text).objects {
        world.apply(Change::Put(key, Box::new(object)));
    }
}

pub(crate) fn pod<'a>(world: &'a World, name: &str) -> &'a Arc<Workload> {
    world.pod("shop", name).unwrap()
}
