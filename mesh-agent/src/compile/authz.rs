//! AuthorizationPolicy into [`AuthzPolicy`] (reference section 4.1). Broken = denies in its scope.

use std::sync::Arc;

use serde_json::Value;

use super::security_object::{check, report, salvage_selector, selector, with_spec};
use super::values::{Fault, Lists, account, block, fault, path_pattern, pattern, port, principal, read};
use super::{Compiled, Head, Kind, Object, typed};
use crate::api::istio::security::{self as api, AuthorizationPolicy};
use crate::api::names::DRY_RUN_ANNOTATION;
use crate::model::policy::{AuthzRule, AuthzScope, Condition, Operation, PathPattern, Source, StringMatch};
use crate::model::{AuthzAction, AuthzPolicy, PolicyRef};

pub(super) fn compile(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let value = &with_spec(value);
    let mut faults = check::<AuthorizationPolicy>(head, value);
    let policy = match typed::read::<AuthorizationPolicy>(head, value) {
        Ok(object) => Some(understood(head, &object, &mut faults)),
        Err(found) => {
            faults.push(fault(&found.field, found.message, found.remedy));
            None
        }
    };
    let policy = match policy {
        Some(mut policy) if faults.is_empty() => {
            policy.dry_run = dry_run(head, value, out);
            warn(head, &policy, out);
            policy
        }
        _ => {
            let cause = report(head, &faults, "the policy denies in its scope", &mut out.diagnostics);
            AuthzPolicy { dry_run: dry_run(head, value, out), ..broken(head, value, cause) }
        }
    };
    out.objects.push((head.key(Kind::AuthorizationPolicy), Object::AuthorizationPolicy(policy)));
}

/// An object of Istio's security group whose kind does not exist: most likely a policy with a slip in its name.
pub(super) fn unknown_kind(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let faults = [fault(
        "kind",
        format!("`{}` is not a kind of {}", head.kind, api::GROUP),
        "use AuthorizationPolicy, PeerAuthentication or RequestAuthentication",
    )];
    let cause = report(head, &faults, "everything in its scope is denied", &mut out.diagnostics);
    // Its name must not take the place of a real policy's.
    let mut key = head.key(Kind::AuthorizationPolicy);
    key.name = format!("{}/{}", head.kind, head.name).into();
    out.objects.push((key, Object::AuthorizationPolicy(broken(head, value, cause))));
}

fn policy_ref(head: &Head<'_>) -> PolicyRef {
    PolicyRef {
        kind: Kind::AuthorizationPolicy.name(),
        namespace: Arc::clone(&head.namespace),
        name: Arc::clone(&head.name),
    }
}

fn understood(head: &Head<'_>, object: &AuthorizationPolicy, faults: &mut Vec<Fault>) -> AuthzPolicy {
    let spec = &object.spec;
    let action = action(spec.action);
    if action == AuthzAction::Custom && spec.provider.as_ref().and_then(|p| p.name.as_deref()).is_none() {
        faults.push(fault("spec.provider.name", "is missing, and CUSTOM needs it", "name the provider"));
    }
    if action != AuthzAction::Custom && spec.provider.is_some() {
        faults.push(fault(
            "spec.provider",
            "has a meaning only with action CUSTOM",
            "remove it, or set the action",
        ));
    }
    let rules = spec.rules.iter().flatten().enumerate();
    let rules = rules.map(|(index, one)| rule(head, &format!("spec.rules[{index}]"), one, faults)).collect();
    AuthzPolicy {
        policy: policy_ref(head),
        action,
        scope: scope(head, spec, faults),
        rules,
        invalid: None,
        dry_run: false,
    }
}

fn action(action: Option<api::Action>) -> AuthzAction {
    match action.unwrap_or(api::Action::Allow) {
        api::Action::Allow => AuthzAction::Allow,
        api::Action::Deny => AuthzAction::Deny,
        api::Action::Audit => AuthzAction::Audit,
        api::Action::Custom => AuthzAction::Custom,
    }
}

fn scope(head: &Head<'_>, spec: &api::AuthorizationPolicySpec, faults: &mut Vec<Fault>) -> AuthzScope {
    let selector = selector(spec.selector.as_ref(), faults);
    let single = spec.target_ref.iter().map(|target| ("spec.targetRef".to_owned(), target));
    let several = spec.target_refs.iter().flatten().enumerate();
    let several = several.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target));
    let services: Vec<Arc<str>> =
        single.chain(several).filter_map(|(path, target)| service(head, &path, target, faults)).collect();
    let attached = spec.target_ref.is_some() || spec.target_refs.is_some();
    if attached && spec.selector.is_some() {
        faults.push(fault("spec.targetRefs", "cannot be used together with selector", "keep one of the two"));
    }
    if spec.target_ref.is_some() && spec.target_refs.is_some() {
        faults.push(fault("spec.targetRef", "cannot be used together with targetRefs", "keep targetRefs"));
    }
    // An empty list must not read as «no targetRefs», which is the whole namespace.
    if attached && services.is_empty() && faults.is_empty() {
        faults.push(fault("spec.targetRefs", "is an empty list", "name a Service, or remove the field"));
    }
    AuthzScope { namespace: scope_namespace(head, attached), selector, services }
}

