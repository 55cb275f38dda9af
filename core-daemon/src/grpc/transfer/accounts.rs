//! What a registry wants that only the client knows: it is asked over streams of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::containerd::types::transfer::{AuthRequest, AuthResponse, AuthType, Data};
use tokio::sync::{Mutex, mpsc};

use crate::error::{Error, Kind, Result};
use crate::grpc::streams::Stream;
use crate::registry::{Credentials, Keyring, Wiretap};

/// A client may ask a person, who may have gone for a coffee.
const PATIENCE: Duration = Duration::from_secs(300);

/// Asks the client for accounts, one question at a time.
pub(super) struct AskClient {
    reference: String,
    stream: Mutex<Arc<Stream>>,
}

impl AskClient {
    pub(super) fn new(reference: &str, stream: Arc<Stream>) -> Self {
        Self { reference: reference.to_owned(), stream: Mutex::new(stream) }
    }
}

impl fmt::Debug for AskClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AskClient({})", self.reference)
    }
}

#[tonic::async_trait]
impl Keyring for AskClient {
    async fn account(&self, host: &str, challenges: &[String]) -> Result<Option<Credentials>> {
        let stream = self.stream.lock().await;
        let wwwauthenticate = challenges.to_vec();
        stream.send(&AuthRequest { host: host.to_owned(), reference: self.reference.clone(), wwwauthenticate }).await?;
        let answer = tokio::time::timeout(PATIENCE, stream.message::<AuthResponse>()).await;
        let answer = answer.map_err(|_| Error::new(Kind::DeadlineExceeded, "the client does not answer"))??;
        let answer = answer.ok_or_else(|| Error::new(Kind::Canceled, "the client is gone"))?;
        Ok(match answer.auth_type() {
            AuthType::None => None,
            AuthType::Credentials if answer.username.is_empty() && answer.secret.is_empty() => None,
            AuthType::Credentials => Some(Credentials::password(answer.username, answer.secret)),
            // A client that knows nobody answers with an empty token.
            AuthType::Refresh => Some(answer.secret).filter(|token| !token.is_empty()).map(Credentials::Identity),
            AuthType::Header => Some(answer.secret).filter(|header| !header.is_empty()).map(Credentials::Header),
        })
    }
}

/// Lets the client, or the daemon's log, hear what is said to a registry.
pub(super) struct Listener {
    sender: Option<mpsc::Sender<String>>,
}

/// Text that waits for a client that does not read; what is more is lost.
const QUEUE: usize = 256;

impl Listener {
    pub(super) fn new(stream: Option<Arc<Stream>>) -> Self {
        let Some(stream) = stream else { return Self { sender: None } };
        let (sender, mut texts) = mpsc::channel::<String>(QUEUE);
        tokio::spawn(async move {
            while let Some(text) = texts.recv().await {
                if stream.send(&Data { data: text.into() }).await.is_err() {
                    break;
                }
            }
            stream.close();
        });
        Self { sender: Some(sender) }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Wiretap for Listener {
    fn heard(&self, text: &str) {
        match &self.sender {
            Some(sender) => drop(sender.try_send(text.to_owned())),
            None => tracing::info!(target: "gantryd::registry", "{text}"),
        }
    }
}
