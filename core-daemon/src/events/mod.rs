//! What happens in the daemon and its containers, told to whoever subscribed.

mod bus;
mod topics;

pub use bus::{Events, Subscription};
pub use topics::{check_topic, field};
