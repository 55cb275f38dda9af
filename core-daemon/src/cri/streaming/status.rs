//! How a process ended, as the error stream says it.

use serde::Serialize;

use crate::error::Error;

/// Kubernetes' `Status` object, as much of it as clients of streams read.
#[derive(Serialize)]
struct Status<'a> {
    metadata: Empty,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    reason: &'a str,
    message: String,
}

/// What the error stream says of an outcome, from the fourth version of the protocol on.
pub(super) fn json(outcome: &Result<u32, Error>) -> Vec<u8> {
    let mut status = Status {
        metadata: Empty {},
        status: "Failure",
        message: text(outcome),
        reason: None,
        details: None,
        code: None,
    };
    match outcome {
        Ok(0) => status.status = "Success",
        Ok(code) => {
            status.reason = Some("NonZeroExitCode");
            status.details = Some(Details { causes: [Cause { reason: "ExitCode", message: code.to_string() }] });
        }
        Err(_) => {
            status.reason = Some("InternalError");
            status.code = Some(500);
        }
    }
    // Text and numbers always have a JSON form.
    serde_json::to_vec(&status).unwrap_or_default()
}

/// What older versions say: nothing of a success, else a sentence.
pub(super) fn text(outcome: &Result<u32, Error>) -> Option<String> {
    match outcome {
        Ok(0) => None,
        Ok(code) => Some(format!("command terminated with non-zero exit code: exit code {code}")),
        Err(error) => Some(format!("Internal error occurred: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_find_the_exit_code() {
        let parse = |outcome| serde_json::from_slice::<serde_json::Value>(&json(&outcome)).expect("JSON");
        assert_eq!(parse(Ok(0))["status"], "Success");
        let failed = parse(Ok(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "3");
        assert_eq!(parse(Err(Error::internal("x")))["code"], 500);
        assert_eq!(text(&Ok(0)), None);
    }
}
