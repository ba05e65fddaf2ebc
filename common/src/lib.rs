//! The domain and the protocol of Consilium: pure, without clock, socket, runtime or tensor library.
