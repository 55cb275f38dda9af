//! The patterns of docker's filters: regular expressions of names, and shell patterns of images.

use regex::Regex;

/// A regular expression, which may fit any part of a name.
///
/// # Errors
/// Where it is not one.
pub fn expression(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("{text:?} is not a regular expression: {error}"))
}

/// A shell pattern, which has to fit the whole: `*` and `?` stand for anything but `/`, `[a-c]` and `[^a-c]` for one
/// character, and `\` takes the next one as it is.
///
/// # Errors
/// Where brackets or a `\` are left open.
pub fn shell(text: &str) -> Result<Regex, String> {
    let mut expression = String::from("^(?:");
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            '[' => {
                let set: String = letters.by_ref().take_while(|letter| *letter != ']').collect();
                expression.extend(["[", &set.replace('[', r"\["), "]"]);
            }
            '\\' => match letters.next() {
                Some(letter) => expression.push_str(&regex::escape(letter.encode_utf8(&mut [0; 4]))),
                None => return Err(format!("{text:?} is not a pattern: it ends with a backslash")),
            },
            letter => expression.push_str(&regex::escape(letter.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push_str(")$");
    Regex::new(&expression).map_err(|_| format!("{text:?} is not a pattern"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_patterns() {
        let fits = |pattern: &str, text: &str| shell(pattern).unwrap().is_match(text);
        assert!(fits("alpine", "alpine") && !fits("alpine", "alpine:3"));
        assert!(fits("*:3", "alpine:3") && !fits("*:3", "library/alpine:3") && fits("*/al*:?", "library/alpine:3"));
        assert!(fits("app[0-9]", "app7") && !fits("app[^0-9]", "app7") && fits("app[^0-9]", "appx"));
        assert!(fits("a.c", "a.c") && !fits("a.c", "abc") && fits(r"a\*", "a*") && !fits(r"a\*", "ab"));
        assert!(shell("a[").is_err() && shell("a\\").is_err());
    }
}
