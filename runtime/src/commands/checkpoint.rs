//! `checkpoint`.

use std::os::fd::OwnedFd;

use super::create::is_passed;
use crate::cli::{CheckpointArgs, ImageArgs};
use crate::container::checkpoint::{self, Wanted};
use crate::container::id::ContainerId;
use crate::container::{Container, Settings};
use crate::criu::options::{CgroupMode, Options, PageServer, check_empty_namespaces};
use crate::error::{Doing as _, Error, Result};

pub(super) fn run(settings: &Settings, args: &CheckpointArgs) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    let wanted = Wanted {
        common: options(&args.images)?,
        leave_running: args.leave_running,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        parent: args.parent_path.clone().filter(|path| !path.is_empty()),
        page_server: args.page_server.as_deref().map(PageServer::parse).transpose()?,
        pre_dump: args.pre_dump,
        // -1 is how callers of runc say that there is none.
        status_fd: args.status_fd.filter(|number| *number != -1).map(status_fd).transpose()?,
    };
    checkpoint::checkpoint(&container, &wanted)
}

fn status_fd(number: i32) -> Result<OwnedFd> {
    if !u32::try_from(number).is_ok_and(is_passed) {
        return Err(Error::invalid(format!("invalid --status-fd argument {number}: no such descriptor was passed")));
    }
    checkpoint::status_fd(number)
}

/// What `restore` has too.
pub(super) fn options(args: &ImageArgs) -> Result<Options> {
    check_empty_namespaces(&args.empty_ns)?;
    let absolute =
        |path: &std::path::Path| std::path::absolute(path).doing(|| format!("find the directory {}", path.display()));
    Ok(Options {
        images: absolute(&args.image_path)?,
        work: args.work_path.as_deref().map(absolute).transpose()?,
        tcp_established: args.tcp_established,
        external_unix: args.ext_unix_sk,
        shell_job: args.shell_job,
        file_locks: args.file_locks,
        cgroups: CgroupMode::parse(&args.manage_cgroups_mode)?,
        auto_dedup: args.auto_dedup,
        lazy_pages: args.lazy_pages,
    })
}
