//! The Hub of the tests as a program, for clients that are not part of them: prints its address, serves until its input
//! ends. `cargo run --release --example hub_server -- TOKEN` lets only that token write; `scripts/check_hub.py` uses it.

#[path = "../tests/support/hub_server/mod.rs"]
mod hub_server;

use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    // Small limits, so that each transfer is used: a file is large from 64 kB on and goes up in parts from 256 kB on.
    let limits = hub_server::Settings { large_from: 1 << 16, part_bytes: 1 << 18, ..Default::default() };
    let hub = hub_server::Hub::start(hub_server::Settings { token: std::env::args().nth(1), ..limits });
    writeln!(std::io::stdout(), "{}", hub.endpoint)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
