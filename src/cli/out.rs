//! Standard output that takes a closed pipe for what it is: the reader has seen enough.
//!
//! Refuses: panicking on EPIPE, as `println!` does (reliability F8).

use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;

/// A buffered writer. `write` breaks when nobody reads any more.
pub struct Out {
    inner: BufWriter<Box<dyn Write>>,
    gone: bool,
}

impl Out {
    pub fn stdout() -> Out {
        Out::over(Box::new(io::stdout()))
    }

    pub fn over(inner: Box<dyn Write>) -> Out {
        Out { inner: BufWriter::new(inner), gone: false }
    }

    /// Text as it is; whoever made it has escaped what came from outside.
    ///
    /// # Errors
    /// The disk behind stdout is full, or such. A closed pipe is no error.
    pub fn write(&mut self, text: &str) -> io::Result<ControlFlow<()>> {
        self.write_bytes(text.as_bytes())
    }

    /// Bytes as a service wrote them, for whoever asked for them raw.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<ControlFlow<()>> {
        let written = self.inner.write_all(bytes);
        self.judge(written)
    }

    /// What was written reaches the reader now: for streams, and before the end.
    ///
    /// # Errors
    /// As `write`.
    pub fn flush(&mut self) -> io::Result<ControlFlow<()>> {
        let flushed = self.inner.flush();
        self.judge(flushed)
    }

    fn judge(&mut self, result: io::Result<()>) -> io::Result<ControlFlow<()>> {
        match result {
            Ok(()) if !self.gone => Ok(ControlFlow::Continue(())),
            Ok(()) => Ok(ControlFlow::Break(())),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(ControlFlow::Break(()))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_ends_the_writing_quietly() {
        let mut out = Out::over(Box::new(Closed));
        assert!(out.write("short").expect("buffered").is_continue());
        assert!(out.flush().expect("no error").is_break());
        assert!(out.write("more").expect("no error").is_break());
    }
}
