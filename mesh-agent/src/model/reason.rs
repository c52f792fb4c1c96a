//! The one closed list of reasons for which a connection or a request ends badly, and the one table that
//! says how each is shown: status codes, Istio response flag, metric label, log level, hint.

/// Why a connection ended badly. No catch-all: a new way to fail gets a name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A DENY rule matched.
    PolicyDenied,
    /// ALLOW policies exist and none matched.
    PolicyNotAllowed,
    /// PeerAuthentication STRICT met a connection without mutual TLS.
    PlaintextRefused,
    /// A live connection was cut because the policy now refuses it.
    PolicyChanged,
    /// One of the two identities is on the mesh's deny list.
    IdentityDenied,
    /// The object that decides could not be understood; security fails closed.
    PolicyInvalid,
    /// The peer's certificate is missing, expired, unknown, or of another trust domain.
    PeerCertificate,
    /// The server at the other end proved another identity than the one expected.
    WrongIdentity,
    /// TLS could not be set up for any other cause.
    TlsHandshake,
    /// TLS that a DestinationRule asks for (SIMPLE, MUTUAL) could not be set up: its files, the server's certificate or name.
    UpstreamTls,
    /// A DestinationRule asks for ISTIO_MUTUAL, and the endpoint takes none.
    NoMutualTls,
    /// We have no certificate for the workload yet, or its renewal failed until expiry.
    NoCertificate,
    /// HTTP/2 could not be set up inside the tunnel, or the peer broke it.
    TunnelProtocol,
    /// The tunnel's peer did not answer its keepalive.
    TunnelTimeout,
    /// CONNECT to an address that is not the pod's.
    ConnectTarget,
    /// CONNECT, or an application's connection, to one of the mesh's own ports.
    ConnectMeshPort,
    /// A CONNECT request that is none: wrong method, authority unreadable.
    ConnectMalformed,
    /// A pod connected from a source address that is not its own.
    SpoofedSource,
    /// The destination is a Service without a ready endpoint.
    NoEndpoint,
    /// The Service has no such port.
    NoSuchPort,
    /// The workload is not (or no longer) on this node.
    UnknownWorkload,
    /// The application refused the connection.
    ConnectionRefused,
    /// The application (or the peer's tunnel port) did not answer in time.
    ConnectTimeout,
    /// No route to the address, or another failure to connect.
    ConnectFailed,
    /// The client reset the connection.
    ClientReset,
    /// The server reset the connection.
    ServerReset,
    /// No byte in either direction for the idle limit.
    IdleTimeout,
    /// The connection has lived as long as its destination lets it (`maxConnectionDuration`).
    MaxDuration,
    /// A named limit was hit (connections of the node, of a workload, streams).
    LimitReached,
    /// The agent ends and the drain deadline passed.
    DrainDeadline,
    /// The pod was removed or withdrawn from the mesh.
    WorkloadGone,
    /// What the client sent is no HTTP request, or has more than one meaning.
    RequestMalformed,
    /// The client did not finish a request's head in time.
    RequestTimeout,
    /// No rule of the host's routes takes the request or the connection, or no Service has the host.
    NoRoute,
    /// A route names a subset that no DestinationRule in force has.
    NoSubset,
    /// A route's backend does not exist, or may not be named there.
    BackendInvalid,
    /// The upstream did not answer within the route's time.
    UpstreamTimeout,
    /// The upstream's connection broke before its answer, or in it.
    UpstreamReset,
    /// A route's fault aborted the request.
    FaultAborted,
}

/// How a [`Reason`] is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonRow {
    pub reason: Reason,
    /// Stable text: metrics, logs and JSON.
    pub label: &'static str,
    /// HTTP status of an HBONE CONNECT answer (and of an HTTP request, where one exists).
    pub http_status: u16,
    /// gRPC status code, <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
    pub grpc_status: u8,
    /// Istio's `response_flags` value.
    pub flag: &'static str,
    /// Whether an operator should see it at the default log level.
    pub warn: bool,
    /// What to look at or do next.
    pub hint: &'static str,
}

macro_rules! rows {
    ($($reason:ident $label:literal $http:literal $grpc:literal $flag:literal $warn:literal $hint:literal;)*) => {
        /// Every reason with its row, in the enum's order.
        pub const ROWS: &[ReasonRow] = &[$(ReasonRow {
            reason: Reason::$reason, label: $label, http_status: $http, grpc_status: $grpc,
            flag: $flag, warn: $warn, hint: $hint,
        }),*];

        impl Reason {
            /// The row of the table above.
            pub const fn row(self) -> &'static ReasonRow {
                // The match is what makes a reason without a row a compile error.
                match self { $(Reason::$reason => &ReasonRow {
                    reason: Reason::$reason, label: $label, http_status: $http, grpc_status: $grpc,
                    flag: $flag, warn: $warn, hint: $hint,
                }),* }
            }
        }
    };
}

