//! The container's first process: what it runs, as whom, with what.

use std::path::PathBuf;

use gantry_proto::runtime::v1;
use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{LinuxCapabilities, Process};
use rung_spec::builder::{self, Options};
use rung_spec::defaults::{self, capabilities};
use rung_spec::user::User;

use super::{Making, invalid, security};
use crate::error::{Error, Result};
use crate::image::users;

/// Range of scores the kernel takes.
const OOM_SCORES: std::ops::RangeInclusive<i64> = -1000..=1000;

pub(super) fn make(making: &Making<'_>, context: &v1::LinuxContainerSecurityContext) -> Result<(Process, User)> {
    let user = user(making, context)?;
    let mut id = oci_spec::runtime::User::default();
    id.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.additional_gids.clone()));
    id.set_umask(making.granted.umask);
    let mut process = Process::default();
    process
        .set_terminal(Some(making.config.tty))
        .set_user(id)
        .set_args(Some(args(making)?))
        .set_env(Some(environment(making, &user)?))
        .set_cwd(workdir(making)?)
        .set_capabilities(Some(capability_sets(making, context)?))
        .set_no_new_privileges(Some(context.no_new_privs))
        .set_apparmor_profile(security::apparmor(context, making.settings)?)
        .set_selinux_label(Some(making.labels.process.clone()).filter(|label| !label.is_empty() && !context.privileged))
        .set_rlimits(Some(vec![builder::nofile(getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard))]))
        .set_oom_score_adj(oom_score(making)?);
    Ok((process, user))
}

/// A command replaces the image's entrypoint and drops its command; arguments alone replace only its command.
fn args(making: &Making<'_>) -> Result<Vec<String>> {
    let config = making.config;
    let options = Options {
        entrypoint: (!config.command.is_empty()).then(|| config.command.clone()),
        args: config.args.clone(),
        ..Options::default()
    };
    let line = builder::command_line(&making.image.config.config, &options)
        .map_err(|_| invalid("command", "neither it, nor config.args, nor the image names a program"))?;
    match line.iter().any(|text| text.contains('\0')) {
        true => Err(invalid("command", "contains a NUL byte")),
        false => Ok(line),
    }
}

fn environment(making: &Making<'_>, user: &User) -> Result<Vec<String>> {
    let mut own = vec![defaults::PATH.to_owned()];
    if !making.pod.hostname.is_empty() {
        own.push(format!("HOSTNAME={}", making.pod.hostname));
    } else if let Ok(name) = nix::unistd::gethostname() {
        own.push(format!("HOSTNAME={}", name.to_string_lossy()));
    }
    if making.config.tty {
        own.push("TERM=xterm".to_owned());
    }
    let mut wished = Vec::with_capacity(making.config.envs.len());
    for entry in &making.config.envs {
        let value = std::str::from_utf8(&entry.value)
            .map_err(|_| invalid("envs", format!("{}: value is not UTF-8", entry.key)))?;
        if entry.key.is_empty() || entry.key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("envs", format!("{:?} is not a variable", entry.key)));
        }
        wished.push(format!("{}={value}", entry.key));
    }
    let image = making.image.config.config.env.iter().filter(|entry| !entry.starts_with('=')).cloned();
    let image: Vec<String> = image.collect();
    let mut env = builder::merge_environment(&builder::merge_environment(&own, &image), &wished);
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = user.home.as_deref().unwrap_or(if user.uid == 0 { "/root" } else { "/" });
        env.push(format!("HOME={home}"));
    }
    Ok(env)
}

fn workdir(making: &Making<'_>) -> Result<PathBuf> {
    let image = &making.image.config.config.working_dir;
    let text = [&making.config.working_dir, image].into_iter().find(|text| !text.is_empty());
    let text = text.map_or("/", String::as_str);
    if !text.starts_with('/') || text.contains('\0') {
        return Err(invalid("working_dir", format!("{text:?} is not an absolute path")));
    }
    Ok(PathBuf::from(text))
}

fn capability_sets(making: &Making<'_>, context: &v1::LinuxContainerSecurityContext) -> Result<LinuxCapabilities> {
    let available = making.host.capabilities();
    let bounding = if context.privileged {
        available
    } else {
        let wished = context.capabilities.clone().unwrap_or_default();
        let mut added = wished.add_capabilities;
        if wished.drop_capabilities.iter().any(|name| means_all(name)) {
            // Everything given and everything taken is nothing.
            added.retain(|name| !means_all(name));
        }
        capabilities::adjust(&added, &wished.drop_capabilities, &available)
            .map_err(|error| invalid("linux.security_context.capabilities", error))?
    };
    // What is held does not outlive an exec as another user than root; the bounding set limits set-user-id programs.
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(bounding.clone()))
        .set_effective(Some(bounding.clone()))
        .set_permitted(Some(bounding))
        .set_inheritable(None)
        .set_ambient(None);
    Ok(sets)
}

