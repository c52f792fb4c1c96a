//! Values are found by place, whatever stands in their strings.

use proptest::prelude::*;

use super::*;

fn texts<'a>(text: &'a str, found: &[Range<usize>]) -> Vec<&'a str> {
    found.iter().map(|range| &text[range.clone()]).collect()
}

/// Brackets and quotes inside strings, nesting, numbers without blanks: each value is found whole.
#[test]
fn values_are_found_whole() {
    let text = " {\"a\\\"}\":[1,{\"b\":\"]\"},\"\\\\\"] ,\n\t\"plugins\" : [ {\"x\":{}} , true,-1.5e3,\"}\" ]\r\n}\n";
    let members = members(text).unwrap();
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a\"}", "plugins"]);
    let first = &text[members[0].1.clone()];
    assert_eq!(first, "[1,{\"b\":\"]\"},\"\\\\\"]");
    assert_eq!(texts(first, &elements(first).unwrap()), ["1", "{\"b\":\"]\"}", "\"\\\\\""]);
    let second = &text[members[1].1.clone()];
    assert_eq!(texts(second, &elements(second).unwrap()), ["{\"x\":{}}", "true", "-1.5e3", "\"}\""]);
}

/// What is empty has nothing, what is invalid or of another kind is none.
#[test]
fn what_is_no_object_or_array_is_none() {
    assert_eq!(members("{ }"), Some(Vec::new()));
    assert_eq!(elements("[\n]"), Some(Vec::new()));
    for text in ["", "{", "{\"a\":1", "[1]", "1", "{\"a\":1} x", "{'a':1}"] {
        assert_eq!(members(text), None, "{text}");
    }
    for text in ["", "[1", "{}", "[1,]", "\"[]\""] {
        assert_eq!(elements(text), None, "{text}");
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "[\\[\\]{}\",:\\\\ a\n]{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[\"{}a:]{0,4}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever the document, its parts by place are its parts by value, written tight or wide.
    #[test]
    fn places_agree_with_values(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let read = |range: &Range<usize>| serde_json::from_str::<serde_json::Value>(&text[range.clone()]).unwrap();
        match &value {
            serde_json::Value::Object(map) => {
                let found = members(&text).unwrap();
                prop_assert_eq!(found.len(), map.len());
                for (name, range) in &found {
                    prop_assert_eq!(&read(range), &map[name]);
                }
            }
            serde_json::Value::Array(all) => {
                let found: Vec<_> = elements(&text).unwrap().iter().map(read).collect();
                prop_assert_eq!(&found, all);
            }
            _ => prop_assert!(members(&text).is_none() && elements(&text).is_none()),
        }
    }
}
