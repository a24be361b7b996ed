//! Servers that mean ill, on a thread and a runtime of their own, so that what they use is not
//! mistaken for the probes'.
//!
//! Refuses: fixed ports, and judging what a probe says of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use upright::base::check::{Endpoint, HostPort};

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What a server does with each connection.
#[derive(Clone, Debug)]
pub enum Evil {
    /// Reads nothing, says nothing, keeps the connection.
    Silent,
    /// Accepts and closes.
    Closes,
    /// Says this after it was asked, and keeps the connection.
    Says(Vec<u8>),
    SaysAndCloses(Vec<u8>),
    /// Says this before it is asked, and keeps the connection.
    Greets(&'static str),
    /// Says the first, then a byte of the second every second.
    Dribbles(&'static str, &'static str),
    /// Says the first, then the second until nobody takes it.
    Endless(&'static str, &'static str),
}

pub fn says(text: &str) -> Evil {
    Evil::Says(text.as_bytes().to_vec())
}

impl Evil {
    async fn act(self, mut stream: Box<dyn Stream>) {
        let mut asked = [0; 1024];
        let _ = match &self {
            Evil::Silent => Ok(()),
            Evil::Closes => return,
            Evil::Says(answer) | Evil::SaysAndCloses(answer) => {
                let _ = stream.read(&mut asked).await; // what is asked does not matter
                stream.write_all(answer).await
            }
            Evil::Greets(words) => stream.write_all(words.as_bytes()).await,
            Evil::Dribbles(begin, then) => {
                let _ = stream.read(&mut asked).await; // the same
                dribble(&mut stream, begin, then).await
            }
            Evil::Endless(begin, more) => {
                let _ = stream.read(&mut asked).await; // the same
                flood(&mut stream, begin, more).await
            }
        }; // the probe may have gone
        if matches!(self, Evil::SaysAndCloses(_)) {
            let _ = stream.shutdown().await; // the same
        }
        // Until the other side closes.
        while matches!(stream.read(&mut asked).await, Ok(size) if size > 0) {}
    }
}

async fn dribble(stream: &mut Box<dyn Stream>, begin: &str, then: &str) -> std::io::Result<()> {
    stream.write_all(begin.as_bytes()).await?;
    for byte in then.bytes().cycle() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stream.write_all(&[byte]).await?;
    }
    Ok(())
}

async fn flood(stream: &mut Box<dyn Stream>, begin: &str, more: &str) -> std::io::Result<()> {
    stream.write_all(begin.as_bytes()).await?;
    let block = more.repeat(16 * 1024 / more.len());
    loop {
        stream.write_all(block.as_bytes()).await?;
    }
}

/// Connections accepted, and those that the other side has closed.
#[derive(Debug, Default)]
struct Count {
    accepted: AtomicUsize,
    ended: AtomicUsize,
}

/// Servers in a thread of their own; all that they hold is closed when this is dropped.
pub struct Servers {
    ends: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    count: Arc<Count>,
    dir: tempfile::TempDir,
    pub at: Vec<Endpoint>,
}

impl Servers {
    /// One a kind, on TCP.
    pub fn tcp(kinds: Vec<Evil>) -> Servers {
        Servers::start(kinds, |_| None)
    }

    /// One a kind, on a Unix socket.
    pub fn unix(kinds: Vec<Evil>) -> Servers {
        Servers::start(kinds, |path| Some(path.to_owned()))
    }

    fn start(kinds: Vec<Evil>, place: fn(&Path) -> Option<PathBuf>) -> Servers {
        let dir = tempfile::tempdir().expect("a directory");
        let places: Vec<_> = (0..kinds.len()).map(|at| place(&dir.path().join(at.to_string()))).collect();
        let (ends, ended) = oneshot::channel();
        let (bound, bounds) = mpsc::channel();
        let count = Arc::new(Count::default());
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut serving = JoinSet::new();
                for (kind, place) in kinds.into_iter().zip(places) {
                    let counted = Arc::clone(&counted);
                    match place {
                        None => {
                            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
                            let port = listener.local_addr().expect("address").port();
                            let at = HostPort { host: "127.0.0.1".to_string(), port };
                            bound.send(Endpoint::Tcp(at)).expect("the test waits");
                            serving.spawn(async move {
                                while let Ok((stream, _)) = listener.accept().await {
                                    serve(kind.clone(), Box::new(stream), &counted);
                                }
                            });
                        }
                        Some(path) => {
                            let listener = UnixListener::bind(&path).expect("bind");
                            bound.send(Endpoint::Unix(path)).expect("the test waits");
                            serving.spawn(async move {
                                while let Ok((stream, _)) = listener.accept().await {
                                    serve(kind.clone(), Box::new(stream), &counted);
                                }
                            });
                        }
                    }
                }
                drop(bound);
                let _ = ended.await; // dropped is ended, too
            });
        });
        let at = bounds.iter().collect();
        Servers { ends: Some(ends), thread: Some(thread), count, dir, at }
    }

    /// Waits until every connection was closed by the probes' side.
    pub fn await_closed(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let accepted = self.count.accepted.load(Ordering::SeqCst);
            let ended = self.count.ended.load(Ordering::SeqCst);
            if accepted == ended {
                return;
            }
            assert!(Instant::now() < deadline, "{ended} of {accepted} connections are closed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn serve(kind: Evil, stream: Box<dyn Stream>, count: &Arc<Count>) {
    count.accepted.fetch_add(1, Ordering::SeqCst);
    let count = Arc::clone(count);
    tokio::spawn(async move {
        kind.act(stream).await;
        count.ended.fetch_add(1, Ordering::SeqCst);
    });
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.ends.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the servers end");
        }
        assert!(self.dir.path().exists());
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}
