//! Namespaces, firewalls and real peers for the demonstration, the tests and the benchmarks.
