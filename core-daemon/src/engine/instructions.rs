//! Changes of an image's configuration, written as instructions of a Dockerfile: what `--change` takes.

use rung_spec::image::Healthcheck;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Makes the changes that `lines` say in the `config` of an image's configuration document.
///
/// # Errors
/// `InvalidArgument` naming the instruction that is not understood.
pub(super) fn apply(config: &mut Map<String, Value>, lines: &[String]) -> Result<()> {
    for line in lines {
        one(config, line.trim()).map_err(|problem| Error::invalid(format!("change {line:?}: {problem}")))?;
    }
    Ok(())
}

fn one(config: &mut Map<String, Value>, line: &str) -> Result<(), String> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("it says nothing".to_owned());
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => drop(config.insert("Cmd".to_owned(), command(rest)?)),
        "ENTRYPOINT" => {
            config.insert("Entrypoint".to_owned(), command(rest)?);
        }
        "ENV" => {
            for (key, value) in pairs(rest)? {
                set_variable(config, &key, &value);
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest)? {
                enter(config, "Labels", key, Value::String(value));
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                if number.parse::<u16>().is_err() || !matches!(protocol, "tcp" | "udp" | "sctp") {
                    return Err(format!("{port:?} is no port"));
                }
                enter(config, "ExposedPorts", format!("{number}/{protocol}"), json!({}));
            }
        }
        "VOLUME" => {
            let paths = list(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            for path in paths {
                enter(config, "Volumes", path, json!({}));
            }
        }
        "USER" => drop(config.insert("User".to_owned(), json!(rest))),
        "STOPSIGNAL" => drop(config.insert("StopSignal".to_owned(), json!(rest))),
        "WORKDIR" => {
            let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
            let path = std::path::Path::new("/").join(before).join(rest);
            config.insert("WorkingDir".to_owned(), json!(path.to_string_lossy()));
        }
        "ONBUILD" => {
            let list = config.entry("OnBuild").or_insert_with(|| json!([]));
            match list.as_array_mut() {
                Some(list) => list.push(json!(rest)),
                None => *list = json!([rest]),
            }
        }
        "SHELL" => match list(rest) {
            Some(words) => drop(config.insert("Shell".to_owned(), json!(words))),
            None => return Err("it must be a JSON list".to_owned()),
        },
        "HEALTHCHECK" => drop(config.insert("Healthcheck".to_owned(), json!(health_check(rest)?))),
        other => {
            return Err(format!(
                "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, \
                 USER, VOLUME, WORKDIR"
            ));
        }
    }
    Ok(())
}

/// `NONE`, or `--interval=30s ... CMD` and a command.
fn health_check(text: &str) -> Result<Healthcheck, String> {
    let (mut check, mut rest) = (Healthcheck::default(), text);
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        let bad = || format!("--{option} is no option of a health check, such as --interval=30s");
        let (name, value) = option.split_once('=').ok_or_else(bad)?;
        let length = || {
            let length = value.parse::<jiff::SignedDuration>().ok().filter(|length| !length.is_negative());
            length.and_then(|length| i64::try_from(length.as_nanos()).ok()).ok_or_else(bad)
        };
        match name {
            "interval" => check.interval = length()?,
            "timeout" => check.timeout = length()?,
            "start-period" => check.start_period = length()?,
            "start-interval" => check.start_interval = length()?,
            "retries" => check.retries = value.parse().ok().filter(|times| *times >= 0).ok_or_else(bad)?,
            _ => return Err(bad()),
        }
        rest = after.trim_start();
    }
    let (word, line) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (word.to_ascii_uppercase().as_str(), line.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", "") => return Err("it has no command".to_owned()),
        ("CMD", line) if line.starts_with('[') => {
            let words = list(line).ok_or("it is no JSON list of texts")?;
            std::iter::once("CMD".to_owned()).chain(words).collect()
        }
        ("CMD", line) => vec!["CMD-SHELL".to_owned(), line.to_owned()],
        _ => return Err(format!("{word:?} is neither CMD nor NONE")),
    };
    Ok(check)
}

