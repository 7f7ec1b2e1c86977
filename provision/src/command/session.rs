//! Conversations with what nodes do: commands, copies, backups. `hivemind_spec::exec` says how.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::SplitStream;
use futures_util::{SinkExt as _, StreamExt as _};
use hivemind_spec::exec::{
    FromClient, FromNode, MAX_DATA_BYTES, MAX_MESSAGE_BYTES, OutputStream, SILENT, TerminalSize, WINDOW_BYTES,
};
use hyper::body::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Client, WebSocket};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::say_json;

/// Messages that wait to be sent: more than one types while a node is slow.
const MAX_WAITING: usize = 1024;

/// The most output that is kept for `--output json`, bytes of each stream.
const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;

/// The exit code of a program that wrote for nobody: 128 and SIGPIPE, as shells say it.
const NOBODY_READS: u8 = 141;

/// How reading the input fails when the user leaves: what is at the other end goes on.
pub(super) const LEFT: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Passes on between this end and what a node does at the other, until that ends.
pub(super) async fn converse(
    client: &Client,
    path: &str,
    terminal: bool,
    input: impl Read + Send + 'static,
    keeper: Keeper,
) -> Result<Exit> {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let socket = client.web_socket(path, limits).await?;
    // Before, Ctrl-C is for this command; from now on for the one in the container.
    let _raw = terminal.then(Raw::enter).transpose()?;
    let mut terminated = listen(SignalKind::terminate())?;
    tokio::select! {
        ended = Session::new(socket, keeper, terminal).run(input) => ended,
        _ = terminated.recv() => Err(Failure::new(Exit::Interrupted, "interrupted", "it is ended")),
    }
}

/// What is said beside a copy, as much as people read.
#[derive(Clone)]
pub(super) struct Notes {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: usize,
}

impl Notes {
    /// So many bytes at most.
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Arc::default(), most }
    }

    pub(super) fn text(&self) -> String {
        let kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl Write for Notes {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.most.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..data.len().min(room)]);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|e| Failure::local("signals", format!("signals cannot be listened for: {e}")))
}

/// The size of the terminal in front of the user.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// The terminal passes on every key as it is pressed, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let refused = |e| Failure::local("terminal", format!("the terminal cannot be set up: {e}"));
        let before = tcgetattr(rustix::stdio::stdin()).map_err(refused)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).map_err(refused)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// What comes in, piece by piece; closed at its end. Read on a thread of its own: it may wait for ever.
