//! The control-plane process: IKE, SA installation, the control socket.

fn main() {}
