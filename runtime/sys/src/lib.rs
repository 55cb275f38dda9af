//! Safe functions over kernel calls.
