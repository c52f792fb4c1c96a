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
use crate::model::{Identity, Labels, PolicyRef};

/// Istio's label for the network of an endpoint.
const NETWORK_LABEL: &str = "topology.istio.io/network";
/// RFC 1035, 2.3.4, without the root's dot.
const NAME_MAX_BYTES: usize = 253;

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
    /// None = names are not resolved.
    pub names: Option<NameUse>,
    pub export: ExportTo,
    /// Who a server of it may say it is, where its DestinationRule says nothing.
    pub subject_alt_names: Vec<Arc<str>>,
}

/// Which of a name's addresses are endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum NameUse {
    /// DNS: every address.
    All,
    /// DNS_ROUND_ROBIN: the first of the name server's last answer.
    First,
}

/// Where a ServiceEntry's connections go.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum EntryEndpoints {
    /// Where the client meant them to go: NONE, DYNAMIC_DNS.
    AsDialled,
    /// The addresses of the host itself.
    Host,
    Listed(Vec<WorkloadEntryFacts>),
    /// Pods and WorkloadEntries of the namespace with these labels.
    Selected(Labels),
}

/// A workload that is no pod.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WorkloadEntryFacts {
    pub address: EntryAddress,
    /// Port names with the ports that stand for them here.
    pub ports: BTreeMap<String, u16>,
    pub labels: Labels,
    pub service_account: Arc<str>,
    /// Its share beside the other endpoints' weights; at least 1.
    pub weight: u32,
    /// `region/zone/subzone`; empty = unknown.
    pub locality: Arc<str>,
}

impl WorkloadEntryFacts {
    /// An endpoint of which only the address is known.
    pub fn at(address: EntryAddress) -> Self {
        Self {
            address,
            ports: BTreeMap::new(),
            labels: Labels::new(),
            service_account: "default".into(),
            weight: 1,
            locality: "".into(),
        }
    }
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum EntryAddress {
    Ip(IpAddr),
    /// In lower case, without the root's dot.
    Name(Arc<str>),
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
    let ports = ports(reader, spec.ports.as_deref().unwrap_or_default());
    let endpoints = endpoints(reader, spec);
    if let EntryEndpoints::Listed(listed) = &endpoints {
        for (index, one) in listed.iter().enumerate() {
            for name in one.ports.keys().filter(|name| !ports.iter().any(|(port, _)| *port.name == ***name)) {
                let field = format!("spec.endpoints[{index}].ports.{name}");
                reader.fault(&field, "is no port of the entry", "write the name of one of spec.ports");
            }
        }
    }
    if endpoints == EntryEndpoints::Host {
        for (index, host) in
            hosts.iter().enumerate().filter(|(_, host): &(usize, &Arc<str>)| host.contains('*'))
        {
            reader.fault(
                &format!("spec.hosts[{index}]"),
                &format!("`{host}` is a wildcard, which no name server knows"),
                "list endpoints, name the hosts one by one, or set spec.resolution to NONE",
            );
        }
    }
    ServiceEntryFacts {
        object: object_ref(reader.head, Kind::ServiceEntry.name()),
        created,
        hosts,
        vips,
        ports,
        endpoints,
        names: name_use(spec.resolution.unwrap_or(Resolution::None)),
        export: reader.export_to(spec.export_to.as_ref()),
        subject_alt_names: spec.subject_alt_names.iter().flatten().map(|name| name.as_str().into()).collect(),
    }
}

fn name_use(resolution: Resolution) -> Option<NameUse> {
    match resolution {
        Resolution::Dns => Some(NameUse::All),
        Resolution::DnsRoundRobin => Some(NameUse::First),
        Resolution::None | Resolution::Static | Resolution::DynamicDns => None,
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
        if matches!(resolution, Resolution::None | Resolution::DynamicDns) {
            let message = "needs resolution STATIC or DNS";
            reader.fault("spec.workloadSelector", message, "set spec.resolution to STATIC");
        }
        return EntryEndpoints::Selected(labels);
    }
    match resolution {
        Resolution::None | Resolution::DynamicDns if !listed.is_empty() => {
            reader.fault(
                "spec.endpoints",
                "has no meaning with this resolution",
                "set resolution to STATIC or DNS",
            );
        }
        Resolution::Static if listed.is_empty() => {
            let message = "is missing, which resolution STATIC needs";
            reader.fault("spec.endpoints", message, "list the endpoints' addresses");
        }
        Resolution::DnsRoundRobin if listed.len() > 1 => {
            let message = "has more than one endpoint, which resolution DNS_ROUND_ROBIN does not take";
            reader.fault("spec.endpoints", message, "keep one, or set resolution to DNS");
        }
        Resolution::Dns
        | Resolution::DnsRoundRobin
        | Resolution::DynamicDns
        | Resolution::None
        | Resolution::Static => {}
    }
    if listed.is_empty() {
        return if name_use(resolution).is_some() { EntryEndpoints::Host } else { EntryEndpoints::AsDialled };
    }
    let mut all = Vec::with_capacity(listed.len());
    for (index, one) in listed.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        let facts = workload_entry(reader, &field, one);
        if let Some(WorkloadEntryFacts { address: EntryAddress::Name(name), .. }) = &facts
            && name_use(resolution).is_none()
        {
            reader.fault(
                &format!("{field}.address"),
                &format!("`{name}` is not an address"),
                "write an address, or set spec.resolution to DNS",
            );
        }
        all.extend(facts);
    }
    EntryEndpoints::Listed(all)
}

