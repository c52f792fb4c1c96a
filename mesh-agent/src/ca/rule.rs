//! The node rule: an agent may have certificates only for workloads that run on its own node, so that a stolen token
//! is worth no more than its node. As istiod's node authorizer (security/pkg/server/ca/node_auth.go). Pure.
//! Called by `issue`.

use std::collections::BTreeSet;

use super::pods::{PodFact, PodTable};
use crate::model::Identity;

/// Namespace and name of a ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who calls, as its token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A pod's projected token, reviewed by the API server.
    Pod { account: Account, pod: String, uid: String, node: Option<String> },
    /// A token that is bound to no pod: proves an account and no node.
    Unbound { account: Account },
    /// The static token: a lab without Kubernetes.
    Static,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { account, .. } | Self::Unbound { account } => account.fmt(f),
            Self::Static => f.write_str("static token"),
        }
    }
}

/// Whom to trust with what.
#[derive(Clone, Debug)]
pub struct NodeRule {
    /// Accounts of node agents.
    pub trusted: BTreeSet<Account>,
    pub trust_domain: String,
}

/// Why a caller does not get an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("ServiceAccount {0} is not among --trusted-accounts")]
    NotTrusted(Account),
    #[error("the token of {0} is bound to no pod; mount a projected token")]
    NotBound(Account),
    #[error("the identity is not of the trust domain `{0}`")]
    TrustDomain(String),
    #[error("the calling pod {0} is not known")]
    CallerUnknown(String),
    #[error("the calling pod {0} is another one than the token was made for (UID)")]
    CallerUid(String),
    #[error("the calling pod {pod} runs as {found}, not as the token says")]
    CallerAccount { pod: String, found: Account },
    #[error("the calling pod {0} has ended")]
    CallerEnded(String),
    #[error("the calling pod {pod} is on node `{found}`, the token was made for `{token}`")]
    CallerNode { pod: String, found: String, token: String },
    #[error("no live pod with this identity runs on node `{node}`")]
    NoPodOnNode { node: String },
}

impl Refusal {
    /// Whether it may only be that news of a pod has not come yet.
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::CallerUnknown(_) | Self::NoPodOnNode { .. })
    }
}

