//! A web server for one folder, in a lab: as much of one as updates need, and it counts what it sends.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hivemind_qemu::Lab;

/// The server. It ends with the process.
pub struct Web {
    url: String,
    sent: Arc<AtomicU64>,
}

impl Web {
    /// Serves a folder to the machines of a lab.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn serve(lab: &Lab, folder: &Path) -> Self {
        let listening = lab.enter(|| TcpListener::bind((lab.gateway(), 0)));
        let listener =
            listening.unwrap_or_else(|error| panic!("{error}")).unwrap_or_else(|error| panic!("{error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
        let (sent, folder) = (Arc::new(AtomicU64::new(0)), folder.to_owned());
        let counter = Arc::clone(&sent);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (counter, folder) = (Arc::clone(&counter), folder.clone());
                std::thread::spawn(move || serve_client(&client, &folder, &counter));
            }
        });
        Self { url: format!("http://{address}"), sent }
    }

    /// Where the folder is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Bytes of files that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn serve_client(client: &TcpStream, folder: &Path, sent: &AtomicU64) -> io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    loop {
        let Some(request) = lines.next().transpose()? else { return Ok(()) };
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            range = line.strip_prefix("range: bytes=").and_then(parse_range).or(range);
        }
        let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        answer(client, &folder.join(path), range, sent)?;
    }
}

fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim().split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn answer(
    mut client: &TcpStream,
    path: &PathBuf,
    range: Option<(u64, u64)>,
    sent: &AtomicU64,
) -> io::Result<()> {
    let Ok(mut file) = File::open(path) else {
        return client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let size = file.metadata()?.len();
    let (status, first, last) = match range {
        Some((first, last)) => ("206 Partial Content", first, last.min(size - 1)),
        None => ("200 OK", 0, size - 1),
    };
    let bytes = last + 1 - first;
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
    )?;
    file.seek(SeekFrom::Start(first))?;
    sent.fetch_add(io::copy(&mut file.take(bytes), &mut client)?, Ordering::Relaxed);
    Ok(())
}
