//! Decisions, tried without a cluster: tables of single worlds, and a small cluster in memory that carries decisions out.

mod decisions;
mod durability;
mod failover;
mod fixtures;
mod leave;
mod objects;
mod restores;
mod simulation;
mod standby;
mod statuses;
