//! Template text to a tree.

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    /// A variable that stands until the end of its block.
    Set {
        name: String,
        value: Pipe,
    },
    /// Another value for a variable that stands.
    Assign {
        name: String,
        value: Pipe,
    },
    /// Ends the range that it is in.
    Break,
    /// Goes on with the next item of the range that it is in.
    Continue,
    /// Names for the place and the item, or for the item alone.
    Range {
        names: Vec<String>,
        over: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    If {
        names: Vec<String>,
        condition: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        names: Vec<String>,
        value: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Calls joined by `|`: the value of each is the last argument of the next.
pub(super) type Pipe = Vec<Call>;

/// A function and its arguments, or a lone value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) function: Option<String>,
    pub(super) arguments: Vec<Argument>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Argument {
    /// A value and fields below it.
    Path {
        root: Root,
        fields: Vec<String>,
    },
    Literal(serde_json::Value),
    Nested(Pipe),
}

/// Where a path begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Root {
    /// `.`
    Here,
    /// `$`
    Top,
    /// `$name`
    Variable(String),
}

/// What `.Label "key"` calls; no word of a template can be its name.
pub(super) const LABEL: &str = ".Label";

/// The functions, with how many arguments they take.
const FUNCTIONS: &[(&str, std::ops::RangeInclusive<usize>)] = &[
    ("and", 2..=9),
    ("eq", 2..=9),
    ("ge", 2..=2),
    ("gt", 2..=2),
    ("html", 0..=9),
    ("index", 2..=9),
    ("join", 2..=2),
    ("js", 0..=9),
    ("json", 1..=1),
    ("le", 2..=2),
    ("len", 1..=1),
    ("lower", 1..=1),
    ("lt", 2..=2),
    ("ne", 2..=2),
    ("not", 1..=1),
    ("or", 2..=9),
    ("pad", 3..=3),
    ("print", 0..=9),
    ("printf", 1..=9),
    ("println", 0..=9),
    ("slice", 2..=3),
    ("split", 2..=2),
    ("title", 1..=1),
    ("truncate", 2..=2),
    ("upper", 1..=1),
    ("urlquery", 0..=9),
];

/// Deepest nesting of blocks and parentheses, so that no template can exhaust the stack.
const DEPTH: usize = 32;

pub(super) fn template(text: &str) -> Result<Vec<Node>, String> {
    let mut pieces = pieces(text)?.into_iter();
    let (nodes, end) = block(&mut pieces, 0)?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(format!("{{{{{end}}}}} without a block to {end}")),
    }
}

/// Plain text, or the inside of `{{…}}`.
enum Piece {
    Text(String),
    Action(String),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let end = rest[start..].find("}}").ok_or("'{{' is not closed by '}}'")? + start;
        let mut before = &rest[..start];
        let mut inside = &rest[start + 2..end];
        if trim_next {
            before = before.trim_start();
        }
        if let Some(trimmed) = inside.strip_prefix("- ") {
            before = before.trim_end();
            inside = trimmed;
        }
        trim_next = inside.ends_with(" -");
        inside = inside.strip_suffix(" -").unwrap_or(inside);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        pieces.push(Piece::Action(inside.trim().to_owned()));
        rest = &rest[end + 2..];
    }
    let rest = if trim_next { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// What ends a block.
#[derive(Debug, PartialEq)]
enum Ends {
    End,
    Else,
    /// An `else` that goes on with another block, such as `if .X`.
    ElseBlock(String),
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::End => f.write_str("end"),
            Self::Else => f.write_str("else"),
            Self::ElseBlock(action) => write!(f, "else {action}"),
        }
    }
}

