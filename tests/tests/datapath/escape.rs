//! A pod cannot talk past its agent: whatever it sets on a socket, its connection is captured or refused.
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::client::{self, Dial};
use mesh_tests::sniff::Sniffer;
use mesh_tests::{App, Pod};

use crate::endings::reset_at_once;
use crate::mesh::{Mesh, PORT, Route};

/// The mark that the mesh itself sets, the one of Istio's proxies, and some others.
const MARKS: [u32; 4] = [0x6d65_7368, 0x539, 1, u32::MAX];

/// An application's own mark on its socket does not lead past the agent.
#[test]
fn an_own_mark_does_not_escape() -> Result<()> {
    let mesh = Mesh::new("own mark")?;
    let echo = mesh.serve(Route::Hbone, PORT, App::echo)?;
    let sniffer = Sniffer::on_link(&mesh.lab)?;
    for (family, to) in mesh.far.both(PORT).into_iter().enumerate() {
        for mark in MARKS {
            let how = Dial { mark: Some(mark), ..Dial::default() };
            let mut stream = mesh.client.dial(to, &how).with_context(|| format!("mark {mark:#x}"))?;
            client::echo(&mut stream, b"marked-plaintext").with_context(|| format!("mark {mark:#x}"))?;
            assert_eq!(mesh.shown(Route::Hbone, PORT, family)?, Route::Hbone.shown(), "mark {mark:#x}");
            drop(stream);
            mesh.wait_quiet()?;
        }
    }
    let seen = sniffer.stop()?;
    assert!(!seen.saw(b"marked-plaintext") && !seen.tcp_to(PORT), "{seen:?}");
    assert_eq!(echo.stats().accepted(), 2 * MARKS.len() as u64);
    Ok(())
}

/// A socket bound to a device would leave by it: it is refused, and nothing of it reaches the link.
#[test]
fn a_bound_device_does_not_escape() -> Result<()> {
    let mesh = Mesh::new("bound device")?;
    let echo = mesh.serve(Route::Hbone, PORT, App::echo)?;
    let sniffer = Sniffer::on_link(&mesh.lab)?;
    for to in mesh.far.both(PORT) {
        let how = Dial { device: Some("eth0".to_owned()), ..Dial::default() };
        let error = mesh.client.dial(to, &how).err().context("it was let through")?;
        assert_eq!(client::io_kind(&error), Some(ErrorKind::PermissionDenied), "{error:#}");
    }
    let seen = sniffer.stop()?;
    assert!(!seen.tcp_to(PORT), "{seen:?}");
    assert_eq!(echo.stats().accepted(), 0);
    Ok(())
}

/// Addresses that are not the pod's, of the other pods' ranges.
const FOREIGN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 42, 0, 200)), IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, 200))];

fn take_address(pod: &Pod, address: IpAddr) -> Result<()> {
    let length = if address.is_ipv4() { "/32" } else { "/128" };
    let status = pod.run(|| {
        let mut command = Command::new("ip");
        command.args(["address", "add", &format!("{address}{length}"), "dev", "lo"]);
        if address.is_ipv6() {
            command.arg("nodad");
        }
        Ok(command.status()?)
    })?;
    anyhow::ensure!(status.success(), "cannot add {address}");
    Ok(())
}

/// A pod that binds to another's address goes nowhere, on any route, and the agent says why.
#[test]
fn a_foreign_source_does_not_escape() -> Result<()> {
    let mesh = Mesh::new("foreign source")?;
    for address in FOREIGN {
        take_address(&mesh.client, address)?;
    }
    for route in [Route::Hbone, Route::Outbound, Route::Local, Route::Bypass] {
        let echo = mesh.serve(route, PORT, App::echo)?;
        let before = echo.stats().accepted();
        for (family, to) in mesh.target(route, PORT).into_iter().enumerate() {
            let how = Dial { source: Some(FOREIGN[family]), ..Dial::default() };
            reset_at_once(mesh.client.dial(to, &how)).with_context(|| format!("{route:?} {to}"))?;
            let (from, to) = (format!("src.addr={}", at(FOREIGN[family])), format!("dst.addr={to}"));
            mesh.wait_logged("node-a", &[&from, &to, "reason=\"spoofed_source\""])?;
        }
        assert_eq!(echo.stats().accepted(), before, "{route:?}");
        // The pod's own address, bound as such, is none of that.
        for (family, to) in mesh.target(route, PORT).into_iter().enumerate() {
            let how = Dial { source: Some(mesh.client.ips()[family]), ..Dial::default() };
            client::echo(&mut mesh.client.dial(to, &how)?, b"own address")?;
        }
    }
    Ok(())
}

/// An address as the log shows it, up to the port.
fn at(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}:"),
        IpAddr::V6(v6) => format!("[{v6}]:"),
    }
}

/// MPTCP sockets are captured as TCP ones are.
#[test]
fn multipath_tcp_does_not_escape() -> Result<()> {
    let mesh = Mesh::new("multipath")?;
    let _echo = mesh.serve(Route::Hbone, PORT, App::echo)?;
    let sniffer = Sniffer::on_link(&mesh.lab)?;
    for to in mesh.far.both(PORT) {
        let how = Dial { mptcp: true, ..Dial::default() };
        client::echo(&mut mesh.client.dial(to, &how)?, b"multipath-plaintext")?;
    }
    let seen = sniffer.stop()?;
    assert!(!seen.saw(b"multipath-plaintext") && !seen.tcp_to(PORT), "{seen:?}");
    Ok(())
}
