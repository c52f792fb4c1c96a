//! DestinationRule, and the inheritance between rule, subset and port (reference section 4.4).

use std::sync::Arc;

use serde_json::Value;

use super::policy::{PolicyParts, parts};
use super::reader::ExportTo;
use super::{Reader, istio, object_ref};
use crate::api::istio::networking::{DestinationRule, DestinationRuleSpec, Subset};
use crate::compile::{Compiled, Head, Kind, Object, pod};
use crate::model::traffic::{ClientTls, LoadBalance, Locality, TlsOrigin, TrafficPolicy};
use crate::model::{Labels, PolicyRef};

/// A DestinationRule as it is written.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DestinationRuleFacts {
    pub object: PolicyRef,
    /// Seconds since 1970, 0 when unknown.
    pub created: i64,
    /// A full name, or a wildcard.
    pub host: Arc<str>,
    pub export: ExportTo,
    /// Only clients of the rule's namespace with these labels.
    pub selector: Option<Labels>,
    pub policy: Option<PolicyParts>,
    pub subsets: Vec<SubsetFacts>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SubsetFacts {
    pub name: Arc<str>,
    pub labels: Labels,
    pub policy: Option<PolicyParts>,
}

pub(in crate::compile) fn compile(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let compiled = istio::<DestinationRule, _>(head, value, out, |reader, object| {
        let created = pod::created(&object.metadata);
        understood(reader, &object.spec, created)
    });
    if let Some(Some(facts)) = compiled {
        out.objects.push((head.key(Kind::DestinationRule), Object::DestinationRule(Box::new(facts))));
    }
}

fn understood(
    reader: &mut Reader<'_>,
    spec: &DestinationRuleSpec,
    created: i64,
) -> Option<DestinationRuleFacts> {
    let host = spec.host.as_deref().unwrap_or_default();
    let host = reader.host("spec.host", host, true);
    let export = reader.export_to(spec.export_to.as_ref());
    let policy = spec.traffic_policy.as_ref().map(|given| parts(reader, "spec.trafficPolicy", given));
    let mut subsets: Vec<SubsetFacts> = Vec::new();
    for (index, one) in spec.subsets.iter().flatten().enumerate() {
        let field = format!("spec.subsets[{index}]");
        let subset = subset(reader, &field, one);
        if subsets.iter().any(|other| other.name == subset.name) {
            let message = format!("`{}` is listed twice", subset.name);
            reader.fault(&format!("{field}.name"), &message, "keep one of the two");
        }
        subsets.push(subset);
    }
    let selector = spec.workload_selector.as_ref().and_then(|selector| selector.match_labels.clone());
    Some(DestinationRuleFacts {
        object: object_ref(reader.head, Kind::DestinationRule.name()),
        created,
        host: host?,
        export,
        selector: selector.filter(|labels| !labels.is_empty()),
        policy,
        subsets,
    })
}

fn subset(reader: &mut Reader<'_>, field: &str, given: &Subset) -> SubsetFacts {
    let name = given.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        reader.fault(&format!("{field}.name"), "is missing", "name the subset");
    }
    let labels = given.labels.clone().unwrap_or_default();
    if labels.is_empty() {
        reader.warn(
            &format!("{field}.labels"),
            "is missing, so the subset is every endpoint",
            "write the labels that its pods carry",
        );
    }
    let policy =
        given.traffic_policy.as_ref().map(|policy| parts(reader, &format!("{field}.trafficPolicy"), policy));
    SubsetFacts { name: name.into(), labels, policy }
}

/// Policies after inheritance, for a whole host or a subset of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ResolvedPolicy {
    default: Arc<TrafficPolicy>,
    ports: Vec<(u16, Arc<TrafficPolicy>)>,
}

impl ResolvedPolicy {
    pub fn for_port(&self, port: u16) -> &Arc<TrafficPolicy> {
        self.ports.iter().find(|(own, _)| *own == port).map_or(&self.default, |(_, policy)| policy)
    }
}

/// The DestinationRules of one namespace, host and selector as one.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Resolved {
    /// Where it comes from; subsets may be from others.
    pub object: PolicyRef,
    pub export: ExportTo,
    pub selector: Option<Labels>,
    pub policy: ResolvedPolicy,
    pub subsets: Vec<(Arc<str>, Labels, ResolvedPolicy)>,
}

/// Where a rule says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unsaid<'a> {
    pub balance: &'a LoadBalance,
    pub locality: &'a Locality,
    /// Of the ServiceEntry.
    pub subject_alt_names: &'a [Arc<str>],
}

