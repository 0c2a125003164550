//! The control socket's types and a small client.