rows! {
    PolicyDenied "policy_denied" 401 7 "DENY" true "a DENY rule matched; `mesh-agent explain` names it";
    PolicyNotAllowed "policy_not_allowed" 401 7 "DENY" true "no ALLOW rule matched; `mesh-agent explain` lists them";
    PlaintextRefused "plaintext_refused" 401 7 "DENY" true "PeerAuthentication is STRICT; enrol the client or use PERMISSIVE for this port";
    PolicyChanged "policy_changed" 401 7 "DENY" true "a policy change now refuses this connection; `mesh-agent explain` names the rule";
    IdentityDenied "identity_denied" 401 7 "DENY" true "one of the identities is on the deny list: key denied-identities of ConfigMap nodemesh";
    PolicyInvalid "policy_invalid" 401 7 "DENY" true "a policy could not be understood and denies until mended; see `mesh-agent policies`";
    PeerCertificate "peer_certificate" 401 16 "TLS_FAILURE" true "check the peer's trust domain, clock and root certificate with `mesh-agent certs`";
    WrongIdentity "wrong_identity" 503 16 "IDENTITY_ERROR" true "the address is served by another identity than its Pod says; check for a stale Pod or address reuse";
    TlsHandshake "tls_handshake" 503 14 "TLS_FAILURE" true "the peer does not speak TLS 1.3 with ALPN h2 on port 15008";
    UpstreamTls "upstream_tls" 503 14 "TLS_FAILURE" true "the server's certificate, or a file of the DestinationRule, is not what its tls asks for; the agent's log says which";
    NoMutualTls "no_mutual_tls" 503 14 "TLS_FAILURE" true "a DestinationRule asks for ISTIO_MUTUAL and the endpoint is not in the mesh; use SIMPLE or DISABLE for it";
    NoCertificate "no_certificate" 503 14 "IDENTITY_ERROR" true "no certificate yet; see `mesh-agent certs` and the CA";
    TunnelProtocol "tunnel_protocol" 503 14 "H2_HANDSHAKE_FAILURE" true "the peer broke HTTP/2 on the tunnel; compare `mesh-agent version` on both nodes";
    TunnelTimeout "tunnel_timeout" 503 14 "CONNECT" true "the peer node stopped answering; check it and any NetworkPolicy on port 15008";
    ConnectTarget "connect_target" 400 3 "DENY" true "the CONNECT authority is not the pod's own address";
    ConnectMeshPort "connect_mesh_port" 400 3 "DENY" true "ports 15001, 15006 and 15008 belong to the mesh";
    ConnectMalformed "connect_malformed" 400 3 "DENY" true "port 15008 takes HTTP/2 CONNECT with an IP:PORT authority";
    SpoofedSource "spoofed_source" 403 7 "DENY" true "the pod connected from an address that is not in its status.podIPs";
    NoEndpoint "no_endpoint" 503 14 "UH" true "the Service has no ready endpoint; see `mesh-agent services`";
    NoSuchPort "no_such_port" 503 14 "NR" true "the Service has no such port; see `mesh-agent services`";
    UnknownWorkload "unknown_workload" 503 14 "NR" true "the workload is not on this node; see `mesh-agent workloads`";
    ConnectionRefused "connection_refused" 503 14 "CONNECT" false "nothing listens on that port of the pod";
    ConnectTimeout "connect_timeout" 503 14 "CONNECT" true "no answer; a NetworkPolicy may block the port (15008 between nodes)";
    ConnectFailed "connect_failed" 503 14 "CONNECT" true "no route to the address; check the pod network";
    ClientReset "client_reset" 499 1 "DC" false "the client reset the connection";
    ServerReset "server_reset" 503 14 "UC" false "the server reset the connection";
    IdleTimeout "idle_timeout" 504 4 "SI" false "no traffic within the idle limit";
    MaxDuration "max_duration" 504 4 "DT" false "the connection was as old as connectionPool.tcp.maxConnectionDuration lets it become";
    LimitReached "limit_reached" 503 8 "UO" true "a limit was reached; `mesh-agent status` shows which";
    DrainDeadline "drain_deadline" 503 14 "UC" true "the agent ended before this connection did; raise the drain deadline";
    WorkloadGone "workload_gone" 503 14 "UC" false "the pod was removed or left the mesh";
    RequestMalformed "request_malformed" 400 13 "DPE" false "the client sent no HTTP request that has one meaning";
    RequestTimeout "request_timeout" 408 14 "DPE" false "the client did not finish its request's head in time";
    NoRoute "no_route" 404 12 "NR" false "no rule takes the request or connection; `mesh-agent routes` lists them";
    NoSubset "no_subset" 503 14 "NC" true "no DestinationRule in force has the subset that the route names; see `mesh-agent analyze`";
    BackendInvalid "backend_invalid" 500 14 "NC" true "the route's backend does not exist or may not be named; see the route's status";
    UpstreamTimeout "upstream_timeout" 504 4 "UT" false "the upstream did not answer within the route's timeout";
    UpstreamReset "upstream_reset" 503 14 "UC" false "the upstream closed its connection before the answer was complete";
    FaultAborted "fault_aborted" 503 14 "FI" false "a route's fault.abort ended the request on purpose";
}

impl Reason {
    /// The status of a request that ends for this reason. A request that policy refuses is forbidden, whoever asks; the
    /// table's 401 is what ztunnel answers to a CONNECT.
    pub fn request_status(self) -> u16 {
        match self.row().http_status {
            401 => 403,
            status => status,
        }
    }

    /// Whether policy refused.
    pub fn is_refusal(self) -> bool {
        self.row().http_status == 401
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().label)
    }
}

#[cfg(test)]
mod tests;
