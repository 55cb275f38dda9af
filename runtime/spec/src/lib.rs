//! OCI values and rules, pure.
