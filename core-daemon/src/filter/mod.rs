//! containerd's filter language, which List, Subscribe and Metrics calls carry.
//!
//! ```text
//! selectors := selector ("," selector)*             all must match
//! selector  := path (operator value)?               without operator: the field is present
//! path      := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := '"' … '"', and for "~=" also '/' … '/' and '|' … '|', with Go's escapes
//! ```
//!
//! A call carries several such texts, of which one must match; none at all matches everything. What a field is called
//! and holds is the business of the thing that is matched, so [`Filter::matches`] asks for it by path.

mod eval;
mod parse;

use crate::error::{Error, Result};

/// A parsed list of filters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of them must match, unless there are none.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(regex::Regex),
    /// An expression that is none.
    Never,
}

/// Largest number of filters in one call, and of bytes in one filter: a filter is evaluated against every record.
const MAX_FILTERS: usize = 256;
const MAX_LENGTH: usize = 16 * 1024;

impl Filter {
    /// Parses the filters of one call.
    ///
    /// # Errors
    /// `InvalidArgument` that shows the text and the place where it stops making sense.
    pub fn parse(filters: &[String]) -> Result<Self> {
        if filters.len() > MAX_FILTERS {
            return Err(Error::invalid(format!("{} filters: at most {MAX_FILTERS} are accepted", filters.len())));
        }
        // An empty text matches everything, and so does the whole list then.
        if filters.iter().any(String::is_empty) {
            return Ok(Self::default());
        }
        let parse = |text: &String| match text.len() {
            0..=MAX_LENGTH => parse::selectors(text),
            length => Err(Error::invalid(format!("filter of {length} bytes: at most {MAX_LENGTH} are accepted"))),
        };
        Ok(Self { any: filters.iter().map(parse).collect::<Result<_>>()? })
    }

    /// Matches whatever it is asked about.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether there is anything to check at all.
    pub fn is_everything(&self) -> bool {
        self.any.is_empty()
    }
}

/// Looks `rest` of a path up in labels, whose names contain dots that clients do not always quote.
pub fn label<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>, rest: &[String]) -> Option<String> {
    let name = rest.join(".");
    labels.into_iter().find(|(key, _)| **key == name).map(|(_, value)| value.clone())
}