/// The root namespace's policies hold in all; attached ones only where their Service is.
fn scope_namespace(head: &Head<'_>, attached: bool) -> Option<Arc<str>> {
    let mesh_wide = head.namespace == head.context.mesh.root_namespace && !attached;
    (!mesh_wide).then(|| Arc::clone(&head.namespace))
}

fn service(
    head: &Head<'_>,
    path: &str,
    target: &api::TargetRef,
    faults: &mut Vec<Fault>,
) -> Option<Arc<str>> {
    let before = faults.len();
    if target.kind != "Service" || !matches!(target.group.as_str(), "" | "core") {
        faults.push(fault(
            &format!("{path}.kind"),
            format!("`{}` cannot be a target in this version", target.kind),
            "target a Service of the same namespace (group \"\"), or use a selector",
        ));
    }
    if target.namespace.as_ref().is_some_and(|namespace| **namespace != *head.namespace) {
        faults.push(fault(
            &format!("{path}.namespace"),
            "is another namespace than the policy's",
            "put the policy into the Service's namespace",
        ));
    }
    if target.name.is_empty() {
        faults.push(fault(&format!("{path}.name"), "is empty", "name the Service"));
    }
    (faults.len() == before).then(|| target.name.as_str().into())
}

fn rule(head: &Head<'_>, path: &str, rule: &api::Rule, faults: &mut Vec<Fault>) -> AuthzRule {
    for (name, empty) in [
        ("from", rule.from.as_ref().is_some_and(Vec::is_empty)),
        ("to", rule.to.as_ref().is_some_and(Vec::is_empty)),
        ("when", rule.when.as_ref().is_some_and(Vec::is_empty)),
    ] {
        if empty {
            faults.push(fault(
                &format!("{path}.{name}"),
                "is an empty list",
                "add an entry, or remove the field",
            ));
        }
    }
    let from = rule.from.iter().flatten().enumerate();
    let to = rule.to.iter().flatten().enumerate();
    let when = rule.when.iter().flatten().enumerate();
    AuthzRule {
        from: from
            .map(|(i, from)| source(head, &format!("{path}.from[{i}].source"), from.source.as_ref(), faults))
            .collect(),
        to: to
            .map(|(i, to)| operation(&format!("{path}.to[{i}].operation"), to.operation.as_ref(), faults))
            .collect(),
        when: when
            .filter_map(|(i, one)| condition(head, &format!("{path}.when[{i}]"), one, faults))
            .collect(),
    }
}

fn source(head: &Head<'_>, path: &str, source: Option<&api::Source>, faults: &mut Vec<Fault>) -> Source {
    let Some(source) = source.filter(|source| **source != api::Source::default()) else {
        faults.push(fault(path, "is missing or empty", "name at least one attribute of the source"));
        return Source::default();
    };
    let own = &head.namespace;
    if (source.service_accounts.is_some() || source.not_service_accounts.is_some())
        && [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces]
            .iter()
            .any(|list| list.is_some())
    {
        faults.push(fault(
            &format!("{path}.serviceAccounts"),
            "cannot be used together with principals or namespaces",
            "keep one of them; a second source in `from` is ORed",
        ));
    }
    Source {
        principals: read(
            path,
            &lists("principals", &source.principals, "notPrincipals", &source.not_principals),
            faults,
            principal,
        ),
        service_accounts: read(
            path,
            &lists(
                "serviceAccounts",
                &source.service_accounts,
                "notServiceAccounts",
                &source.not_service_accounts,
            ),
            faults,
            |text| account(own, text),
        ),
        namespaces: read(
            path,
            &lists("namespaces", &source.namespaces, "notNamespaces", &source.not_namespaces),
            faults,
            pattern,
        ),
        ip_blocks: read(
            path,
            &lists("ipBlocks", &source.ip_blocks, "notIpBlocks", &source.not_ip_blocks),
            faults,
            block,
        ),
        trust_domains: read(
            path,
            &lists("trustDomains", &source.trust_domains, "notTrustDomains", &source.not_trust_domains),
            faults,
            pattern,
        ),
        remote_ip_blocks: read(
            path,
            &lists(
                "remoteIpBlocks",
                &source.remote_ip_blocks,
                "notRemoteIpBlocks",
                &source.not_remote_ip_blocks,
            ),
            faults,
            block,
        ),
        token: token_fields(
            path,
            &[
                ("requestPrincipals", &source.request_principals),
                ("notRequestPrincipals", &source.not_request_principals),
            ],
            faults,
        ),
    }
}

