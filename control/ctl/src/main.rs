//! The culvert command.

fn main() {}
