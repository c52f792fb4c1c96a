//! Live flows that bypass the agent: judged again by every snapshot, and ended with their pods.
//! Owns: whose flow it is, and that both its ends are told. Never: decides (that is `judge`), writes a verdict.
//! Called by `agent`'s control loop.

use std::collections::HashMap;
use std::sync::Arc;

use super::judge;
use super::pods::{Departed, Pods};
use super::view::NodeView;
use crate::capture::{CaptureError, FlowEnds, LiveFlow};
use crate::model::{Reason, WorkloadId};
use crate::net::netns::NetNs;
use crate::proxy::worker::Shared;
use crate::world::World;

/// What the flows are looked at with.
pub(super) struct Flows<'a> {
    pub(super) shared: &'a Shared,
    pub(super) pods: &'a Pods,
    pub(super) view: &'a NodeView,
}

/// The pod that opened a flow, and the way to its end.
#[derive(Clone)]
struct Opener {
    id: WorkloadId,
    netns: Arc<NetNs>,
}

impl Flows<'_> {
    /// Ends the flows that the current snapshot does not allow, and those whose opener is nobody's pod any more.
    /// Returns whether all could be ended that had to.
    pub(super) fn judge(&self) -> Result<bool, CaptureError> {
        let world = self.shared.store.load();
        let mut strangers: HashMap<u64, Option<Opener>> = HashMap::new();
        let mut done = true;
        for flow in self.shared.capture.flows()? {
            let opener = self.attached(flow.opener).or_else(|| {
                let find = || self.outside(&world, &flow);
                strangers.entry(flow.opener).or_insert_with(find).clone()
            });
            let source = opener.as_ref().and_then(|opener| world.workload(&opener.id)).map(Arc::as_ref);
            if let Some(reason) = judge::flow_forbidden(&world, source, &flow) {
                done &= self.end(&flow, opener.as_ref().map(|opener| &*opener.netns), reason);
            }
        }
        Ok(done)
    }

    /// Ends the flows from and to pods that are gone. Before another pod with their addresses has any: what
    /// cannot be told apart by address must not be there together.
    pub(super) fn end_of(&self, departed: &[Departed]) -> Result<bool, CaptureError> {
        if departed.is_empty() {
            return Ok(true);
        }
        let mut done = true;
        for flow in self.shared.capture.flows()? {
            let opener = departed.iter().find(|gone| gone.pod.cookie == flow.opener);
            let server = departed.iter().find(|gone| gone.addresses.contains(&flow.remote.ip()));
            if opener.is_none() && server.is_none() {
                continue;
            }
            let opener = match opener {
                Some(gone) => Some(Arc::clone(&gone.pod.netns)),
                None => self.attached(flow.opener).map(|opener| opener.netns),
            };
            let server = match server {
                Some(gone) => Some(Arc::clone(&gone.pod.netns)),
                None => self.server(&flow),
            };
            done &= self.end_at(&flow, opener.as_deref(), server.as_deref(), Reason::WorkloadGone);
        }
        Ok(done)
    }

    fn end(&self, flow: &LiveFlow, opener: Option<&NetNs>, reason: Reason) -> bool {
        self.end_at(flow, opener, self.server(flow).as_deref(), reason)
    }

    fn end_at(
        &self,
        flow: &LiveFlow,
        opener: Option<&NetNs>,
        server: Option<&NetNs>,
        reason: Reason,
    ) -> bool {
        match self.shared.capture.destroy(flow, FlowEnds { opener, server }) {
            Ok(false) => true,
            Ok(true) => {
                tracing::info!(from = %flow.local, to = %flow.remote, %reason, "bypassed flow cut");
                // Without the opener's namespace its kernel reports no end.
                if opener.is_some() {
                    self.view.flow_cut(flow, reason);
                }
                true
            }
            Err(error) => {
                tracing::warn!(from = %flow.local, to = %flow.remote, %error, "a bypassed flow could not be cut; trying again");
                false
            }
        }
    }

    fn attached(&self, cookie: u64) -> Option<Opener> {
        let (id, attached) = self.pods.attached.iter().find(|(_, attached)| attached.pod.cookie == cookie)?;
        Some(Opener { id: id.clone(), netns: Arc::clone(&attached.pod.netns) })
    }

    /// A pod that left the mesh, or waits to come in again, still has its namespace and its address: it is told
    /// from an heir of the address by the namespace's cookie.
    fn outside(&self, world: &World, flow: &LiveFlow) -> Option<Opener> {
        let workload = world.workload_at(flow.local.ip())?;
        if *workload.node != *self.shared.node {
            return None;
        }
        let netns = NetNs::open(workload.netns.as_deref()?).ok()?;
        (netns.cookie() == flow.opener).then(|| Opener { id: workload.id.clone(), netns: Arc::new(netns) })
    }

    /// The namespace of the pod that has the flow's destination.
    fn server(&self, flow: &LiveFlow) -> Option<Arc<NetNs>> {
        let to = flow.remote.ip();
        if let Some(attached) =
            self.pods.attached.values().find(|attached| attached.addresses().contains(&to))
        {
            return Some(Arc::clone(&attached.pod.netns));
        }
        let world = self.shared.store.load();
        let workload = world.workload_at(to).filter(|workload| *workload.node == *self.shared.node)?;
        NetNs::open(workload.netns.as_deref()?).ok().map(Arc::new)
    }
}
