// SPDX-License-Identifier: GPL-2.0

//! Asks the kernel's headers for every constant, struct and field that the descriptions name, so that
//! they cannot say what the kernel does not: what a header lacks does not build, and sizes and
//! offsets are compared when the program starts.
//!
//! `XE_DRM_H` and `BINDGEN` are as for vxe-client.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ast::{Argument, Attribute, Definition};

#[path = "src/ast.rs"]
#[allow(dead_code)]
mod ast;
#[path = "src/names.rs"]
mod names;
#[path = "src/parse.rs"]
mod parse;

/// What is included, in this order: of the C library, and of the kernel's `include/uapi`.
const LIBRARY: [&str; 6] =
    ["fcntl.h", "signal.h", "sys/mman.h", "sys/socket.h", "sys/syscall.h", "sys/uio.h"];
const KERNEL: [&str; 4] =
    ["drm/drm.h", "drm/xe_drm.h", "linux/userfaultfd.h", "asm-generic/mman-common.h"];

fn main() {
    println!("cargo:rerun-if-env-changed=XE_DRM_H");
    println!("cargo:rerun-if-env-changed=BINDGEN");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=descriptions");
    println!("cargo:rerun-if-changed=src/ast.rs");
    println!("cargo:rerun-if-changed=src/names.rs");
    println!("cargo:rerun-if-changed=src/parse.rs");

    let header = env::var("XE_DRM_H")
        .expect("XE_DRM_H must be the path of the kernel's include/uapi/drm/xe_drm.h");
    println!("cargo:rerun-if-changed={header}");
    let uapi = Path::new(&header).parent().and_then(Path::parent).expect("a path like that");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let definitions = definitions();
    let mut constants = BTreeSet::new();
    for definition in &definitions {
        names::constants(definition, &mut |name| {
            constants.insert(name.to_owned());
        });
    }
    let mut names = Names::default();
    let mut tables = String::from("pub static CONSTANTS: &[(&str, u64)] = &[\n");
    for name in &constants {
        writeln!(tables, "    ({name:?}, {}),", names.ask(name)).unwrap();
    }
    tables.push_str("];\n\npub static STRUCTS: &[Struct] = &[\n");
    for definition in &definitions {
        let Some(name) = c_struct(definition) else { continue };
        let ast::Definition::Record { name: ours, fields, .. } = definition else { continue };
        let size = names.ask(&format!("sizeof(struct {name})"));
        write!(tables, "    Struct {{ name: {ours:?}, size: {size}, fields: &[").unwrap();
        for field in fields.iter().map(|f| f.name.as_str()).filter(|f| !f.starts_with('_')) {
            let offset = names.ask(&format!("__builtin_offsetof(struct {name}, {field})"));
            let size = names.ask(&format!("sizeof(((struct {name} *)0)->{field})"));
            write!(tables, "({field:?}, {offset}, {size}), ").unwrap();
        }
        tables.push_str("] },\n");
    }
    tables.push_str("];\n");
    let answers = names.answers(&out.join("names.h"), uapi);
    fs::write(out.join("header.rs"), fill_in(&tables, &answers)).unwrap();
}

/// Expressions of C whose values are wanted.
#[derive(Default)]
struct Names {
    c: String,
    count: usize,
}

impl Names {
    /// Asks for the value of an expression; gives what stands for it.
    fn ask(&mut self, expression: &str) -> String {
        let number = self.count;
        self.count += 1;
        // bindgen does not evaluate macros with casts, nor what needs the highest bit: two halves.
        for (half, shift) in [("LOW", 0), ("HIGH", 32)] {
            writeln!(
                self.c,
                "static const unsigned {half}_{number} = (unsigned)((unsigned long)({expression}) >> {shift});"
            )
            .unwrap();
        }
        format!("@{number}@")
    }

    /// The values, in the order of the questions.
    fn answers(&self, file: &Path, uapi: &Path) -> Vec<u64> {
        let mut c = String::from("#define _GNU_SOURCE\n");
        for file in LIBRARY {
            writeln!(c, "#include <{file}>").unwrap();
        }
        for file in KERNEL {
            writeln!(c, "#include \"{}\"", uapi.join(file).display()).unwrap();
        }
        fs::write(file, c + &self.c).unwrap();
        let bindings = bindgen(file, uapi);
        let value = |name: String| -> u64 {
            let after = bindings.split(&format!("const {name}:")).nth(1);
            let value = after.and_then(|text| text.split('=').nth(1)?.split(';').next());
            value.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
                panic!("{}: {name} has no value that bindgen can tell", file.display())
            })
        };
        (0..self.count)
            .map(|n| (value(format!("HIGH_{n}")) << 32) | value(format!("LOW_{n}")))
            .collect()
    }
}

/// Puts the values where what stands for them is.
fn fill_in(tables: &str, answers: &[u64]) -> String {
    let parts = tables.split('@').enumerate();
    parts
        .map(|(i, part)| match i % 2 {
            0 => part.to_owned(),
            _ => answers[part.parse::<usize>().unwrap()].to_string(),
        })
        .collect()
}

fn definitions() -> Vec<ast::Definition> {
    let mut files: Vec<_> =
        fs::read_dir("descriptions").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let parsed = files.iter().flat_map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned().leak();
        let text = fs::read_to_string(path).unwrap();
        parse::parse(name, &text).unwrap_or_else(|e| panic!("descriptions/{e}"))
    });
    parsed.collect()
}

fn bindgen(names: &Path, uapi: &Path) -> String {
    let bindgen = env::var("BINDGEN").unwrap_or_else(|_| "bindgen".into());
    let output = Command::new(&bindgen)
        .arg(names)
        .args(["--use-core", "--allowlist-var", "(LOW|HIGH)_[0-9]+"])
        .args(["--", "-w", "-D__user=", "-D__packed=__attribute__((packed))"])
        // For drm.h of xe_drm.h, and nothing else of theirs.
        .arg(format!("-I{}", uapi.join("drm").display()))
        .output()
        .unwrap_or_else(|e| panic!("cannot run {bindgen}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{bindgen} failed on {}:\n{errors}", names.display());
    String::from_utf8(output.stdout).unwrap()
}

/// The struct of the headers that a record describes: its own name, or what its attribute `c` says;
/// nothing for those that are no struct of C (`c` without a name, and unions).
fn c_struct(definition: &Definition) -> Option<&str> {
    let Definition::Record { name, union, attributes, .. } = definition else { return None };
    match attributes.iter().find(|a| a.name == "c") {
        Some(Attribute { argument: Some(Argument::Text(name)), .. }) => Some(name),
        Some(_) => None,
        None => (!union).then_some(name),
    }
}
