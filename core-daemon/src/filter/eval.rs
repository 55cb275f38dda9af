//! Matching a thing against a filter.

use super::{Filter, Selector, Test};

impl Filter {
    /// Whether the thing whose fields `field` looks up passes the filter.
    pub fn matches(&self, field: impl Fn(&[String]) -> Option<String>) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(&field)))
    }
}

impl Selector {
    fn matches(&self, field: &impl Fn(&[String]) -> Option<String>) -> bool {
        let value = field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Never => false,
            Test::Equal(want) => value.as_deref() == Some(want),
            // A field that is not there differs from any value, and is empty to an expression, as in containerd.
            Test::NotEqual(other) => value.as_deref().unwrap_or_default() != other,
            Test::Matches(expression) => expression.is_match(value.as_deref().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        Filter::parse(&filters).expect("filter").matches(|path: &[String]| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path.as_slice() {
                ["name"] => Some("web-1".into()),
                ["topic"] => Some("/tasks/exit".into()),
                ["labels", "a.b/c"] => Some("x y".into()),
                ["labels", "empty"] => Some(String::new()),
                _ => None,
            }
        })
    }

    #[test]
    fn selectors_are_a_conjunction_and_filters_a_disjunction() {
        assert!(matches(&[]));
        assert!(matches(&[""]));
        assert!(matches(&["name==web-1"]));
        assert!(!matches(&["name==web-1,labels.missing"]));
        assert!(matches(&["name==other", "name~=^web"]));
    }

    #[test]
    fn presence_and_difference_of_absent_fields() {
        assert!(matches(&["labels.empty"]));
        assert!(!matches(&["labels.none"]));
        assert!(matches(&["labels.none!=x"]));
        assert!(!matches(&["labels.none==\"\""]));
        assert!(matches(&["labels.\"a.b/c\"==\"x y\""]));
    }

    #[test]
    fn expressions_use_the_quotes_clients_use() {
        assert!(matches(&["topic~=|^/tasks/|"]));
        assert!(matches(&[r"topic~=/^\/tasks\/ex/"]));
        assert!(!matches(&["topic~=|^/images/|"]));
        assert!(!matches(&[r#"name~="(""#]) && matches(&[r#"name~="(""#, "name==web-1"]));
        assert!(matches(&[r#"name~="^web-\\d$""#]));
    }

    /// That of docker's containerd store for all tags of a repository, as `docker save NAME` looks for them.
    #[test]
    fn long_repetitions_of_a_class_are_expressions() {
        assert!(matches(&[r#"topic~="^/tasks/[\\w][\\w.-]{0,127}$""#]));
        assert!(!matches(&[r#"topic~="^/task/[\\w][\\w.-]{0,127}$""#]));
    }

    #[test]
    fn classes_are_of_ascii() {
        let one = |expression: &str, text: &str| {
            let filter = Filter::parse(&[format!("x~=|{}|", expression.replace('\\', r"\\"))]).expect("filter");
            filter.matches(|_| Some(text.to_owned()))
        };
        for (class, within, without) in [
            (r"\w", "a_9", "-\u{e9}"),
            (r"[\w.-]", "a.-", "/\u{e9}"),
            (r"[^\w]", "-\u{e9}", "a_9"),
            (r"\W", "-\u{e9}", "a_9"),
            (r"\d", "09", "a\u{663}"),
            (r"[\D]", "a\u{663}", "09"),
            (r"\s", "\t ", "\u{b}\u{a0}"),
            (r"\S", "\u{b}\u{a0}", "\t "),
        ] {
            assert!(one(&format!("^{class}+$"), within), "{class} {within:?}");
            assert!(!one(class, without), "{class} {without:?}");
        }
        assert!(one(r"x\b\\w", "x\\w") && !one(r"\B\\w", "x\\w"), "an escaped backslash is none of a class");
        assert!(one(r"a\b", "a\u{e9}") && !one(r"a\B", "a\u{e9}"));
    }
}
