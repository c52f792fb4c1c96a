//! `explain SRC DST[:PORT] [METHOD PATH]`: the same plan, the same transport and the same judgement as a connection or a
//! request meets, told instead of done.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{connections, routes, rows};
use crate::admin::{
    AskedRequest, ExplainError, ExplainQuery, Explanation, Match, PartyView, RouteView, StepView,
};
use crate::decide::bypass::{KernelVerdict, kernel_verdict};
use crate::decide::inbound::{self, ConnFacts, HttpFacts, Stage, Step};
use crate::decide::outbound::{OutboundPlan, TcpPlan, Transport, plan, secured, transport};
use crate::decide::path::normalise;
use crate::decide::route::RequestView;
use crate::decide::{Destination, Snapshot as _};
use crate::model::traffic::ClientTls;
use crate::model::{Endpoint, Reason, Service, Workload};
use crate::observe::Path;
use crate::world::World;

/// Answers the question from one snapshot.
pub(super) fn explain(world: &World, node: &str, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
    let source = find_workload(world, &query.source)
        .ok_or_else(|| ExplainError::UnknownSource(query.source.clone()))?;
    let target = destination(world, source, query)?;
    // The question may be asked on any node: the answer is the one of the source's agent.
    let node = if source.node.is_empty() { node } else { &source.node };
    let request = query.request.as_ref().map(|asked| Request::read(world, asked, &query.to_string()));
    let mut story = Story::begin(world, source, target);
    story.request = match request.transpose() {
        Ok(request) => request,
        Err(problem) => {
            story.malformed(problem);
            return Ok(story.answer);
        }
    };
    let led = connections::lead(world, source, target, query);
    if led.is_none() {
        story.route_request(world);
    }
    match story.planned(world, led) {
        OutboundPlan::Refuse(reason) => story.refuse(reason),
        OutboundPlan::Passthrough(to) => match story.meant(world) {
            Some(service) => story.by_host(world, node, &service),
            None => story.passthrough(to),
        },
        OutboundPlan::Tcp(tcp) => {
            story.answer.route.service = tcp.service.as_ref().map(|service| service.hostname.to_string());
            story.answer.route.port = tcp.port;
            if let Some(service) = &tcp.service {
                story.tell_tls(world, service);
            }
            story.answer.route.endpoints =
                tcp.endpoints.iter().map(|one| rows::endpoint(world, node, one)).collect();
            story.endpoints(world, node, &tcp.endpoints);
        }
    }
    if !source.enrolled {
        story.answer.notes.push(format!(
            "{}/{} is not in the mesh: its connections are not captured and arrive in plaintext",
            source.namespace, source.name
        ));
    }
    Ok(story.answer)
}

struct Story<'a> {
    source: &'a Workload,
    target: SocketAddr,
    /// None: a TCP connection is meant.
    request: Option<Request>,
    answer: Explanation,
}

/// The request that is asked about, in the form in which it would be judged.
struct Request {
    method: String,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Request {
    fn read(world: &World, asked: &AskedRequest, destination: &str) -> Result<Self, String> {
        let whole = normalise(&asked.path, world.path_normalization()).map_err(|bad| bad.to_string())?;
        let (path, query) = match whole.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (whole.into_owned(), None),
        };
        let mut headers = HeaderMap::new();
        let mut authority = destination.to_owned();
        for (name, value) in &asked.headers {
            if name == "host" {
                authority.clone_from(value);
            } else if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                headers.append(name, value);
            }
        }
        Ok(Self { method: asked.method.clone(), authority, path, query, headers })
    }

    fn view(&self, port: u16) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port,
        }
    }
}

impl<'a> Story<'a> {
    fn begin(world: &World, source: &'a Workload, target: SocketAddr) -> Self {
        let answer = Explanation {
            allowed: true,
            reason: None,
            hint: None,
            rule: None,
            source: PartyView {
                address: None,
                workload: Some(format!("{}/{}", source.namespace, source.name)),
                node: Some(source.node.to_string()),
                identity: source.enrolled.then(|| source.identity.clone()),
            },
            destination: PartyView { address: Some(target), workload: None, node: None, identity: None },
            route: RouteView {
                path: None,
                why: String::new(),
                service: None,
                port: target.port(),
                endpoints: Vec::new(),
            },
            steps: Vec::new(),
            http: None,
            connection: None,
            world_version: world.version,
            notes: Vec::new(),
        };
        Self { source, target, request: None, answer }
    }

