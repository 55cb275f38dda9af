//! Signals sent to us, handed on to the process; a change of our window's size is one of them.

use gantry_proto::gantry::engine::v1::{SessionInput, session_input};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Leave, send, terminal};
use crate::client::reason;
use crate::error::{Failure, Result};

/// What is worth handing on. The stop signals are not: they are for us, and the shell continues us.
const FORWARDED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Interrupts after which we leave, whatever the process does.
const PATIENCE: u32 = 3;

/// Starts handing on, one task for each signal.
pub(super) fn forward(
    proxy: bool,
    terminal: bool,
    input: &mpsc::Sender<SessionInput>,
    leave: &mpsc::Sender<Leave>,
) -> Result<()> {
    let listen = |number: i32| {
        signal(SignalKind::from_raw(number))
            .map_err(|error| Failure::new(format!("listen for signal {number}: {}", reason(&error))))
    };
    if terminal {
        let mut changes = listen(Signal::SIGWINCH as i32)?;
        let input = input.clone();
        tokio::spawn(async move {
            loop {
                if let Some(size) = terminal::size()
                    && !send(&input, session_input::Event::Resize(size)).await
                {
                    return;
                }
                if changes.recv().await.is_none() {
                    return;
                }
            }
        });
    }
    if !proxy {
        return Ok(());
    }
    for number in FORWARDED.iter().map(|signal| *signal as i32) {
        let mut arrivals = listen(number)?;
        let (input, leave) = (input.clone(), leave.clone());
        let interrupts = [Signal::SIGINT as i32, Signal::SIGTERM as i32].contains(&number);
        tokio::spawn(async move {
            let mut count = 0;
            while arrivals.recv().await.is_some() {
                count += 1;
                if interrupts && count >= PATIENCE {
                    let _ = leave.send(Leave::Force).await;
                }
                // A full queue must not keep the third interrupt from being counted.
                let event = session_input::Event::Signal(number.unsigned_abs());
                if input
                    .try_send(SessionInput { event: Some(event) })
                    .is_err_and(|error| matches!(error, mpsc::error::TrySendError::Closed(_)))
                {
                    return;
                }
            }
        });
    }
    Ok(())
}