fn workload_entry(
    reader: &mut Reader<'_>,
    field: &str,
    spec: &WorkloadEntrySpec,
) -> Option<WorkloadEntryFacts> {
    let mut ports = BTreeMap::new();
    for (name, port) in spec.ports.iter().flatten() {
        let port = reader.port(&format!("{field}.ports.{name}"), Some(*port));
        ports.extend(port.map(|port| (name.clone(), port)));
    }
    let account = spec.service_account.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let head = reader.head;
    if let Err(error) = Identity::new(&head.context.mesh.trust_domain, &head.namespace, account) {
        let remedy = "use a name that Kubernetes would accept";
        reader.fault(&format!("{field}.serviceAccount"), &error.to_string(), remedy);
    }
    let locality = spec.locality.as_deref().unwrap_or_default();
    if locality.split('/').count() > 3 {
        let message = format!("`{locality}` is not a locality");
        reader.fault(&format!("{field}.locality"), &message, "write region/zone/subzone");
    }
    let mut labels = spec.labels.clone().unwrap_or_default();
    // As Istio does: priorities by label then know the network too.
    if let Some(network) = spec.network.as_ref().filter(|network| !network.is_empty()) {
        labels.entry(NETWORK_LABEL.to_owned()).or_insert_with(|| network.clone());
    }
    Some(WorkloadEntryFacts {
        address: address(reader, &format!("{field}.address"), spec.address.as_deref().unwrap_or_default())?,
        ports,
        labels,
        service_account: account.into(),
        // 0 is «unset» to Istio.
        weight: spec.weight.unwrap_or(1).max(1),
        locality: locality.into(),
    })
}

fn address(reader: &mut Reader<'_>, field: &str, text: &str) -> Option<EntryAddress> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(EntryAddress::Ip(address.to_canonical()));
    }
    let name = text.trim_end_matches('.');
    let whole = name.len() <= NAME_MAX_BYTES && name.contains('.');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if whole && name.split('.').all(label) {
        return Some(EntryAddress::Name(name.to_ascii_lowercase().into()));
    }
    reader.fault(
        field,
        &format!("`{text}` is neither an address nor a full name"),
        "write an IPv4 or IPv6 address, or with resolution DNS a name such as api.example.com",
    );
    None
}
