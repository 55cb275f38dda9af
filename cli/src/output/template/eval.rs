//! A tree and a value to text.

use std::cell::RefCell;

use serde_json::Value;

use super::Row;
use super::functions::function;
use super::parse::{Argument, Call, LABEL, Node, Root};

pub(super) fn render(nodes: &[Node], value: &Value, row: Row<'_>) -> Result<String, String> {
    let mut out = String::new();
    match (Scope { top: value, here: value, row, variables: None }).nodes(nodes, &mut out)? {
        Flow::On => Ok(out),
        Flow::Break | Flow::Continue => Err("{{break}} or {{continue}} outside of {{range}}".to_owned()),
    }
}

/// What follows a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// The next one.
    On,
    /// What follows the range that it is in.
    Break,
    /// The next item of that range.
    Continue,
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    top: &'a Value,
    here: &'a Value,
    row: Row<'a>,
    /// The innermost first.
    variables: Option<&'a Variable<'a>>,
}

struct Variable<'a> {
    name: &'a str,
    value: RefCell<Value>,
    outer: Option<&'a Variable<'a>>,
}

impl<'a> Scope<'a> {
    fn nodes(self, nodes: &[Node], out: &mut String) -> Result<Flow, String> {
        for (place, node) in nodes.iter().enumerate() {
            let flow = match node {
                Node::Text(text) => {
                    out.push_str(text);
                    Flow::On
                }
                Node::Print(pipe) => {
                    out.push_str(&printed(&self.pipe(pipe)?));
                    Flow::On
                }
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
                Node::Assign { name, value } => {
                    let value = self.pipe(value)?;
                    self.find(name)?.value.replace(value);
                    Flow::On
                }
                Node::Set { name, value } => {
                    let value = &self.pipe(value)?;
                    let variable = self.named(Some(name), value);
                    // It stands for the rest of the block.
                    return self.with(variable.as_ref()).nodes(&nodes[place + 1..], out);
                }
                Node::If { names, condition, body, otherwise } => {
                    let value = &self.pipe(condition)?;
                    let named = self.named(names.first(), value);
                    let scope = self.with(named.as_ref());
                    scope.nodes(if truth(value) { body } else { otherwise }, out)?
                }
                Node::With { names, value, body, otherwise } => {
                    let value = &self.pipe(value)?;
                    let named = self.named(names.first(), value);
                    let scope = self.with(named.as_ref());
                    match truth(value) {
                        true => Scope { here: value, ..scope }.nodes(body, out)?,
                        false => scope.nodes(otherwise, out)?,
                    }
                }
                Node::Range { names, over, body, otherwise } => match items(&self.pipe(over)?)? {
                    items if items.is_empty() => self.nodes(otherwise, out)?,
                    items => self.range(names, &items, body, out)?,
                },
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn range(
        self,
        names: &[String],
        items: &[(Value, Value)],
        body: &[Node],
        out: &mut String,
    ) -> Result<Flow, String> {
        for (place, item) in items {
            // The last name is the item's, and one before it its place's.
            let of_place = self.named(names.first().filter(|_| names.len() == 2), place);
            let scope = self.with(of_place.as_ref());
            let of_item = scope.named(names.last(), item);
            let scope = Scope { here: item, ..scope.with(of_item.as_ref()) };
            if scope.nodes(body, out)? == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn named<'b>(self, name: Option<&'b String>, value: &Value) -> Option<Variable<'b>>
    where
        Self: 'b,
    {
        name.map(|name| Variable { name, value: value.clone().into(), outer: self.variables })
    }

    fn with<'b>(self, variable: Option<&'b Variable<'b>>) -> Scope<'b>
    where
        Self: 'b,
    {
        Scope { variables: variable.or(self.variables), ..self }
    }

    fn find(self, name: &str) -> Result<&'a Variable<'a>, String> {
        let mut next = self.variables;
        while let Some(variable) = next {
            if variable.name == name {
                return Ok(variable);
            }
            next = variable.outer;
        }
        Err(format!("there is no variable ${name}"))
    }

    fn label(self, key: &[Value]) -> Result<Value, String> {
        let key = key.first().map(printed).unwrap_or_default();
        match self.row {
            Row::Labelled(labels) => Ok(labels.get(&key).cloned().unwrap_or_default().into()),
            Row::Headings => Ok(key.into()),
            Row::None => Err("there is no field \"Label\"".to_owned()),
        }
    }

    fn pipe(self, pipe: &[Call]) -> Result<Value, String> {
        let mut carried: Option<Value> = None;
        for call in pipe {
            let mut values =
                call.arguments.iter().map(|argument| self.argument(argument)).collect::<Result<Vec<_>, _>>()?;
            values.extend(carried.take());
            carried = Some(match &call.function {
                Some(name) if name == LABEL => self.label(&values)?,
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
            Argument::Path { root, fields } => {
                let held;
                let mut value = match root {
                    Root::Here => self.here,
                    Root::Top => self.top,
                    Root::Variable(name) => {
                        held = self.find(name)?.value.borrow();
                        &held
                    }
                };
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

/// What a range goes over: each item with its place.
fn items(over: &Value) -> Result<Vec<(Value, Value)>, String> {
    match over {
        Value::Array(items) => Ok(items.iter().enumerate().map(|(place, item)| (place.into(), item.clone())).collect()),
        Value::Object(fields) => Ok(fields.iter().map(|(key, item)| (key.clone().into(), item.clone())).collect()),
        Value::Null => Ok(Vec::new()),
        other => Err(format!("cannot range over {}", printed(other))),
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

/// Go's idea of true: not false, zero, empty or nil.
pub(super) fn truth(value: &Value) -> bool {
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
pub(super) fn printed(value: &Value) -> String {
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
