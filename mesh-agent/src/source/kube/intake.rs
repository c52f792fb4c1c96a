//! One kind's objects as the API server writes them, into changes of the world. Owns: what is known of the kind, so
//! that a list after a gap gives only differences; the cut of what nobody reads; what is shared between objects.
//! Never: I/O. Called by `feed`, and by the benchmark of scale.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;

use super::SOURCE;
use super::kinds::{WATCHED, Watched};
use crate::compile::{self, Context, Diagnostic, Kind, MeshSettings, Object, ObjectKey, Origin, Severity};
use crate::world::{Change, Interner};

/// What an object comes to.
#[derive(Debug)]
pub struct Taken {
    pub key: ObjectKey,
    /// None where the object is refused.
    pub change: Option<Change>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What is known of an object: its version's hash, and the list in which it was last seen.
#[derive(Clone, Copy)]
struct Seen {
    version: u64,
    round: u32,
}

/// The objects of one kind.
pub struct Intake {
    watched: &'static Watched,
    mesh: Arc<MeshSettings>,
    /// Pods of other nodes are kept without what only their own node needs.
    node: Arc<str>,
    known: HashMap<ObjectKey, Seen>,
    round: u32,
    interner: Interner,
}

impl Intake {
    /// None for a kind that is not read from a cluster.
    pub fn of(kind: Kind, mesh: Arc<MeshSettings>, node: Arc<str>) -> Option<Self> {
        let watched = WATCHED.iter().find(|watched| watched.kind == kind)?;
        Some(Self::new(watched, mesh, node))
    }

    pub(super) fn new(watched: &'static Watched, mesh: Arc<MeshSettings>, node: Arc<str>) -> Self {
        Self { watched, mesh, node, known: HashMap::new(), round: 0, interner: Interner::default() }
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// From here on everything that exists is told again.
    pub fn begin_list(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Everything has been told: what was not is gone.
    pub fn end_list(&mut self) -> Vec<Taken> {
        let round = self.round;
        self.known.extract_if(|_, seen| seen.round != round).map(|(key, _)| removed(key)).collect()
    }

    /// An object as it is now, served under this version; none if that is known already.
    pub fn put(&mut self, version: &str, mut object: Value) -> Option<Taken> {
        let mut key = self.key(&object);
        let seen = Seen { version: hash(text(&object, "/metadata/resourceVersion")), round: self.round };
        let before = self.known.get_mut(&key).map(|known| std::mem::replace(known, seen));
        if before.is_some_and(|before| before.version == seen.version) {
            return None;
        }
        trim(self.watched, version, &mut object);
        let context = Context { mesh: &self.mesh, source: SOURCE, origin: Origin::Cluster };
        let mut compiled = compile::document(&context, &object);
        drop(object);
        let change = compiled.objects.pop().map(|(key, object)| {
            let mut change = Change::Put(key, Box::new(self.local(object)));
            self.interner.share(&mut change);
            change
        });
        // Nothing wrong, and nothing for the mesh: what it was before holds no more.
        let refused = compiled.diagnostics.iter().any(|one| one.severity == Severity::Error);
        let gone = change.is_none() && !refused && before.is_some();
        let change = change.or_else(|| gone.then(|| Change::Removed(key.clone())));
        if before.is_none() {
            // The key that the world will hold anyway is the one to remember.
            match &change {
                Some(Change::Put(held, _)) if *held == key => key = held.clone(),
                _ => self.interner.text(&mut key.namespace),
            }
            self.known.insert(key.clone(), seen);
        }
        if change.is_none() {
            for one in compiled.diagnostics.iter_mut().filter(|one| one.severity == Severity::Error) {
                let effect = if before.is_some() { LAST_GOOD } else { "the object is not in force" };
                effect.clone_into(&mut one.effect);
            }
        }
        compiled.diagnostics.retain(|one| one.severity > Severity::Info);
        Some(Taken { key, change, diagnostics: compiled.diagnostics })
    }

    pub fn deleted(&mut self, object: &Value) -> Option<Taken> {
        let key = self.key(object);
        self.known.remove(&key).map(|_| removed(key))
    }

    /// Takes away what only the pod's own node needs.
    fn local(&self, mut object: Object) -> Object {
        if let Object::Pod(facts) = &mut object
            && facts.workload.node != self.node
        {
            facts.workload.containers = Box::default();
        }
        object
    }

    fn key(&self, object: &Value) -> ObjectKey {
        ObjectKey {
            kind: self.watched.kind,
            namespace: text(object, "/metadata/namespace").into(),
            name: text(object, "/metadata/name").into(),
        }
    }
}

fn removed(key: ObjectKey) -> Taken {
    Taken { change: Some(Change::Removed(key.clone())), key, diagnostics: Vec::new() }
}

const LAST_GOOD: &str = "the object's last good version stays in force";

fn hash(version: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    version.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Names the object's type, which items of a list do not carry, and drops the bulk that nobody reads.
pub(super) fn trim(watched: &Watched, version: &str, object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.insert("apiVersion".to_owned(), watched.api_version(version).into());
    fields.insert("kind".to_owned(), watched.api_kind.into());
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    if watched.kind != Kind::Pod {
        return;
    }
    let keep = |fields: Option<&mut Value>, names: &[&str]| {
        if let Some(fields) = fields.and_then(Value::as_object_mut) {
            fields.retain(|name, _| names.contains(&name.as_str()));
        }
    };
    keep(fields.get_mut("spec"), &POD_SPEC);
    keep(fields.get_mut("status"), &POD_STATUS);
}

/// What `compile` reads of a Pod. Its containers, volumes and conditions are nine tenths of it.
const POD_SPEC: [&str; 3] = ["serviceAccountName", "nodeName", "hostNetwork"];
const POD_STATUS: [&str; 6] =
    ["phase", "podIP", "podIPs", "initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];

#[cfg(test)]
mod tests;
