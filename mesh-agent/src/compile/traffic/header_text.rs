//! Values of header operations with Envoy's variables (`%NAME%`, `%NAME(ARGUMENT):LENGTH%`; `%%` is a percent sign), as
//! Istio passes them on. Those that a request or an answer is known by are read; any other is refused by its name.

use std::sync::Arc;

use http::HeaderName;

use crate::model::route::{Field, HeaderText, TextPart, Variable};

/// Names that are read, for whoever wrote another.
const KNOWN: &str = "DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_LOCAL_ADDRESS (each also _WITHOUT_PORT), DOWNSTREAM_REMOTE_PORT, DOWNSTREAM_LOCAL_PORT, PROTOCOL, ROUTE_NAME, REQ(NAME?OTHER):LENGTH; of answers also RESP(...), RESPONSE_CODE, UPSTREAM_HOST";

/// The text, or what is wrong with it and what to do.
pub(super) fn read(text: &str, answer: bool) -> Result<HeaderText, (String, String)> {
    let mut parts: Vec<TextPart> = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let Some((inner, after)) = after.split_once('%') else {
            return Err((
                format!("`{text}` has a percent sign that nothing ends"),
                "write a percent sign as %%".to_owned(),
            ));
        };
        let variable = variable(inner, answer).ok_or_else(|| {
            (format!("`%{inner}%` is not supported"), format!("use one of {KNOWN}; a percent sign is %%"))
        })?;
        if !plain.is_empty() {
            parts.push(TextPart::Text(std::mem::take(&mut plain).into()));
        }
        parts.push(TextPart::Variable(variable));
        rest = after;
    }
    plain.push_str(rest);
    if parts.is_empty() {
        return Ok(HeaderText::Plain(plain.into()));
    }
    if !plain.is_empty() {
        parts.push(TextPart::Text(plain.into()));
    }
    Ok(HeaderText::Filled { written: text.into(), parts: parts.into() })
}

fn variable(inner: &str, answer: bool) -> Option<Variable> {
    let (name, argument, length) = match inner.split_once('(') {
        None => (inner, None, None),
        Some((name, rest)) => {
            let (argument, rest) = rest.rsplit_once(')')?;
            let length = match rest.strip_prefix(':') {
                Some(number) => Some(number.parse().ok()?),
                None if rest.is_empty() => None,
                None => return None,
            };
            (name, Some(argument), length)
        }
    };
    let field = || -> Option<Field> {
        let (name, otherwise) = match argument?.split_once('?') {
            Some((name, otherwise)) => (name, Some(field_name(otherwise)?)),
            None => (argument?, None),
        };
        Some(Field { name: field_name(name)?, otherwise, length })
    };
    match (name, argument) {
        ("REQ", Some(_)) => field().map(Variable::Request),
        ("RESP", Some(_)) if answer => field().map(Variable::Response),
        (_, Some(_)) => None,
        // What the client's connection comes from: the agent is its only hop.
        ("DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", None) => Some(Variable::Remote),
        (
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
            None,
        ) => Some(Variable::RemoteIp),
        ("DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT", None) => Some(Variable::RemotePort),
        ("DOWNSTREAM_LOCAL_ADDRESS", None) => Some(Variable::Local),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None) => Some(Variable::LocalIp),
        ("DOWNSTREAM_LOCAL_PORT", None) => Some(Variable::LocalPort),
        ("PROTOCOL", None) => Some(Variable::Protocol),
        ("ROUTE_NAME", None) => Some(Variable::Route),
        ("RESPONSE_CODE", None) if answer => Some(Variable::Status),
        ("UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS", None) if answer => Some(Variable::Upstream),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None) if answer => Some(Variable::UpstreamIp),
        _ => None,
    }
}

/// A field's name, or one of the words for the parts of a request that are none.
fn field_name(text: &str) -> Option<Arc<str>> {
    let lower = text.to_ascii_lowercase();
    let part = matches!(lower.as_str(), ":authority" | ":path" | ":method" | ":scheme");
    (part || HeaderName::from_bytes(lower.as_bytes()).is_ok()).then(|| lower.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, and how it is filled in where every variable stands for its own name.
    #[test]
    fn texts_with_variables() {
        let show = |variable: &Variable| Some(format!("{variable:?}"));
        for (text, answer, expected) in [
            ("plain", false, "plain"),
            ("100%%", false, "100%"),
            ("%%%PROTOCOL%%%", false, "%Protocol%"),
            ("a %DOWNSTREAM_REMOTE_ADDRESS% b", false, "a Remote b"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", false, "RemoteIp"),
            ("%DOWNSTREAM_LOCAL_ADDRESS%:%DOWNSTREAM_LOCAL_PORT%", false, "Local:LocalPort"),
            ("%ROUTE_NAME%", true, "Route"),
            ("%RESPONSE_CODE% %UPSTREAM_HOST%", true, "Status Upstream"),
        ] {
            assert_eq!(read(text, answer).unwrap().fill(show).unwrap(), expected, "{text}");
        }
        let field = |name: &str, otherwise: Option<&str>, length| Field {
            name: name.into(),
            otherwise: otherwise.map(Into::into),
            length,
        };
        for (text, expected) in [
            ("%REQ(X-A)%", Variable::Request(field("x-a", None, None))),
            ("%REQ(X-A?:path):10%", Variable::Request(field("x-a", Some(":path"), Some(10)))),
            ("%RESP(server)%", Variable::Response(field("server", None, None))),
        ] {
            let HeaderText::Filled { parts, .. } = read(text, true).unwrap() else { panic!("{text}") };
            assert_eq!(parts[..], [TextPart::Variable(expected)], "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        for (text, answer, part) in [
            ("%NOBODY%", false, "`%NOBODY%` is not supported"),
            ("%START_TIME(%s)%", false, "`%START_TIME(%` is not supported"),
            ("%RESP(a)%", false, "`%RESP(a)%` is not supported"),
            ("%RESPONSE_CODE%", false, "`%RESPONSE_CODE%` is not supported"),
            ("%REQ()%", false, "`%REQ()%` is not supported"),
            ("%REQ(a):x%", false, "`%REQ(a):x%` is not supported"),
            ("%PROTOCOL(a)%", false, "`%PROTOCOL(a)%` is not supported"),
            ("50%", true, "has a percent sign that nothing ends"),
        ] {
            let (message, remedy) = read(text, answer).unwrap_err();
            assert!(message.contains(part) && remedy.contains("%%"), "{text}: {message}; {remedy}");
        }
    }
}
