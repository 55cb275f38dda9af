//! The functions of templates.

use std::cmp::Ordering;

use serde_json::Value;

use super::eval::{printed, truth};

/// Calls a function with as many arguments as it takes.
pub(super) fn function(name: &str, values: &[Value]) -> Result<Value, String> {
    let first = values.first().unwrap_or(&Value::Null);
    Ok(match name {
        "json" => Value::String(first.to_string()),
        "len" => match first {
            Value::Array(items) => items.len().into(),
            Value::Object(fields) => fields.len().into(),
            Value::String(text) => text.len().into(),
            Value::Null => 0.into(),
            other => return Err(format!("len of {} is not known", printed(other))),
        },
        "index" => values[1..].iter().try_fold(first.clone(), |value, key| index(&value, key))?,
        "eq" => values[1..].iter().any(|other| other == first).into(),
        "ne" => (values[1] != *first).into(),
        "not" => (!truth(first)).into(),
        "and" => values.iter().find(|value| !truth(value)).or(values.last()).cloned().unwrap_or_default(),
        "or" => values.iter().find(|value| truth(value)).or(values.last()).cloned().unwrap_or_default(),
        "upper" => Value::String(printed(first).to_uppercase()),
        "lower" => Value::String(printed(first).to_lowercase()),
        "print" => Value::String(side_by_side(values)),
        "html" => Value::String(side_by_side(values).chars().map(in_html).collect()),
        "js" => Value::String(side_by_side(values).chars().map(in_script).collect()),
        "urlquery" => Value::String(side_by_side(values).bytes().map(in_query).collect()),
        "printf" => Value::String(formatted(&printed(first), &values[1..])?),
        "lt" => compared(first, &values[1])?.is_lt().into(),
        "le" => compared(first, &values[1])?.is_le().into(),
        "gt" => compared(first, &values[1])?.is_gt().into(),
        "ge" => compared(first, &values[1])?.is_ge().into(),
        "split" => printed(first).split(&printed(&values[1])).collect(),
        "title" => Value::String(titled(&printed(first))),
        "slice" => sliced(first, &values[1..])?,
        "truncate" => Value::String(printed(first).chars().take(number(&values[1])?).collect()),
        "pad" => {
            let (before, after) = (number(&values[1])?, number(&values[2])?);
            Value::String(format!("{:before$}{}{:after$}", "", printed(first), ""))
        }
        "println" => Value::String(format!("{}\n", values.iter().map(printed).collect::<Vec<_>>().join(" "))),
        "join" => match first {
            Value::Array(items) => {
                Value::String(items.iter().map(printed).collect::<Vec<_>>().join(&printed(&values[1])))
            }
            Value::Null => Value::String(String::new()),
            other => return Err(format!("cannot join {}", printed(other))),
        },
        _ => return Err(format!("function {name:?} is not known")),
    })
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        // A label that is not set is empty, as in Go's maps.
        (Value::Object(fields), Value::String(key)) => {
            Ok(fields.get(key).cloned().unwrap_or(Value::String(String::new())))
        }
        (Value::Array(items), Value::Number(place)) => {
            let found = place.as_u64().and_then(|place| items.get(usize::try_from(place).ok()?));
            found.cloned().ok_or_else(|| format!("there is no item {place} of {}", items.len()))
        }
        (Value::Null, _) => Ok(Value::String(String::new())),
        _ => Err(format!("cannot index {} by {}", printed(value), printed(key))),
    }
}

fn number(value: &Value) -> Result<usize, String> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number <= MOST);
    number.ok_or_else(|| format!("{} is not a number of characters", printed(value)))
}

/// Widest field, so that no slip of the pen fills the memory.
const MOST: usize = 1 << 16;

fn compared(one: &Value, other: &Value) -> Result<Ordering, String> {
    let ordering = match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one.as_f64().zip(other.as_f64()).and_then(|(one, other)| one.partial_cmp(&other))
        }
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    };
    ordering.ok_or_else(|| format!("cannot compare {} with {}", printed(one), printed(other)))
}

/// As Go prints them: with a space between two of which none is a text.
fn side_by_side(values: &[Value]) -> String {
    let mut text = String::new();
    for (place, value) in values.iter().enumerate() {
        if place > 0 && !value.is_string() && !values[place - 1].is_string() {
            text.push(' ');
        }
        text.push_str(&printed(value));
    }
    text
}

/// A letter as HTML has it, by the names that Go gives them.
fn in_html(letter: char) -> String {
    match letter {
        '\0' => "\u{fffd}".to_owned(),
        '"' => "&#34;".to_owned(),
        '\'' => "&#39;".to_owned(),
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        other => other.to_string(),
    }
}

/// A letter in a string of JavaScript.
fn in_script(letter: char) -> String {
    match letter {
        '\\' | '\'' | '"' => format!("\\{letter}"),
        '<' | '>' | '&' | '=' | '\0'..='\x1f' => format!("\\u{:04X}", u32::from(letter)),
        other => other.to_string(),
    }
}

/// A byte in the query of a URL.
fn in_query(byte: u8) -> String {
    match byte {
        b' ' => "+".to_owned(),
        b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    }
}

fn titled(text: &str) -> String {
    let mut before = ' ';
    let mut titled = String::with_capacity(text.len());
    for letter in text.chars() {
        if before.is_whitespace() {
            titled.extend(letter.to_uppercase())
        } else {
            titled.push(letter)
        }
        before = letter;
    }
    titled
}

/// A part of a text or list: from the first place, to before the second one.
fn sliced(value: &Value, places: &[Value]) -> Result<Value, String> {
    let place = |at: usize| places.get(at).map(number).transpose();
    let (from, to) = (place(0)?.unwrap_or(0), place(1)?);
    let beyond = || format!("cannot slice {}: it is shorter", printed(value));
    match value {
        Value::String(text) => text.get(from..to.unwrap_or(text.len())).map(Value::from).ok_or_else(beyond),
        Value::Array(items) => {
            items.get(from..to.unwrap_or(items.len())).map(|items| items.to_vec().into()).ok_or_else(beyond)
        }
        other => Err(format!("cannot slice {}", printed(other))),
    }
}

/// `printf` with `%s`, `%v`, `%d`, `%q`, `%t`, `%%` and their widths.
fn formatted(format: &str, values: &[Value]) -> Result<String, String> {
    let (mut out, mut values, mut letters) = (String::new(), values.iter(), format.chars());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let (mut flags, mut verb) = (String::new(), letters.next());
        while let Some(letter) = verb.filter(|letter| letter.is_ascii_digit() || *letter == '-') {
            flags.push(letter);
            verb = letters.next();
        }
        let text = match verb {
            Some('%') => {
                out.push('%');
                continue;
            }
            Some(verb @ ('s' | 'v' | 'd' | 'q' | 't')) => {
                let value = values.next().ok_or_else(|| format!("printf {format:?}: too few values"))?;
                if verb == 'q' { format!("{:?}", printed(value)) } else { printed(value) }
            }
            _ => return Err(format!("printf {format:?}: only %s, %v, %d, %q, %t and %% are known")),
        };
        let width: usize = match flags.trim_start_matches('-') {
            "" => 0,
            digits => digits.parse().ok().filter(|width| *width <= MOST).ok_or("printf: the width is too large")?,
        };
        let padded = if flags.starts_with('-') { format!("{text:<width$}") } else { format!("{text:>width$}") };
        out.push_str(&padded);
    }
    Ok(out)
}