    /// Which rule takes the request; or that rules hold, where none was asked about.
    fn route_request(&mut self, world: &World) {
        let service = world.service_at(self.target.ip()).map(Arc::clone);
        let port = self.target.port();
        if let Some(request) = &self.request {
            let asked = request.view(port);
            self.answer.http = Some(routes::request(world, self.source, service.as_deref(), &asked));
        } else if service.is_some_and(|service| world.has_http_rules(&service)) {
            let note = "HTTP rules hold for this Service: add METHOD PATH to see which one takes a request";
            self.answer.notes.push(note.to_owned());
        }
    }

    /// Where the connection goes: by a rule, or as it dialled. Of several backends all endpoints are told of.
    fn planned(&mut self, world: &World, led: Option<connections::Led>) -> OutboundPlan {
        let Some(led) = led else { return plan(world, self.source, self.target) };
        self.answer.connection = Some(led.story);
        self.answer.notes.extend(led.notes);
        match led.to {
            None => plan(world, self.source, self.target),
            Some(Err(reason)) => OutboundPlan::Refuse(reason),
            Some(Ok(mut plans)) => {
                let several = plans.len() > 1;
                let endpoints = plans.iter().flat_map(|plan| plan.endpoints.iter().cloned()).collect();
                let Some(first) = plans.pop() else { return OutboundPlan::Refuse(Reason::BackendInvalid) };
                let dialled = world.service_at(self.target.ip()).map(Arc::clone);
                let service = if several { dialled } else { first.service };
                let port = if several { self.target.port() } else { first.port };
                OutboundPlan::Tcp(TcpPlan { service, port, endpoints, ..first })
            }
        }
    }

    fn refuse(&mut self, reason: Reason) {
        self.answer.allowed = false;
        self.answer.reason = Some(reason.row().label.to_owned());
        self.answer.hint = Some(reason.row().hint.to_owned());
        self.answer.route.why = "refused before any path is chosen".to_owned();
    }

    fn malformed(&mut self, problem: String) {
        self.answer.allowed = false;
        self.answer.route.why = format!("answered with 400 before any path is chosen: {problem}");
    }

    /// The ServiceEntry that the request means by its Host, where the address is nobody's.
    fn meant(&self, world: &World) -> Option<Arc<Service>> {
        let request = self.request.as_ref()?;
        let (host, port) = (request.authority.as_str(), self.target.port());
        world.entry_by_host(host, port, &self.source.namespace).map(Arc::clone)
    }

    fn by_host(&mut self, world: &World, node: &str, service: &Service) {
        let to = Destination { service, port: self.target.port(), subset: None };
        let endpoints = world.endpoints(self.source, &to, self.target.ip()).unwrap_or_default();
        self.tell_tls(world, service);
        self.answer.route.service = Some(service.hostname.to_string());
        self.answer.route.endpoints = endpoints.iter().map(|one| rows::endpoint(world, node, one)).collect();
        if world.goes_as_dialled(service) {
            self.answer.route.path = Some(Path::Plain);
            self.answer.route.why =
                "the ServiceEntry of its Host sends it to the address that the client dialled".to_owned();
        } else if endpoints.iter().any(|endpoint| endpoint.ready) {
            self.endpoints(world, node, &endpoints);
        } else {
            self.refuse(Reason::NoEndpoint);
        }
    }

    /// What a DestinationRule has the agent speak instead of what the destination takes by itself.
    fn tell_tls(&mut self, world: &World, service: &Service) {
        let to = Destination { service, port: self.target.port(), subset: None };
        let Ok(policy) = world.traffic(self.source, &to) else { return };
        let said = match &policy.tls {
            // Of plaintext the path tells.
            ClientTls::Mesh | ClientTls::Disable => return,
            ClientTls::Mutual => "asks for mutual TLS of the mesh: an endpoint that is not in it is refused",
            ClientTls::Originate(_) => "has the agent speak TLS to it",
        };
        let rule = policy.origin.as_ref().map_or_else(String::new, ToString::to_string);
        self.answer.notes.push(format!("{rule} {said}"));
    }

    fn passthrough(&mut self, to: SocketAddr) {
        self.answer.route.path = Some(Path::Passthrough);
        self.answer.route.why = format!("nothing in the mesh has the address {}", to.ip());
    }

