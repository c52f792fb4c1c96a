//! The lab tested by itself, without an agent: if one of these fails, no other scenario's result means anything.
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::apps::{Nginx, pattern};
use mesh_tests::client::{self, Dial};
use mesh_tests::manifests::ServicePort;
use mesh_tests::sniff::Sniffer;
use mesh_tests::{App, Lab, Pod, PodSpec, ServiceSpec, eventually};
use socket2::{Domain, Protocol, Socket, Type};

fn three_pods(scenario: &str) -> Result<(Lab, [Pod; 3])> {
    let lab = Lab::two_nodes(scenario)?;
    let pods = [
        lab.pod(PodSpec::new("shop", "client", "node-a"))?,
        lab.pod(PodSpec::new("shop", "near", "node-a"))?,
        lab.pod(PodSpec::new("shop", "far", "node-b"))?,
    ];
    Ok((lab, pods))
}

/// Pods of one node and of two nodes reach each other in both families and see each other's true addresses.
#[test]
fn pods_reach_each_other_in_both_families() -> Result<()> {
    let (_lab, [client, near, far]) = three_pods("connectivity")?;
    for server in [&near, &far] {
        let echo = App::echo(server, 8080)?;
        for (family, to) in server.both(8080).into_iter().enumerate() {
            let mut stream = client.connect(to)?;
            client::echo(&mut stream, b"hello")?;
            let seen = echo.stats().last().context("the server saw nobody")?;
            assert_eq!(seen.peer.ip(), client.ips()[family]);
            assert_eq!(seen.peer, stream.local_addr()?);
            assert_eq!(seen.local, to);
        }
    }
    Ok(())
}

/// Nodes reach their own and other nodes' pods, and a pod's default route leads to the node.
#[test]
fn nodes_reach_pods() -> Result<()> {
    let (lab, [_, near, far]) = three_pods("nodes")?;
    for pod in [&near, &far] {
        let _echo = App::echo(pod, 8080)?;
        for to in pod.both(8080) {
            lab.node("node-a")?.run(|| client::echo(&mut client::dial(to, &Dial::default())?, b"probe"))?;
        }
    }
    Ok(())
}

/// A connection to a port nobody listens on is refused at once.
#[test]
fn a_closed_port_refuses() -> Result<()> {
    let (_lab, [client, _, far]) = three_pods("refused")?;
    for to in far.both(9) {
        let error = client.connect(to).err().context("somebody listens")?;
        assert_eq!(client::io_kind(&error), Some(std::io::ErrorKind::ConnectionRefused), "{error:#}");
    }
    Ok(())
}

/// The link's sniffer sees a plaintext marker between nodes, and none of what stays on one node.
#[test]
fn the_sniffer_sees_a_plaintext_marker() -> Result<()> {
    let (lab, [client, near, far]) = three_pods("sniffer")?;
    let (_near, _far) = (App::echo(&near, 8080)?, App::echo(&far, 8080)?);
    for family in [0, 1] {
        let sniffer = Sniffer::on_link(&lab)?;
        client::echo(&mut client.connect(far.both(8080)[family])?, b"marker-across-the-link")?;
        client::echo(&mut client.connect(near.both(8080)[family])?, b"marker-inside-the-node")?;
        let seen = sniffer.stop()?;
        assert!(seen.saw(b"marker-across-the-link"), "{seen:?}");
        assert!(!seen.saw(b"marker-inside-the-node"), "{seen:?}");
        assert!(seen.tcp_to(8080), "{seen:?}");
        assert!(seen.tcp().any(|tcp| tcp.source.ip() == client.ips()[family]), "{seen:?}");
    }
    Ok(())
}

/// Every application of the lab behaves as its name says.
#[test]
fn the_applications_behave() -> Result<()> {
    let (_lab, [client, _, far]) = three_pods("applications")?;
    let greeter = App::greeter(&far, 25, "220 ready\r\n")?;
    let mut stream = client.connect(far.v4(25))?;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting)?;
    assert_eq!(&greeting, b"220 ready\r\n");
    client::echo(&mut stream, b"EHLO")?;
    // Half-close: what the server still has to say arrives after the client has closed its side.
    stream.write_all(b"last")?;
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(client::read_all(&mut stream)?, b"last");
    eventually("the greeter to close", Duration::from_secs(2), || Ok(greeter.stats().open() == 0))?;

    let sender = App::sender(&far, 26, 300_000)?;
    let received = client::read_all(&mut client.connect(far.v6(26))?)?;
    assert!(received.len() == 300_000 && received.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    eventually("the sender to close", Duration::from_secs(2), || Ok(sender.stats().open() == 0))?;

    let resetter = App::resetter(&far, 27)?;
    let mut stream = client.connect(far.v4(27))?;
    stream.write_all(b"x")?;
    let error = stream.read(&mut [0]).err().context("no reset")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the byte to be counted", Duration::from_secs(2), || Ok(resetter.stats().received() == 1))?;

    let sink = App::sink(&far, 28)?;
    let short = Dial { deadline: Duration::from_millis(300), ..Dial::default() };
    let mut stream = client.dial(far.v4(28), &short)?;
    let block = vec![0; 1 << 20];
    let full = (0..64).find_map(|_| stream.write_all(&block).err()).context("the sink reads")?;
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(sink.stats().open(), 1);
    Ok(())
}

