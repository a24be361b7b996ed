//! The list of promises on the whole trace, with the numbers that the docs and tests print.
//!
//! Refuses: the checks themselves (`oracle`, `books`).

/// Every promise that the oracle watches (the engine's own `E…` come on top).
pub const PROMISES: [&str; 28] = [
    "I1 never two living main processes of a unit",
    "I2 no new attempt while anything of an older one lives",
    "I4 an answer comes after its commit, once for each order",
    "I5 a unit is spawned only when all that it requires is ready",
    "I7 a shutdown stops followers first",
    "I9 no restart earlier than its delay",
    "I9b a due restart is not forgotten",
    "I11 failures count up by one, and start over only with a new episode",
    "I12 every unexpected end is recorded once",
    "I12b no failure is recorded of a process that lives",
    "I16 a run is forgotten only when it ended and its failure is committed",
    "I20 an operator's stop holds",
    "I21 SIGKILL only after the full grace",
    "I21b stuck means that SIGKILL was sent",
    "I22 signals go only to runs of the table",
    "I23 news of unknown runs changes nothing",
    "I29 a reread of the same files does nothing",
    "I32 effects of a step are bounded",
    "I33 no more than 6 starts a minute with the delays 5, 10, 15",
    "I34 no more starts at once than the cap",
    "I35 a shutdown ends in bounded time, and nothing starts in it",
    "I44 with faults gone, whatever is wanted stands in bounded time",
    "I46 with faults gone, the engine comes to rest",
    "S1 active means ready, degraded means that a requirement is not",
    "I5b conflicting units never live together",
    "S2 every state shows a reason",
    "I48 active again after a failure is one recovery",
    "I49 a readiness that an engine heard is not waited for by the next one",
];
