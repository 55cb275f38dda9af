//! A pull as it goes: a bar for each layer on a terminal, a line for each step elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal};

use gantry_proto::gantry::engine::v1::{LayerProgress, LayerState, PullProgress, Pulled, pull_progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rung_spec::reference::Reference;

use crate::error::{Result, warn};

/// Where the report goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// `pull`: the report is what was asked for.
    Stdout,
    /// `run` and `create`: standard output is the program's.
    Stderr,
    /// `--quiet`.
    Nowhere,
}

/// The report of one pull.
#[derive(Debug)]
pub struct Report {
    to: To,
    is_push: bool,
    bars: Option<MultiProgress>,
    layers: HashMap<String, Layer>,
}

#[derive(Debug)]
struct Layer {
    state: LayerState,
    bar: Option<ProgressBar>,
}

impl Report {
    /// A report that has nothing to say yet.
    pub fn new(to: To) -> Self {
        let bars = match to {
            To::Stdout if io::stdout().is_terminal() => Some(ProgressDrawTarget::stdout_with_hz(10)),
            To::Stderr if io::stderr().is_terminal() => Some(ProgressDrawTarget::stderr_with_hz(10)),
            _ => None,
        };
        Self { to, is_push: false, bars: bars.map(MultiProgress::with_draw_target), layers: HashMap::new() }
    }

    /// A report of a push.
    pub fn of_push(to: To) -> Self {
        Self { is_push: true, ..Self::new(to) }
    }

    /// Takes the next message of the daemon; gives the image at the end.
    ///
    /// # Errors
    /// Where the report cannot be written.
    pub fn update(&mut self, progress: PullProgress) -> Result<Option<Pulled>> {
        match progress.event {
            Some(pull_progress::Event::Resolving(name)) if self.is_push => self.line(&pushing(&name))?,
            Some(pull_progress::Event::Resolving(name)) => self.line(&resolving(&name))?,
            Some(pull_progress::Event::Layer(layer)) => self.layer(&layer)?,
            Some(pull_progress::Event::Warning(text)) => warn(&text),
            Some(pull_progress::Event::Done(pulled)) => {
                self.finish();
                self.line(&format!("Digest: {}", pulled.digest))?;
                if !self.is_push {
                    self.line(&status(&pulled))?;
                }
                return Ok(Some(pulled));
            }
            None => {}
        }
        Ok(None)
    }

    fn layer(&mut self, progress: &LayerProgress) -> Result<()> {
        let state = progress.state();
        let id = short(&progress.digest);
        let news = match self.layers.get(&progress.digest) {
            Some(layer) => layer.state != state,
            None => true,
        };
        if let Some(bars) = &self.bars {
            let layer = self.layers.entry(progress.digest.clone()).or_insert_with(|| {
                let bar = bars.add(ProgressBar::no_length());
                bar.set_prefix(id.clone());
                Layer { state, bar: Some(bar) }
            });
            layer.state = state;
            if let Some(bar) = &layer.bar {
                draw(bar, progress, news, self.is_push);
            }
            return Ok(());
        }
        self.layers.insert(progress.digest.clone(), Layer { state, bar: None });
        // Elsewhere than on a terminal, only steps are worth a line.
        if news { self.line(&format!("{id}: {}", words(state, self.is_push))) } else { Ok(()) }
    }

    /// Leaves the bars as they are.
    fn finish(&mut self) {
        for layer in self.layers.values() {
            if let Some(bar) = &layer.bar {
                bar.abandon();
            }
        }
        self.bars = None;
    }

    fn line(&self, text: &str) -> Result<()> {
        if let Some(bars) = &self.bars {
            return bars.println(text).map_err(|error| super::write_failure(&error));
        }
        match self.to {
            To::Stdout => super::line(text),
            To::Stderr => {
                super::error_bytes(format!("{text}\n").as_bytes());
                Ok(())
            }
            To::Nowhere => Ok(()),
        }
    }
}

fn draw(bar: &ProgressBar, progress: &LayerProgress, news: bool, is_push: bool) {
    let state = progress.state();
    let moves = matches!(state, LayerState::Downloading | LayerState::Extracting | LayerState::Uploading);
    let counts = moves && progress.total > 0;
    if news {
        let template =
            if counts { "{prefix}: {msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}" } else { "{prefix}: {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(words(state, is_push));
    }
    if counts {
        bar.set_length(progress.total);
        bar.set_position(progress.current);
    }
    if matches!(state, LayerState::Complete | LayerState::Exists | LayerState::Mounted) {
        bar.abandon();
    }
}

fn words(state: LayerState, is_push: bool) -> &'static str {
    match state {
        LayerState::Complete if is_push => "Pushed",
        LayerState::Exists if is_push => "Layer already exists",
        LayerState::Waiting => "Waiting",
        LayerState::Downloading => "Downloading",
        LayerState::Extracting => "Extracting",
        LayerState::Complete => "Pull complete",
        LayerState::Exists => "Already exists",
        LayerState::Uploading => "Pushing",
        LayerState::Mounted => "Mounted from another repository",
    }
}

fn pushing(name: &str) -> String {
    let repository = Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.name());
    format!("The push refers to repository [{repository}]")
}

fn resolving(name: &str) -> String {
    match Reference::parse(name) {
        Ok(reference) => {
            let path = if reference.host == "docker.io" { reference.repository.clone() } else { reference.name() };
            format!("{}: Pulling from {path}", reference.object())
        }
        Err(_) => format!("Pulling {name}"),
    }
}

fn status(pulled: &Pulled) -> String {
    let name = Reference::parse(&pulled.image).map_or_else(|_| pulled.image.clone(), |reference| reference.familiar());
    let words = if pulled.up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
    format!("Status: {words} {name}")
}

/// The first twelve digits of a digest.
pub fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_docker_says() {
        assert_eq!(resolving("docker.io/library/alpine:3"), "3: Pulling from library/alpine");
        assert_eq!(resolving("localhost:5000/a:1"), "1: Pulling from localhost:5000/a");
        let pulled =
            |up_to_date| Pulled { image: "docker.io/library/alpine:3".into(), digest: String::new(), up_to_date };
        assert_eq!(status(&pulled(false)), "Status: Downloaded newer image for alpine:3");
        assert_eq!(status(&pulled(true)), "Status: Image is up to date for alpine:3");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
