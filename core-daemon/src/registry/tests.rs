//! Tests against small servers in this process.
