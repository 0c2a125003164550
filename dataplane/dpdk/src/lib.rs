//! Safe EAL, port, pool, mbuf and burst over dpdk-sys.
