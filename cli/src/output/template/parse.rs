//! Template text to a tree.

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    Range { over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    If { condition: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    With { value: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
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
    /// `.` and fields below it; from the top where it began with `$`.
    Path {
        from_top: bool,
        fields: Vec<String>,
    },
    Literal(serde_json::Value),
    Nested(Pipe),
}

/// The functions, with how many arguments they take.
const FUNCTIONS: &[(&str, std::ops::RangeInclusive<usize>)] = &[
    ("and", 2..=9),
    ("eq", 2..=9),
    ("index", 2..=9),
    ("join", 2..=2),
    ("json", 1..=1),
    ("len", 1..=1),
    ("lower", 1..=1),
    ("ne", 2..=2),
    ("not", 1..=1),
    ("or", 2..=9),
    ("println", 0..=9),
    ("upper", 1..=1),
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

/// Nodes up to the end of the text or to `end` or `else`, which is given back.
fn block(pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<(Vec<Node>, Option<&'static str>), String> {
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
            "end" if rest.is_empty() => return Ok((nodes, Some("end"))),
            "else" if rest.is_empty() => return Ok((nodes, Some("else"))),
            "range" | "if" | "with" => {
                let pipe = pipe(rest)?;
                let (body, end) = block(pieces, depth + 1)?;
                let (otherwise, end) = if end == Some("else") { block(pieces, depth + 1)? } else { (Vec::new(), end) };
                if end != Some("end") {
                    return Err(format!("{{{{{word}}}}} has no {{{{end}}}}"));
                }
                nodes.push(match word {
                    "range" => Node::Range { over: pipe, body, otherwise },
                    "if" => Node::If { condition: pipe, body, otherwise },
                    _ => Node::With { value: pipe, body, otherwise },
                });
            }
            word if word.starts_with("/*") => {}
            _ => nodes.push(Node::Print(pipe(&action)?)),
        }
    }
    Ok((nodes, None))
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

/// `.`, `.A.B` or `$.A`.
fn path(word: &str) -> Option<Argument> {
    let from_top = word.starts_with('$');
    let rest = word.strip_prefix('$').unwrap_or(word);
    if rest.is_empty() && from_top {
        return Some(Argument::Path { from_top, fields: Vec::new() });
    }
    let rest = rest.strip_prefix('.')?;
    let fields = rest.split('.').filter(|_| !rest.is_empty()).map(str::to_owned).collect();
    Some(Argument::Path { from_top, fields })
}