/// A reset by the client is told from a close, and counted.
#[test]
fn a_reset_is_seen_by_the_server() -> Result<()> {
    let (_lab, [client, _, far]) = three_pods("reset")?;
    let echo = App::echo(&far, 8080)?;
    let mut stream = client.connect(far.v4(8080))?;
    client::echo(&mut stream, b"x")?;
    let socket = Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO))?;
    drop(socket);
    eventually("the reset", Duration::from_secs(2), || {
        Ok(echo.stats().resets() == 1 && echo.stats().open() == 0)
    })?;
    Ok(())
}

/// The lab's HTTP server and nginx answer who they are and whom they see.
#[test]
fn http_servers_answer_who_they_are() -> Result<()> {
    let (lab, [client, near, far]) = three_pods("http")?;
    let _http = App::http(&far, 80)?;
    let said = client.get(far.v6(80), "/path?query=1")?.json()?;
    assert_eq!(said["pod"], "far");
    assert_eq!(said["path"], "/path?query=1");
    assert_eq!(said["headers"]["user-agent"][0], "lab");
    assert!(
        said["peer"].as_str().is_some_and(|peer| peer.starts_with(&format!("[{}]:", client.ips()[1]))),
        "{said}"
    );
    let mut nginx = Nginx::start(&lab, &near, 8080)?;
    for (to, own) in near.both(8080).into_iter().zip(client.ips()) {
        let text = client.get(to, "/")?.text();
        let peer = text
            .trim()
            .strip_prefix("pod=near peer=")
            .context("nginx says something else")?
            .parse::<IpAddr>()?;
        assert_eq!(peer.to_canonical(), own);
    }
    nginx.process().check_alive()
}

/// Socket options of a client take effect: source address, mark and device.
#[test]
fn a_client_can_set_socket_options() -> Result<()> {
    let (_lab, [client, _, far]) = three_pods("options")?;
    let echo = App::echo(&far, 8080)?;
    let how = Dial {
        source: Some(client.ips()[0]),
        mark: Some(77),
        device: Some("eth0".to_owned()),
        ..Dial::default()
    };
    client::echo(&mut client.dial(far.v4(8080), &how)?, b"options")?;
    let multipath = Dial { mptcp: true, ..Dial::default() };
    client::echo(&mut client.dial(far.v6(8080), &multipath)?, b"multipath")?;
    assert_eq!(echo.stats().accepted(), 2);
    Ok(())
}

/// A removed pod's address goes to another pod at once.
#[test]
fn an_address_can_be_used_again() -> Result<()> {
    let (lab, [client, _, far]) = three_pods("address reuse")?;
    let old = App::echo(&far, 8080)?;
    client::echo(&mut client.connect(far.v4(8080))?, b"old")?;
    lab.remove_pod(&far)?;
    let next = lab.pod(PodSpec::new("shop", "heir", "node-b").account("other").addresses_of(&far))?;
    let _new = App::greeter(&next, 8080, "new")?;
    assert_eq!(next.ips(), far.ips());
    for to in next.both(8080) {
        let mut greeting = [0; 3];
        eventually("the heir to answer", Duration::from_secs(5), || {
            let short = Dial { deadline: Duration::from_millis(500), ..Dial::default() };
            Ok(client.dial(to, &short)?.read_exact(&mut greeting).is_ok())
        })?;
        assert_eq!(&greeting, b"new");
    }
    assert_eq!(old.stats().accepted(), 1);
    Ok(())
}

