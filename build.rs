//! Compiles the kernels for a GPU where the feature `cuda` is on, and looks for the C++ compiler that the unit tests
//! run them with on the CPU: without one, `cfg(emulation)` is off and those tests are left out.
//!
//! The recipes of `configs/` are put into the program.
//!
//! `CUDA_COMPUTE_CAP` is the compute capability to make machine code for, 80 (A100) by default, as for candle's kernels;
//! newer GPUs compile the portable form that is added when they load it.

#![allow(clippy::print_stdout, clippy::exit, reason = "this is how a build script speaks to cargo")]

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const DEFAULT_CAPABILITY: &str = "80";
const SOURCE: &str = "src/ops/gpu/kernels.cu";

fn main() {
    write_recipes();
    for path in ["build.rs", "configs", "src/ops", "src/optim/adamw.cu", "src/rollout/sampler.cu"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in ["CUDA_COMPUTE_CAP", "NVCC", "CUDA_HOME", "CXX"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rustc-check-cfg=cfg(emulation)");
    let cxx = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&cxx).arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("cargo::rustc-cfg=emulation");
        println!("cargo::rustc-env=EMULATION_CXX={cxx}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile();
    }
}

/// Lists the files of `configs/` with their contents, as Rust text.
fn write_recipes() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("configs");
    let (mut open, mut entries) = (vec![root.clone()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder of recipes can be read") {
            let path = entry.expect("the folder of recipes can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                let name = path.strip_prefix(&root).expect("it is below").with_extension("");
                let name = name.to_string_lossy().replace('\\', "/");
                entries.push(format!("    ({name:?}, include_str!({:?})),\n", path.display().to_string()));
            }
        }
    }
    entries.sort();
    let text = format!("/// Names and contents.\nconst RECIPES: &[(&str, &str)] = &[\n{}];\n", entries.concat());
    let output = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets it")).join("recipes.rs");
    std::fs::write(output, text).expect("the output folder can be written");
}

fn compile() {
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| DEFAULT_CAPABILITY.to_owned());
    // As candle's build script takes it, "8.9" is 89.
    let capability = capability.replace('.', "");
    if capability.parse::<u32>().is_err() {
        fail(&format!("CUDA_COMPUTE_CAP = {capability:?} is no compute capability such as 89"));
    }
    let output = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.fatbin");
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-o"]).args([&output, Path::new(SOURCE)]);
    for code in ["sm", "compute"] {
        command.arg(format!("-gencode=arch=compute_{capability},code={code}_{capability}"));
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("{} ended with {status} on {SOURCE}", nvcc.display())),
        Err(error) => fail(&format!(
            "{} could not be run ({error}). Install the CUDA toolkit (scripts/install_cuda.sh) and set CUDA_HOME, or \
             build without --features cuda",
            nvcc.display()
        )),
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    match std::env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => "nvcc".into(),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
