//! A tree and a value to text.

use serde_json::Value;

use super::parse::{Argument, Call, Node};

pub(super) fn render(nodes: &[Node], value: &Value) -> Result<String, String> {
    let mut out = String::new();
    Scope { top: value, here: value }.nodes(nodes, &mut out)?;
    Ok(out)
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    top: &'a Value,
    here: &'a Value,
}

impl Scope<'_> {
    fn nodes(self, nodes: &[Node], out: &mut String) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipe) => out.push_str(&printed(&self.pipe(pipe)?)),
                Node::If { condition, body, otherwise } => {
                    let branch = if truth(&self.pipe(condition)?) { body } else { otherwise };
                    self.nodes(branch, out)?;
                }
                Node::With { value, body, otherwise } => {
                    let value = self.pipe(value)?;
                    if truth(&value) {
                        self.below(&value).nodes(body, out)?;
                    } else {
                        self.nodes(otherwise, out)?;
                    }
                }
                Node::Range { over, body, otherwise } => {
                    let over = self.pipe(over)?;
                    let items: Vec<&Value> = match &over {
                        Value::Array(items) => items.iter().collect(),
                        Value::Object(fields) => fields.values().collect(),
                        Value::Null => Vec::new(),
                        other => return Err(format!("cannot range over {}", printed(other))),
                    };
                    if items.is_empty() {
                        self.nodes(otherwise, out)?;
                    }
                    for item in items {
                        self.below(item).nodes(body, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn below<'b>(self, here: &'b Value) -> Scope<'b>
    where
        Self: 'b,
    {
        Scope { top: self.top, here }
    }

    fn pipe(self, pipe: &[Call]) -> Result<Value, String> {
        let mut carried: Option<Value> = None;
        for call in pipe {
            let mut values =
                call.arguments.iter().map(|argument| self.argument(argument)).collect::<Result<Vec<_>, _>>()?;
            values.extend(carried.take());
            carried = Some(match &call.function {
                Some(name) => function(name, &values)?,
                None => values.into_iter().next().unwrap_or_default(),
            });
        }
        Ok(carried.unwrap_or_default())
    }

    fn argument(self, argument: &Argument) -> Result<Value, String> {
        match argument {
            Argument::Literal(value) => Ok(value.clone()),
            Argument::Nested(pipe) => self.pipe(pipe),
            Argument::Path { from_top, fields } => {
                let mut value = if *from_top { self.top } else { self.here };
                for field in fields {
                    value = match value {
                        Value::Object(object) => found(object, field)
                            .ok_or_else(|| format!("there is no field {field:?}; fields are {}", names(object)))?,
                        Value::Null => &Value::Null,
                        _ => return Err(format!("there is no field {field:?} in {}", printed(value))),
                    };
                }
                Ok(value.clone())
            }
        }
    }
}

/// A field by its name, or else by the one name that differs only in case: docker's own fields are called `ID` where its
/// JSON says `Id`.
fn found<'a>(object: &'a serde_json::Map<String, Value>, field: &str) -> Option<&'a Value> {
    object.get(field).or_else(|| {
        let mut alike = object.iter().filter(|(name, _)| name.eq_ignore_ascii_case(field));
        let (_, value) = alike.next()?;
        alike.next().is_none().then_some(value)
    })
}

fn names(object: &serde_json::Map<String, Value>) -> String {
    object.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn function(name: &str, values: &[Value]) -> Result<Value, String> {
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

/// Go's idea of true: not false, zero, empty or nil.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go prints it.
fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", printed(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}
