//! From text to selectors.

use super::{Selector, Test};
use crate::error::{Error, Result};

/// Bound on the compiled size of one expression, which is the client's text.
const MAX_EXPRESSION: usize = 1 << 20;

/// Parses one filter text.
pub(super) fn selectors(text: &str) -> Result<Vec<Selector>> {
    let mut parser = Parser { text, at: 0 };
    let mut selectors = vec![parser.selector()?];
    loop {
        parser.skip_space();
        match parser.peek() {
            None => return Ok(selectors),
            Some(',') => {
                parser.bump(',');
                selectors.push(parser.selector()?);
            }
            Some(other) => return Err(parser.error(&format!("unexpected {other:?}"))),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.bump('.');
            path.push(self.field()?);
        }
        self.skip_space();
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let start = self.at;
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~'));
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => self.expression()?.map_or(Test::Never, Test::Matches),
            _ => {
                self.at = start;
                return Err(self.error("expected ==, != or ~="));
            }
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() { Err(self.error("expected a field")) } else { Ok(name) }
    }

    /// Reads an expression; `None` for one that is malformed or too large, which matches nothing, as in containerd.
    fn expression(&mut self) -> Result<Option<regex::Regex>> {
        let text = self.value(true)?;
        let built = regex::RegexBuilder::new(&with_ascii_classes(&text)).size_limit(MAX_EXPRESSION).build();
        Ok(built.inspect_err(|error| tracing::debug!(expression = text, %error, "filter matches nothing")).ok())
    }

    /// Reads a value; `expression` allows the quotes that need no escaping in paths and alternatives.
    fn value(&mut self, expression: bool) -> Result<String> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) if expression => self.quoted(quote),
            Some(quote @ ('/' | '|')) => Err(self.error(&format!("{quote} quotes only the value of ~="))),
            _ => {
                let value = self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control());
                if value.is_empty() { Err(self.error("expected a value")) } else { Ok(value) }
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String> {
        let start = self.at;
        self.bump(quote);
        let mut out = Vec::new();
        while let Some(c) = self.peek() {
            if c == quote {
                self.bump(c);
                return String::from_utf8(out).map_err(|_| self.error("the quoted text is not UTF-8"));
            }
            match c {
                '\n' => break,
                '\\' => self.escape(quote, &mut out)?,
                _ => {
                    self.bump(c);
                    push(&mut out, c);
                }
            }
        }
        self.at = start;
        Err(self.error("the quote is not closed"))
    }

    fn escape(&mut self, quote: char, out: &mut Vec<u8>) -> Result<()> {
        self.bump('\\');
        let Some(c) = self.peek() else { return Err(self.error("expected an escape")) };
        if c.is_digit(8) {
            let byte = self.digits(8, 3).and_then(|value| u8::try_from(value).ok());
            out.push(byte.ok_or_else(|| self.error("expected three octal digits of one byte"))?);
            return Ok(());
        }
        self.bump(c);
        match c {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            'x' => {
                let byte = self.digits(16, 2).and_then(|value| u8::try_from(value).ok());
                out.push(byte.ok_or_else(|| self.error("expected two hexadecimal digits"))?);
            }
            'u' | 'U' => {
                let code = self.digits(16, if c == 'u' { 4 } else { 8 }).and_then(char::from_u32);
                push(out, code.ok_or_else(|| self.error("expected the hexadecimal digits of a character"))?);
            }
            _ if c == quote => push(out, c),
            _ => return Err(self.error(&format!("unknown escape \\{c}"))),
        }
        Ok(())
    }

    fn digits(&mut self, base: u32, count: usize) -> Option<u32> {
        let mut value = 0_u32;
        for _ in 0..count {
            let c = self.peek()?;
            value = value.checked_mul(base)?.checked_add(c.to_digit(base)?)?;
            self.bump(c);
        }
        Some(value)
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// Moves past `c`, which [`Self::peek`] returned.
    fn bump(&mut self, c: char) {
        self.at += c.len_utf8();
    }

    fn error(&self, problem: &str) -> Error {
        let (before, after) = self.text.split_at(self.at);
        Error::invalid(format!("filter {before:?} >> {after:?}: {problem}"))
    }
}

/// Spells out what Go's expressions mean by a word, a digit and a space, which are of ASCII only. Those of Unicode are
/// larger by so much that docker's expression for the tags of a repository, 128 characters of words, would be too large.
fn with_ascii_classes(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let mut chars = expression.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('w')) => out.push_str("[0-9A-Za-z_]"),
            ('\\', Some('W')) => out.push_str("[^0-9A-Za-z_]"),
            ('\\', Some('d')) => out.push_str("[0-9]"),
            ('\\', Some('D')) => out.push_str("[^0-9]"),
            ('\\', Some('s')) => out.push_str(r"[\t\n\f\r ]"),
            ('\\', Some('S')) => out.push_str(r"[^\t\n\f\r ]"),
            ('\\', Some('b')) => out.push_str(r"(?-u:\b)"),
            ('\\', Some('B')) => out.push_str(r"(?-u:\B)"),
            (_, escaped) => {
                out.push(c);
                out.extend(escaped);
            }
        }
    }
    out
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn values_reach_to_the_comma() {
        let parsed = selectors(r#"labels."x.y"==docker.io/library/a:b , id"#).expect("filter");
        assert_eq!(parsed[0].path, ["labels", "x.y"]);
        assert!(matches!(&parsed[0].test, Test::Equal(value) if value == "docker.io/library/a:b"));
        assert!(matches!(parsed[1].test, Test::Present));
    }

    #[test]
    fn escapes_are_gos() {
        let parsed = selectors(r#"a=="\x41\u00e9\n\101\"""#).expect("filter");
        assert!(matches!(&parsed[0].test, Test::Equal(value) if value == "A\u{e9}\nA\""));
    }

    #[test]
    fn malformed_filters_are_invalid_arguments() {
        for text in ["name=", "name==", "==x", "name===x", "name==\"x", "name==/x/", "a,,b", "a..b", "a b", "a\0"] {
            let error = selectors(text).expect_err(text);
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}: {error}");
        }
    }
}