fn read_input(mut from: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        loop {
            let read = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => return,
                read => read.map(|count| Bytes::copy_from_slice(&buffer[..count])),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Prints output on a thread of its own: who reads it may take his time.
pub(super) struct Printer {
    output: std::sync::mpsc::Sender<(OutputStream, Bytes)>,
    /// How much was printed each time, bytes; closed when nobody reads it any longer.
    printed: mpsc::UnboundedReceiver<usize>,
}

impl Printer {
    pub(super) fn start(
        mut stdout: impl io::Write + Send + 'static,
        mut stderr: impl io::Write + Send + 'static,
    ) -> Result<Self> {
        let (output, pieces) = std::sync::mpsc::channel::<(OutputStream, Bytes)>();
        let (printed_tx, printed) = mpsc::unbounded_channel();
        let print = move || {
            for (stream, data) in pieces {
                let written = match stream {
                    OutputStream::Stdout => write(&mut stdout, &data),
                    OutputStream::Stderr => write(&mut stderr, &data),
                };
                if written.is_err() || printed_tx.send(data.len()).is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("output".to_owned()).spawn(print);
        started.map_err(|e| Failure::local("threads", format!("no thread to print with: {e}")))?;
        Ok(Self { output, printed })
    }
}

fn write(to: &mut impl io::Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// Output that is printed when all is there.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    exit_code: u32,
    #[serde(serialize_with = "text")]
    stdout: Vec<u8>,
    #[serde(serialize_with = "text")]
    stderr: Vec<u8>,
}

fn text<S: serde::Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

/// Where output goes.
pub(super) enum Keeper {
    Printed(Printer),
    Kept(Kept),
}

impl Keeper {
    /// Takes output. Returns how much of it is done with at once, bytes.
    fn take(&mut self, stream: OutputStream, data: Bytes) -> Result<usize> {
        match self {
            Self::Printed(printer) => {
                // Whether somebody reads it shows in what was printed.
                let _ = printer.output.send((stream, data));
                Ok(0)
            }
            Self::Kept(kept) => {
                let kept = match stream {
                    OutputStream::Stdout => &mut kept.stdout,
                    OutputStream::Stderr => &mut kept.stderr,
                };
                kept.extend_from_slice(&data);
                if kept.len() > MAX_KEPT_BYTES {
                    let detail = format!("the command printed more than {} MiB", MAX_KEPT_BYTES >> 20);
                    return Err(Failure::local("too-much-output", detail)
                        .advice("leave --output json out, and send what it prints to a file"));
                }
                Ok(data.len())
            }
        }
    }

    /// How much of the output was done with since. None when nobody reads it any longer.
    async fn done(&mut self) -> Option<usize> {
        match self {
            Self::Printed(printer) => printer.printed.recv().await,
            Self::Kept(_) => std::future::pending().await,
        }
    }

    /// Waits until all is printed.
    async fn finish(self, code: u32) {
        match self {
            Self::Printed(Printer { output, mut printed }) => {
                drop(output);
                while printed.recv().await.is_some() {}
            }
            Self::Kept(kept) => say_json(&Kept { exit_code: code, ..kept }),
        }
    }
}

/// A command under way.
struct Session {
    ear: SplitStream<WebSocket>,
    /// What is said waits beside what is heard: two that only spoke would wait for each other for ever.
    said: mpsc::Sender<Message>,
    keeper: Keeper,
    terminal: bool,
}

impl Session {
    fn new(socket: WebSocket, keeper: Keeper, terminal: bool) -> Self {
        let (mut mouth, ear) = socket.split();
        let (said, mut to_say) = mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            while let Some(message) = to_say.recv().await {
                if mouth.send(message).await.is_err() {
                    return;
                }
            }
        });
        Self { ear, said, keeper, terminal }
    }

    async fn run(mut self, input: impl Read + Send + 'static) -> Result<Exit> {
        let mut input = read_input(input);
        let mut resized = listen(SignalKind::window_change())?;
        let (mut has_input, mut under_way, mut unread) = (true, 0_usize, 0_usize);
        let code = loop {
            let done = tokio::select! {
                data = input.recv(), if has_input && under_way + MAX_DATA_BYTES <= WINDOW_BYTES => {
                    match data {
                        Some(Ok(data)) => {
                            under_way += data.len();
                            self.send(Message::Binary(data))?;
                        }
                        Some(Err(error)) if error.kind() == LEFT => return Ok(Exit::Success),
                        // Not its end: whoever has what came before must not take it for all.
                        Some(Err(error)) => {
                            return Err(Failure::local("bad-input", format!("the input cannot be read: {error}")));
                        }
                        None => {
                            has_input = false;
                            // On a terminal the end of input is a key.
                            if !self.terminal {
                                self.say(FromClient::EndOfInput {})?;
                            }
                        }
                    }
                    continue;
                }
                _ = resized.recv(), if self.terminal => {
                    if let Some(size) = size() {
                        self.say(FromClient::Resize(size))?;
                    }
                    continue;
                }
                done = self.keeper.done() => match done {
                    Some(done) => done,
                    None => return Ok(Exit::OfCommand(NOBODY_READS)),
                },
                message = timeout(SILENT, self.ear.next()) => match self.hear(message)? {
                    Heard::Output(stream, data) => {
                        unread += data.len();
                        if unread > WINDOW_BYTES {
                            return Err(broken("the node sent more than was agreed"));
                        }
                        self.keeper.take(stream, data)?
                    }
                    Heard::Taken(bytes) => {
                        under_way = under_way.saturating_sub(bytes);
                        continue;
                    }
                    Heard::Nothing => continue,
                    Heard::Exited(code) => break code,
                },
            };
            if done > 0 {
                unread = unread.saturating_sub(done);
                self.say(FromClient::Taken { bytes: done as u64 })?;
            }
        };
        self.keeper.finish(code).await;
        Ok(Exit::of_command(code))
    }

    /// What a message means.
    fn hear(
        &self,
        message: std::result::Result<Option<std::result::Result<Message, Error>>, Elapsed>,
    ) -> Result<Heard> {
        let message = match message {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return Err(broken(&words(&error))),
            Ok(None) => return Err(broken("the node ended it")),
            Err(_) => return Err(broken(&format!("nothing was heard for {} s", SILENT.as_secs()))),
        };
        let unknown = || broken("the node said what is not understood");
        match message {
            Message::Binary(data) => {
                let (stream, output) = OutputStream::split(&data).ok_or_else(unknown)?;
                Ok(Heard::Output(stream, data.slice_ref(output)))
            }
            Message::Text(text) => match serde_json::from_str(&text).map_err(|_| unknown())? {
                FromNode::Taken { bytes } => Ok(Heard::Taken(usize::try_from(bytes).unwrap_or(usize::MAX))),
                FromNode::Exited { code } => Ok(Heard::Exited(code)),
                FromNode::Failed(problem) => Err(problem.into()),
            },
            Message::Close(_) => Err(broken("the node ended it")),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Heard::Nothing),
        }
    }

    fn say(&self, what: FromClient) -> Result<()> {
        self.send(Message::text(serde_json::to_string(&what).unwrap_or_default()))
    }

    fn send(&self, message: Message) -> Result<()> {
        self.said.try_send(message).map_err(|_| broken("the node takes nothing any more"))
    }
}

/// What the node said.
enum Heard {
    Output(OutputStream, Bytes),
    Taken(usize),
    Exited(u32),
    Nothing,
}

fn words(error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => "the node ended it".to_owned(),
        other => other.to_string(),
    }
}

fn broken(why: &str) -> Failure {
    Failure::new(Exit::Unreachable, "broken-session", format!("the command was cut off: {why}"))
        .advice("it is ended in its container; run it again, and see `hivemind nodes`")
}
