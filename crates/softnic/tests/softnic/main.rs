//! SoftNIC as its users see it: through `Function` alone, with a small driver of the tests' own.

mod driver;
mod frames;

mod admin;
mod faults;
mod hostile;
mod legacy;
mod lifecycle;
mod traffic;
mod uplink;
