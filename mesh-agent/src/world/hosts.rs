//! From a host name, as clients and routes write it, to the Service it means.

use std::borrow::Cow;
use std::sync::Arc;

use super::World;
use super::few::Few;
use super::traffic::patterns;
use crate::compile::traffic::EntryEndpoints;
use crate::decide::route::host_of;
use crate::model::{AppProtocol, Service, ServiceId};

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

    /// The ServiceEntry without addresses that a request to an address of nobody means: that of its host (a wildcard, the
    /// narrowest first) which has the port that was dialled and is exported to the client. Istio's listener of that
    /// port without an address, and the virtual hosts of its routes.
    pub fn entry_by_host(&self, host: &str, port: u16, from_namespace: &str) -> Option<&Arc<Service>> {
        let at_port = self.unaddressed.get(&port)?;
        let host = host_of(host).trim_end_matches('.').to_ascii_lowercase();
        patterns(&host).find_map(|pattern| {
            let ids = self.hosts.get(&*pattern)?;
            let here = ids.iter().filter(|id| at_port.iter().any(|one| one == *id)).cloned();
            let here = here.fold(Few::default(), |mut few, id| {
                few.insert(id);
                few
            });
            self.of_host(&here, from_namespace)
        })
    }

    /// What may be spoken on a port of addresses that are nobody's: what the ServiceEntries without addresses that this
    /// namespace sees say of it. None = none of them has the port, or none of them is HTTP.
    pub fn unaddressed_http(&self, port: u16, from_namespace: &str) -> Option<AppProtocol> {
        let ids = self.unaddressed.get(&port)?;
        let visible = ids
            .iter()
            .filter(|id| self.entries.get(*id).is_some_and(|entry| entry.export.includes(from_namespace)));
        let said = visible.filter_map(|id| Some(self.services.get(id)?.port(port)?.protocol));
        said.fold(None, |found, protocol| match protocol {
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => Some(protocol),
            AppProtocol::Auto => found.or(Some(protocol)),
            AppProtocol::Tcp | AppProtocol::Tls => found,
        })
    }

    /// Whether it is a ServiceEntry without addresses.
    pub fn is_unaddressed(&self, service: &Service) -> bool {
        service.vips.is_empty() && self.entries.contains_key(&service.id)
    }

    /// Whether a Service's connections go to the address that the client dialled: a ServiceEntry whose endpoints nobody
    /// lists.
    pub fn goes_as_dialled(&self, service: &Service) -> bool {
        self.entries.get(&service.id).is_some_and(|entry| entry.endpoints == EntryEndpoints::AsDialled)
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
