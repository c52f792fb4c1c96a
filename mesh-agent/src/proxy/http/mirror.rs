//! Copies of requests that nobody waits for. Owns: what a copy says, and how many there may be. Never: lets its fate
//! touch the request it was copied from. Called by `proxy::http::pipeline`.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::downstream::Downstream;
use super::exchange::{Exchange, Source};
use super::forward::{NO_RETRY, Way, forward};
use crate::model::Limit;

/// Copies under way of one worker. Further ones are not made.
pub const MIRRORS_MAX: usize = 1024;
/// A copy's answer is read to its end for this long.
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(15);

/// A copy that waits for its body.
pub struct Copy {
    exchange: Exchange,
    cluster: Rc<Cluster>,
}

/// One of the worker's places for copies.
struct Place(Rc<Downstream>);

impl Drop for Place {
    fn drop(&mut self) {
        let mirrors = &self.0.worker.http.mirrors;
        mirrors.set(mirrors.get().saturating_sub(1));
    }
}

/// Copies a request's head. The body has to be kept, if there is one.
pub fn copy(exchange: &mut Exchange, cluster: &Rc<Cluster>) -> Copy {
    exchange.keep_body();
    let mut copied = exchange.copied();
    copied.authority = copied.authority.map(shadow);
    Copy { exchange: copied, cluster: Rc::clone(cluster) }
}

impl Copy {
    /// Sends it with what has been read of the original's body, if that is all of it.
    pub fn send(mut self, original: &Exchange) {
        let down = Rc::clone(&original.down);
        let body = match &original.body {
            Source::Empty => Some(Bytes::new()),
            Source::Kept(kept) => kept.whole(),
            Source::Once(_) => None,
        };
        let Some(body) = body else {
            down.worker.shared.connections.metrics().limit_hit(Limit::HttpReplay);
            return;
        };
        let mirrors = &down.worker.http.mirrors;
        if mirrors.get() >= MIRRORS_MAX {
            down.worker.shared.connections.metrics().limit_hit(Limit::HttpMirrors);
            return;
        }
        mirrors.set(mirrors.get() + 1);
        let place = Place(down);
        self.exchange.copied_body = Some(body);
        drop(tokio::task::spawn_local(async move {
            let deadline = Some(Instant::now() + MIRROR_TIMEOUT);
            let way = Way { cluster: &self.cluster, retry: Some(&NO_RETRY), try_timeout: None, deadline };
            if let Ok(answered) = forward(&mut self.exchange, &way).await
                && let Ok(Ok(_all)) =
                    tokio::time::timeout(MIRROR_TIMEOUT, answered.response.into_body().collect()).await
            {
                answered.lease.give_back(self.cluster.policy.pool.max_requests_per_connection);
            }
            drop(place);
        }));
    }
}

/// The copy's host tells the application what it is (Envoy's `-shadow`).
fn shadow(authority: Authority) -> Authority {
    let host = authority.host();
    let rest = authority.as_str().get(host.len()..).unwrap_or_default();
    format!("{host}-shadow{rest}").parse().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The suffix belongs to the host, not to the port.
    #[test]
    fn a_copy_is_known_by_its_host() {
        for (host, copied) in [("myapp", "myapp-shadow"), ("myapp.shop:8080", "myapp.shop-shadow:8080")] {
            assert_eq!(shadow(host.parse().unwrap()), copied);
        }
    }
}
