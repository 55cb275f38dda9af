//! The filter of system calls.

use std::fmt::Display;
use std::str::FromStr;

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall};

use crate::error::{Error, Result};

/// The filter that a plugin wants, in the words of the runtime configuration.
pub(super) fn filter(wanted: &api::LinuxSeccomp) -> Result<LinuxSeccomp> {
    let architectures =
        wanted.architectures.iter().map(|word| parsed("architectures", word)).collect::<Result<Vec<_>>>()?;
    let flags = wanted.flags.iter().map(|word| parsed("flags", word)).collect::<Result<Vec<_>>>()?;
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(parsed("default_action", &wanted.default_action)?)
        .set_default_errno_ret(wanted.default_errno.as_ref().map(|errno| errno.value))
        .set_architectures((!architectures.is_empty()).then_some(architectures))
        .set_flags((!flags.is_empty()).then_some(flags))
        .set_listener_path(said(&wanted.listener_path).map(Into::into))
        .set_listener_metadata(said(&wanted.listener_metadata))
        .set_syscalls(Some(wanted.syscalls.iter().map(syscall).collect::<Result<Vec<_>>>()?));
    Ok(filter)
}

fn syscall(wanted: &api::LinuxSyscall) -> Result<LinuxSyscall> {
    let arg = |wanted: &api::LinuxSeccompArg| -> Result<LinuxSeccompArg> {
        let arg = LinuxSeccompArgBuilder::default()
            .index(usize::try_from(wanted.index).unwrap_or(usize::MAX))
            .value(wanted.value)
            .value_two(wanted.value_two)
            .op(parsed::<LinuxSeccompOperator>("syscalls.args.op", &wanted.op)?)
            .build();
        arg.map_err(|error| Error::internal(error.to_string()))
    };
    let args = wanted.args.iter().map(arg).collect::<Result<Vec<_>>>()?;
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(wanted.names.clone())
        .set_action(parsed("syscalls.action", &wanted.action)?)
        .set_errno_ret(wanted.errno_ret.as_ref().map(|errno| errno.value))
        .set_args((!args.is_empty()).then_some(args));
    Ok(syscall)
}

fn parsed<T: FromStr>(field: &str, word: &str) -> Result<T>
where
    T::Err: Display,
{
    word.parse().map_err(|_| Error::invalid(format!("linux.seccomp_policy.{field}: {word:?} is unknown")))
}