/// Manifests say what the lab made, and a file is replaced whole.
#[test]
fn manifests_describe_the_lab() -> Result<()> {
    let (lab, [client, near, far]) = three_pods("manifests")?;
    lab.manifests().namespace("shop", true)?;
    let ports = vec![ServicePort::tcp(80, 8080)];
    let vips = lab.vips().to_vec();
    lab.manifests().service(&ServiceSpec {
        namespace: "shop",
        name: "web",
        vips,
        ports,
        pods: vec![&near, &far],
    })?;
    lab.manifests().mtls("shop", "STRICT")?;
    let mut names: Vec<String> = std::fs::read_dir(lab.manifests().dir())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let expected = [
        "namespace-shop.yaml",
        "peerauthentication-shop-default.yaml",
        "pod-shop-client.yaml",
        "pod-shop-far.yaml",
        "pod-shop-near.yaml",
        "service-shop-web.yaml",
    ];
    assert_eq!(names, expected);
    let text = std::fs::read_to_string(lab.manifests().dir().join("pod-shop-client.yaml"))?;
    let pod: serde_json::Value = serde_json::from_str(text.trim_start_matches("---"))?;
    assert_eq!(pod["metadata"]["annotations"]["nodemesh.io/netns"], serde_json::json!(client.netns().path()));
    assert_eq!(pod["status"]["podIPs"][1]["ip"], serde_json::json!(client.ips()[1]));
    lab.manifests().remove_security("PeerAuthentication", "shop", "default")?;
    assert!(!lab.manifests().dir().join("peerauthentication-shop-default.yaml").exists());
    Ok(())
}

/// A lab that goes down in a panic leaves no namespace, process, pin or file.
#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    let (send, receive) = std::sync::mpsc::channel();
    let ended = std::thread::spawn(move || -> Result<()> {
        let (lab, [client, _, _]) = three_pods("panic")?;
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let process = lab.spawn(client.netns(), "sleep", sleep)?;
        send.send((lab.name().to_owned(), lab.dir().to_path_buf(), process.pid()))?;
        // A process that outlives its handle, as a daemon would.
        std::mem::forget(process);
        panic!("on purpose")
    })
    .join();
    assert!(ended.is_err(), "the thread was to panic");
    let (name, dir, pid) = receive.recv()?;
    assert!(!dir.exists());
    assert_eq!(namespaces_of(&name)?, Vec::<String>::new());
    // A zombie is what is left of a killed child that nobody waits for.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    assert!(state.contains(") Z "), "{state}");
    Ok(())
}

/// A lab whose process was killed is removed by the next process that makes one.
#[test]
fn a_killed_process_is_swept() -> Result<()> {
    const CHILD: &str = "NODEMESH_LAB_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let (lab, _pods) = three_pods("to be killed")?;
        println!("lab={}", lab.name());
        // Killed by the parent, or a mistake that this ends.
        std::thread::sleep(Duration::from_secs(60));
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let run = |name: &str| {
        let mut command = Command::new(&own);
        command.args(["--exact", name, "--nocapture"]).stdout(std::process::Stdio::piped());
        command
    };
    let mut child = run("a_killed_process_is_swept").env(CHILD, "1").spawn()?;
    let mut output = std::io::BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    while !line.contains("lab=") {
        line.clear();
        anyhow::ensure!(std::io::BufRead::read_line(&mut output, &mut line)? > 0, "the child made no lab");
    }
    let name = line.split("lab=").nth(1).context("no name")?.trim().to_owned();
    child.kill()?;
    child.wait()?;
    assert_eq!(namespaces_of(&name)?.len(), 6);
    let swept = run("a_closed_port_refuses").output()?;
    assert!(swept.status.success());
    assert_eq!(namespaces_of(&name)?, Vec::<String>::new());
    assert!(!Path::new("/run/nodemesh-lab").join(&name).exists());
    Ok(())
}

/// Two nodes and three pods come up well within a second, and go.
#[test]
fn a_lab_comes_up_quickly() -> Result<()> {
    let start = Instant::now();
    let (lab, _pods) = three_pods("speed")?;
    let up = start.elapsed();
    assert_eq!(lab.namespaces(), 6);
    let start = Instant::now();
    drop(lab);
    println!("up in {up:?}, down in {:?}", start.elapsed());
    assert!(up < Duration::from_secs(2), "{up:?}");
    Ok(())
}

/// Ten thousand short connections across nodes leave the server with nothing open.
#[test]
fn ten_thousand_short_connections() -> Result<()> {
    let (_lab, [client, _, far]) = three_pods("short connections")?;
    let echo = App::echo(&far, 8080)?;
    client.run(|| {
        for _ in 0..10_000 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.connect(&far.v4(8080).into())?;
            // Reset at the end: ten thousand sockets in TIME_WAIT are not what is tested.
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    })?;
    eventually("all to be served", Duration::from_secs(10), || Ok(echo.stats().open() == 0))?;
    Ok(())
}

fn namespaces_of(lab: &str) -> Result<Vec<String>> {
    let prefix = format!("{lab}-");
    let all =
        std::fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}
