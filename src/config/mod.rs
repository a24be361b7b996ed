//! Files on disk → one checked set of units. Where the files are, how they are read safely,
//! and what of them may be used when some are broken.
//!
//! Refuses: writing a file, and waiting for one: a FIFO or a device is refused, not read.

pub mod load;
pub mod merge;
pub mod paths;
pub mod read;

pub use load::{Loaded, load, load_paths};
pub use merge::{Found, Merged, merge};
pub use paths::{Asked, Home, Surroundings};
