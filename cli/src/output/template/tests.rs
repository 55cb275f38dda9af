use serde_json::json;

use super::*;

fn render(text: &str) -> Result<String, String> {
    let value = json!({
        "ID": "abc", "State": {"Running": true, "Pid": 7, "Status": "running"}, "Labels": {"a.b": "x"},
        "Args": ["-c", "true"], "Empty": null, "Mounts": [{"Source": "/h", "Destination": "/c"}, {"Source": "/i", "Destination": "/d"}]
    });
    Template::parse(text)?.render(&value)
}

#[test]
fn fields_and_functions() {
    for (template, text) in [
        ("plain", "plain"),
        ("{{.ID}}", "abc"),
        ("{{ .State.Running }}:{{.State.Pid}}", "true:7"),
        ("{{.ID}}\\t{{.State.Status}}\\n", "abc\trunning\n"),
        ("{{json .State}}", r#"{"Pid":7,"Running":true,"Status":"running"}"#),
        ("{{json .Empty}}", "null"),
        ("{{.Args}}", "[-c true]"),
        ("{{.Labels}}", "map[a.b:x]"),
        ("{{index .Labels \"a.b\"}}", "x"),
        ("{{index .Labels \"none\"}}", ""),
        ("{{index .Args 1}}", "true"),
        ("{{len .Mounts}}", "2"),
        ("{{join .Args \",\"}}", "-c,true"),
        ("{{.ID | upper}}", "ABC"),
        ("{{(index .Mounts 0)  | json}}", r#"{"Destination":"/c","Source":"/h"}"#),
        ("{{range .Mounts}}{{.Source}}->{{.Destination}} {{$.ID}};{{end}}", "/h->/c abc;/i->/d abc;"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if eq .State.Status \"exited\"}}up{{else}}down{{end}}", "down"),
        ("{{with .State}}{{.Pid}}{{end}}", "7"),
        ("a {{- .ID -}} b", "aabcb"),
        ("{{/* note */}}x", "x"),
        ("{{if not .State.Running}}down{{else if eq .State.Pid 7}}seven{{else}}up{{end}}", "seven"),
        ("{{range $key, $value := .Labels}}{{$key}}={{$value}}{{end}}", "a.b=x"),
        ("{{range $place, $_ := .Args}}{{$place}}{{end}}{{range $arg := .Args}}{{$arg}}{{end}}", "01-ctrue"),
        ("{{$x := .State.Pid}}{{with .State}}{{$x}}{{$x := .Status}}{{$x}}{{end}}{{$x}}", "7running7"),
        ("{{$s := .State}}{{$s.Status}}", "running"),
        ("{{print 1 2 \"a\" 3 .ID 4 true}}", "1 2a3abc4 true"),
        ("{{printf \"%-4s|%3d|%q%%\" .ID .State.Pid .ID}}", "abc |  7|\"abc\"%"),
        ("{{slice .ID 1 3}} {{slice .ID 1}} {{slice .Args 1}}", "bc bc [true]"),
        ("{{range split \"a:b\" \":\"}}{{title .}}{{end}}", "AB"),
        ("{{if gt .State.Pid 6}}{{if le .ID \"abc\"}}both{{end}}{{end}}", "both"),
        ("{{truncate .ID 2}}{{pad .ID 1 2}}.", "ab abc  ."),
        ("{{$sep := \"\"}}{{range .Args}}{{$sep}}{{.}}{{$sep = \", \"}}{{end}}", "-c, true"),
        ("{{$x := 1}}{{range .Args}}{{$x := 2}}{{$x = 3}}{{$x}}{{end}}{{$x}}", "331"),
        ("{{range $n, $_ := .Mounts}}{{if $n}}{{break}}{{end}}{{.Source}}{{end}}.", "/h."),
        ("{{range .Mounts}}{{if eq .Source \"/h\"}}{{continue}}{{end}}{{.Source}}{{end}}.", "/i."),
        ("{{range .Args}}{{range $.Mounts}}{{break}}{{end}}{{.}} {{end}}", "-c true "),
        (
            "{{html \"<a b='c'>&\"}} {{js \"it's <b>\"}} {{urlquery \"a b&\" \"é\"}}",
            "&lt;a b=&#39;c&#39;&gt;&amp; it\\'s \\u003Cb\\u003E a+b%26%C3%A9",
        ),
        ("{{\"a=b\" | upper}}", "A=B"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(text), "{template}");
    }
}

#[test]
fn mistakes_are_named() {
    for (template, word) in [
        ("{{.Nope}}", "Nope"),
        ("{{.ID", "not closed"),
        ("{{range .Args}}", "no {{end}}"),
        ("{{end}}", "without a block"),
        ("{{nope .ID}}", "nope"),
        ("{{json}}", "json"),
        ("{{.ID .State}}", "expected"),
        ("{{.ID.More}}", "More"),
        ("{{index .Args 9}}", "item 9"),
        ("{{}}", "expected"),
        ("{{(.ID}}", "closed"),
        ("{{$x}}", "no variable"),
        ("{{$x = 1}}", "no variable"),
        ("{{if .ID}}{{break}}{{end}}", "outside"),
        ("{{range $a, $b, $c := .Args}}{{end}}", "variables"),
        ("{{if .ID}}{{else if .ID}}", "no {{end}}"),
        ("{{printf \"%x\" .ID}}", "printf"),
        ("{{slice .ID 9}}", "shorter"),
        ("{{.Nope \"x\"}}", "expected"),
        (&format!("{{{{{}.ID{}}}}}", "(".repeat(200), ")".repeat(200)), "deeply"),
    ] {
        let error = render(template).expect_err(template);
        assert!(error.contains(word), "{template}: {error}");
    }
}

#[test]
fn a_field_may_be_written_in_another_case() {
    let render = |template: &str, value: &str| {
        let value = serde_json::from_str(value).expect("json");
        Template::parse(template).expect("template").render(&value)
    };
    assert_eq!(render("{{.ID}}", r#"{"Id": "a"}"#).as_deref(), Ok("a"));
    assert_eq!(render("{{.ID}}", r#"{"ID": "a", "Id": "b"}"#).as_deref(), Ok("a"));
    assert!(render("{{.id}}", r#"{"ID": "a", "Id": "b"}"#).is_err());
}

#[test]
fn rows_have_labels() {
    let template = Template::parse("{{.ID}} {{.Label \"a.b\"}}").expect("template");
    let (row, labels) = (json!({"ID": "c"}), [("a.b".to_owned(), "x,y".to_owned())].into());
    assert_eq!(template.render_row(&row, Row::Labelled(&labels)).as_deref(), Ok("c x,y"));
    assert_eq!(template.render_row(&row, Row::Headings).as_deref(), Ok("c a.b"));
    assert!(template.render(&row).is_err());
}
