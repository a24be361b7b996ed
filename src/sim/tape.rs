//! Every choice of a run, by domain: drawn from a seed, recorded, replayed, shortened.
//!
//! Refuses: one stream for all. With a stream a domain, taking a fault out of one does not
//! shift the luck of another, so a failing tape can be shortened.

use crate::base::luck::Luck;

/// Who is choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    Setup,
    Process,
    Delay,
    Store,
    Operator,
    Crash,
    /// What hooks leave behind, and how the run ends.
    Hook,
    /// What an engine dies of.
    Blame,
}

pub const DOMAINS: usize = 8;

/// The choices of one run. Beyond the recorded part of a replayed tape every choice is 0,
/// which by convention is the harmless one.
#[derive(Clone, Debug)]
pub struct Tape {
    streams: [Stream; DOMAINS],
}

#[derive(Clone, Debug)]
struct Stream {
    source: Option<Luck>,
    choices: Vec<u64>,
    at: usize,
}

impl Tape {
    pub fn from_seed(seed: u64) -> Tape {
        let stream = |index: usize| {
            let mut luck = Luck::new(seed ^ (index as u64).wrapping_mul(0x5851_f42d_4c95_7f2d));
            let source = Luck::new(luck.draw());
            Stream { source: Some(source), choices: Vec::new(), at: 0 }
        };
        Tape { streams: std::array::from_fn(stream) }
    }

    pub fn from_choices(choices: [Vec<u64>; DOMAINS]) -> Tape {
        Tape { streams: choices.map(|choices| Stream { source: None, choices, at: 0 }) }
    }

    /// What was chosen so far.
    pub fn choices(&self) -> [Vec<u64>; DOMAINS] {
        std::array::from_fn(|index| self.streams[index].choices[..self.streams[index].at].to_vec())
    }

    /// 0 to `bound - 1`.
    pub fn below(&mut self, domain: Domain, bound: u64) -> u64 {
        let stream = &mut self.streams[domain as usize];
        let raw = match (&mut stream.source, stream.choices.get(stream.at)) {
            (_, Some(choice)) => *choice,
            (Some(luck), None) => {
                let choice = luck.draw() >> 1;
                stream.choices.push(choice);
                choice
            }
            (None, None) => {
                stream.choices.push(0);
                0
            }
        };
        stream.at += 1;
        if bound == 0 { 0 } else { raw % bound }
    }

    /// True about `per_mille` times in 1,000. The harmless choice 0 is false.
    pub fn chance(&mut self, domain: Domain, per_mille: u64) -> bool {
        self.below(domain, 1_000) >= 1_000 - per_mille.min(1_000)
    }

    /// One of `options`; 0 chooses the first.
    pub fn pick<'a, T>(&mut self, domain: Domain, options: &'a [T]) -> &'a T {
        let index = self.below(domain, options.len() as u64) as usize;
        &options[index]
    }
}
