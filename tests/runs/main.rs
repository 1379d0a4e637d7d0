//! Training and its preparation as processes: configurations, and runs that are killed, signalled and fed with
//! damage.

mod config;
mod crash;
mod early;
mod hostile;
mod logs;
mod mirror;
mod prepare;
mod resume;
mod rows;
mod signals;
