//! GVariant's text form, in which annotations give properties of units. Pure.

use super::dbus::Value;

/// How deep arrays and tuples may lie in each other.
const MAX_DEPTH: usize = 8;

/// The value that `text` is, all of it. What systemd has no use for is not read: dictionaries, variants in variants, and
/// numbers of 16 bits.
pub(super) fn read(text: &str) -> Option<Value> {
    let mut rest = text;
    value(&mut rest, None, 0).filter(|_| rest.trim().is_empty())
}

/// Reads one value off the front of `rest`, of the type that the signature `expected` says, or of the one it shows.
fn value(rest: &mut &str, expected: Option<&str>, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    *rest = rest.trim_start();
    match rest.chars().next()? {
        '@' => {
            let (of, after) = rest[1..].split_once(char::is_whitespace)?;
            *rest = after;
            // Whoever has an opinion too has the same.
            (first_type(of)? == of && expected.is_none_or(|expected| expected == of)).then_some(())?;
            value(rest, Some(of), depth + 1)
        }
        quote @ ('\'' | '"') => matches!(expected, None | Some("s")).then(|| quoted(rest, quote).map(Value::Text))?,
        'b' if rest[1..].starts_with(['\'', '"']) && matches!(expected, None | Some("ay")) => {
            // As everything of this form, it ends with a zero.
            let bytes = quoted_bytes(rest)?.into_iter().chain([0]);
            Some(Value::Array("y".into(), bytes.map(Value::Byte).collect()))
        }
        '[' => array(rest, expected, depth),
        '(' => tuple(rest, expected, depth),
        _ => {
            let word = word(rest);
            match word {
                "true" | "false" => matches!(expected, None | Some("b")).then_some(Value::Bool(word == "true")),
                _ => match type_of_keyword(word) {
                    Some(of) if expected.is_none_or(|expected| expected == of) => value(rest, Some(of), depth + 1),
                    Some(_) => None,
                    None => number(word, expected.unwrap_or(if word.contains('.') { "d" } else { "i" })),
                },
            }
        }
    }
}

/// Takes what is up to the next space or sign off the front.
fn word<'a>(rest: &mut &'a str) -> &'a str {
    let (word, after) = rest.split_at(rest.find([' ', '\t', '\n', ',', ']', ')']).unwrap_or(rest.len()));
    *rest = after;
    word
}

fn type_of_keyword(word: &str) -> Option<&'static str> {
    Some(match word {
        "boolean" => "b",
        "byte" => "y",
        "int32" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" => "s",
        _ => return None,
    })
}

fn number(word: &str, of: &str) -> Option<Value> {
    Some(match of {
        "y" => Value::Byte(integer(word)?.try_into().ok()?),
        "i" => Value::I32(integer(word)?.try_into().ok()?),
        "u" => Value::U32(integer(word)?.try_into().ok()?),
        "x" => Value::I64(integer(word)?.try_into().ok()?),
        "t" => Value::U64(integer(word)?.try_into().ok()?),
        "d" => Value::Double(word.parse().ok()?),
        _ => return None,
    })
}

/// A whole number as C spells it: after `0x` in base 16, after another zero in base 8.
fn integer(word: &str) -> Option<i128> {
    let (sign, digits) = match word.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, word.strip_prefix('+').unwrap_or(word)),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    // Another sign would be taken here.
    let number = i128::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with(['+', '-']))?;
    number.checked_mul(sign)
}

fn array(rest: &mut &str, expected: Option<&str>, depth: usize) -> Option<Value> {
    let mut of = match expected {
        Some(expected) => Some(expected.strip_prefix('a')?.to_owned()),
        None => None,
    };
    let items = listed(rest, ']', |rest| {
        let item = value(rest, of.as_deref(), depth + 1)?;
        // What the first says counts for all.
        of = Some(item.signature());
        Some(item)
    })?;
    Some(Value::Array(of.unwrap_or_else(|| "s".to_owned()), items))
}

fn tuple(rest: &mut &str, expected: Option<&str>, depth: usize) -> Option<Value> {
    let mut types = match expected {
        Some(expected) => Some(expected.strip_prefix('(')?.strip_suffix(')')?),
        None => None,
    };
    let items = listed(rest, ')', |rest| {
        let of = types.map_or(Some(None), |left| first_type(left).map(Some))?;
        types = types.zip(of).map(|(left, of)| &left[of.len()..]);
        value(rest, of, depth + 1)
    })?;
    // An empty tuple has no form on the bus.
    (!items.is_empty() && types.is_none_or(str::is_empty)).then_some(Value::Tuple(items))
}

