//! argv[0] and the first word → keeper, engine or command line.

fn main() {}
