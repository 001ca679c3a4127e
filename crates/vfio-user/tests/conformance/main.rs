//! The protocol, command by command, against a served device whose function records its requests.

mod client_loss;
mod connection;
mod control;
mod device;
mod dma;
mod fixture;
mod independent;
mod info;
mod io_fds;
mod irqs;
mod order;
mod qemu;
mod regions;
mod remote_memory;
mod socket_file;
