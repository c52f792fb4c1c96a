//! Service and EndpointSlice into facts; the world crosses the two.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::Endpoint;
use serde_json::Value;

use super::pod::named;
use super::{Compiled, EndpointFacts, Head, Kind, Object, PortFacts, ServiceFacts, SliceFacts, typed};
use crate::api::names::{BALANCE_ANNOTATION, SERVICE_NAME_LABEL};
use crate::api::{EndpointSlice, Service};
use crate::model::{AppProtocol, Balance};

pub(super) fn service(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<Service>(head, value, &mut out.diagnostics);
    let object: Service = match typed::read(head, value) {
        Ok(object) => object,
        Err(diagnostic) => return out.diagnostics.push(*diagnostic),
    };
    if !named(head, out) {
        return;
    }
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(BALANCE_ANNOTATION));
    let balance = match annotation.map(String::as_str) {
        None | Some("least-request") => Balance::LeastRequest,
        Some("round-robin") => Balance::RoundRobin,
        Some(other) => {
            out.diagnostics.push(head.warning(
                &format!("metadata.annotations.{BALANCE_ANNOTATION}"),
                &format!("`{other}` is not known; least-request is used"),
                "write least-request or round-robin",
            ));
            Balance::LeastRequest
        }
    };
    let spec = object.spec.unwrap_or_default();
    if spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
        out.diagnostics.push(head.warning(
            "spec.sessionAffinity",
            "has no effect for clients in the mesh",
            "expect connections of one client on every endpoint",
        ));
    }
    let external = spec.type_.as_deref() == Some("ExternalName");
    let texts = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(several), _) => several.clone(),
        (None, Some(single)) => vec![single.clone()],
        (None, None) => Vec::new(),
    };
    let mut vips: Vec<IpAddr> = Vec::new();
    for (index, text) in
        texts.iter().enumerate().filter(|(_, text)| !external && !matches!(text.as_str(), "" | "None"))
    {
        match text.parse() {
            Ok(vip) => vips.push(vip),
            Err(_) => {
                let field = format!("spec.clusterIPs[{index}]");
                let message = format!("`{text}` is not an address");
                return out.diagnostics.push(head.error(
                    &field,
                    &message,
                    "write an address, or None for a headless Service",
                ));
            }
        }
    }
    let Some(ports) = ports(head, spec.ports.as_deref().unwrap_or_default(), out) else { return };
    let selector = spec.selector.unwrap_or_default();
    out.objects
        .push((head.key(Kind::Service), Object::Service(ServiceFacts { vips, ports, selector, balance })));
}

/// The Service's TCP ports; none if one of them cannot be a port.
fn ports(head: &Head<'_>, listed: &[ServicePort], out: &mut Compiled) -> Option<Vec<PortFacts>> {
    let mut ports: Vec<PortFacts> = Vec::with_capacity(listed.len());
    for (index, port) in listed.iter().enumerate() {
        if !is_tcp(port.protocol.as_deref()) {
            continue;
        }
        let field = format!("spec.ports[{index}].port");
        let Some(number) = u16::try_from(port.port).ok().filter(|number| *number != 0) else {
            out.diagnostics.push(head.error(
                &field,
                &format!("{} is not a port", port.port),
                "write 1 to 65535",
            ));
            return None;
        };
        if ports.iter().any(|other| other.port == number) {
            out.diagnostics.push(head.error(
                &field,
                &format!("{number} is listed twice"),
                "keep one of the two",
            ));
            return None;
        }
        let name = port.name.as_deref().unwrap_or_default();
        let protocol = protocol(port.app_protocol.as_deref(), name);
        ports.push(PortFacts { name: name.into(), port: number, protocol });
    }
    Some(ports)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

/// `appProtocol`, else the port name up to its first dash (Istio's protocol selection).
pub(super) fn protocol(app_protocol: Option<&str>, port_name: &str) -> AppProtocol {
    let word = app_protocol.unwrap_or_else(|| port_name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        // An application protocol that is named and that we do not know is opaque; a name that says nothing is not.
        _ if app_protocol.is_some() => AppProtocol::Tcp,
        _ => AppProtocol::Auto,
    }
}

pub(super) fn slice(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<EndpointSlice>(head, value, &mut out.diagnostics);
    let object: EndpointSlice = match typed::read(head, value) {
        Ok(object) => object,
        Err(diagnostic) => return out.diagnostics.push(*diagnostic),
    };
    if !named(head, out) {
        return;
    }
    let labels = object.metadata.labels.unwrap_or_default();
    let Some(service) = labels.get(SERVICE_NAME_LABEL) else {
        return out.diagnostics.push(head.error(
            &format!("metadata.labels.{SERVICE_NAME_LABEL}"),
            "is missing, so the endpoints belong to no Service",
            "name the Service in this label",
        ));
    };
    if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
        return out.diagnostics.push(head.warning(
            "addressType",
            &format!("`{}` endpoints are not used", object.address_type),
            "use IPv4 or IPv6",
        ));
    }
    let mut ports = Vec::new();
    for (index, port) in
        object.ports.iter().flatten().enumerate().filter(|(_, port)| is_tcp(port.protocol.as_deref()))
    {
        match port.port.map(u16::try_from) {
            Some(Ok(number)) if number != 0 => {
                ports.push((port.name.as_deref().unwrap_or_default().into(), number))
            }
            _ => out.diagnostics.push(head.warning(
                &format!("ports[{index}].port"),
                "is missing or not a port; the entry is not used",
                "write the endpoints' port",
            )),
        }
    }
    let mut endpoints = Vec::new();
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        match endpoint_facts(endpoint) {
            Some(facts) => endpoints.push(facts),
            None => {
                let field = format!("endpoints[{index}].addresses[0]");
                return out.diagnostics.push(head.error(
                    &field,
                    "is not an address",
                    "write the endpoint's address",
                ));
            }
        }
    }
    let facts = SliceFacts { service: service.as_str().into(), endpoints, ports };
    out.objects.push((head.key(Kind::EndpointSlice), Object::EndpointSlice(facts)));
}

/// Only the first address counts: the API says that all of them mean one endpoint.
fn endpoint_facts(endpoint: &Endpoint) -> Option<EndpointFacts> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let terminating = conditions.terminating.unwrap_or(false);
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Some(EndpointFacts {
        address: endpoint.addresses.first()?.parse().ok()?,
        ready,
        serving_terminating: terminating && conditions.serving.unwrap_or(ready),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        pod: target.and_then(|target| target.name.as_deref()).map(Arc::from),
    })
}

#[cfg(test)]
mod tests;
