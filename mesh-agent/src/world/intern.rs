//! Equal texts held once. Thousands of pods say the same namespace, node, account and labels; what is equal is shared
//! before it becomes part of the world. Called by `source`, which owns the table.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Change;
use crate::compile::Object;
use crate::model::{Labels, Workload};

/// Entries before the first sweep.
const SWEEP_MIN: usize = 1024;

/// What has been seen. Entries that nobody else holds any more are swept when the table has doubled.
#[derive(Debug)]
pub struct Interner {
    texts: BTreeSet<Arc<str>>,
    labels: BTreeSet<Arc<Labels>>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self { texts: BTreeSet::new(), labels: BTreeSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl Interner {
    /// Makes a change share what is equal to something seen before.
    pub fn share(&mut self, change: &mut Change) {
        let Change::Put(key, object) = change else { return };
        self.text(&mut key.namespace);
        match &mut **object {
            Object::Pod(facts) => self.workload(&mut facts.workload),
            Object::EndpointSlice(facts) => {
                self.text(&mut facts.service);
                for endpoint in &mut facts.endpoints {
                    self.text(&mut endpoint.node);
                }
            }
            Object::Service(facts) => facts.ports.iter_mut().for_each(|port| self.text(&mut port.name)),
            _ => {}
        }
        if self.len() >= self.sweep_at {
            self.sweep();
        }
    }

    fn workload(&mut self, workload: &mut Workload) {
        workload.identity.share(|text| self.text(text));
        self.text(&mut workload.namespace);
        self.text(&mut workload.node);
        self.text(&mut workload.workload_name);
        self.text(&mut workload.canonical_service);
        self.text(&mut workload.canonical_revision);
        match self.labels.get(&workload.labels) {
            Some(known) => workload.labels = Arc::clone(known),
            None => {
                self.labels.insert(Arc::clone(&workload.labels));
            }
        }
    }

    /// The one `Arc` of this text.
    pub fn text(&mut self, text: &mut Arc<str>) {
        match self.texts.get(&**text) {
            Some(known) => *text = Arc::clone(known),
            None => {
                self.texts.insert(Arc::clone(text));
            }
        }
    }

    pub fn len(&self) -> usize {
        self.texts.len() + self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sweep(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.sweep_at = SWEEP_MIN.max(self.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Kind, ObjectKey, fixture};

    fn pod(name: &str) -> (ObjectKey, Change) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web-{}}}}}\n\
             spec: {{serviceAccountName: web, nodeName: node-a}}\n",
            name.len()
        );
        let (key, object) = fixture::compile(&text).objects.remove(0);
        (key.clone(), Change::Put(key, Box::new(object)))
    }

    fn workload(change: &Change) -> &Workload {
        match change {
            Change::Put(_, object) => match &**object {
                Object::Pod(facts) => &facts.workload,
                other => panic!("{other:?}"),
            },
            Change::Removed(_) => panic!("removed"),
        }
    }

    #[test]
    fn two_pods_of_one_deployment_share_their_texts_and_labels() {
        let mut interner = Interner::default();
        let (mut a, mut b) = (pod("a").1, pod("b").1);
        let before = workload(&b).clone();
        interner.share(&mut a);
        interner.share(&mut b);
        let (a, b) = (workload(&a), workload(&b));
        assert_eq!(*b, before, "nothing but the place in memory changes");
        assert!(Arc::ptr_eq(&a.labels, &b.labels));
        assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
        assert!(Arc::ptr_eq(&a.node, &b.node));
    }

    #[test]
    fn what_nobody_holds_is_swept() {
        let mut interner = Interner::default();
        for number in 0..3 * SWEEP_MIN {
            let mut change = Change::Put(
                ObjectKey { kind: Kind::Pod, namespace: format!("ns-{number}").into(), name: "x".into() },
                Box::new(Object::Namespace(crate::compile::NamespaceFacts { enrolled: true })),
            );
            interner.share(&mut change);
        }
        assert!(interner.len() <= SWEEP_MIN, "{} entries are left", interner.len());
    }
}
