//! Tests of the tar reader.