fn means_all(name: &str) -> bool {
    ["ALL", "CAP_ALL"].iter().any(|all| all.eq_ignore_ascii_case(name))
}

fn oom_score(making: &Making<'_>) -> Result<Option<i32>> {
    let resources = making.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let Some(score) = resources.map(|resources| resources.oom_score_adj) else {
        return Ok(making.host.usual_oom_score());
    };
    match i32::try_from(score) {
        Ok(small) if OOM_SCORES.contains(&score) => Ok(Some(match making.settings.restrict_oom_score_adj {
            true => making.host.restricted_oom_score(small),
            false => small,
        })),
        _ => Err(invalid("linux.resources.oom_score_adj", format!("{score} is not between -1000 and 1000"))),
    }
}

/// Whom it runs as: what the kubelet says, else the image; and the groups that go with that.
fn user(making: &Making<'_>, context: &v1::LinuxContainerSecurityContext) -> Result<User> {
    let field = "linux.security_context";
    let id = |name: &str, value: &v1::Int64Value| {
        u32::try_from(value.value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| invalid(&format!("{field}.{name}"), format!("{} is not an id", value.value)))
    };
    let uid = context.run_as_user.as_ref().map(|value| id("run_as_user", value)).transpose()?;
    let gid = context.run_as_group.as_ref().map(|value| id("run_as_group", value)).transpose()?;
    let named = &context.run_as_username;
    if gid.is_some() && uid.is_none() && named.is_empty() {
        return Err(invalid(&format!("{field}.run_as_group"), "is given without run_as_user or run_as_username"));
    }
    if named.contains(':') {
        return Err(invalid(&format!("{field}.run_as_username"), format!("{named:?} is not a name")));
    }
    if uid.is_some() && !named.is_empty() {
        return Err(invalid(&format!("{field}.run_as_username"), "is given with run_as_user"));
    }
    let text = match (uid, named.as_str()) {
        (Some(uid), _) => uid.to_string(),
        (None, "") => making.image.config.config.user.clone(),
        (None, name) => name.to_owned(),
    };
    let mut user = users::resolve(&text, making.rootfs)?;
    if let (None, Some((name, _))) = (gid, text.split_once(':')) {
        // The image names a group, which is no reason to leave out those the user is a member of.
        let alone = users::resolve(name, making.rootfs)?;
        user.additional_gids.extend(alone.additional_gids.iter().filter(|group| **group != alone.gid));
    }
    if let Some(gid) = gid {
        let primary = std::mem::replace(&mut user.gid, gid);
        user.additional_gids.retain(|group| *group != primary);
    }
    let policy = v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).map_err(|_| {
        let field = format!("{field}.supplemental_groups_policy");
        invalid(&field, format!("{} is unknown", context.supplemental_groups_policy))
    })?;
    if policy == v1::SupplementalGroupsPolicy::Strict {
        user.additional_gids.clear();
    }
    let mut groups = vec![user.gid];
    groups.append(&mut user.additional_gids);
    for group in &context.supplemental_groups {
        let wrong = || invalid(&format!("{field}.supplemental_groups"), format!("{group} is not an id"));
        groups.push(u32::try_from(*group).ok().filter(|id| *id != u32::MAX).ok_or_else(wrong)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    user.additional_gids = groups;
    check_mapped(making, &user)?;
    Ok(user)
}

/// A user namespace has to know whoever runs in it.
fn check_mapped(making: &Making<'_>, user: &User) -> Result<()> {
    let Some((users, groups)) = &making.namespaces.user else { return Ok(()) };
    let knows = |ranges: &[rung_sys::idmap::Range], id: u32| ranges.iter().any(|range| id < range.count);
    let unknown = |what: &str, id: u32| -> Error {
        invalid("linux.security_context", format!("{what} {id} is not mapped in the pod's user namespace"))
    };
    if !knows(users, user.uid) {
        return Err(unknown("user", user.uid));
    }
    match user.additional_gids.iter().find(|group| !knows(groups, **group)) {
        Some(group) => Err(unknown("group", *group)),
        None => Ok(()),
    }
}