/// Joins rules of one namespace, host and selector, the oldest first: subsets come together, of two with one name the
/// older stays, and the policy is that of the oldest that has one. `unsaid` says what holds where nothing is given.
pub fn resolve(rules: &[&DestinationRuleFacts], unsaid: Unsaid<'_>) -> Option<Resolved> {
    let first = rules.first()?;
    let policy = rules.iter().find_map(|rule| rule.policy.as_ref().map(|policy| (policy, &rule.object)));
    let (policy, object) = policy.map_or((None, &first.object), |(policy, object)| (Some(policy), object));
    let mut subsets: Vec<(Arc<str>, Labels, ResolvedPolicy)> = Vec::new();
    for rule in rules {
        for subset in &rule.subsets {
            if !subsets.iter().any(|(name, ..)| *name == subset.name) {
                let layers =
                    Layers { unsaid, object: &rule.object, outer: policy, inner: subset.policy.as_ref() };
                subsets.push((Arc::clone(&subset.name), subset.labels.clone(), layers.resolve()));
            }
        }
    }
    let layers = Layers { unsaid, object, outer: policy, inner: None };
    Some(Resolved {
        object: object.clone(),
        export: first.export.clone(),
        selector: first.selector.clone(),
        policy: layers.resolve(),
        subsets,
    })
}

/// A rule's policy, and a subset's over it.
struct Layers<'a> {
    unsaid: Unsaid<'a>,
    object: &'a PolicyRef,
    outer: Option<&'a PolicyParts>,
    inner: Option<&'a PolicyParts>,
}

impl Layers<'_> {
    fn resolve(&self) -> ResolvedPolicy {
        let layers = [self.outer, self.inner];
        let numbers =
            layers.into_iter().flatten().flat_map(|parts| parts.ports.iter().map(|(port, _)| *port));
        let mut ports: Vec<(u16, Arc<TrafficPolicy>)> = Vec::new();
        for port in numbers {
            if !ports.iter().any(|(own, _)| *own == port) {
                ports.push((port, Arc::new(self.policy(Some(port)))));
            }
        }
        ResolvedPolicy { default: Arc::new(self.policy(None)), ports }
    }

    /// TLS of the agent's own with the ServiceEntry's names, where the rule has none.
    fn named(&self, tls: ClientTls) -> ClientTls {
        let names = self.unsaid.subject_alt_names;
        match tls {
            ClientTls::Originate(rule) if rule.subject_alt_names.is_empty() && !names.is_empty() => {
                let rule = TlsOrigin { subject_alt_names: names.to_vec(), ..TlsOrigin::clone(&rule) };
                ClientTls::Originate(Arc::new(rule))
            }
            tls => tls,
        }
    }

    /// Field by field from the outer layer to the inner one; a port's settings replace four of the fields wholesale,
    /// so that what they leave out is the default and not what stood above.
    fn policy(&self, port: Option<u16>) -> TrafficPolicy {
        let mut merged = PolicyParts::default();
        for parts in [self.outer, self.inner].into_iter().flatten() {
            merged.balancer = parts.balancer.clone().or(merged.balancer);
            merged.pool = parts.pool.clone().or(merged.pool);
            merged.outlier = parts.outlier.clone().or(merged.outlier);
            merged.tls = parts.tls.clone().or(merged.tls);
            merged.retry_budget = parts.retry_budget.clone().or(merged.retry_budget);
            if let Some((_, own)) = parts.ports.iter().find(|(own, _)| Some(*own) == port) {
                merged.balancer.clone_from(&own.balancer);
                merged.pool.clone_from(&own.pool);
                merged.outlier.clone_from(&own.outlier);
                merged.tls.clone_from(&own.tls);
            }
        }
        let balancer = merged.balancer.unwrap_or_default();
        let default = TrafficPolicy::default();
        let locality = balancer.locality.unwrap_or_else(|| self.unsaid.locality.clone());
        // Failover needs somebody to say that endpoints are ill; shares do not.
        let enabled = locality.enabled && (merged.outlier.is_some() || !locality.distribute.is_empty());
        TrafficPolicy {
            origin: Some(self.object.clone()),
            balance: balancer.balance.unwrap_or_else(|| self.unsaid.balance.clone()),
            pool: merged.pool.unwrap_or(default.pool),
            outlier: merged.outlier,
            locality: Locality { enabled, ..locality },
            warmup: balancer.warmup,
            tls: merged.tls.map_or(default.tls, |tls| self.named(tls)),
            retry_budget: merged.retry_budget,
        }
    }
}
