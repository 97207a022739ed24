//! Records how the module was built, for `build_info()`.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let set = |key: &str, value: &str| println!("cargo::rustc-env={key}={value}");
    set("YOUNGBIT_RUSTC", version.as_deref().unwrap_or("unknown"));
    set("YOUNGBIT_PROFILE", &env::var("PROFILE").unwrap_or_default());
    set(
        "YOUNGBIT_OPT_LEVEL",
        &env::var("OPT_LEVEL").unwrap_or_default(),
    );
    set("YOUNGBIT_TARGET", &env::var("TARGET").unwrap_or_default());
    println!("cargo::rerun-if-changed=build.rs");
}
