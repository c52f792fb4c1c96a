//! ServiceEntry and WorkloadEntry: hosts that are no Services of the cluster, and workloads that are no pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::reader::ExportTo;
use super::{Reader, istio, object_ref};
use crate::api::istio::networking::{
    EntryPort, Resolution, ServiceEntry, ServiceEntrySpec, WorkloadEntry, WorkloadEntrySpec,
};
use crate::compile::service::protocol;
use crate::compile::{Compiled, Head, Kind, Object, PortFacts, pod};
use crate::model::{Labels, PolicyRef};

/// One ServiceEntry.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ServiceEntryFacts {
    pub object: PolicyRef,
    /// Seconds since 1970, 0 when unknown.
    pub created: i64,
    /// In lower case.
    pub hosts: Vec<Arc<str>>,
    pub vips: Vec<IpAddr>,
    /// Each with the port at its endpoints, where that is another.
    pub ports: Vec<(PortFacts, u16)>,
    pub endpoints: EntryEndpoints,
    pub export: ExportTo,
}

/// Where a ServiceEntry's connections go.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum EntryEndpoints {
    /// Where the client meant them to go: NONE, and DNS where the host is what is resolved, which the client has done.
    AsDialled,
    Static(Vec<WorkloadEntryFacts>),
    /// Pods and WorkloadEntries of the namespace with these labels.
    Selected(Labels),
}

/// A workload that is no pod.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WorkloadEntryFacts {
    pub address: IpAddr,
    /// Port names with the ports that stand for them here.
    pub ports: BTreeMap<String, u16>,
    pub labels: Labels,
    pub service_account: Arc<str>,
}

pub(in crate::compile) fn compile(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let compiled = istio::<ServiceEntry, _>(head, value, out, |reader, object| {
        let created = pod::created(&object.metadata);
        understood(reader, &object.spec, created)
    });
    if let Some(facts) = compiled {
        out.objects.push((head.key(Kind::ServiceEntry), Object::ServiceEntry(Box::new(facts))));
    }
}

pub(in crate::compile) fn workload(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let compiled = istio::<WorkloadEntry, _>(head, value, out, |reader, object| {
        workload_entry(reader, "spec", &object.spec)
    });
    if let Some(Some(facts)) = compiled {
        out.objects.push((head.key(Kind::WorkloadEntry), Object::WorkloadEntry(Box::new(facts))));
    }
}

fn understood(reader: &mut Reader<'_>, spec: &ServiceEntrySpec, created: i64) -> ServiceEntryFacts {
    let mut hosts = Vec::new();
    for (index, host) in spec.hosts.iter().flatten().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if host == "*" {
            reader.fault(&field, "would be every host", "name the hosts that are meant");
        }
        // A host of a ServiceEntry is a full name, with or without a dot.
        hosts.extend(reader.host(&field, host, true).map(|_full| Arc::from(host.to_ascii_lowercase())));
    }
    if hosts.is_empty() {
        reader.fault("spec.hosts", "is missing", "name at least one host");
    }
    let mut vips = Vec::new();
    for (index, text) in spec.addresses.iter().flatten().enumerate() {
        let address = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
        match address.parse() {
            Ok(address) => vips.push(address),
            Err(_not_an_address) => reader.fault(
                &format!("spec.addresses[{index}]"),
                &format!("`{text}` is not a single address"),
                "list the addresses one by one",
            ),
        }
    }
    if spec.subject_alt_names.iter().flatten().next().is_some() {
        let message = "is not supported: the agent makes no TLS of its own to hosts outside the mesh";
        reader.fault("spec.subjectAltNames", message, "remove it");
    }
    ServiceEntryFacts {
        object: object_ref(reader.head, Kind::ServiceEntry.name()),
        created,
        hosts,
        vips,
        ports: ports(reader, spec.ports.as_deref().unwrap_or_default()),
        endpoints: endpoints(reader, spec),
        export: reader.export_to(spec.export_to.as_ref()),
    }
}

