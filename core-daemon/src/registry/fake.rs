//! A registry in this process, for tests, that can misbehave.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection breaks after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// What follows this many bytes of the body waits until the other side says so or is gone.
    pub(crate) held: Option<(usize, watch::Receiver<bool>)>,
    /// It comes in pieces of so many bytes, each after a pause.
    pub(crate) slowed: Option<(usize, Duration)>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The server; it ends with the test's runtime. What a handler asserts of a request fails the test, whatever the client
/// makes of the broken connection: it may well go on to another server.
pub(crate) struct Fake {
    pub(crate) address: String,
    refused: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// How many connections there were.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Fake {
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (handler, seen): (Handler, _) = (Arc::new(handler), asked.clone());
        let (connections, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, refuses) = (connections.clone(), refused.clone());
        let answered = move |asked: &Asked| {
            let answered = catch_unwind(AssertUnwindSafe(|| handler(asked)));
            refuses.fetch_or(answered.is_err(), Ordering::Relaxed);
            answered.ok()
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answered.clone(), seen.clone()));
            }
        });
        Self { address, refused, asked, connections }
    }

    /// Every request so far, as `METHOD path`.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.requests().iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.asked.lock().expect("lock").clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let refused = self.refused.load(Ordering::Relaxed);
        assert!(!refused || std::thread::panicking(), "a request was not as it should be; see above");
    }
}

/// Runs `attempt` with more and more patience, until it does as it should: on a busy machine nobody answers in a moment.
pub(crate) async fn patiently(attempt: impl AsyncFn(Duration) -> Result<(), String>) {
    let mut outcome = Ok(());
    for milliseconds in [300, 1500, 6000] {
        outcome = attempt(Duration::from_millis(milliseconds)).await;
        if outcome.is_ok() {
            return;
        }
    }
    outcome.expect("with all patience");
}

async fn serve(stream: TcpStream, handler: impl Fn(&Asked) -> Option<Answer>, seen: Arc<Mutex<Vec<Asked>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        let Some(answer) = handler(&asked) else { return };
        seen.lock().expect("lock").push(asked.clone());
        let mut text = format!("HTTP/1.1 {} x\r\n", answer.status);
        let has_length = answer.headers.iter().any(|(name, _)| name == "content-length");
        if !has_length {
            text += &format!("content-length: {}\r\n", answer.body.len());
        }
        for (name, value) in &answer.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let body = if asked.method == "HEAD" { &[] } else { &answer.body[..answer.cut.unwrap_or(answer.body.len())] };
        let sent = async {
            stream.get_mut().write_all(text.as_bytes()).await?;
            let (now, later) = body.split_at(answer.held.as_ref().map_or(0, |(until, _)| body.len().min(*until)));
            stream.get_mut().write_all(now).await?;
            if let Some((_, mut gate)) = answer.held.clone() {
                let _ = gate.wait_for(|is_open| *is_open).await;
            }
            let (piece, pause) = answer.slowed.unwrap_or((later.len().max(1), Duration::ZERO));
            for piece in later.chunks(piece) {
                tokio::time::sleep(pause).await;
                stream.get_mut().write_all(piece).await?;
            }
            stream.get_mut().flush().await
        };
        if sent.await.is_err() || answer.cut.is_some() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method, path, headers, body })
}
