//! Receivers of alerts: an HTTP server and an SMTP server, as small as they can be, that are down,
//! refuse, hang, or take a message and lose their answer, by luck from a seed.
//!
//! Refuses: forgetting. Every message that was taken is kept, in order, with its time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// A client that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message as it was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// `POST /path`, or the envelope of a mail.
    pub head: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub at: SystemTime,
    /// The answer was lost: the sender does not know that it was taken.
    pub unanswered: bool,
}

impl Taken {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// What goes wrong, per mille of the messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Down for the first half of each of these times; zero: never.
    pub down_every: Duration,
    pub refuse: u64,
    pub busy: u64,
    pub hang: u64,
    /// Taken, and the connection is reset.
    pub lose_ack: u64,
    /// Taken, and answered with an error.
    pub nack_taken: u64,
}

/// Shared by the threads of one receiver.
struct Shared {
    faults: Mutex<Faults>,
    begun: Instant,
    luck: AtomicU64,
    taken: Mutex<Vec<Taken>>,
    refused: AtomicU64,
    /// Answered to every request instead of 200, when not 0.
    status: AtomicU64,
    ended: AtomicBool,
}

pub struct Receiver {
    pub port: u16,
    shared: Arc<Shared>,
}

enum Fate {
    Take,
    Refuse,
    Busy,
    Hang,
    LoseAck,
    NackTaken,
}

impl Shared {
    fn draw(&self) -> u64 {
        let seed = self.luck.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fate(&self) -> Fate {
        let faults = *self.faults.lock().expect("no thread panicked");
        let dice = self.draw() % 1_000;
        let mut bound = 0;
        let mut falls = |per_mille: u64| {
            bound += per_mille;
            dice < bound
        };
        if falls(faults.refuse) {
            Fate::Refuse
        } else if falls(faults.busy) {
            Fate::Busy
        } else if falls(faults.hang) {
            Fate::Hang
        } else if falls(faults.lose_ack) {
            Fate::LoseAck
        } else if falls(faults.nack_taken) {
            Fate::NackTaken
        } else {
            Fate::Take
        }
    }

    fn is_down(&self) -> bool {
        let every = self.faults.lock().expect("no thread panicked").down_every;
        !every.is_zero() && self.begun.elapsed().as_millis() % every.as_millis() < every.as_millis() / 2
    }

    fn take(&self, mut taken: Taken, unanswered: bool) {
        taken.unanswered = unanswered;
        self.taken.lock().expect("no thread panicked").push(taken);
    }
}

impl Receiver {
    pub fn http(seed: u64, faults: Faults) -> Receiver {
        Receiver::start(seed, faults, serve_http)
    }

    pub fn smtp(seed: u64, faults: Faults) -> Receiver {
        Receiver::start(seed, faults, serve_smtp)
    }

    fn start(seed: u64, faults: Faults, serve: fn(TcpStream, &Shared) -> io::Result<()>) -> Receiver {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Shared {
            faults: Mutex::new(faults),
            begun: Instant::now(),
            luck: AtomicU64::new(seed),
            taken: Mutex::new(Vec::new()),
            refused: AtomicU64::new(0),
            status: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                if of_thread.is_down() {
                    of_thread.refused.fetch_add(1, Ordering::Relaxed);
                    continue; // closed at once
                }
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(PATIENCE)); // it is a TCP stream
                    let _ = serve(stream, &shared); // the daemon may be killed at any moment
                });
            }
        });
        Receiver { port, shared }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// From now on.
    pub fn heal(&self) {
        *self.shared.faults.lock().expect("no thread panicked") = Faults::default();
    }

    /// Answers every request so; 0: as it should.
    pub fn answer(&self, status: u64) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// So far, in the order in which they were taken.
    pub fn taken(&self) -> Vec<Taken> {
        self.shared.taken.lock().expect("no thread panicked").clone()
    }

    /// Messages and connections that were not taken.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the thread that accepts
    }
}

/// Waits until the other side has gone.
fn hang(mut stream: impl Read) {
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|read| read > 0) {}
}

fn serve_http(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    reader.read_line(&mut head)?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_string()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: u64 = length.map_or(0, |(_, value)| value.parse().expect("a length"));
    let mut body = String::new();
    reader.by_ref().take(length).read_to_string(&mut body)?;
    if body.len() as u64 != length {
        return Ok(()); // the daemon was killed while it wrote
    }
    let head = head.trim_end().trim_end_matches(" HTTP/1.1").to_string();
    let taken = Taken { head, headers, body, at: SystemTime::now(), unanswered: false };
    let answer = |stream: &mut TcpStream, text: &str| {
        write!(stream, "HTTP/1.1 {text}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    };
    let status = shared.status.load(Ordering::Relaxed);
    if status != 0 {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return answer(&mut stream, &format!("{status} As Told\r\nLocation: http://127.0.0.1:1/"));
    }
    match shared.fate() {
        Fate::Take => {
            let answered = answer(&mut stream, "200 OK");
            shared.take(taken, answered.is_err());
        }
        Fate::LoseAck => shared.take(taken, true),
        Fate::NackTaken => {
            shared.take(taken, true);
            answer(&mut stream, "500 Sorry")?;
        }
        Fate::Refuse => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            answer(&mut stream, "503 Later")?;
        }
        Fate::Busy => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            answer(&mut stream, "429 Slowly\r\nRetry-After: 1")?;
        }
        Fate::Hang => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            hang(&mut stream);
        }
    }
    Ok(())
}

fn serve_smtp(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.write_all(b"220 test ESMTP\r\n")?;
    let mut envelope = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_string();
        let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => stream.write_all(b"250-test\r\n250 8BITMIME\r\n")?,
            "MAIL" | "RCPT" => {
                envelope.push(line);
                stream.write_all(b"250 ok\r\n")?;
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                let Some(text) = data(&mut reader)? else { return Ok(()) };
                if !take_mail(&mut stream, shared, &envelope, &text)? {
                    return Ok(());
                }
            }
            "QUIT" => return stream.write_all(b"221 bye\r\n"),
            _ => stream.write_all(b"250 ok\r\n")?,
        }
    }
}

/// Up to the lonely dot; none: the sender was killed before.
fn data(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line == ".\r\n" {
            return Ok(Some(text));
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}

/// Whether the connection goes on.
fn take_mail(stream: &mut TcpStream, shared: &Shared, envelope: &[String], text: &str) -> io::Result<bool> {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    let headers = unfolded.lines().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect();
    let body = body.to_string();
    let taken = Taken { head: envelope.join("\n"), headers, body, at: SystemTime::now(), unanswered: false };
    match shared.fate() {
        Fate::Take => {
            let answered = stream.write_all(b"250 taken\r\n");
            shared.take(taken, answered.is_err());
        }
        Fate::LoseAck => {
            shared.take(taken, true);
            return Ok(false);
        }
        Fate::NackTaken => {
            shared.take(taken, true);
            stream.write_all(b"451 sorry\r\n")?;
        }
        Fate::Refuse | Fate::Busy => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            stream.write_all(b"451 later\r\n")?;
        }
        Fate::Hang => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            hang(stream);
            return Ok(false);
        }
    }
    Ok(true)
}
