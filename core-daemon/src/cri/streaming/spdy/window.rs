//! How much a peer is willing to take.
//!
//! Kubernetes' clients never speak of windows and take what comes; TCP alone slows us down then. A peer that does speak
//! of them is held to its word from then on, counted from the first byte.

use tokio::sync::watch;

/// What a peer grants where it does not say otherwise.
pub(super) const INITIAL: u32 = 64 << 10;

/// The way from us to the peer, of one stream or of the connection.
pub(super) struct Window {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy)]
struct State {
    initial: u64,
    /// What the peer added; `None` while it does not speak of windows.
    added: Option<u64>,
    sent: u64,
}

impl State {
    fn room(&self) -> u64 {
        self.added.map_or(u64::MAX, |added| (self.initial + added).saturating_sub(self.sent))
    }
}

impl Window {
    /// `initial` where the peer has named one.
    pub(super) fn new(initial: Option<u32>) -> Self {
        let state = State { initial: initial.unwrap_or(INITIAL).into(), added: initial.map(|_| 0), sent: 0 };
        Self { state: watch::Sender::new(state) }
    }

    /// The peer takes `delta` bytes more.
    pub(super) fn grant(&self, delta: u32) {
        self.state.send_modify(|state| state.added = Some(state.added.unwrap_or(0).saturating_add(delta.into())));
    }

    /// The peer names another size for streams that are there already.
    pub(super) fn resize(&self, initial: u32) {
        self.state.send_modify(|state| {
            state.initial = initial.into();
            state.added.get_or_insert(0);
        });
    }

    /// Waits until something may be sent, and takes up to `wanted` bytes of the room.
    pub(super) async fn take(&self, wanted: usize) -> usize {
        let mut changes = self.state.subscribe();
        loop {
            let mut taken = 0;
            self.state.send_if_modified(|state| {
                taken = usize::try_from(state.room()).unwrap_or(usize::MAX).min(wanted);
                state.sent += taken as u64;
                false
            });
            if taken > 0 || wanted == 0 {
                return taken;
            }
            // The sender is ours, so this waits for a grant.
            let _ = changes.changed().await;
        }
    }

    /// Gives back what was taken and not sent.
    pub(super) fn give_back(&self, unsent: usize) {
        self.state.send_modify(|state| state.sent = state.sent.saturating_sub(unsent as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_silent_peer_takes_everything_and_one_that_speaks_is_held_to_it() {
        let window = Window::new(None);
        assert_eq!(window.take(1 << 20).await, 1 << 20);
        window.grant(100);
        assert_eq!(window.take(10).now_or_never(), None, "more than the window is out already");
        window.grant(1 << 20);
        assert_eq!(window.take(1 << 20).await, usize::try_from(INITIAL).expect("small") + 100);
        let named = Window::new(Some(10));
        assert_eq!(named.take(15).await, 10);
        assert_eq!(named.take(1).now_or_never(), None);
        named.give_back(4);
        assert_eq!(named.take(15).await, 4);
        named.resize(12);
        assert_eq!(named.take(15).await, 2);
    }
}
