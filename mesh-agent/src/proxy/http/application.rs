//! A request to a pod of this node: judged, then handed to its application. Owns: that order. Called by
//! `proxy::http::pipeline`.

use std::rc::Rc;
use std::sync::Arc;

use http::Response;

use super::answer::Local;
use super::body::Answer;
use super::exchange::{Exchange, snapshot};
use super::forward::{After, ask, judge};
use crate::model::{Endpoint, Reason};

/// Answers a request that came from outside the node, or from outside the mesh.
pub(super) async fn inbound(mut exchange: Exchange) -> Response<Answer> {
    let down = Rc::clone(&exchange.down);
    let world = snapshot(&down);
    let found =
        world.workload(&down.pod.id).and_then(|workload| Some((workload, down.application(workload)?)));
    let Some((workload, target)) = found else {
        return exchange.refuse(Local::of(Reason::UnknownWorkload));
    };
    exchange.record.target = Some(Rc::clone(&target));
    if let Err(reason) = judge(&exchange, &world, &target, workload) {
        return exchange.refuse(Local::of(reason));
    }
    let cluster = down.only(|| {
        let endpoint = Endpoint {
            address: target.endpoint,
            workload: Some(workload.id.clone()),
            ready: true,
            node: Arc::clone(&workload.node),
            weight: 1,
        };
        down.worker.http.single(&world, workload, endpoint)
    });
    drop(world);
    match ask(&mut exchange, &cluster, &target, After { again: false, repeat: true }).await {
        Ok(answered) => exchange.deliver(answered, None, |_, _, _| {}),
        Err(failed) => exchange.refuse(Local::of(failed.reason)),
    }
}
