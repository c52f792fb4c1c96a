//! Findings that need more than one object: a policy for a Service that does not exist, two policies of one scope.

use super::World;
use crate::compile::{Diagnostic, Kind, ObjectKey, Severity};
use crate::model::PolicyRef;

mod connections;
mod traffic;

use traffic::Words;

/// Findings as they are made; `source` says where an object comes from.
struct Found<'a> {
    source: &'a dyn Fn(&ObjectKey) -> String,
    all: Vec<Diagnostic>,
}

impl Found<'_> {
    fn add(&mut self, kind: Kind, object: &PolicyRef, words: Words) {
        self.all.push(Diagnostic {
            severity: words.severity,
            object: object.to_string(),
            source: (self.source)(&key(kind, object)),
            field: words.field,
            message: words.message,
            effect: String::new(),
            remedy: words.remedy.to_owned(),
        });
    }
}

impl World {
    /// What is wrong between objects. `source` says which file an object came from.
    pub fn check(&self, source: impl Fn(&ObjectKey) -> String) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for policy in self.all_authz() {
            let namespace = &policy.policy.namespace;
            for service in &policy.scope.services {
                if self.service_facts.get(namespace).is_none_or(|all| !all.contains_key(service)) {
                    found.push(Diagnostic {
                        severity: Severity::Warning,
                        object: policy.policy.to_string(),
                        source: source(&key(Kind::AuthorizationPolicy, &policy.policy)),
                        field: "spec.targetRefs".to_owned(),
                        message: format!(
                            "Service {namespace}/{service} does not exist, so nothing is protected"
                        ),
                        effect: String::new(),
                        remedy: "make the Service, or correct the name".to_owned(),
                    });
                }
            }
        }
        self.same_scope(&source, &mut found);
        let mut more = Found { source: &source, all: found };
        self.check_traffic(&mut more);
        more.all
    }

    fn same_scope(&self, source: &impl Fn(&ObjectKey) -> String, found: &mut Vec<Diagnostic>) {
        for namespace in self.peer_auths.values() {
            let all: Vec<_> = namespace.values().collect();
            for (index, policy) in all.iter().enumerate() {
                let earlier = all.iter().take(index).find(|other| other.selector == policy.selector);
                if let Some(other) = earlier {
                    found.push(Diagnostic {
                        severity: Severity::Warning,
                        object: policy.policy.to_string(),
                        source: source(&key(Kind::PeerAuthentication, &policy.policy)),
                        field: "spec.selector".to_owned(),
                        message: format!(
                            "has the same scope as {}; only the older of the two counts",
                            other.policy
                        ),
                        effect: String::new(),
                        remedy: "merge the two, or give them different selectors".to_owned(),
                    });
                }
            }
        }
    }
}

fn key(kind: Kind, policy: &PolicyRef) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: std::sync::Arc::clone(&policy.namespace),
        name: std::sync::Arc::clone(&policy.name),
    }
}
