use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn flags(text: &[&str]) -> RunArgs {
    Cli::try_parse_from(std::iter::once("test").chain(text.iter().copied())).unwrap().run
}

fn base() -> RunArgs {
    RunArgs {
        node: Some("node-a".into()),
        manifests: Some(std::env::temp_dir()),
        ca_dir: Some("/ca".into()),
        ..RunArgs::default()
    }
}

fn problem(change: impl FnOnce(&mut RunArgs)) -> String {
    let mut args = base();
    change(&mut args);
    args.resolve().unwrap_err().to_string()
}

#[test]
fn defaults_are_the_documented_ones() {
    let settings = base().resolve().unwrap();
    assert_eq!(settings.admin_socket, PathBuf::from("/run/nodemesh/admin.sock"));
    assert_eq!(settings.metrics, "127.0.0.1:15020".parse().unwrap());
    assert_eq!(settings.readiness.port(), 15021);
    assert_eq!(settings.trust_domain, "cluster.local");
    assert_eq!(settings.bpf_dir, PathBuf::from("/sys/fs/bpf/nodemesh"));
    assert_eq!(settings.cert_lifetime, Duration::from_secs(86400));
    assert_eq!(settings.root_namespace, "istio-system");
    assert!(settings.access_log);
    assert!((1..=DEFAULT_WORKERS_MAX).contains(&settings.workers));
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    let yaml = "node: from-file\nca-dir: /file-ca\nworkers: 3\naccess-log: off\ndrain-deadline: 5s\n\
                metrics: '[::1]:9000'\nlog-format: json\nadmin-socket: /file.sock\n";
    std::fs::write(&file, yaml).unwrap();
    let manifests = dir.path().to_str().unwrap().to_owned();
    let args = flags(&["--config", file.to_str().unwrap(), "--node", "from-flag", "--manifests", &manifests]);
    let settings = args.resolve().unwrap();
    assert_eq!(settings.node, "from-flag");
    assert_eq!(settings.ca, CaSettings::Dir("/file-ca".into()));
    assert_eq!(settings.workers, 3);
    assert!(!settings.access_log);
    assert_eq!(settings.drain_deadline, Duration::from_secs(5));
    assert_eq!(settings.metrics, "[::1]:9000".parse().unwrap());
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!(settings.admin_socket, PathBuf::from("/file.sock"));
    assert_eq!(settings.trust_domain, "cluster.local");
}

#[test]
fn switches_read_as_people_write_them() {
    for (text, on) in [("on", true), ("off", false), ("true", true), ("false", false), ("'off'", false)] {
        let args = parse(&format!("access-log: {text}")).unwrap();
        assert_eq!(args.access_log, Some(Switch(on)), "{text}");
    }
    assert!(parse("access-log: maybe").is_err());
}

#[test]
fn an_empty_file_is_no_error_and_an_unknown_key_is_one_that_names_it() {
    assert_eq!(parse("").unwrap(), RunArgs::default());
    assert_eq!(parse("# nothing\n").unwrap(), RunArgs::default());
    let error = parse("node: a\nworkerz: 3\n").unwrap_err();
    assert!(error.contains("workerz"), "{error}");
    assert!(parse("config: /other").is_err(), "a file cannot name a file");
    assert!(parse("cert-lifetime: 24").is_err(), "a duration needs its unit");
}

#[test]
fn errors_name_the_setting_and_the_remedy() {
    let cases: Vec<(String, &str, &str)> = vec![
        (problem(|a| a.node = None), "node", "NODEMESH_NODE"),
        (
            problem(|a| {
                a.ca_dir = None;
                a.ca_address = Some("http://ca:1".into());
            }),
            "ca-address",
            "https://HOST:PORT",
        ),
        (problem(|a| a.node = Some("Node A".into())), "node", "spec.nodeName"),
        (problem(|a| a.manifests = Some("/does/not/exist".into())), "manifests", "make it"),
        (problem(|a| a.trust_domain = Some("Big.Domain".into())), "trust-domain", "same one"),
        (problem(|a| a.workers = Some(0)), "workers", "cores"),
        (problem(|a| a.workers = Some(10_000)), "workers", "1 to 256"),
        (problem(|a| a.log_level = Some("info,=".into())), "log-level", "--help"),
        (problem(|a| a.cert_lifetime = Some(Span(Duration::from_secs(1)))), "cert-lifetime", "24h"),
        (problem(|a| a.drain_deadline = Some(Span(Duration::from_secs(9999)))), "drain-deadline", "20s"),
        (problem(|a| a.bpf_dir = Some("bpf".into())), "bpf-dir", "/sys/fs/bpf"),
        (problem(|a| a.admin_socket = Some("x".repeat(108).into())), "admin-socket", "shorter"),
        (problem(|a| a.readiness = Some("127.0.0.1:15020".parse().unwrap())), "metrics", "different ports"),
        (problem(|a| a.config = Some("/does/not/exist.yaml".into())), "config", "check the path"),
    ];
    for (error, field, remedy) in cases {
        assert!(error.starts_with(&format!("{field}: ")), "{error} does not name {field}");
        assert!(error.contains(remedy), "{error} does not say {remedy}");
    }
}