/// Nodes up to the end of the text, or to what ends the block.
fn block(pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<(Vec<Node>, Option<Ends>), String> {
    if depth > DEPTH {
        return Err("blocks are nested too deeply".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "end" if rest.is_empty() => return Ok((nodes, Some(Ends::End))),
            "else" if rest.is_empty() => return Ok((nodes, Some(Ends::Else))),
            "else" if is_block(rest.trim_start()) => {
                return Ok((nodes, Some(Ends::ElseBlock(rest.trim_start().to_owned()))));
            }
            _ if is_block(&action) => nodes.push(branching(&action, pieces, depth)?),
            word if word.starts_with("/*") => {}
            "break" if rest.is_empty() => nodes.push(Node::Break),
            "continue" if rest.is_empty() => nodes.push(Node::Continue),
            _ => nodes.push(match (declared(&action)?, assigned(&action)) {
                ((names, value), _) if !names.is_empty() => {
                    Node::Set { name: names.into_iter().collect(), value: pipe(value)? }
                }
                (_, Some((name, value))) => Node::Assign { name: name.to_owned(), value: pipe(value)? },
                ((_, value), None) => Node::Print(pipe(value)?),
            }),
        }
    }
    Ok((nodes, None))
}

fn is_block(action: &str) -> bool {
    matches!(action.split_whitespace().next(), Some("range" | "if" | "with"))
}

/// A block with what is between its beginning and its end.
fn branching(action: &str, pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<Node, String> {
    if depth > DEPTH {
        return Err("blocks are nested too deeply".to_owned());
    }
    let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
    let (names, value) = declared(rest)?;
    if names.len() > if word == "range" { 2 } else { 1 } {
        return Err(format!("{{{{{word}}}}} has too many variables"));
    }
    let pipe = pipe(value)?;
    let (body, end) = block(pieces, depth + 1)?;
    let otherwise = match end {
        Some(Ends::End) => Vec::new(),
        Some(Ends::ElseBlock(action)) => vec![branching(&action, pieces, depth + 1)?],
        Some(Ends::Else) => match block(pieces, depth + 1)? {
            (otherwise, Some(Ends::End)) => otherwise,
            _ => return Err(format!("{{{{{word}}}}} has no {{{{end}}}}")),
        },
        None => return Err(format!("{{{{{word}}}}} has no {{{{end}}}}")),
    };
    Ok(match word {
        "range" => Node::Range { names, over: pipe, body, otherwise },
        "if" => Node::If { names, condition: pipe, body, otherwise },
        _ => Node::With { names, value: pipe, body, otherwise },
    })
}

/// The variables that an action sets, and the rest of it: `$x := .Y` or `$k, $v := .Y`.
fn declared(action: &str) -> Result<(Vec<String>, &str), String> {
    let Some((left, value)) = action.split_once(":=").filter(|(left, _)| left.starts_with('$')) else {
        return Ok((Vec::new(), action));
    };
    let name = |word: &str| {
        let name = word.trim().strip_prefix('$').filter(|name| is_name(name));
        name.map(str::to_owned).ok_or_else(|| format!("{:?} is not a variable", word.trim()))
    };
    Ok((left.split(',').map(name).collect::<Result<_, _>>()?, value))
}

/// The variable that an action gives another value, and the rest of it: `$x = .Y`.
fn assigned(action: &str) -> Option<(&str, &str)> {
    let (left, value) = action.split_once('=')?;
    Some((left.trim().strip_prefix('$').filter(|name| is_name(name))?, value))
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
}

fn pipe(text: &str) -> Result<Pipe, String> {
    let mut words = Words { rest: text };
    let pipe = words.pipe(0)?;
    match words.rest.trim() {
        "" => Ok(pipe),
        rest => Err(format!("unexpected {rest:?}")),
    }
}

struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    fn pipe(&mut self, depth: usize) -> Result<Pipe, String> {
        if depth > DEPTH {
            return Err("parentheses are nested too deeply".to_owned());
        }
        let mut calls = vec![self.call(depth, 0)?];
        while self.take('|') {
            calls.push(self.call(depth, 1)?);
        }
        Ok(calls)
    }

    /// One call; `piped` arguments come through the pipe.
    fn call(&mut self, depth: usize, piped: usize) -> Result<Call, String> {
        let mut function = None;
        let mut arguments = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.chars().next() {
                None | Some('|' | ')') => break,
                Some('(') => {
                    self.take('(');
                    arguments.push(Argument::Nested(self.pipe(depth + 1)?));
                    if !self.take(')') {
                        return Err("'(' is not closed by ')'".to_owned());
                    }
                }
                Some('"') => arguments.push(self.string()?),
                Some(_) => {
                    let word = self.word();
                    if let Some(path) = path(word) {
                        arguments.push(path);
                    } else if let Ok(literal) = serde_json::from_str(word) {
                        arguments.push(Argument::Literal(literal));
                    } else if function.is_none() && arguments.is_empty() {
                        function = Some(word.to_owned());
                    } else {
                        return Err(format!("unexpected {word:?}"));
                    }
                }
            }
        }
        let count = arguments.len() + piped;
        match &function {
            Some(name) => match FUNCTIONS.iter().find(|(known, _)| known == name) {
                Some((_, takes)) if takes.contains(&count) => {}
                Some(_) => return Err(format!("{name} takes another number of arguments")),
                None => return Err(format!("function {name:?} is not known")),
            },
            None if count == 1 && piped == 0 => {}
            None if count == 2 && piped == 0 && is_label(&arguments[0]) => {
                arguments.remove(0);
                function = Some(LABEL.to_owned());
            }
            None => return Err("expected one value or a function".to_owned()),
        }
        Ok(Call { function, arguments })
    }

    fn take(&mut self, expected: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &str {
        let end =
            self.rest.find(|c: char| c.is_whitespace() || matches!(c, '|' | '(' | ')')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn string(&mut self) -> Result<Argument, String> {
        let mut stream = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
        match stream.next() {
            Some(Ok(text)) => {
                self.rest = &self.rest[stream.byte_offset()..];
                Ok(Argument::Literal(text.into()))
            }
            _ => Err("a string is not closed".to_owned()),
        }
    }
}

/// `.`, `.A.B`, `$.A` or `$name.A`.
fn path(word: &str) -> Option<Argument> {
    let (first, rest) = word.split_once('.').map_or((word, None), |(first, rest)| (first, Some(rest)));
    let root = match first.strip_prefix('$') {
        Some("") => Root::Top,
        Some(name) if is_name(name) => Root::Variable(name.to_owned()),
        None if first.is_empty() && rest.is_some() => Root::Here,
        _ => return None,
    };
    let rest = rest.filter(|rest| !rest.is_empty());
    let fields = rest.map(|rest| rest.split('.').map(str::to_owned).collect()).unwrap_or_default();
    Some(Argument::Path { root, fields })
}

/// `.Label`, which takes a key.
fn is_label(argument: &Argument) -> bool {
    matches!(argument, Argument::Path { root: Root::Here, fields } if fields[..] == ["Label"])
}
