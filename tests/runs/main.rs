//! Training and its preparation as processes: configurations, plans, and runs that are killed, signalled and fed with
//! damage.

mod config;
mod crash;
mod hostile;
mod plan;
mod prepare;
mod resume;
mod signals;
