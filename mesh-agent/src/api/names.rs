//! Labels and annotations with a meaning for the mesh.

/// On a Namespace `enabled`; on a Pod `disabled`, which wins.
pub const MESH_LABEL: &str = "nodemesh.io/mesh";
pub const MESH_ENABLED: &str = "enabled";
pub const MESH_DISABLED: &str = "disabled";
/// On a Pod in a directory of manifests: the path of its network namespace.
pub const NETNS_ANNOTATION: &str = "nodemesh.io/netns";
/// On a Service: `least-request` (the default) or `round-robin`.
pub const BALANCE_ANNOTATION: &str = "nodemesh.io/balance";
/// On an AuthorizationPolicy: judge and report, never enforce.
pub const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";
/// On an EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// On a Pod of a Deployment: the suffix that its ReplicaSet's name carries.
pub const POD_TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Where the mesh's own objects live.
pub const SYSTEM_NAMESPACE: &str = "nodemesh-system";
/// The ConfigMap of the mesh-wide settings, in [`SYSTEM_NAMESPACE`], and its key.
pub const MESH_CONFIG_MAP: &str = "nodemesh";
pub const MESH_CONFIG_KEY: &str = "mesh";
/// Its other key: SPIFFE ids that nobody may use any more, one a line.
pub const DENIED_KEY: &str = "denied-identities";

/// Where `istio_canonical_service` comes from, first found.
pub const CANONICAL_NAME_LABELS: [&str; 3] =
    ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Where `istio_canonical_revision` comes from, first found.
pub const CANONICAL_REVISION_LABELS: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// Where a node is, from the largest to the smallest.
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
pub const SUBZONE_LABEL: &str = "topology.istio.io/subzone";
/// The older names of the first two, as Istio still reads them.
pub const OLD_REGION_LABEL: &str = "failure-domain.beta.kubernetes.io/region";
pub const OLD_ZONE_LABEL: &str = "failure-domain.beta.kubernetes.io/zone";
/// On a Pod: where it is, whatever its node says; `region.zone.subzone`, since a label's value takes no slash.
pub const LOCALITY_LABEL: &str = "istio-locality";
