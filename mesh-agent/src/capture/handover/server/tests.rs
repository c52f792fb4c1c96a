use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::message::SetPart;
use super::super::tests::{folder, one_of_each, waiting};
use super::super::{Predecessor, Sets, socket};
use super::*;

type Shared = Arc<Mutex<Vec<Arc<ListenerSet>>>>;

/// Serves events until the sets are handed over; returns them all.
fn serve(mut server: HandoverServer, sets: &Shared) -> tokio::task::JoinHandle<Vec<Event>> {
    let sets = Arc::clone(sets);
    tokio::spawn(async move {
        let mut events = Vec::new();
        loop {
            events.push(server.serve(|| sets.lock().clone()).await.unwrap());
            if let Some(Event::SuccessorReady { .. }) = events.last() {
                assert!(matches!(server.serve(Sets::new).await, Err(HandoverError::Finished)));
                return events;
            }
        }
    })
}

fn shared(sets: impl IntoIterator<Item = ListenerSet>) -> Shared {
    Arc::new(Mutex::new(sets.into_iter().map(Arc::new).collect()))
}

#[tokio::test]
async fn a_successor_that_dies_before_ready_changes_nothing() {
    let (_dir, path) = folder();
    let (set, [address, ..]) = one_of_each("default/web", 7);
    let sets = shared([set]);
    let serving = serve(HandoverServer::bind(&path).unwrap(), &sets);
    drop(Predecessor::connect(&path).await.unwrap());
    let mut dies = Predecessor::connect(&path).await.unwrap();
    drop(dies.take().await.unwrap());
    drop(dies);
    let _client = std::net::TcpStream::connect(address).unwrap();
    let outbound: OwnedFd = sets.lock()[0].outbound[0].try_clone().unwrap();
    assert_eq!(waiting(&outbound), 1);

    let mut lives = Predecessor::connect(&path).await.unwrap();
    assert_eq!(lives.take().await.unwrap().len(), 1);
    lives.ready().await.unwrap();
    let events = serving.await.unwrap();
    let [
        Event::SuccessorFailed { error: a },
        Event::SuccessorFailed { error: b },
        Event::SuccessorReady { .. },
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert!(matches!(
        (a, b),
        (HandoverError::Closed { wanted: "take" }, HandoverError::Closed { wanted: "ready" })
    ));
}

#[tokio::test]
async fn sets_enrolled_after_take_come_with_ready() {
    let (_dir, path) = folder();
    let sets = shared([one_of_each("a", 1).0, one_of_each("b", 2).0]);
    let serving = serve(HandoverServer::bind(&path).unwrap(), &sets);
    let mut predecessor = Predecessor::connect(&path).await.unwrap();
    assert_eq!(predecessor.take().await.unwrap().len(), 2);
    // Another pod, and another namespace under a name that is known.
    sets.lock().extend([Arc::new(one_of_each("c", 3).0), Arc::new(one_of_each("b", 4).0)]);
    let late: Vec<_> =
        predecessor.ready().await.unwrap().into_iter().map(|set| (set.pod, set.cookie)).collect();
    assert_eq!(late, [("c".to_owned(), 3), ("b".to_owned(), 4)]);
    let events = serving.await.unwrap();
    let [Event::SuccessorReady { handed }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(handed.len(), 4);
}

#[tokio::test]
async fn the_path_is_free_when_ready_returns() {
    let (_dir, path) = folder();
    let sets = shared([one_of_each("a", 1).0]);
    for _ in 0..10 {
        let serving = serve(HandoverServer::bind(&path).unwrap(), &sets);
        let mut predecessor = Predecessor::connect(&path).await.unwrap();
        predecessor.take().await.unwrap();
        predecessor.ready().await.unwrap();
        let next = HandoverServer::bind(&path).unwrap();
        serving.await.unwrap();
        assert!(path.exists(), "the predecessor removed its successor's socket");
        drop(next);
    }
}

#[tokio::test]
async fn a_second_successor_is_told_to_wait() {
    let (_dir, path) = folder();
    let sets = shared([one_of_each("a", 1).0]);
    let serving = serve(HandoverServer::bind(&path).unwrap(), &sets);
    let mut first = Predecessor::connect(&path).await.unwrap();
    first.take().await.unwrap();
    for _ in 0..20 {
        let second = Predecessor::connect(&path).await;
        assert!(matches!(second, Err(HandoverError::Refused { refusal: Refusal::Busy })), "{second:?}");
    }
    first.ready().await.unwrap();
    assert_eq!(serving.await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_changes_nothing() {
    let (_dir, path) = folder();
    let sets = shared([one_of_each("a", 1).0]);
    let serving = serve(HandoverServer::bind(&path).unwrap(), &sets);
    let wrong: [fn() -> Message; 4] = [
        || Message::Ready,
        || Message::Fetch,
        || Message::Put(SetPart { pod: "x".into(), cookie: 1, fds: vec![], last: true }),
        || Message::Holding { pods: 0, descriptors: 0 },
    ];
    for message in wrong {
        let mut channel = Channel::new(socket::connect(&path).await.unwrap());
        channel.greet(Service::Handover).await.unwrap();
        channel.send(&message(), &[]).await.unwrap();
        let told = channel.due(STEP_LIMIT, "refusal").await.unwrap_err();
        let HandoverError::Refused { refusal: Refusal::Protocol { error } } = told else {
            panic!("{told:?}")
        };
        assert!(error.contains("where take was due"), "{error}");
    }
    let mut channel = Channel::new(socket::connect(&path).await.unwrap());
    let told = channel.greet(Service::Holder).await.unwrap_err();
    assert!(matches!(told, HandoverError::WrongService { theirs: Service::Handover, .. }), "{told:?}");
    drop(channel);
    let mut good = Predecessor::connect(&path).await.unwrap();
    assert_eq!(good.take().await.unwrap().len(), 1);
    good.ready().await.unwrap();
    assert_eq!(serving.await.unwrap().len(), wrong.len() + 2);
}

#[tokio::test]
async fn a_successor_that_never_is_ready_is_given_up() {
    let (_dir, path) = folder();
    let mut server = HandoverServer::bind(&path).unwrap();
    server.ready_limit = Duration::from_millis(200);
    let serving = tokio::spawn(async move { server.serve(|| vec![one_of_each("a", 1).0]).await.unwrap() });
    let mut predecessor = Predecessor::connect(&path).await.unwrap();
    predecessor.take().await.unwrap();
    let event = serving.await.unwrap();
    let Event::SuccessorFailed { error } = &event else { panic!("{event:?}") };
    assert!(matches!(error, HandoverError::Late { doing: "ready", .. }), "{error:?}");
    assert!(matches!(predecessor.ready().await, Err(HandoverError::Refused { .. })));
}

#[tokio::test]
async fn more_sets_than_the_limit_are_refused_by_name() {
    let (_dir, path) = folder();
    let mut server = HandoverServer::bind(&path).unwrap();
    let many = || (0..=MAX_SETS as u64).map(|cookie| ListenerSet::empty("p", cookie)).collect::<Sets>();
    let serving = tokio::spawn(async move { server.serve(many).await.unwrap() });
    let told = Predecessor::connect(&path).await.unwrap().take().await.unwrap_err();
    assert!(told.to_string().contains("sets: 4097, the limit is 4096"), "{told}");
    assert!(matches!(serving.await.unwrap(), Event::SuccessorFailed { error: HandoverError::Limit { .. } }));
}
