//! What services wrote: moved into files byte for byte, and read back as lines.
//!
//! Refuses: why a unit ended, what a line means, and bytes in our memory on the way in: what is
//! in a buffer of ours is lost when we are killed, what is in a pipe or a file is not.

pub mod files;
pub mod index;
pub mod segment;
pub mod spool;
pub mod pack;
pub mod retain;
pub mod stored;
pub mod line;
pub mod scan;
mod seek;
mod mover;
pub mod capture;
pub mod query;
pub mod read;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod read_tests;
#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;

/// Which of its two streams a service wrote to. With `stderr = "merge"` both are `Stdout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The file in `<logs>/<unit>/` that is being written.
    pub fn file_name(self) -> &'static str {
        match self {
            Stream::Stdout => "current.log",
            Stream::Stderr => "stderr.log",
        }
    }

    /// Its index.
    pub fn index_name(self) -> &'static str {
        match self {
            Stream::Stdout => "current.idx",
            Stream::Stderr => "stderr.idx",
        }
    }

    /// The word in the API, and in the names of older files.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}
