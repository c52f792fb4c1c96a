use super::*;

#[test]
fn documents_are_cut_at_markers_only() {
    let text = "a: 1\n--- # second\nb: |\n  --- not a marker\n---x: 1\n...\n---\r\nc: 3";
    let parts: Vec<(usize, &str)> = chunks(text);
    let texts: Vec<&str> = parts.iter().map(|(_, chunk)| *chunk).collect();
    assert_eq!(texts, ["a: 1\n", " # second\nb: |\n  --- not a marker\n---x: 1\n", "\n", "\r\nc: 3"]);
    assert_eq!(parts.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [0, 1, 5, 6]);
    assert!(blank("\n# a\n%YAML 1.2\n") && !blank("a"));
}

#[test]
fn a_syntax_error_has_the_files_line_and_a_key_written_twice_is_one() {
    let mesh = MeshSettings::default();
    let content = file(&mesh, "x.yaml", "# one\n---\nkind: Pod\n---\na: 1\nb: [\n", false);
    let broken = content.diagnostics.iter().find(|d| d.source == "x.yaml:2").unwrap();
    assert!(content.unreadable && broken.field.starts_with("line "), "{broken}");
    let line: usize = broken.field.trim_start_matches("line ").parse().unwrap();
    assert!((5..=7).contains(&line), "{broken}");
    let twice = file(&mesh, "x.yaml", "kind: A\nkind: B\n", false);
    assert!(twice.unreadable && twice.diagnostics[0].to_string().contains("kind"), "{:?}", twice.diagnostics);
}

#[test]
fn one_object_twice_in_a_file_is_an_error_and_fails_closed_where_it_matters() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n---\n"
        )
    };
    let text = policy("{rules: [{}]}") + &policy("{action: DENY, rules: [{}]}");
    let content = file(&MeshSettings::default(), "x.yaml", &text, false);
    assert!(
        !content.sound() && content.diagnostics[0].message.contains("document 1"),
        "{:?}",
        content.diagnostics
    );
    let Some((_, Object::AuthorizationPolicy(policy))) = content.objects.values().next() else { panic!() };
    assert!(policy.invalid.is_some());
}