fn ports(reader: &mut Reader<'_>, listed: &[EntryPort]) -> Vec<(PortFacts, u16)> {
    let mut ports: Vec<(PortFacts, u16)> = Vec::new();
    for (index, port) in listed.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let number = reader.port(&format!("{field}.number"), Some(port.number.unwrap_or(0)));
        let target = reader.port(&format!("{field}.targetPort"), port.target_port.filter(|port| *port != 0));
        let Some(number) = number else { continue };
        if ports.iter().any(|(other, _)| other.port == number) {
            reader.fault(
                &format!("{field}.number"),
                &format!("{number} is listed twice"),
                "keep one of the two",
            );
            continue;
        }
        let name: Arc<str> = port.name.as_deref().unwrap_or_default().into();
        let protocol = protocol(port.protocol.as_deref().filter(|text| !text.is_empty()), &name);
        ports.push((PortFacts { name, port: number, protocol }, target.unwrap_or(number)));
    }
    if ports.is_empty() {
        reader.fault("spec.ports", "is missing", "list the ports that clients use");
    }
    ports
}

fn endpoints(reader: &mut Reader<'_>, spec: &ServiceEntrySpec) -> EntryEndpoints {
    let listed = spec.endpoints.as_deref().unwrap_or_default();
    let selector = spec.workload_selector.as_ref().and_then(|selector| selector.labels.clone());
    let resolution = spec.resolution.unwrap_or(Resolution::None);
    if let Some(labels) = selector.filter(|labels| !labels.is_empty()) {
        if !listed.is_empty() {
            let message = "stands beside endpoints";
            reader.fault("spec.workloadSelector", message, "keep one of the two");
        }
        if resolution == Resolution::None {
            let message = "needs resolution STATIC";
            reader.fault("spec.workloadSelector", message, "set spec.resolution to STATIC");
        }
        return EntryEndpoints::Selected(labels);
    }
    match resolution {
        Resolution::None if !listed.is_empty() => {
            reader.fault("spec.endpoints", "has no meaning with resolution NONE", "set resolution to STATIC");
        }
        Resolution::Static if listed.is_empty() => {
            let message = "is missing, which resolution STATIC needs";
            reader.fault("spec.endpoints", message, "list the endpoints' addresses");
        }
        Resolution::Dns
        | Resolution::DnsRoundRobin
        | Resolution::DynamicDns
        | Resolution::None
        | Resolution::Static => {}
    }
    if listed.is_empty() {
        return EntryEndpoints::AsDialled;
    }
    let mut all = Vec::with_capacity(listed.len());
    for (index, one) in listed.iter().enumerate() {
        all.extend(workload_entry(reader, &format!("spec.endpoints[{index}]"), one));
    }
    EntryEndpoints::Static(all)
}

fn workload_entry(
    reader: &mut Reader<'_>,
    field: &str,
    spec: &WorkloadEntrySpec,
) -> Option<WorkloadEntryFacts> {
    let text = spec.address.as_deref().unwrap_or_default();
    if spec.weight.is_some_and(|weight| weight > 1) {
        reader.fault(&format!("{field}.weight"), "is not supported by this version", "remove it");
    }
    let mut ports = BTreeMap::new();
    for (name, port) in spec.ports.iter().flatten() {
        let port = reader.port(&format!("{field}.ports.{name}"), Some(*port));
        ports.extend(port.map(|port| (name.clone(), port)));
    }
    let Ok(address) = text.parse() else {
        reader.fault(
            &format!("{field}.address"),
            &format!("`{text}` is not an address, and names are not resolved by this version"),
            "write an address; or leave endpoints out, so that connections go where the client resolved the host to",
        );
        return None;
    };
    let account = spec.service_account.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    Some(WorkloadEntryFacts {
        address,
        ports,
        labels: spec.labels.clone().unwrap_or_default(),
        service_account: account.into(),
    })
}
