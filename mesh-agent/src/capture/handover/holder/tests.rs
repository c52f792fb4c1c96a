use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use super::super::message::{Kind, split};
use super::super::socket::tests::{as_nobody, open_to_all};
use super::super::tests::{addresses, folder, listener, one_of_each};
use super::super::{HolderClient, STEP_LIMIT, socket};
use super::*;

fn start(path: &Path, limits: Limits) {
    let holder = Holder::bind(path, limits).unwrap();
    tokio::spawn(holder.serve(std::future::pending()));
}

#[tokio::test]
async fn sets_are_kept_replaced_counted_and_dropped() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    let mut agent = HolderClient::connect(&path).await.unwrap();
    assert_eq!(agent.count().await.unwrap(), Count::default());
    let (a, _) = one_of_each("a", 1);
    assert_eq!(agent.put(&a).await.unwrap(), Count { pods: 1, descriptors: 3 });
    let (b, _) = one_of_each("b", 2);
    assert_eq!(agent.put(&b).await.unwrap(), Count { pods: 2, descriptors: 6 });
    // The same pod and namespace: in its place. The same name in another namespace: beside it.
    let (mut again, _) = one_of_each("a", 1);
    again.hbone.clear();
    assert_eq!(agent.put(&again).await.unwrap(), Count { pods: 2, descriptors: 5 });
    let (reborn, _) = one_of_each("a", 3);
    assert_eq!(agent.put(&reborn).await.unwrap(), Count { pods: 3, descriptors: 8 });
    assert_eq!(agent.drop_pod("a", 1).await.unwrap(), Count { pods: 2, descriptors: 6 });
    assert_eq!(agent.drop_pod("a", 1).await.unwrap(), Count { pods: 2, descriptors: 6 });
    let kept = agent.fetch().await.unwrap();
    assert_eq!(kept.iter().map(addresses).collect::<Vec<_>>(), [addresses(&reborn), addresses(&b)]);
    assert_eq!(
        agent.count().await.unwrap(),
        Count { pods: 2, descriptors: 6 },
        "fetching takes nothing away"
    );
}

#[tokio::test]
async fn agents_come_and_go() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    for cookie in 0..20 {
        let mut agent = HolderClient::connect(&path).await.unwrap();
        assert_eq!(agent.fetch().await.unwrap().len(), cookie as usize);
        agent.put(&one_of_each("p", cookie).0).await.unwrap();
    }
}

#[tokio::test]
async fn a_set_of_several_messages_is_kept_whole() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    let one = OwnedFd::from(listener().0);
    let mut set = ListenerSet::empty("large", 1);
    set.outbound = (0..600).map(|_| one.try_clone().unwrap()).collect();
    let mut agent = HolderClient::connect(&path).await.unwrap();
    assert_eq!(agent.put(&set).await.unwrap(), Count { pods: 1, descriptors: 600 });
    let fetched = agent.fetch().await.unwrap();
    assert_eq!(fetched[0].outbound.len(), 600);
}

#[tokio::test]
async fn the_limits_refuse_by_name_and_the_agent_goes_on() {
    let (_dir, path) = folder();
    start(&path, Limits { pods: 2, descriptors: 7 });
    let mut agent = HolderClient::connect(&path).await.unwrap();
    agent.put(&one_of_each("a", 1).0).await.unwrap();
    let mut fat = one_of_each("b", 2).0;
    fat.hbone.extend(one_of_each("", 0).0.hbone);
    fat.hbone.extend(one_of_each("", 0).0.hbone);
    let refused = agent.put(&fat).await.unwrap_err();
    assert!(refused.to_string().contains("its limit of 7 descriptors; drop sets"), "{refused}");
    agent.put(&one_of_each("b", 2).0).await.unwrap();
    let refused = agent.put(&ListenerSet::empty("c", 3)).await.unwrap_err();
    assert!(refused.to_string().contains("its limit of 2 pods"), "{refused}");
    // One that is known may still be replaced at the limit.
    agent.put(&one_of_each("b", 2).0).await.unwrap();
    assert_eq!(agent.count().await.unwrap(), Count { pods: 2, descriptors: 6 });
}

