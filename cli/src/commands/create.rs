//! `gantry create`: a container, not started.

use gantry_proto::gantry::engine::v1::{CreateRequest, Created, create_progress};

use super::Context;
use super::options::{IdFile, Options, Pull};
use crate::client::Client;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::progress::{Report, To};

/// `gantry create`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        // As in docker, what our own words cannot mean is 125, and what gantryd refuses 1.
        let request = self.options.request(&mut client).await.map_err(Failure::of_run)?;
        let mut id_file = IdFile::create(self.options.cidfile.as_deref()).map_err(Failure::of_run)?;
        let created = create(&mut client, request, &self.options, &mut id_file).await?;
        output::line(created.id)?;
        Ok(Code::SUCCESS)
    }
}

/// Creates a container, reporting a pull that it takes.
pub(super) async fn create(
    client: &mut Client,
    request: CreateRequest,
    options: &Options,
    id_file: &mut Option<IdFile>,
) -> Result<Created> {
    let mut stream = client.create(request).await?;
    let mut pull = PullReport::new(options);
    while let Some(progress) = stream.message().await? {
        match progress.event {
            Some(create_progress::Event::Pull(progress)) => pull.update(progress)?,
            Some(create_progress::Event::Created(created)) => {
                announce(&created, id_file)?;
                return Ok(created);
            }
            None => {}
        }
    }
    Err(Failure::new("create: gantryd ended without a container"))
}

/// Writes the id where it was asked for.
pub(super) fn announce(created: &Created, id_file: &mut Option<IdFile>) -> Result<()> {
    match id_file {
        Some(file) => file.write(&created.id),
        None => Ok(()),
    }
}

/// The report of a pull that a container's creation takes, begun when the first news of it comes.
pub(super) struct PullReport<'a> {
    options: &'a Options,
    report: Option<Report>,
}

impl<'a> PullReport<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self { options, report: None }
    }

    pub(super) fn update(&mut self, progress: gantry_proto::gantry::engine::v1::PullProgress) -> Result<()> {
        let options = self.options;
        let report = self.report.get_or_insert_with(|| {
            if options.pull == Pull::Missing && !options.quiet {
                output::error_bytes(format!("Unable to find image {:?} here\n", options.image).as_bytes());
            }
            Report::new(if options.quiet { To::Nowhere } else { To::Stderr })
        });
        report.update(progress).map(drop)
    }
}
