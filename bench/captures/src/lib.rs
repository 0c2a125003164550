//! Sessions between real peers, with all keys, as known answers for tests.
