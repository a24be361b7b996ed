//! Work that may wait for a disk or a resolver, on a thread of its own.
//!
//! Refuses: panicking when no thread is to be had, as the runtime's pool does; and threads
//! without number: each may hang for as long as a dead disk likes.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

/// Most such threads at once.
const THREADS_MAX: usize = 256;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// One of `THREADS_MAX`.
struct Place;

impl Place {
    fn take() -> io::Result<Place> {
        let more = |count| (count < THREADS_MAX).then_some(count + 1);
        match THREADS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Place),
            Err(_) => Err(io::Error::new(io::ErrorKind::WouldBlock, "too much waits for disks already")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts `work`; what it comes to is told, unless it panics.
///
/// # Errors
/// EAGAIN, ENOMEM: no thread is to be had now. WouldBlock: 256 are under way.
pub fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let place = Place::take()?;
    let (told, answer) = oneshot::channel();
    std::thread::Builder::new().name(name.to_string()).spawn(move || {
        let done = work();
        drop(place);
        let _ = told.send(done); // nobody waits any more
    })?;
    Ok(answer)
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library that panics where it gets no thread. None: it did, which is a shortage like any other.
/// What `call` touched must be fit to be dropped half-made.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    GUARDED.set(true);
    let made = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    made.ok()
}

/// Whether a panic of this thread is `guarded`: for the hook that ends the process with any other.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_panic_is_an_answer_and_the_guard_ends_with_it() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_guarded() {
                hook(panic)
            }
        }));
        assert_eq!(guarded(|| -> u8 { panic!("no thread") }), None);
        assert_eq!((guarded(|| 7), is_guarded()), (Some(7), false));
    }

    #[tokio::test]
    async fn work_is_done_aside_and_its_place_is_free_again() {
        for round in 0..2 * THREADS_MAX {
            let answer = aside("test", move || round).expect("a thread");
            assert_eq!(answer.await, Ok(round));
        }
    }
}
