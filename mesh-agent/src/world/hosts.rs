//! From a host name, as clients and routes write it, to the Service it means.

use std::borrow::Cow;
use std::sync::Arc;

use super::World;
use super::few::Few;
use crate::decide::route::host_of;
use crate::model::{Service, ServiceId};

impl World {
    /// As the pods' resolver would: the name itself if it is fully qualified, else with what `search` of a pod of
    /// this namespace adds.
    pub(super) fn find_host(&self, host: &str, from_namespace: &str) -> Option<&Arc<Service>> {
        let host = host_of(host).trim_end_matches('.');
        let host: Cow<'_, str> = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            host.to_ascii_lowercase().into()
        } else {
            host.into()
        };
        if let Some(ids) = self.hosts.get(&*host) {
            return self.of_host(ids, from_namespace);
        }
        // The narrowest wildcard of a ServiceEntry.
        let mut wild =
            host.match_indices('.').filter_map(|(at, _)| self.hosts.get(&*format!("*{}", &host[at..])));
        if let Some(found) = wild.find_map(|ids| self.of_host(ids, from_namespace)) {
            return Some(found);
        }
        let mut labels = host.split('.');
        let (name, namespace, svc) = (labels.next()?, labels.next(), labels.next());
        if labels.next().is_some() || svc.is_some_and(|svc| svc != "svc") {
            return None;
        }
        let namespace = namespace.unwrap_or(from_namespace);
        let full = format!("{name}.{namespace}.svc.{}", self.mesh.cluster_domain);
        self.of_host(self.hosts.get(&*full)?, from_namespace)
    }

    /// Of several Services with one name, the one of the client's namespace.
    fn of_host(&self, ids: &Few<ServiceId>, from_namespace: &str) -> Option<&Arc<Service>> {
        let visible =
            |id: &&ServiceId| self.entries.get(*id).is_none_or(|entry| entry.export.includes(from_namespace));
        let ids = || ids.iter().filter(visible);
        let own = ids().find(|id| id.0.split_once('/').is_some_and(|(ns, _)| ns == from_namespace));
        self.services.get(own.or_else(|| ids().next())?)
    }
}
