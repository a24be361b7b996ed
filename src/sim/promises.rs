//! The list of promises on the whole trace, with the numbers that the docs and tests print.
//!
//! Refuses: the checks themselves (`oracle`, `books`).

macro_rules! promises {
    ($($name:ident = $text:literal,)*) => {
        $(pub const $name: &str = $text;)*

        /// Every promise that the oracle watches (the engine's own `E…` come on top).
        pub const ALL: &[&str] = &[$($name),*];
    };
}

promises! {
    I1 = "I1 never two living main processes of a unit",
    I2 = "I2 no new attempt while anything of an older one lives",
    I3 = "I3 every living process belongs to exactly one unit of the engine",
    I4 = "I4 an answer comes after its commit, once for each order",
    I5 = "I5 a unit is spawned only when all that it requires is ready",
    I5B = "I5b conflicting units never live together",
    I6 = "I6 a unit that falls with a requirement is stopped in the step that loses it",
    I7 = "I7 a shutdown stops followers first",
    I9 = "I9 no restart earlier than its delay",
    I9B = "I9b a due restart is not forgotten",
    I10 = "I10 a shifted clock shifts every effect, and changes none",
    I11 = "I11 failures count up by one, and start over only with a new episode",
    I12 = "I12 every unexpected end is recorded once",
    I12B = "I12b no failure is recorded of a process that lives",
    I12C = "I12c a run is forgotten only when it ended and its failure is committed",
    I13 = "I13 an alert row stands exactly for the failures that are due one",
    I14 = "I14 an alert stands in the step, and so in the transaction, of its failure",
    I19 = "I19 an alerted episode that ends has one recovery, another none",
    I20 = "I20 an operator's stop holds",
    I21 = "I21 SIGKILL only after the full grace",
    I21B = "I21b stuck means that SIGKILL was sent",
    I21C = "I21c what is stuck has exactly one alert",
    I22 = "I22 signals go only to runs of the table",
    I23 = "I23 news of unknown runs changes nothing",
    I24 = "I24 no wake-up is lost",
    I25 = "I25 at most one health check at a time",
    I25B = "I25b unhealthy needs its threshold of bad checks in a row, of this run",
    I25C = "I25c what hangs is found within interval x threshold + timeout",
    I26 = "I26 after the last return nothing is owed, or an alert says so",
    I26B = "I26b no resync while a requirement is down",
    I26C = "I26c a resync that was acknowledged is not sent again without a new loss",
    I26D = "I26d a resync that failed for good has an alert",
    I27 = "I27 helper processes are never main, and nothing lives in a unit at rest",
    I28 = "I28 a refused request changes nothing",
    I29 = "I29 a reread of the same files does nothing",
    I30 = "I30 the same tape gives the same effects",
    I31 = "I31 an engine takes over what was committed: order, count, episode",
    I32 = "I32 effects of a step are bounded",
    I33 = "I33 no more than 6 starts a minute with the delays 5, 10, 15",
    I34 = "I34 no more starts at once than the cap",
    I35 = "I35 a shutdown ends in bounded time, and nothing starts in it",
    I39 = "I39 every change of state has its cause in the same step",
    I40 = "I40 a unit that gave up has one alert and is not started until an operator comes",
    I42 = "I42 n deaths in one moment are n failures",
    I43 = "I43 with the store out of order nothing is lost that was said",
    I44 = "I44 with faults gone, whatever is wanted stands in bounded time",
    I46 = "I46 with faults gone, the engine comes to rest",
    I48 = "I48 active again after a failure is one recovery",
    I49 = "I49 a readiness that an engine heard is not waited for by the next one",
    I50 = "I50 a unit in quarantine is left alone until an operator comes",
    S1 = "S1 active means ready, degraded means that a requirement is not",
    S2 = "S2 every state shows a reason",
}
