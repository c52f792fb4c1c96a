use super::output::{Style, json, yaml};
use super::*;
use crate::admin::fixtures::{Views, views};
use crate::admin::{KindView, SettingView, Timestamp};

/// 2026-01-01T03:12:00Z.
const NOW: Timestamp = Timestamp(1_767_237_120);

fn style(wide: bool) -> Style {
    Style { colour: false, wide, now: NOW }
}

fn both(name: &str, draw: impl Fn(&Views, Style) -> String) {
    let views = views();
    insta::assert_snapshot!(name, draw(&views, style(false)));
    insta::assert_snapshot!(format!("{name}_wide"), draw(&views, style(true)));
}

#[test]
fn every_table_looks_as_agreed() {
    both("status", |views, style| status::draw(&views.status, style));
    both("workloads", |views, style| workloads::draw(&views.workloads, style));
    both("services", |views, style| services::draw(&views.services, style));
    both("policies", |views, style| policies::draw(&views.policies, style));
    both("certs", |views, style| certs::draw(&views.certificates, style));
    both("connections", |views, style| connections::draw(&views.connections, style));
    both("explain_denied", |views, style| explain::draw(&views.denied, style));
    both("explain_allowed", |views, style| explain::draw(&views.allowed, style));
    both("routes", |views, style| routes::draw(&views.routes, style));
    both("check_agent", |views, style| check::draw(&views.checks, style));
}

#[test]
fn an_agent_in_trouble_says_so_in_its_status() {
    let mut status = views().status;
    status.state = crate::admin::State::Starting;
    status.missing = vec!["no world was loaded".into()];
    status.capture.problem = Some("program mesh_connect4 was detached by another tool".into());
    status.source.stale_since = Some(Timestamp(NOW.0 - 200));
    status.connections.clear();
    insta::assert_snapshot!("status_trouble", status::draw(&status, style(false)));
}

#[test]
fn empty_lists_say_so() {
    let plain = style(false);
    for text in [
        workloads::draw(&[], plain),
        services::draw(&[], plain),
        policies::draw(&[], plain),
        certs::draw(&[], plain),
        connections::draw(&[], plain),
    ] {
        assert!(text.starts_with("No ") && text.ends_with('\n'), "{text:?}");
    }
}

#[test]
fn json_and_yaml_carry_the_whole_answer() {
    fn round<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
        assert_eq!(&serde_json::from_str::<T>(&json(value).unwrap()).unwrap(), value);
        let text = yaml(value).unwrap();
        assert_eq!(&serde_saphyr::from_str::<T>(&text).unwrap(), value, "{text}");
    }
    let views = views();
    round(&views.status);
    round(&views.checks);
    round(&views.workloads);
    round(&views.services);
    round(&views.policies);
    round(&views.certificates);
    round(&views.connections);
    round(&views.denied);
    round(&views.allowed);
    insta::assert_snapshot!("explain_yaml", yaml(&views.denied).unwrap());
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn run_takes_the_socket_that_every_verb_takes() {
    let parse = |words: &[&str]| Cli::try_parse_from(words).unwrap().action();
    for words in [
        ["mesh-agent", "--admin-socket", "/x.sock", "run"],
        ["mesh-agent", "run", "--admin-socket", "/x.sock"],
    ] {
        let Action::Run(args) = parse(&words) else { panic!("{words:?}") };
        assert_eq!(args.admin_socket, Some("/x.sock".into()));
    }
    let Action::Ask(question) = parse(&["mesh-agent", "status", "-o", "json"]) else { panic!() };
    assert_eq!(question.output, Format::Json);
}

#[test]
fn the_status_of_a_cluster_names_what_is_denied_what_is_missing_and_which_settings_are_not_in_force() {
    let mut status = views().status;
    let kind = |resource: &str, version: Option<&str>, state: &str, objects| KindView {
        resource: resource.to_owned(),
        version: version.map(str::to_owned),
        state: state.to_owned(),
        objects,
        problem: None,
        remedy: None,
    };
    status.source.from = "kubernetes https://10.96.0.1/".into();
    status.source.diagnostics.clear();
    let denied = KindView {
        problem: Some("not allowed: list on pods: pods is forbidden".into()),
        remedy: Some("let the agent's account list and watch pods (ClusterRole nodemesh-agent)".into()),
        ..kind("pods", None, "failing", 0)
    };
    status.source.kinds = vec![
        kind("namespaces", Some("v1"), "current", 7),
        denied,
        kind("peerauthentications.security.istio.io", None, "not installed", 0),
    ];
    let setting = |field: &str, value: &str, note: Option<&str>| SettingView {
        field: field.to_owned(),
        value: value.to_owned(),
        in_force: note.is_none(),
        note: note.map(str::to_owned),
    };
    status.settings = vec![
        setting("accessLogFile", "/dev/stdout", None),
        setting("extensionProviders", "[]", Some("this version does not have the feature yet")),
    ];
    insta::assert_snapshot!("status_cluster", status::draw(&status, style(false)));
    insta::assert_snapshot!("status_cluster_wide", status::draw(&status, style(true)));
}

#[test]
fn rules_for_connections_are_drawn() {
    let rule = crate::admin::RuleView {
        object: "VirtualService shop/db".into(),
        rule: "tls[0]".into(),
        matches: vec!["SNI = db.example".into()],
        action: vec!["to db.shop.svc.cluster.local subset v1".into()],
        options: Vec::new(),
    };
    let mut views = views();
    let story = |sni: Option<&str>, rule| crate::admin::ConnectionStory {
        sni: sni.map(str::to_owned),
        rule,
        outcome: "no rule takes it".into(),
    };
    for (told, expected) in [
        (
            story(Some("db.example"), Some(rule.clone())),
            "\nTLS connection to db.example\n  VirtualService shop/db tls[0]\n    if SNI = db.example\n    => to db.shop.svc.cluster.local subset v1\n",
        ),
        (story(None, None), "\nConnection\n  no rule takes it\n"),
    ] {
        views.allowed.connection = Some(told);
        let text = explain::draw(&views.allowed, style(false));
        assert!(text.contains(expected), "{text}");
    }
    views.routes.connections = vec![rule];
    let both = routes::draw(&views.routes, style(false));
    assert!(both.contains("\nRules for connections\n  1  VirtualService shop/db tls[0]\n"), "{both}");
    assert!(both.contains("\nRules, in the order they are tried\n"), "{both}");
    views.routes.rules.clear();
    let only = routes::draw(&views.routes, style(false));
    assert!(!only.contains("every request"), "{only}");
}