    /// Judges every ready endpoint; the story is told of the first that refuses, or else of the first.
    fn endpoints(&mut self, world: &World, node: &str, endpoints: &[Endpoint]) {
        let mut told = false;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            let judged = self.judge(world, node, endpoint);
            let refused =
                judged.steps.iter().any(|step| step.verdict.as_ref().is_some_and(|verdict| !verdict.allowed));
            if told && !refused {
                continue;
            }
            told = true;
            self.tell(judged, endpoint);
            if refused {
                if endpoints.len() > 1 {
                    self.answer
                        .notes
                        .push(format!("told for the endpoint {}, which refuses", endpoint.address));
                }
                return;
            }
        }
    }

    fn judge(&self, world: &World, node: &str, endpoint: &Endpoint) -> Judged {
        let to = endpoint.address;
        let source_ip = self.source.address_like(to.ip()).unwrap_or_else(|| to.ip());
        let enrolled = self.source.enrolled;
        let transport = match enrolled {
            // What is refused for want of mutual TLS has no other transport either.
            true => secured(transport(world, node, endpoint), &self.tls(world)).unwrap_or(Transport::Plain),
            false => Transport::Plain,
        };
        let owner = world.workload_at(to.ip()).map(Arc::clone);
        let (path, why) = self.path(world, node, endpoint, &transport);
        let peer = match transport {
            Transport::Plain => None,
            Transport::Local(_) | Transport::Hbone(_) => Some(&self.source.identity),
        };
        let conn = ConnFacts { peer, source_ip, destination: to };
        let steps = match (&owner, &self.request) {
            (Some(workload), None) if workload.enrolled => inbound::explain(world, workload, &conn),
            (Some(workload), Some(request)) if workload.enrolled => {
                let facts = HttpFacts { conn, request: request.view(to.port()) };
                inbound::explain_request(world, workload, &facts)
            }
            _ => Vec::new(),
        };
        let asks = self.request.is_none()
            && owner.as_ref().is_some_and(|workload| inbound::needs_http(world, workload, to.port()));
        Judged { path, why, owner, source_ip, steps, asks }
    }

    /// What the DestinationRule of the Service that is called says.
    fn tls(&self, world: &World) -> ClientTls {
        let policy = world.service_at(self.target.ip()).and_then(|service| {
            let to = Destination { service, port: self.target.port(), subset: None };
            world.traffic(self.source, &to).ok()
        });
        policy.map_or(ClientTls::Mesh, |policy| policy.tls.clone())
    }

    fn path(&self, world: &World, node: &str, endpoint: &Endpoint, transport: &Transport) -> (Path, String) {
        match transport {
            Transport::Plain if !self.source.enrolled => {
                (Path::Plain, "the source is not in the mesh".to_owned())
            }
            Transport::Plain if self.tls(world) == ClientTls::Disable => {
                (Path::Plain, "its DestinationRule wants plaintext (tls.mode: DISABLE)".to_owned())
            }
            Transport::Plain => (Path::Plain, "the destination takes no mutual TLS on that port".to_owned()),
            Transport::Hbone(workload) => {
                (Path::Hbone, format!("the pod is on node {}: mutual TLS to its port 15008", workload.node))
            }
            Transport::Local(_) => {
                let direct = self.target == endpoint.address
                    && kernel_verdict(world, node, self.source, self.target) == KernelVerdict::Bypass;
                if direct {
                    return (
                        Path::Bypass,
                        "same node, no HTTP processing: the kernel lets it through".to_owned(),
                    );
                }
                (Path::Local, "same node: the agent relays it in one pass, without encryption".to_owned())
            }
        }
    }

    fn tell(&mut self, judged: Judged, endpoint: &Endpoint) {
        let answer = &mut self.answer;
        answer.route.path = Some(judged.path);
        answer.route.why = judged.why;
        answer.source.address = Some(SocketAddr::new(judged.source_ip, 0));
        answer.destination = PartyView {
            address: Some(endpoint.address),
            workload: judged.owner.as_ref().map(|owner| format!("{}/{}", owner.namespace, owner.name)),
            node: Some(endpoint.node.to_string()).filter(|node| !node.is_empty()),
            identity: judged
                .owner
                .as_ref()
                .filter(|owner| owner.enrolled)
                .map(|owner| owner.identity.clone()),
        };
        answer.steps = judged.steps.iter().map(step).collect();
        if judged.asks {
            answer.notes.push(
                "a policy asks about requests; this is what a connection without HTTP gets, add METHOD PATH for a request"
                    .to_owned(),
            );
        }
        let Some(verdict) = judged.steps.iter().find_map(|step| step.verdict.as_ref()) else { return };
        answer.allowed = verdict.allowed;
        answer.reason = verdict.reason.map(|reason| reason.row().label.to_owned());
        answer.hint = verdict.reason.map(|reason| reason.row().hint.to_owned());
        answer.rule = verdict.rule.as_ref().map(|found| match found.rule {
            Some(index) => format!("{}, rule {index}", found.policy),
            None => found.policy.to_string(),
        });
    }
}

struct Judged {
    path: Path,
    why: String,
    owner: Option<Arc<Workload>>,
    source_ip: IpAddr,
    steps: Vec<Step>,
    /// A policy asks about requests, and none was given.
    asks: bool,
}

