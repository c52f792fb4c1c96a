//! nginx in a pod: an application that nobody here wrote.
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, Pod};
use crate::process::Process;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(5);
const PROGRAM: &str = "/usr/sbin/nginx";

/// A running nginx that answers `pod=NAME peer=ADDRESS` on `/`, and 200 with nothing on `/empty`.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
}

/// Files of a server that speaks TLS. Whoever shows a certificate of `clients` is named in its answers.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
    pub clients: PathBuf,
}

impl Nginx {
    pub fn start(lab: &Lab, pod: &Pod, port: u16) -> Result<Self> {
        Self::serve(lab, pod, port, "", &format!("pod={} peer=$remote_addr", pod.name()))
    }

    /// The same over TLS; it answers `pod=NAME scheme=https sni=NAME client=SUBJECT protocol=VERSION`.
    pub fn tls(lab: &Lab, pod: &Pod, port: u16, files: &TlsFiles) -> Result<Self> {
        let TlsFiles { chain, key, clients } = files;
        let more = format!(
            "ssl_certificate {};\n ssl_certificate_key {};\n ssl_client_certificate {};\n ssl_verify_client optional;",
            chain.display(),
            key.display(),
            clients.display()
        );
        let said = format!(
            "pod={} scheme=$scheme sni=$ssl_server_name client=$ssl_client_s_dn protocol=$server_protocol",
            pod.name()
        );
        Self::serve(lab, pod, port, &more, &said)
    }

    fn serve(lab: &Lab, pod: &Pod, port: u16, tls: &str, said: &str) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            bail!("nginx is missing; run `cargo xtask setup`");
        }
        let dir = lab.dir().join(format!("nginx-{}-{}", pod.namespace(), pod.name()));
        fs::create_dir_all(&dir).context("cannot create nginx's folder")?;
        let config = dir.join("nginx.conf");
        fs::write(&config, configuration(&dir, port, tls, said))
            .context("cannot write nginx's configuration")?;
        let mut command = Command::new(PROGRAM);
        command.arg("-p").arg(&dir).arg("-c").arg(&config).args(["-e", "stderr"]);
        let mut process = lab.spawn(pod.netns(), &format!("nginx-{}", pod.name()), command)?;
        eventually("nginx to listen", START_DEADLINE, || {
            process.check_alive()?;
            pod.run(|| Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()))
        })?;
        Ok(Self { process })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// One process, nothing written outside its folder, nothing read from `/etc`.
fn configuration(dir: &Path, port: u16, tls: &str, said: &str) -> String {
    let dir = dir.display();
    let ssl = if tls.is_empty() { "" } else { " ssl http2" };
    format!(
        r#"user root;
daemon off;
master_process off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type text/plain;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000;
    server {{
        listen [::]:{port} ipv6only=off backlog=4096{ssl};
        {tls}
        location / {{ return 200 "{said}\n"; }}
        location = /empty {{ return 200; }}
    }}
}}
"#
    )
}
