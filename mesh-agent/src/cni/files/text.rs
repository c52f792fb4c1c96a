//! The plugin's entry in the text of a network configuration. Pure: text in, text out, every other byte kept.

use std::ops::Range;

use super::super::{PLUGIN, json};

/// In a list made of a single configuration: the name of the file it was. Runtimes pass over what they do not know.
const SINGLE: &str = "nodemesh.io/single";

/// The list with `entry` as its last plugin and no other entry of ours. None if the text is no list with a plugin.
pub(super) fn with_entry(text: &str, entry: &str) -> Option<String> {
    let plugins = plugins(text)?;
    let ours = plugins.iter().filter(|(_, ours)| *ours).count();
    let in_place = plugins.last().is_some_and(|(range, ours)| *ours && text[range.clone()] == *entry);
    if in_place && ours == 1 && plugins.len() > 1 {
        return Some(text.to_owned());
    }
    // Ours alone makes no network.
    if ours == plugins.len() {
        return None;
    }
    let bare = without_entry(text);
    let text = bare.as_deref().unwrap_or(text);
    let plugins = self::plugins(text)?;
    let (first, last) = (plugins.first()?.0.clone(), plugins.last()?.0.clone());
    // Laid out as the element before: what stands between the bracket, or the comma, and the first plugin.
    let blank = text[..first.start].rfind('[').map_or("", |bracket| &text[bracket + 1..first.start]);
    Some(format!("{},{blank}{entry}{}", &text[..last.end], &text[last.end..]))
}

/// The list without our entry. None if there is none, or nothing else.
pub(super) fn without_entry(text: &str) -> Option<String> {
    let plugins = plugins(text)?;
    let at = plugins.iter().position(|(_, ours)| *ours)?;
    let cut = match at.checked_sub(1).and_then(|before| plugins.get(before)) {
        Some((before, _)) => before.end..plugins[at].0.end,
        None => plugins[at].0.start..plugins.get(1)?.0.start,
    };
    let rest = format!("{}{}", &text[..cut.start], &text[cut.end..]);
    // Twice, by somebody's hand: none of them stays.
    Some(without_entry(&rest).unwrap_or(rest))
}

/// A list that holds the single configuration of file `name`, word for word, and the entry. None if it is none.
pub(super) fn as_list(text: &str, name: &str, entry: &str) -> Option<String> {
    let single: serde_json::Value = serde_json::from_str(text).ok()?;
    single.get("type")?.as_str().filter(|kind| *kind != PLUGIN)?;
    // Quoted as JSON.
    let of = |field: &str| single.get(field).filter(|value| value.is_string()).map(ToString::to_string);
    let version = of("cniVersion").unwrap_or_else(|| "\"0.3.1\"".to_owned());
    let network = of("name").unwrap_or_else(|| "\"network\"".to_owned());
    let file = serde_json::Value::from(name);
    Some(format!(
        "{{\"cniVersion\": {version}, \"name\": {network}, \"{SINGLE}\": {file}, \"plugins\": [\n{text},\n{entry}\n]}}\n"
    ))
}

/// The single configuration that [`as_list`] made a list of, and the name of its file; none for any other list.
pub(super) fn from_list(text: &str) -> Option<(String, &str)> {
    let (_, name) = json::members(text)?.into_iter().find(|(name, _)| name == SINGLE)?;
    let name: String = serde_json::from_str(&text[name]).ok()?;
    // A name, not a path: the text may have been written by another.
    let plain = !name.is_empty() && !name.contains('/') && name.contains('.') && !name.starts_with('.');
    let pair: [(Range<usize>, bool); 2] = plugins(text)?.try_into().ok()?;
    let [(single, false), (ours, true)] = pair else { return None };
    // To the byte: from the line after the bracket to the comma before ours, the file's own last line end included.
    let start = text[..single.start].rfind("[\n").map_or(single.start, |bracket| bracket + 2);
    let end = text[..ours.start].rfind(',').filter(|comma| *comma >= single.end).unwrap_or(single.end);
    plain.then(|| (name, &text[start..end]))
}

/// Where each plugin of the list stands, and whether it is ours. None if the text is no list.
fn plugins(text: &str) -> Option<Vec<(Range<usize>, bool)>> {
    let (_, list) = json::members(text)?.into_iter().find(|(name, _)| name == "plugins")?;
    let elements = json::elements(&text[list.clone()])?;
    let found = elements.into_iter().map(|range| {
        let range = list.start + range.start..list.start + range.end;
        let kind = serde_json::from_str::<serde_json::Value>(&text[range.clone()]).ok();
        let ours = kind.is_some_and(|plugin| plugin.get("type").is_some_and(|kind| kind == PLUGIN));
        (range, ours)
    });
    let found: Vec<_> = found.collect();
    (!found.is_empty()).then_some(found)
}