fn operation(path: &str, operation: Option<&api::Operation>, faults: &mut Vec<Fault>) -> Operation {
    let Some(operation) = operation.filter(|operation| **operation != api::Operation::default()) else {
        faults.push(fault(path, "is missing or empty", "name at least one attribute of the operation"));
        return Operation::default();
    };
    Operation {
        ports: read(path, &lists("ports", &operation.ports, "notPorts", &operation.not_ports), faults, port),
        hosts: read(
            path,
            &lists("hosts", &operation.hosts, "notHosts", &operation.not_hosts),
            faults,
            |text| {
                // Host names have no case (RFC 9110, 4.2.3).
                pattern(&text.to_ascii_lowercase())
            },
        ),
        methods: read(
            path,
            &lists("methods", &operation.methods, "notMethods", &operation.not_methods),
            faults,
            pattern,
        ),
        paths: read(
            path,
            &lists("paths", &operation.paths, "notPaths", &operation.not_paths),
            faults,
            path_pattern,
        ),
    }
}

fn lists<'a>(
    any: &'a str,
    values: &'a Option<Vec<String>>,
    none: &'a str,
    not_values: &'a Option<Vec<String>>,
) -> Lists<'a> {
    Lists { any: (any, values), none: (none, not_values) }
}

/// Names of the fields that are set; their values are checked all the same, so that a slip shows now.
fn token_fields(
    path: &str,
    fields: &[(&'static str, &Option<Vec<String>>)],
    faults: &mut Vec<Fault>,
) -> Vec<&'static str> {
    let mut names = Vec::new();
    for &(name, list) in fields {
        if list.is_some() {
            names.push(name);
            read(path, &lists(name, list, "", &None), faults, pattern);
        }
    }
    names
}

fn condition(
    head: &Head<'_>,
    path: &str,
    when: &api::Condition,
    faults: &mut Vec<Fault>,
) -> Option<Condition> {
    if when.values.is_none() && when.not_values.is_none() {
        faults.push(fault(path, "has neither values nor notValues", "give at least one of them"));
        return None;
    }
    let lists = lists("values", &when.values, "notValues", &when.not_values);
    Some(match when.key.as_str() {
        "source.ip" => Condition::SourceIp(read(path, &lists, faults, block)),
        "source.namespace" => Condition::SourceNamespace(read(path, &lists, faults, pattern)),
        "source.principal" => Condition::SourcePrincipal(read(path, &lists, faults, principal)),
        "source.serviceAccount" => {
            Condition::SourceServiceAccount(read(path, &lists, faults, |text| account(&head.namespace, text)))
        }
        "source.trustDomain" => Condition::SourceTrustDomain(read(path, &lists, faults, pattern)),
        "destination.ip" => Condition::DestinationIp(read(path, &lists, faults, block)),
        "destination.port" => Condition::DestinationPort(read(path, &lists, faults, port)),
        "remote.ip" => Condition::RemoteIp(read(path, &lists, faults, block)),
        "connection.sni" => Condition::Sni(read(path, &lists, faults, pattern)),
        key => return other_condition(path, key, &lists, faults),
    })
}

fn other_condition(path: &str, key: &str, lists: &Lists<'_>, faults: &mut Vec<Fault>) -> Option<Condition> {
    let name = |prefix: &str| key.strip_prefix(prefix)?.strip_suffix(']').filter(|name| !name.is_empty());
    if let Some(name) = name("request.headers[") {
        let name = name.to_ascii_lowercase();
        if !is_header_name(&name) {
            faults.push(fault(
                &format!("{path}.key"),
                format!("`{name}` is not the name of a header"),
                "write e.g. request.headers[x-tenant]",
            ));
        }
        return Some(Condition::Header(name.into(), read(path, lists, faults, pattern)));
    }
    let token = matches!(key, "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter")
        || name("request.auth.claims[").is_some()
        || key.starts_with("experimental.envoy.filters.");
    if token {
        read(path, lists, faults, pattern);
        return Some(Condition::Token(key.into()));
    }
    faults.push(fault(
        &format!("{path}.key"),
        format!("`{key}` is not an attribute"),
        "use source.*, destination.*, remote.ip, request.headers[..] or request.auth.*",
    ));
    None
}

/// A name that a request can have (RFC 9110, 5.6.2), or one of HTTP/2's own.
fn is_header_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    matches!(name, ":authority" | ":method" | ":path" | ":scheme") || name.bytes().all(token)
}

