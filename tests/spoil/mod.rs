//! Ways to spoil a database, each from a seed: what disks, crashes and people do to files.
//!
//! Refuses: the second copies. What becomes of those is tested beside them.
#![allow(dead_code, reason = "each test binary uses its part of this module")]

use std::fs;
use std::path::{Path, PathBuf};

use upright::base::luck::Luck;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    BitAnywhere,
    BitsAnywhere,
    HeaderBits,
    PageTypes,
    WalBits,
    PageOfZeros,
    PagesSwapped,
    Garbage,
    Cut,
    WalCut,
    NoWal,
    NoShm,
    ShmGarbage,
    ForeignWal,
    WalOfNoise,
    Empty,
    Gone,
    Directory,
    NewerSchema,
    ForeignDatabase,
    ValueFlipped,
}

pub const WAYS: [Way; 21] = [
    Way::BitAnywhere,
    Way::BitsAnywhere,
    Way::HeaderBits,
    Way::PageTypes,
    Way::WalBits,
    Way::PageOfZeros,
    Way::PagesSwapped,
    Way::Garbage,
    Way::Cut,
    Way::WalCut,
    Way::NoWal,
    Way::NoShm,
    Way::ShmGarbage,
    Way::ForeignWal,
    Way::WalOfNoise,
    Way::Empty,
    Way::Gone,
    Way::Directory,
    Way::NewerSchema,
    Way::ForeignDatabase,
    Way::ValueFlipped,
];

const PAGE: u64 = 4_096;

fn part(db: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", db.display()))
}

/// Spoils the database at `db`; `other` is a sound database of another home, with its WAL.
pub fn spoil(way: Way, db: &Path, other: &Path, luck: &mut Luck) {
    let wal = part(db, "-wal");
    let shm = part(db, "-shm");
    match way {
        Way::BitAnywhere => flip(&either(db, &wal, luck), 0, u64::MAX, 1, luck),
        Way::BitsAnywhere => {
            let count = 2 + luck.below(200);
            flip(&either(db, &wal, luck), 0, u64::MAX, count, luck);
        }
        Way::HeaderBits => {
            let count = 1 + luck.below(8);
            flip(db, 0, 100, count, luck);
        }
        Way::PageTypes => edit(db, |bytes| {
            let pages = bytes.len() as u64 / PAGE;
            let page = luck.below(pages.max(1));
            let at = if page == 0 { 100 } else { page * PAGE };
            if let Some(byte) = bytes.get_mut(usize::try_from(at).expect("small")) {
                *byte = u8::try_from(luck.below(256)).expect("a byte");
            }
        }),
        Way::WalBits => {
            let count = 1 + luck.below(20);
            flip(&wal, 0, u64::MAX, count, luck);
        }
        Way::PageOfZeros => edit(db, |bytes| {
            let page = usize::try_from(luck.below(bytes.len() as u64 / PAGE + 1) * PAGE).expect("small");
            bytes.iter_mut().skip(page).take(4_096).for_each(|byte| *byte = 0);
        }),
        Way::PagesSwapped => edit(db, |bytes| swap_pages(bytes, luck)),
        Way::Garbage => {
            let len = luck.below(100_000);
            noise(db, len, luck);
        }
        Way::Cut => cut(db, luck),
        Way::WalCut => cut(&wal, luck),
        Way::NoWal => drop(fs::remove_file(&wal)),
        Way::NoShm => drop(fs::remove_file(&shm)),
        Way::ShmGarbage => noise(&shm, 32_768, luck),
        Way::ForeignWal => drop(fs::copy(part(other, "-wal"), &wal).expect("copies")),
        Way::WalOfNoise => {
            let len = luck.below(100_000);
            noise(&wal, len, luck);
        }
        Way::Empty => fs::write(db, []).expect("writes"),
        Way::Gone => fs::remove_file(db).expect("removes"),
        Way::Directory => {
            fs::remove_file(db).expect("removes");
            fs::create_dir(db).expect("makes");
        }
        Way::NewerSchema => edit(db, |bytes| {
            // The header's `user_version`, and no WAL that has the old one.
            if let Some(version) = bytes.get_mut(60..64) {
                version.copy_from_slice(&[0, 0, 3, 231]);
            }
            let _ = fs::remove_file(&wal); // it may not be there
        }),
        Way::ForeignDatabase => {
            fs::copy(other, db).expect("copies");
            fs::copy(part(other, "-wal"), &wal).expect("copies");
        }
        Way::ValueFlipped => edit(db, |bytes| flip_in_text(bytes, luck)),
    }
}

fn swap_pages(bytes: &mut [u8], luck: &mut Luck) {
    let pages = bytes.len() as u64 / PAGE;
    if pages < 3 {
        return;
    }
    let one = usize::try_from((1 + luck.below(pages - 1)) * PAGE).expect("small");
    let two = usize::try_from((1 + luck.below(pages - 1)) * PAGE).expect("small");
    let copy = bytes[one..one + 4_096].to_vec();
    bytes.copy_within(two..two + 4_096, one);
    bytes[two..two + 4_096].copy_from_slice(&copy);
}

/// A bit of what somebody reads: a name, a key, a number in text. SQLite cannot see it.
fn flip_in_text(bytes: &mut [u8], luck: &mut Luck) {
    let words: [&[u8]; 5] = [b"failing", b"down", b"delivered", b"unit-", b"next_run"];
    let word = words[usize::try_from(luck.below(5)).expect("small")];
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(word.len())).filter(|at| bytes[*at..].starts_with(word)).collect();
    if places.is_empty() {
        return;
    }
    let place = places[usize::try_from(luck.below(places.len() as u64)).expect("small")];
    let at = place + usize::try_from(luck.below(word.len() as u64)).expect("small");
    bytes[at] ^= 1 << luck.below(8);
}

fn either(db: &Path, wal: &Path, luck: &mut Luck) -> PathBuf {
    if luck.below(2) == 0 { db.to_path_buf() } else { wal.to_path_buf() }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let Ok(mut bytes) = fs::read(path) else { return };
    change(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

fn flip(path: &Path, from: u64, to: u64, count: u64, luck: &mut Luck) {
    edit(path, |bytes| {
        let end = to.min(bytes.len() as u64);
        for _ in 0..count {
            if end > from {
                let at = usize::try_from(from + luck.below(end - from)).expect("small");
                bytes[at] ^= 1 << luck.below(8);
            }
        }
    });
}

fn cut(path: &Path, luck: &mut Luck) {
    edit(path, |bytes| {
        let len = usize::try_from(luck.below(bytes.len() as u64 + 1)).expect("small");
        bytes.truncate(len);
    });
}

fn noise(path: &Path, len: u64, luck: &mut Luck) {
    let bytes: Vec<u8> = (0..len).map(|_| u8::try_from(luck.below(256)).expect("a byte")).collect();
    fs::write(path, bytes).expect("writes");
}
