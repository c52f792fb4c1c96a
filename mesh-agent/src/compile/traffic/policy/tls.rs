//! `tls`: what a client speaks to its destination.

use std::sync::Arc;

use super::text;
use crate::api::istio::networking::{ClientTlsSettings, TlsMode};
use crate::compile::traffic::Reader;
use crate::model::traffic::{ClientTls, TlsOrigin};

/// Istio's word for the system's authorities.
const SYSTEM: &str = "system";

pub(super) fn tls(reader: &mut Reader<'_>, field: &str, given: &ClientTlsSettings) -> Option<ClientTls> {
    let bare = ClientTlsSettings { mode: given.mode, ..ClientTlsSettings::default() };
    match given.mode {
        Some(TlsMode::IstioMutual) if *given == bare => Some(ClientTls::Mutual),
        None | Some(TlsMode::Disable) if *given == bare => Some(ClientTls::Disable),
        None | Some(TlsMode::Disable | TlsMode::IstioMutual) => {
            let message = "has fields that mean nothing in this mode";
            reader.fault(field, message, "keep the mode alone: certificates are the mesh's own");
            None
        }
        Some(TlsMode::Simple) => {
            for (name, file) in
                [("clientCertificate", &given.client_certificate), ("privateKey", &given.private_key)]
            {
                if text(file.as_ref()).is_some() {
                    let message = "means nothing in mode SIMPLE";
                    reader.fault(&format!("{field}.{name}"), message, "remove it, or set mode to MUTUAL");
                }
            }
            Some(originate(reader, field, given))
        }
        Some(TlsMode::Mutual) => {
            for (name, file) in
                [("clientCertificate", &given.client_certificate), ("privateKey", &given.private_key)]
            {
                if text(file.as_ref()).is_none() {
                    let message = "is missing, which mode MUTUAL needs";
                    reader.fault(&format!("{field}.{name}"), message, "name the file, or set mode to SIMPLE");
                }
            }
            Some(originate(reader, field, given))
        }
    }
}

fn originate(reader: &mut Reader<'_>, field: &str, given: &ClientTlsSettings) -> ClientTls {
    let at = |name: &str| format!("{field}.{name}");
    if text(given.credential_name.as_ref()).is_some() {
        reader.fault(
            &at("credentialName"),
            "is not supported: an agent on every node must not have the right to read Secrets",
            "name files instead (caCertificates, clientCertificate, privateKey); the agent reads them under --tls-dir",
        );
    }
    if text(given.ca_crl.as_ref()).is_some() {
        reader.fault(&at("caCrl"), "is not supported by this version", "remove it");
    }
    let skip_verify = given.insecure_skip_verify.unwrap_or(false);
    let names = given.subject_alt_names.iter().flatten();
    let names: Vec<Arc<str>> =
        names.filter(|name| !name.is_empty()).map(|name| name.as_str().into()).collect();
    let roots = text(given.ca_certificates.as_ref()).filter(|path| **path != *SYSTEM);
    if skip_verify {
        let unused = [("caCertificates", roots.is_some()), ("subjectAltNames", !names.is_empty())];
        for (name, _) in unused.into_iter().filter(|(_, given)| *given) {
            let message = "stands beside insecureSkipVerify, which looks at nothing";
            reader.fault(&at(name), message, "keep one of the two");
        }
    }
    let mut file = |name: &str, path: Option<Arc<str>>| {
        let path = path?;
        if path.split('/').any(|part| part == "..") {
            reader.fault(
                &at(name),
                &format!("`{path}` leads out of the namespace's folder"),
                "write a path without `..`; it is looked up in the namespace's folder under the agent's --tls-dir",
            );
        }
        Some(path)
    };
    let roots = file("caCertificates", roots);
    let chain = file("clientCertificate", text(given.client_certificate.as_ref()));
    let key = file("privateKey", text(given.private_key.as_ref()));
    ClientTls::Originate(Arc::new(TlsOrigin {
        namespace: Arc::clone(&reader.head.namespace),
        sni: text(given.sni.as_ref()),
        subject_alt_names: names,
        roots,
        client: chain.zip(key),
        skip_verify,
    }))
}
