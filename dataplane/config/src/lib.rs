//! The [dataplane] section of the configuration, read by both processes.
