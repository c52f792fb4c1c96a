//! Tokens into callers. Owns: asking the API server (TokenReview), and the lab's static token.
//! Never: decides what a caller may have. Called by `issue`.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};

use super::rotation::sha256;
use super::rule::{Account, Caller};

/// Extra fields of a reviewed token that name the pod it is bound to (Kubernetes, "Managing Service Accounts").
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Longest token looked at, bytes.
pub const TOKEN_MAX_BYTES: usize = 16 * 1024;

/// Why a token proves nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no bearer token in the request")]
    Missing,
    #[error("the token is refused: {0}")]
    Refused(String),
    #[error("the API server cannot review the token now: {0}")]
    Unavailable(String),
}

/// Who answers for tokens. An enum, not a trait: the list is closed and short.
pub enum Authenticator {
    /// Asks the API server about each token.
    Review { client: Client, audience: String },
    /// One token, by its hash.
    Static { hash: Vec<u8> },
}

impl Authenticator {
    /// A lab's token.
    pub fn fixed(token: &str) -> Self {
        Self::Static { hash: sha256(token.trim().as_bytes()) }
    }

    /// The caller that a token proves.
    pub async fn caller(&self, token: Option<&str>) -> Result<Caller, AuthError> {
        let token = token.filter(|token| !token.is_empty()).ok_or(AuthError::Missing)?;
        if token.len() > TOKEN_MAX_BYTES {
            return Err(AuthError::Refused(format!("longer than {TOKEN_MAX_BYTES} bytes")));
        }
        match self {
            // Hashes are compared, so that the time it takes says nothing about the token.
            Self::Static { hash } if sha256(token.as_bytes()) == *hash => Ok(Caller::Static),
            Self::Static { .. } => Err(AuthError::Refused("not the static token".to_owned())),
            Self::Review { client, audience } => review(client, audience, token).await,
        }
    }
}

async fn review(client: &Client, audience: &str, token: &str) -> Result<Caller, AuthError> {
    let wanted = TokenReview {
        spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let reviewed = api.create(&PostParams::default(), &wanted).await;
    let status = reviewed.map_err(|error| AuthError::Unavailable(error.to_string()))?.status;
    let status = status.ok_or_else(|| AuthError::Unavailable("an answer without status".to_owned()))?;
    if status.authenticated != Some(true) {
        // The API server says why (expired, unknown key); the token itself is never in its words.
        let why = status.error.unwrap_or_else(|| "not authenticated".to_owned());
        return Err(AuthError::Refused(why));
    }
    // A server that knows nothing of audiences authenticates whatever it is asked for.
    if !status.audiences.iter().flatten().any(|found| found == audience) {
        return Err(AuthError::Refused(format!("not for the audience `{audience}`")));
    }
    caller_of(status.user.unwrap_or_default())
}

fn caller_of(user: UserInfo) -> Result<Caller, AuthError> {
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(AuthError::Refused(format!("`{name}` is no ServiceAccount")));
    };
    let account = Account { namespace: namespace.to_owned(), name: account.to_owned() };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    Ok(match (one(POD_NAME), one(POD_UID)) {
        (Some(pod), Some(uid)) => Caller::Pod { account, pod, uid, node: one(NODE_NAME) },
        _ => Caller::Unbound { account },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[tokio::test]
    async fn the_static_token_proves_itself_and_nothing_else_does() {
        let fixed = Authenticator::fixed("secret\n");
        assert_eq!(fixed.caller(Some("secret")).await, Ok(Caller::Static));
        for token in ["secre", "secret2", "Secret"] {
            assert!(matches!(fixed.caller(Some(token)).await, Err(AuthError::Refused(_))), "{token}");
        }
        assert_eq!(fixed.caller(None).await, Err(AuthError::Missing));
        assert_eq!(fixed.caller(Some("")).await, Err(AuthError::Missing));
        let long = "x".repeat(TOKEN_MAX_BYTES + 1);
        assert!(matches!(fixed.caller(Some(&long)).await, Err(AuthError::Refused(_))));
    }

    #[test]
    fn a_reviewed_user_is_an_account_with_or_without_a_pod() {
        let user = |name: &str, extra: &[(&str, &str)]| UserInfo {
            username: Some(name.to_owned()),
            extra: Some(
                extra
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()]))
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..UserInfo::default()
        };
        let bound = [(POD_NAME, "agent-1"), (POD_UID, "u1"), (NODE_NAME, "n1")];
        let account = Account { namespace: "mesh".into(), name: "agent".into() };
        assert_eq!(
            caller_of(user("system:serviceaccount:mesh:agent", &bound)),
            Ok(Caller::Pod {
                account: account.clone(),
                pod: "agent-1".into(),
                uid: "u1".into(),
                node: Some("n1".into())
            })
        );
        assert_eq!(caller_of(user("system:serviceaccount:mesh:agent", &[])), Ok(Caller::Unbound { account }));
        assert!(caller_of(user("system:node:n1", &bound)).is_err());
        assert!(caller_of(user("system:serviceaccount:mesh", &bound)).is_err());
    }
}