/// `istio.io/dry-run`: a value that is no boolean is not taken as a yes.
fn dry_run(head: &Head<'_>, value: &Value, out: &mut Compiled) -> bool {
    let Some(text) = value.pointer("/metadata/annotations").and_then(|all| all.get(DRY_RUN_ANNOTATION))
    else {
        return false;
    };
    match text.as_str() {
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
        Some("false" | "False" | "FALSE" | "f" | "F" | "0") => false,
        _ => {
            out.diagnostics.push(head.warning(
                &format!("metadata.annotations.{DRY_RUN_ANNOTATION}"),
                "is neither \"true\" nor \"false\"; the policy is enforced",
                "write \"true\" or \"false\", in quotes",
            ));
            false
        }
    }
}

fn warn(head: &Head<'_>, policy: &AuthzPolicy, out: &mut Compiled) {
    if policy.action == AuthzAction::Custom {
        out.diagnostics.push(head.warning(
            "spec.action",
            "this version has no external providers: CUSTOM denies whatever its rules match",
            "use ALLOW or DENY until providers are supported",
        ));
    }
    if policy.rules.is_empty() && matches!(policy.action, AuthzAction::Deny | AuthzAction::Custom) {
        out.diagnostics.push(head.warning(
            "spec.rules",
            "is missing, so the policy never matches",
            "add a rule",
        ));
    }
    for (index, rule) in policy.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if let Some(name) = crate::decide::authz::token_field(rule) {
            let effect = if policy.action == AuthzAction::Allow {
                "so it allows nothing"
            } else {
                "so it counts as matched"
            };
            out.diagnostics.push(head.warning(
                &field,
                &format!("`{name}` needs a token, and this version verifies none, {effect}"),
                "rely on identities, methods, paths and headers only",
            ));
        }
        for text in rule.to.iter().filter_map(never_a_path) {
            out.diagnostics.push(head.warning(
                &field,
                &format!("the path `{text}` matches no request"),
                "write paths with their slash at the beginning and without a query",
            ));
        }
    }
}

/// A text in `paths` that no request's path can be.
fn never_a_path(operation: &Operation) -> Option<&str> {
    operation.paths.any.iter().chain(&operation.paths.none).find_map(|pattern| match pattern {
        PathPattern::Text(StringMatch::Exact(text)) if **text == *"*" => None,
        PathPattern::Text(StringMatch::Exact(text) | StringMatch::Prefix(text))
            if !text.starts_with('/') || text.contains(['?', '#']) =>
        {
            Some(&**text)
        }
        PathPattern::Text(StringMatch::Suffix(text)) if text.contains(['?', '#']) => Some(&**text),
        _ => None,
    })
}

/// Denies as widely as the object may have meant: its selector or Services where those can be read, else its
/// namespace (the mesh, in the root namespace).
pub(super) fn broken(head: &Head<'_>, value: &Value, cause: String) -> AuthzPolicy {
    let spec = |name: &str| value.pointer(&format!("/spec/{name}"));
    let attached = spec("targetRef").is_some() || spec("targetRefs").is_some();
    let selector = if attached { None } else { salvage_selector(value).unwrap_or_default() };
    let services = if spec("selector").is_none() { salvage_services(head, value) } else { None };
    let action = spec("action").and_then(Value::as_str);
    AuthzPolicy {
        policy: policy_ref(head),
        // An audit never changes a verdict, so a broken one does not either.
        action: if action == Some("AUDIT") { AuthzAction::Audit } else { AuthzAction::Deny },
        scope: AuthzScope {
            namespace: scope_namespace(head, attached),
            selector,
            services: services.unwrap_or_default(),
        },
        rules: Vec::new(),
        invalid: Some(cause),
        dry_run: false,
    }
}

/// The Services of `targetRefs`, if every one of them can be read.
fn salvage_services(head: &Head<'_>, value: &Value) -> Option<Vec<Arc<str>>> {
    let refs = value.pointer("/spec/targetRefs")?.as_array()?;
    if value.pointer("/spec/targetRef").is_some() {
        return None;
    }
    refs.iter()
        .map(|target| {
            let target: api::TargetRef = serde_json::from_value(target.clone()).ok()?;
            service(head, "", &target, &mut Vec::new())
        })
        .collect()
}

#[cfg(test)]
mod tests;