impl NodeRule {
    /// Whether the caller may have the identity.
    pub fn check(&self, caller: &Caller, wanted: &Identity, pods: &PodTable) -> Result<(), Refusal> {
        if wanted.trust_domain() != self.trust_domain {
            return Err(Refusal::TrustDomain(self.trust_domain.clone()));
        }
        let (account, name, uid, token_node) = match caller {
            Caller::Static => return Ok(()),
            Caller::Unbound { account } => return Err(Refusal::NotBound(account.clone())),
            Caller::Pod { account, pod, uid, node } => (account, pod, uid, node),
        };
        if !self.trusted.contains(account) {
            return Err(Refusal::NotTrusted(account.clone()));
        }
        let shown = format!("{}/{name}", account.namespace);
        let Some(pod) = pods.get(&account.namespace, name) else {
            return Err(Refusal::CallerUnknown(shown));
        };
        let PodFact { uid: known, account: runs_as, node, live } = pod;
        if known != uid {
            return Err(Refusal::CallerUid(shown));
        }
        if runs_as != &account.name {
            let found = Account { namespace: account.namespace.clone(), name: runs_as.clone() };
            return Err(Refusal::CallerAccount { pod: shown, found });
        }
        if !live {
            return Err(Refusal::CallerEnded(shown));
        }
        if let Some(token) = token_node
            && token != node
        {
            return Err(Refusal::CallerNode { pod: shown, found: node.clone(), token: token.clone() });
        }
        if pods.runs(node, wanted.namespace(), wanted.service_account()) {
            return Ok(());
        }
        Err(Refusal::NoPodOnNode { node: node.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(account: &str, node: &str, live: bool) -> PodFact {
        PodFact { uid: format!("uid-{account}"), account: account.into(), node: node.into(), live }
    }

    fn pods() -> PodTable {
        let mut pods = PodTable::default();
        pods.put("mesh", "agent-1", fact("agent", "n1", true));
        pods.put("mesh", "agent-2", fact("agent", "n2", true));
        pods.put("mesh", "agent-old", fact("agent", "n1", false));
        pods.put("shop", "web-1", fact("web", "n1", true));
        pods.put("shop", "job-1", fact("job", "n1", false));
        pods
    }

    fn rule() -> NodeRule {
        let trusted = BTreeSet::from([Account { namespace: "mesh".into(), name: "agent".into() }]);
        NodeRule { trusted, trust_domain: "cluster.local".into() }
    }

    fn caller(pod: &str, uid: &str, node: Option<&str>) -> Caller {
        let account = Account { namespace: "mesh".into(), name: "agent".into() };
        Caller::Pod { account, pod: pod.into(), uid: uid.into(), node: node.map(Into::into) }
    }

    fn ask(caller: &Caller, account: &str) -> Result<(), Refusal> {
        rule().check(caller, &Identity::new("cluster.local", "shop", account).unwrap(), &pods())
    }

    #[test]
    fn an_agent_gets_what_runs_on_its_own_node_and_nothing_else() {
        let here = caller("agent-1", "uid-agent", Some("n1"));
        assert_eq!(ask(&here, "web"), Ok(()));
        assert_eq!(ask(&caller("agent-1", "uid-agent", None), "web"), Ok(()));
        let no_pod = |node: &str| Err(Refusal::NoPodOnNode { node: node.into() });
        assert_eq!(ask(&caller("agent-2", "uid-agent", Some("n2")), "web"), no_pod("n2"));
        assert_eq!(ask(&here, "job"), no_pod("n1"), "the Job has ended");
        assert_eq!(ask(&here, "nobody"), no_pod("n1"));
        let elsewhere = Identity::new("other.mesh", "shop", "web").unwrap();
        let refused = rule().check(&here, &elsewhere, &pods());
        assert_eq!(refused, Err(Refusal::TrustDomain("cluster.local".into())));
    }

    #[test]
    fn a_token_that_does_not_fit_its_pod_is_refused() {
        assert!(matches!(ask(&caller("agent-1", "uid-before", None), "web"), Err(Refusal::CallerUid(_))));
        assert!(matches!(ask(&caller("agent-9", "uid-agent", None), "web"), Err(Refusal::CallerUnknown(_))));
        assert!(matches!(ask(&caller("agent-old", "uid-agent", None), "web"), Err(Refusal::CallerEnded(_))));
        let moved = ask(&caller("agent-1", "uid-agent", Some("n2")), "web");
        assert!(matches!(moved, Err(Refusal::CallerNode { .. })));
        let account = Account { namespace: "shop".into(), name: "web".into() };
        let web = Caller::Pod {
            account: account.clone(),
            pod: "web-1".into(),
            uid: "uid-web".into(),
            node: Some("n1".into()),
        };
        assert_eq!(ask(&web, "web"), Err(Refusal::NotTrusted(account.clone())));
        assert_eq!(
            ask(&Caller::Unbound { account: account.clone() }, "web"),
            Err(Refusal::NotBound(account))
        );
    }

    /// A name that a new pod has taken over is another pod.
    #[test]
    fn the_table_follows_pods_that_move_end_and_go() {
        let mut pods = pods();
        assert!(pods.runs("n1", "shop", "web"));
        pods.put("shop", "web-2", fact("web", "n1", true));
        pods.put("shop", "web-1", fact("web", "n2", true));
        assert!(pods.runs("n1", "shop", "web") && pods.runs("n2", "shop", "web"));
        pods.remove("shop", "web-2");
        assert!(!pods.runs("n1", "shop", "web"));
        pods.put("shop", "web-1", fact("web", "n2", false));
        assert!(!pods.runs("n2", "shop", "web"));
        pods.remove("shop", "web-1");
        assert!(pods.get("shop", "web-1").is_none());
    }
}
