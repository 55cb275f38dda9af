//! The `WWW-Authenticate` header: schemes and their parameters.

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case.
    pub scheme: String,
    /// Names in lower case, in order.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Most challenges and parameters that are looked at.
const MAX: usize = 32;

/// Every challenge of a header's value; what cannot be understood is left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() && challenges.len() < MAX {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let trimmed = after.trim_start();
        match trimmed.strip_prefix('=') {
            // A parameter of the challenge before; "==" ends a token68, which carries none.
            Some(value) if !value.starts_with('=') && !challenges.is_empty() => {
                let (value, after) = value_of(value.trim_start());
                if let Some(challenge) = challenges.last_mut()
                    && challenge.parameters.len() < MAX
                {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            Some(value) => rest = value.trim_start_matches('='),
            None => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = trimmed;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    challenges
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A quoted string, with backslashes taken out, or a token.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = token(text);
        return (word.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((place, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[place + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_with_quotes_and_commas() {
        let header = r#"Bearer realm="https://a/t?x=1,2",service="s \"q\"", scope=repository:a/b:pull , Basic realm=x"#;
        let all = parse(header);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].scheme, "bearer");
        assert_eq!(all[0].get("realm"), Some("https://a/t?x=1,2"));
        assert_eq!(all[0].get("service"), Some("s \"q\""));
        assert_eq!(all[0].get("scope"), Some("repository:a/b:pull"));
        assert_eq!(all[1].scheme, "basic");
        assert_eq!(all[1].get("realm"), Some("x"));
    }

    #[test]
    fn nonsense_ends() {
        for header in ["", ",,,", "=", "\"", "Bearer", "Bearer realm=\"", "a=b=c", "Negotiate abc==, Basic", "ü"] {
            assert!(parse(header).len() <= 2, "{header}");
        }
        assert!(parse(&"a ".repeat(10_000)).len() <= MAX);
    }
}
