//! All integration tests, one module a subject. A module that is not in both lists does not compile or is dead code.
#![allow(clippy::disallowed_methods)]

use std::process::ExitCode;

use integration_tests::{Test, runner};

mod cli_archives;
mod cli_docker;
mod cli_exec;
mod cli_habits;
mod cli_images;
mod cli_run;
mod cli_update;
mod cri_annotations;
mod cri_answers;
mod cri_artifacts;
mod cri_checkpoints;
mod cri_clients;
mod cri_containers;
mod cri_faults;
mod cri_hostile;
mod cri_hosts;
mod cri_images;
mod cri_journal;
mod cri_names;
mod cri_networks;
mod cri_nri;
mod cri_nri_plugins;
mod cri_pods;
mod cri_policies;
mod cri_processes;
mod cri_restarts;
mod cri_settings;
mod cri_stats;
mod cri_streaming;
mod daemon_checkpoints;
mod daemon_clients;
mod daemon_codes;
mod daemon_damage;
mod daemon_debug;
mod daemon_disk;
mod daemon_full;
mod daemon_kernel;
mod daemon_killed;
mod daemon_logs;
mod daemon_mounts;
mod daemon_power;
mod daemon_processors;
mod daemon_pull;
mod daemon_registry;
mod daemon_reload;
mod daemon_remote;
mod daemon_restart;
mod daemon_sandboxes;
mod daemon_shims;
mod daemon_slices;
mod daemon_snapshots;
mod daemon_storage;
mod daemon_tasks;
mod daemon_transfer;
mod daemon_unit;
mod harness;
mod rung_cgroups;
mod rung_checkpoint;
mod rung_disguises;
mod rung_engines;
mod rung_escapes;
mod rung_habits;
mod rung_killed;
mod rung_lifecycle;
mod rung_mounts;
mod rung_network;
mod rung_options;
mod rung_races;
mod rung_readiness;
mod rung_refusals;
mod rung_rootless;
mod rung_seccomp;
mod rung_updates;
mod shim_containerd;
mod shim_exit_order;
mod shim_faults;
mod shim_io;
mod shim_protocol;
mod shim_streams;
mod stack_failures;

const TESTS: &[&[Test]] = &[
    cli_archives::TESTS,
    cli_docker::TESTS,
    cli_exec::TESTS,
    cli_habits::TESTS,
    cli_images::TESTS,
    cli_run::TESTS,
    cli_update::TESTS,
    cri_annotations::TESTS,
    cri_answers::TESTS,
    cri_artifacts::TESTS,
    cri_checkpoints::TESTS,
    cri_clients::TESTS,
    cri_containers::TESTS,
    cri_faults::TESTS,
    cri_hostile::TESTS,
    cri_hosts::TESTS,
    cri_images::TESTS,
    cri_journal::TESTS,
    cri_names::TESTS,
    cri_networks::TESTS,
    cri_nri::TESTS,
    cri_nri_plugins::TESTS,
    cri_pods::TESTS,
    cri_policies::TESTS,
    cri_processes::TESTS,
    cri_restarts::TESTS,
    cri_settings::TESTS,
    cri_stats::TESTS,
    cri_streaming::TESTS,
    daemon_checkpoints::TESTS,
    daemon_clients::TESTS,
    daemon_codes::TESTS,
    daemon_damage::TESTS,
    daemon_debug::TESTS,
    daemon_disk::TESTS,
    daemon_full::TESTS,
    daemon_kernel::TESTS,
    daemon_killed::TESTS,
    daemon_logs::TESTS,
    daemon_mounts::TESTS,
    daemon_power::TESTS,
    daemon_processors::TESTS,
    daemon_pull::TESTS,
    daemon_registry::TESTS,
    daemon_reload::TESTS,
    daemon_remote::TESTS,
    daemon_restart::TESTS,
    daemon_sandboxes::TESTS,
    daemon_shims::TESTS,
    daemon_slices::TESTS,
    daemon_snapshots::TESTS,
    daemon_storage::TESTS,
    daemon_tasks::TESTS,
    daemon_transfer::TESTS,
    daemon_unit::TESTS,
    harness::TESTS,
    rung_cgroups::TESTS,
    rung_checkpoint::TESTS,
    rung_disguises::TESTS,
    rung_engines::TESTS,
    rung_escapes::TESTS,
    rung_habits::TESTS,
    rung_killed::TESTS,
    rung_lifecycle::TESTS,
    rung_mounts::TESTS,
    rung_network::TESTS,
    rung_options::TESTS,
    rung_races::TESTS,
    rung_readiness::TESTS,
    rung_refusals::TESTS,
    rung_rootless::TESTS,
    rung_seccomp::TESTS,
    rung_updates::TESTS,
    shim_containerd::TESTS,
    shim_exit_order::TESTS,
    shim_faults::TESTS,
    shim_io::TESTS,
    shim_protocol::TESTS,
    shim_streams::TESTS,
    stack_failures::TESTS,
];

fn main() -> ExitCode {
    runner::main(TESTS)
}
