//! `candlewick doctor`: what this machine offers a run.

use super::{Failure, print};
use candlewick::recipe::Doctor;
use clap::Args;
use std::fmt::Write;
use std::process::ExitCode;

/// Show what this machine offers: device, threads, memory, Hub cache, token, disk
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  candlewick doctor --json | jq .gpu")]
pub struct DoctorArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let found = Doctor::look();
    let text = if args.json {
        let value = serde_json::to_value(&found).map_err(|error| Failure::Output(error.into()))?;
        format!("{value:#}\n")
    } else {
        table(&found)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(found: &Doctor) -> String {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), gib);
    let memory = |bytes: Option<usize>| known(bytes.map(|bytes| bytes as u64));
    let mut rows = vec![
        ("candlewick", found.version.to_owned()),
        ("device", format!("{} (what `device = \"auto\"` takes)", found.device)),
        ("threads", format!("{}, {} instructions", found.threads, found.instructions)),
        ("free memory", memory(found.memory_bytes)),
    ];
    rows.push((
        "GPU",
        match &found.gpu.problem {
            Some(problem) => problem.clone(),
            None => format!("{} free", memory(found.gpu.memory_bytes)),
        },
    ));
    let offline = if found.hub.offline { ", offline" } else { "" };
    rows.push(("Hub", format!("{}{offline}", found.hub.endpoint)));
    rows.push(("token", if found.hub.token { "present".into() } else { "none (public models need none)".into() }));
    rows.push(("cache", found.hub.cache.display().to_string()));
    for disk in &found.disks {
        rows.push(("free disk", format!("{} in {}", known(disk.free_bytes), disk.folder.display())));
    }
    let mut text = String::new();
    for (name, value) in rows {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<12} {value}");
    }
    text
}
