//! The shared memory between the two processes: SA table, policies, rings, statistics.
