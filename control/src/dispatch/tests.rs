//! The pure cores by scenarios, the shell over a real stream.

mod acknowledged;
mod assigned;
mod heard;
mod observed;
mod overlay;
mod shell;
