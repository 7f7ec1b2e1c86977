//! The promises, on clusters of the real image. One binary, so that it is linked once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod addresses;
mod clocks;
mod compose;
mod configuration;
mod corruption;
mod cuts;
mod devices;
mod examples;
mod exclusive;
mod exec;
mod failover;
mod faults;
mod firmware;
mod health;
mod images;
mod input;
mod integrity;
mod jobs;
mod joining;
mod networks;
mod nfs;
mod orders;
mod power;
mod releases;
mod revocation;
mod screen;
mod secrets;
mod supervisor;
mod support;
mod upgrade;
mod volumes;
mod workloads;