#[test]
fn without_manifests_kubernetes_is_the_source() {
    let settings = RunArgs { manifests: None, ..base() }.resolve().unwrap();
    assert_eq!((settings.manifests, settings.kubeconfig, settings.context), (None, None, None));
    assert_eq!(settings.proc_dir, PathBuf::from("/proc"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, "").unwrap();
    let args =
        flags(&["--node", "a", "--ca-dir", "/ca", "--kubeconfig", file.to_str().unwrap(), "--context", "c"]);
    let settings = args.resolve().unwrap();
    assert_eq!((settings.kubeconfig, settings.context.as_deref()), (Some(file), Some("c")));
}

#[test]
fn two_sources_at_once_are_refused_and_so_is_a_kubeconfig_that_is_not_there() {
    for (change, field) in [
        ((|a| a.kubeconfig = Some("/k".into())) as fn(&mut RunArgs), "kubeconfig"),
        (|a| a.context = Some("c".into()), "context"),
    ] {
        let problem = problem(change);
        assert!(problem.starts_with(&format!("{field}: ")), "{problem}");
        assert!(problem.contains("leave out one of the two"), "{problem}");
    }
    let missing = problem(|a| (a.manifests, a.kubeconfig) = (None, Some("/does/not/exist".into())));
    assert!(missing.starts_with("kubeconfig: /does/not/exist is not a file"), "{missing}");
    let proc = problem(|a| a.proc_dir = Some("/tmp".into()));
    assert!(proc.starts_with("proc-dir: /tmp is no proc file system"), "{proc}");
}

#[test]
fn a_setting_of_the_agents_own_is_told_from_a_default() {
    assert_eq!(base().resolve().unwrap().own, OwnSettings::default());
    let own = RunArgs { trust_domain: Some("cluster.local".into()), ..base() }.resolve().unwrap().own;
    assert!(own.trust_domain && !own.root_namespace && !own.access_log);
}

/// The CNI socket is the documented one, and beside its admin socket for another agent on the same machine.
#[test]
fn the_cni_socket_goes_with_the_admin_socket() {
    assert_eq!(base().resolve().unwrap().cni_socket, PathBuf::from("/run/nodemesh/cni.sock"));
    let settings = RunArgs { admin_socket: Some("/tmp/lab/node-a.sock".into()), ..base() }.resolve().unwrap();
    assert_eq!(settings.cni_socket, PathBuf::from("/tmp/lab/node-a.cni.sock"));
    let same = problem(|args| {
        args.admin_socket = Some("/tmp/one.sock".into());
        args.cni_socket = Some("/tmp/one.sock".into());
    });
    assert!(same.contains("cni-socket") && same.contains("/tmp/one.sock"), "{same}");
    let long = problem(|args| args.cni_socket = Some("/x".repeat(SOCKET_PATH_MAX_BYTES).into()));
    assert!(long.contains("cni-socket"), "{long}");
}

/// The plugin is kept installed in both folders or in none.
#[test]
fn the_cni_folders_come_together() {
    assert_eq!(base().resolve().unwrap().cni_dirs, None);
    let args = flags(&["--cni-bin-dir", "/opt/cni/bin", "--cni-conf-dir", "/etc/cni/net.d"]);
    let both = RunArgs { cni_bin_dir: args.cni_bin_dir, cni_conf_dir: args.cni_conf_dir, ..base() };
    assert_eq!(both.resolve().unwrap().cni_dirs, Some(("/opt/cni/bin".into(), "/etc/cni/net.d".into())));
    let problem = problem(|args| args.cni_bin_dir = Some("/opt/cni/bin".into()));
    assert!(problem.starts_with("cni-conf-dir") && problem.contains("cni-bin-dir"), "{problem}");
}