/// Enters something into a member that is an object.
pub(super) fn enter(config: &mut Map<String, Value>, name: &str, key: String, value: Value) {
    let mut members = match config.remove(name) {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    };
    members.insert(key, value);
    config.insert(name.to_owned(), Value::Object(members));
}

/// Sets one of the variables.
pub(super) fn set_variable(config: &mut Map<String, Value>, key: &str, value: &str) {
    let all = config.entry("Env").or_insert_with(|| json!([]));
    if !all.is_array() {
        *all = json!([]);
    }
    let Some(all) = all.as_array_mut() else { return };
    let prefix = format!("{key}=");
    all.retain(|variable| !variable.as_str().is_some_and(|text| text.starts_with(&prefix)));
    all.push(json!(format!("{key}={value}")));
}

/// A JSON list of words.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A list, or a line for a shell.
fn command(text: &str) -> Result<Value, String> {
    if text.starts_with('[') {
        return list(text).map(|words| json!(words)).ok_or_else(|| "it is no JSON list of texts".to_owned());
    }
    Ok(json!(["/bin/sh", "-c", text]))
}

/// `A=b "C=d e"` or, as it once was, `A b c`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).ok_or_else(|| format!("{text:?} has no value"))?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} has no value"))?;
        if key.is_empty() { Err(format!("{word:?} has no name")) } else { Ok((key.to_owned(), value.to_owned())) }
    };
    words.into_iter().map(pair).collect()
}

/// Words with quotes and backslashes taken out.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut begun, mut quote) = (Vec::new(), String::new(), false, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', open) if open != Some('\'') => word.extend(characters.next()),
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if begun || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, None) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    if begun || !word.is_empty() {
        all.push(word);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_configuration() {
        let mut config = json!({"Env": ["A=1", "B=2"], "Cmd": ["x"], "WorkingDir": "/srv"});
        let members = config.as_object_mut().expect("object");
        let lines = [
            r#"CMD ["a", "b c"]"#,
            "entrypoint run it",
            r#"ENV A="new one" C=3"#,
            "ENV OLD the old way",
            "EXPOSE 80 53/udp",
            r"LABEL a.b='c d' e=f\ g",
            "VOLUME /data",
            "WORKDIR app",
            "USER 1000:1000",
        ];
        apply(members, &lines.map(str::to_owned)).expect("changes");
        assert_eq!(config["Cmd"], json!(["a", "b c"]));
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "run it"]));
        assert_eq!(config["Env"], json!(["B=2", "A=new one", "C=3", "OLD=the old way"]));
        assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["Labels"], json!({"a.b": "c d", "e": "f g"}));
        assert_eq!((&config["WorkingDir"], &config["User"]), (&json!("/srv/app"), &json!("1000:1000")));
        let check = |line: &str| {
            let mut config = Map::new();
            apply(&mut config, &[line.to_owned()]).map(|()| config["Healthcheck"].clone())
        };
        let full = check("HEALTHCHECK --interval=1m30s --retries=2  CMD curl -f http://x || exit 1").expect("check");
        assert_eq!(full["Test"], json!(["CMD-SHELL", "curl -f http://x || exit 1"]));
        assert_eq!((&full["Interval"], &full["Retries"]), (&json!(90_000_000_000_i64), &json!(2)));
        assert_eq!(check(r#"healthcheck CMD ["a", "b"]"#).expect("check")["Test"], json!(["CMD", "a", "b"]));
        assert_eq!(check("HEALTHCHECK NONE").expect("none")["Test"], json!(["NONE"]));
        for bad in
            ["CMD", "x", "--interval=x CMD y", "--interval=-1s CMD y", "--nope=1 CMD y", "CMD [1]", "--interval=1s"]
        {
            assert!(check(&format!("HEALTHCHECK {bad}")).is_err(), "{bad}");
        }
        for bad in ["", "CMD", "RUN x", "EXPOSE http", "ENV A", "CMD [1]", "LABEL 'a", "SHELL sh"] {
            assert!(apply(&mut Map::new(), &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