#[test]
fn the_limit_of_descriptors_fits_under_the_limit_of_open_files() {
    for (open_files, wanted) in [(1024, 512), (20_000, 20_000 - SPARE_DESCRIPTORS), (1 << 20, 65_536)] {
        assert_eq!(Limits::default().under(open_files).descriptors, wanted);
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    let mut agents = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        agents.push(HolderClient::connect(&path).await.unwrap());
    }
    let refused = HolderClient::connect(&path).await;
    assert!(matches!(refused, Err(HandoverError::Refused { refusal: Refusal::Busy })), "{refused:?}");
    agents.clear();
    // The holder hears of their end when it next runs.
    while HolderClient::connect(&path).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_agent_that_dies_inside_a_put_leaves_nothing() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    let (set, _) = one_of_each("a", 1);
    let mut dies = raw(&path).await;
    let (mut part, fds) = split(&set).unwrap().remove(0);
    part.last = false;
    dies.send(&Message::Put(part), &fds).await.unwrap();
    drop(dies);
    let mut agent = HolderClient::connect(&path).await.unwrap();
    assert_eq!(agent.count().await.unwrap(), Count::default());
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_others_go_on() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    let mut agent = HolderClient::connect(&path).await.unwrap();
    agent.put(&one_of_each("a", 1).0).await.unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let part = |last| SetPart { pod: "x".into(), cookie: 9, fds: vec![(Kind::Inbound, 0)], last };
    let (tcp, _) = listener();
    let wrong = [
        (vec![(Message::Take, None)], "`take` came where"),
        (vec![(Message::Put(part(true)), Some(file.as_fd()))], "not a listening TCP socket"),
        (
            vec![(Message::Put(part(false)), Some(tcp.as_fd())), (Message::Fetch, None)],
            "`fetch` came where the rest",
        ),
    ];
    for (messages, wanted) in wrong {
        let mut peer = raw(&path).await;
        for (message, fd) in messages {
            peer.send(&message, fd.as_slice()).await.unwrap();
        }
        let told = peer.due(STEP_LIMIT, "refusal").await.unwrap_err().to_string();
        assert!(told.contains(wanted), "{told}");
    }
    assert_eq!(agent.count().await.unwrap(), Count { pods: 1, descriptors: 3 });
}

#[tokio::test]
async fn the_end_closes_everything() {
    let (_dir, path) = folder();
    let holder = Holder::bind(&path, Limits::default()).unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(holder.serve(async { ended.await.unwrap() }));
    let (set, [address, ..]) = one_of_each("a", 1);
    let mut agent = HolderClient::connect(&path).await.unwrap();
    agent.put(&set).await.unwrap();
    drop(set);
    std::net::TcpStream::connect(address).unwrap();
    end.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(matches!(agent.count().await, Err(HandoverError::Closed { .. })));
    assert!(std::net::TcpStream::connect(address).is_err(), "the holder's listener is still open");
    assert!(!path.exists());
}

#[tokio::test]
async fn an_agent_of_another_uid_is_sent_away_and_others_go_on() {
    let (_dir, path) = folder();
    start(&path, Limits::default());
    open_to_all(&path);
    let at = path.clone();
    let stranger = as_nobody(move || std::os::unix::net::UnixStream::connect(at).unwrap());
    while !stranger.is_finished() {
        tokio::task::yield_now().await;
    }
    HolderClient::connect(&path).await.unwrap();
    assert_eq!(stranger.join().unwrap().read(&mut [0]).unwrap(), 0);
}

async fn raw(path: &Path) -> Channel {
    let mut channel = Channel::new(socket::connect(path).await.unwrap());
    channel.greet(Service::Holder).await.unwrap();
    channel
}
