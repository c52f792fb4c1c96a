//! The pool with real connections: hyper's client of the data path against hyper's server.

use std::convert::Infallible;

use http_body_util::BodyExt as _;
use hyper::server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::*;
use crate::proxy::http::client::{self, OnWorker};
use crate::tunnel::testing::{listen, until, worker};

const HOUR: Duration = Duration::from_secs(3600);

/// Two servers, one of each version of HTTP, and how many connections each has now.
struct Stage {
    pool: HttpPool,
    hits: Hits,
    servers: [(SocketAddr, Rc<Cell<usize>>); 2],
}

async fn serve(http2: bool) -> (SocketAddr, Rc<Cell<usize>>) {
    let (listener, address) = listen().await;
    let open: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&open);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.set(count.get() + 1);
            let (io, count) = (TokioIo::new(stream), Rc::clone(&count));
            let answer = service_fn(async |_request| Ok::<_, Infallible>(Response::new(Outgoing::Empty)));
            spawn_local(async move {
                // However it ends, it is over.
                if http2 {
                    drop(server::conn::http2::Builder::new(OnWorker).serve_connection(io, answer).await);
                } else {
                    drop(server::conn::http1::Builder::new().serve_connection(io, answer).await);
                }
                count.set(count.get() - 1);
            });
        }
    });
    (address, open)
}

impl Stage {
    async fn new(max: KeepMax) -> Self {
        let hits = Hits::default();
        let pool = HttpPool::new(max, hits.clone());
        Self { pool, hits, servers: [serve(false).await, serve(true).await] }
    }

    /// Connections to a server on behalf of pod number `pod`.
    fn slot(&self, pod: usize, http2: bool) -> Rc<Slot> {
        let source = Source::Pod(WorkloadId(format!("test/{pod}").into()));
        let endpoint = self.servers[usize::from(http2)].0;
        self.pool.slot(&Key {
            source,
            from: [127, 0, 0, 1].into(),
            endpoint,
            via: Via::Plain,
            tls: None,
            http2,
        })
    }

    async fn dial(&self, slot: &Rc<Slot>, limits: &PoolLimits) -> Lease {
        let io = HttpIo::tcp(TcpStream::connect(slot.key().endpoint).await.unwrap());
        let opened = slot.open(&Arc::default(), limits).unwrap();
        if slot.key().http2 {
            return slot.begin_http2(client::http2(io, None).await.unwrap(), opened, false);
        }
        slot.begin_http1(client::http1(io, opened).await.unwrap(), false)
    }

    /// Connections that the servers see.
    fn open(&self) -> usize {
        self.servers.iter().map(|(_, open)| open.get()).sum()
    }

    fn idle_hits(&self) -> u64 {
        self.hits.count(Limit::HttpIdle)
    }
}

/// One request over a connection, read to its end.
async fn ask(lease: &mut Lease) {
    let mut request = Request::new(Outgoing::Empty);
    *request.uri_mut() = "http://a/".parse().unwrap();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("a"));
    let answer = lease.send(request).await;
    let answer = answer.unwrap_or_else(|unanswered| panic!("{}", unanswered.error));
    answer.into_body().collect().await.unwrap();
}

#[test]
fn one_idle_connection_too_many_closes_the_idlest() {
    worker(async {
        let stage = Stage::new(KeepMax { idle: 3, per_endpoint: 2, streams: 1 }).await;
        let (first, second) = (stage.slot(1, false), stage.slot(2, false));
        for (slot, count) in [(&first, 3), (&second, 2)] {
            let mut leases = Vec::new();
            for _ in 0..count {
                let mut lease = stage.dial(slot, &PoolLimits::default()).await;
                ask(&mut lease).await;
                leases.push(lease);
            }
            leases.into_iter().for_each(|lease| lease.give_back(None));
        }
        assert_eq!((stage.pool.idle(), stage.idle_hits()), (4, 1), "two are kept of each endpoint");
        until(|| stage.open() == 4).await;
        stage.pool.sweep(HOUR);
        assert_eq!((stage.pool.idle(), stage.idle_hits()), (3, 2), "and three in all");
        until(|| stage.open() == 3).await;
        let left = |slot: &Rc<Slot>| slot.idle.borrow().len();
        assert_eq!((left(&first), left(&second)), (1, 2), "the one that was idle for longest went");
    });
}

#[test]
fn a_connection_is_used_again_as_long_as_its_destination_says() {
    worker(async {
        for http2 in [false, true] {
            let stage = Stage::new(KeepMax::default()).await;
            for (pod, (idle, longest, again)) in [
                (HOUR, None, true),
                (Duration::ZERO, None, false),
                (HOUR, Some(HOUR), true),
                (HOUR, Some(Duration::ZERO), false),
            ]
            .into_iter()
            .enumerate()
            {
                let limits =
                    PoolLimits { http_idle: idle, max_connection_duration: longest, ..PoolLimits::default() };
                let slot = stage.slot(pod, http2);
                let mut lease = stage.dial(&slot, &limits).await;
                ask(&mut lease).await;
                lease.give_back(None);
                let used = slot.take();
                assert_eq!(used.is_some(), again, "{http2} {limits:?}");
                if let Some(mut lease) = used {
                    ask(&mut lease).await;
                    lease.give_back(None);
                }
                stage.pool.sweep(HOUR);
                assert_eq!(slot.is_empty(), !again, "{http2} {limits:?}");
            }
            until(|| stage.open() == 2).await;
        }
    });
}

#[test]
fn requests_over_a_connection_are_counted() {
    worker(async {
        let stage = Stage::new(KeepMax::default()).await;
        let slot = stage.slot(1, false);
        let mut lease = stage.dial(&slot, &PoolLimits::default()).await;
        ask(&mut lease).await;
        lease.give_back(Some(2));
        let mut lease = slot.take().unwrap();
        ask(&mut lease).await;
        lease.give_back(Some(2));
        assert!(slot.take().is_none());
        until(|| stage.open() == 0).await;
    });
}

#[test]
fn a_connection_that_carries_all_the_streams_it_may_is_not_taken_for_another() {
    worker(async {
        let stage = Stage::new(KeepMax { streams: 2, ..KeepMax::default() }).await;
        let slot = stage.slot(1, true);
        let mut first = stage.dial(&slot, &PoolLimits::default()).await;
        let mut second = slot.take().unwrap();
        assert!(slot.take().is_none(), "a third stream wants another connection");
        let mut third = stage.dial(&slot, &PoolLimits::default()).await;
        for lease in [&mut first, &mut second, &mut third] {
            ask(lease).await;
        }
        assert_eq!(stage.open(), 2);
        second.give_back(None);
        assert!(slot.take().is_some(), "a place is free again");
    });
}