/// The first complete type of a signature.
fn first_type(signature: &str) -> Option<&str> {
    let mut open = 0_u32;
    for (at, letter) in signature.char_indices() {
        match letter {
            'a' => continue,
            '(' => open += 1,
            ')' => open = open.checked_sub(1)?,
            'b' | 'y' | 'i' | 'u' | 'x' | 't' | 'd' | 's' => {}
            _ => return None,
        }
        if open == 0 {
            return Some(&signature[..=at]);
        }
    }
    None
}

/// What is between brackets with commas between, of which one may be the last.
fn listed(rest: &mut &str, close: char, mut item: impl FnMut(&mut &str) -> Option<Value>) -> Option<Vec<Value>> {
    *rest = &rest[1..];
    let mut items = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(close) {
            *rest = after;
            return Some(items);
        }
        if !items.is_empty() {
            *rest = rest.strip_prefix(',')?.trim_start();
            if rest.starts_with(close) {
                continue;
            }
        }
        items.push(item(rest)?);
    }
}

fn quoted(rest: &mut &str, quote: char) -> Option<String> {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => match letters.next()?.1 {
                // The line goes on.
                '\n' => {}
                long @ ('u' | 'U') => {
                    let digits = letters.by_ref().take(if long == 'u' { 4 } else { 8 }).map(|(_, digit)| digit);
                    let code =
                        digits.map(|digit| digit.to_digit(16)).try_fold(0, |code, digit| Some(code << 4 | digit?));
                    text.push(char::from_u32(code?)?);
                }
                letter => text.push(u8::try_from(letter).map_or(letter, |byte| meant(byte).into())),
            },
            letter if letter == quote => {
                *rest = &rest[at + 1..];
                return Some(text);
            }
            letter => text.push(letter),
        }
    }
    None
}

/// Bytes in quotes, after a `b`.
fn quoted_bytes(rest: &mut &str) -> Option<Vec<u8>> {
    let (text, quote) = (rest.as_bytes(), rest.as_bytes()[1]);
    let mut bytes = Vec::new();
    let mut at = 2;
    while *text.get(at)? != quote {
        let (byte, length) = match text[at..] {
            [b'\\', b'x', ..] => (u8::from_str_radix(rest.get(at + 2..at + 4)?, 16).ok()?, 4),
            [b'\\', b'0'..=b'3', ..] => (u8::from_str_radix(rest.get(at + 1..at + 4)?, 8).ok()?, 4),
            [b'\\', letter, ..] => (meant(letter), 2),
            _ => (text[at], 1),
        };
        bytes.push(byte);
        at += length;
    }
    *rest = &rest[at + 1..];
    Some(bytes)
}

/// What a letter after a backslash means.
fn meant(letter: u8) -> u8 {
    match letter {
        b'a' => 7,
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_said_or_seen() {
        let bytes = |bytes: &[u8]| Value::Array("y".into(), bytes.iter().copied().map(Value::Byte).collect());
        for (text, expected) in [
            ("@as []", Value::Array("s".into(), Vec::new())),
            ("@a(st) []", Value::Array("(st)".into(), Vec::new())),
            ("@b false", Value::Bool(false)),
            ("boolean true", Value::Bool(true)),
            ("@t 5", Value::U64(5)),
            ("uint64 0x10", Value::U64(16)),
            ("int32 -0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("double 5", Value::Double(5.0)),
            ("[byte 0x01, 0xff]", bytes(&[1, 255])),
            ("@ay [1,2,]", bytes(&[1, 2])),
            (r"b'a\x01\377\n\''", bytes(b"a\x01\xff\n'\0")),
            ("[uint32 1, 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)])),
            ("@(st) ('a', 5)", Value::Tuple(vec![Value::text("a"), Value::U64(5)])),
            (r"'a\tb\u0041\'\\'", Value::text("a\tbA'\\")),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "",
            "'open",
            "[1, 'a']",
            "1 2",
            "@as [1]",
            "@t",
            "@t 'a'",
            "@at 5",
            "@tt 5",
            "@a 5",
            "@( 5",
            "@b 1",
            "uint64 -1",
            "byte 256",
            "byte int32 1",
            "0x",
            "0x-1",
            "--1",
            "09",
            "()",
            "(1",
            "@(st) ('a',)",
            "@(s) ('a', 1)",
            "<1>",
            "{'a': 1}",
            r"'\u00'",
            r"'\ud800'",
            "nonsense",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&"[".repeat(10_000)), None);
        assert_eq!(read(&"@as ".repeat(10_000)), None);
    }
}
