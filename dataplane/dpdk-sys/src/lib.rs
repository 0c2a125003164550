//! Bindings to the distribution's libdpdk, with a shim for its static inline functions.