fn step(step: &Step) -> StepView {
    StepView {
        policy: step.policy.as_ref().map_or_else(|| "(default)".to_owned(), ToString::to_string),
        action: action(step.stage).to_owned(),
        matched: match (step.matched, step.enforced) {
            (true, false) => Match::Ignored,
            (true, true) => Match::Matched,
            (false, _) => Match::NotMatched,
        },
        rule: step.rule,
        detail: step.why.clone(),
        decided: step.verdict.is_some(),
    }
}

fn action(stage: Stage) -> &'static str {
    match stage {
        Stage::DenyList => "DENYLIST",
        Stage::PeerAuthentication => "MTLS",
        Stage::Audit => "AUDIT",
        Stage::Custom => "CUSTOM",
        Stage::Deny => "DENY",
        Stage::Allow => "ALLOW",
        Stage::Default => "-",
    }
}

/// `NAMESPACE/NAME`, `NAME.NAMESPACE` or an address.
pub(super) fn find_workload<'a>(world: &'a World, text: &str) -> Option<&'a Workload> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return world.workload_at(address).map(Arc::as_ref);
    }
    names(text).find_map(|(namespace, name)| world.pod(namespace, name)).map(Arc::as_ref)
}

/// Every way in which a text may name a namespace and an object.
fn names(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let slash = text.split_once('/');
    // A pod's name may have dots in it, a namespace never has: try every dot.
    let dots = text.match_indices('.').map(|(at, _)| (&text[at + 1..], &text[..at]));
    slash.into_iter().chain(dots)
}

fn destination(world: &World, source: &Workload, query: &ExplainQuery) -> Result<SocketAddr, ExplainError> {
    let text = query.destination.as_str();
    if let Ok(address) = text.parse::<IpAddr>() {
        let service = world.service_at(address);
        return Ok(SocketAddr::new(address, port(query, service.map(Arc::as_ref))?));
    }
    let pod = find_workload(world, text);
    let service = find_service(world, source, text);
    if let (Some(pod), Some(service)) = (pod, service) {
        let candidates = format!("pod {}, Service {}", pod.display_name(), service.id);
        return Err(ExplainError::Ambiguous { name: text.to_owned(), candidates });
    }
    if let Some(service) = service {
        let port = port(query, Some(service))?;
        let headless = || service.port(port).and_then(|port| Some(port.endpoints.first()?.address));
        if world.is_unaddressed(service) {
            // What the client's resolver would say; a ServiceEntry is told by its port and its Host.
            let address = headless().map_or(Ipv4Addr::UNSPECIFIED.into(), |endpoint| endpoint.ip());
            return Ok(SocketAddr::new(address, port));
        }
        return match service.vips.first() {
            Some(vip) => Ok(SocketAddr::new(*vip, port)),
            None => headless().ok_or_else(|| ExplainError::UnknownDestination(text.to_owned())),
        };
    }
    let pod = pod.ok_or_else(|| ExplainError::UnknownDestination(text.to_owned()))?;
    let address = pod.addresses.first().ok_or_else(|| ExplainError::UnknownDestination(text.to_owned()))?;
    Ok(SocketAddr::new(*address, port(query, None)?))
}

pub(super) fn find_service<'a>(world: &'a World, source: &Workload, text: &str) -> Option<&'a Service> {
    let host = text.trim_end_matches('.');
    let by_host = world.services().find(|service| host.eq_ignore_ascii_case(&service.hostname));
    let named = |namespace: &str, name: &str| {
        world.services().find(|service| *service.namespace == *namespace && *service.name == *name)
    };
    by_host
        .or_else(|| names(host).find_map(|(namespace, name)| named(namespace, name)))
        .or_else(|| named(&source.namespace, host))
        // One of the hosts that a wildcard covers.
        .or_else(|| {
            world.service_by_host(host, &source.namespace).filter(|service| world.is_unaddressed(service))
        })
        .map(Arc::as_ref)
}

pub(super) fn port(query: &ExplainQuery, service: Option<&Service>) -> Result<u16, ExplainError> {
    let only = || match service?.ports.as_slice() {
        [one] => Some(one.port),
        _ => None,
    };
    query.port.or_else(only).ok_or_else(|| {
        let known: Vec<String> = service
            .into_iter()
            .flat_map(|service| &service.ports)
            .map(|port| port.port.to_string())
            .collect();
        let ports =
            if known.is_empty() { "those that the pod listens on".to_owned() } else { known.join(", ") };
        ExplainError::PortNeeded { destination: query.destination.clone(), ports }
    })
}

#[cfg(test)]
mod tests;
