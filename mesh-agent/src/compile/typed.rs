//! One document into its typed form, with the path of what does not fit and of what nobody reads.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Diagnostic, Head, Origin};

/// Fields that every manifest may carry: the type's name (read by `Head`), and what the API server writes.
const KNOWN_FIELDS: [&str; 4] = ["apiVersion", "kind", "status", "metadata.managedFields"];

/// The typed object, or the diagnostic that says which field does not fit.
pub(super) fn read<T: DeserializeOwned>(head: &Head<'_>, value: &Value) -> Result<T, Box<Diagnostic>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        Box::new(head.error(&field, &error.inner().to_string(), "write the field as the API defines it"))
    })
}

/// Paths of fields that the type does not have.
pub(super) fn unknown<T: DeserializeOwned>(value: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    // Whether it fits at all is `read`'s answer.
    drop(serde_ignored::deserialize::<_, _, T>(value, |path| paths.push(plain(&path))));
    paths.retain(|path| !KNOWN_FIELDS.iter().any(|known| is_under(path, known)));
    paths
}

/// Warnings for unknown fields of an object that is used all the same. From an API server they are fields of a newer
/// Kubernetes, not slips.
pub(super) fn warn_unknown<T: DeserializeOwned>(head: &Head<'_>, value: &Value, out: &mut Vec<Diagnostic>) {
    if head.context.origin == Origin::Cluster {
        return;
    }
    out.extend(unknown::<T>(value).iter().map(|path| {
        head.warning(
            path,
            "is not a field of this kind and has no effect",
            "check its spelling and indentation",
        )
    }));
}

fn is_under(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// `spec.rules[0].from` where serde_ignored would say `spec.?.rules.0.from`.
fn plain(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", plain(parent)),
        Path::Map { parent, key } => match plain(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            plain(parent)
        }
    }
}
