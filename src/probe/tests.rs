//! Probes against servers that misbehave, and against real ones where they are installed.
//!
//! Refuses: fixed ports, and waiting longer than a probe may take.
