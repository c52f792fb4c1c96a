//! Documents as tests write them: YAML texts separated by `---`.

use super::*;

pub(crate) fn compile(text: &str) -> Compiled {
    compile_for(&MeshSettings::default(), text)
}

pub(crate) fn compile_for(mesh: &MeshSettings, text: &str) -> Compiled {
    let mut all = Compiled::default();
    for (index, chunk) in text.split("---\n").enumerate() {
        let source = format!("test.yaml:{}", index + 1);
        let value: Value = yaml(chunk).unwrap();
        let one = document(&Context { mesh, source: &source, origin: Origin::File }, &value);
        all.objects.extend(one.objects);
        all.diagnostics.extend(one.diagnostics);
    }
    all
}

/// The findings as people read them.
pub(crate) fn findings(text: &str) -> Vec<String> {
    compile(text).diagnostics.iter().map(ToString::to_string).collect()
}

/// An AuthorizationPolicy of namespace `shop` with this spec (one line of flow YAML).
pub(crate) fn authz(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// A PeerAuthentication with this spec.
pub(crate) fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}
