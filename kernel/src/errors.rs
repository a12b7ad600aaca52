//! Errors of a cell, as Jupyter shows them: a name, a value, a readable traceback.

use evcxr::{CompilationError, Error};
use std::fmt::Write;

/// How a cell failed.
pub struct Failure {
    /// Short kind: `CompileError`, `Error`, `Panic`, `ChildLost`.
    pub name: &'static str,
    /// One line.
    pub value: String,
    /// Lines for people.
    pub traceback: Vec<String>,
}

const RED: &str = "\u{1b}[31;1m";
const BLUE: &str = "\u{1b}[34;1m";
const PLAIN: &str = "\u{1b}[0m";

impl Failure {
    /// A failure whose traceback is its text.
    pub fn new(name: &'static str, lines: Vec<String>) -> Self {
        let value = lines.iter().find(|line| !line.trim().is_empty()).cloned().unwrap_or_else(|| name.to_string());
        Failure { name, value, traceback: lines }
    }

    /// A cell that compiled and then panicked or returned an error by `?`.
    pub fn at_run_time(kind: &str, stderr: Vec<String>) -> Self {
        let name = if kind == "panic" { "Panic" } else { "Error" };
        let mut lines = stderr;
        if lines.is_empty() {
            lines.push("the cell failed without a message".to_string());
        }
        let mut failure = Failure::new(name, lines);
        failure.traceback[0] = format!("{RED}{name}{PLAIN}: {}", failure.traceback[0]);
        failure.traceback.push("Variables of earlier cells are kept; those that this cell defined are not.".to_string());
        failure
    }

    /// What evcxr returned instead of outputs. `source` is the cell's code.
    pub fn from_evcxr(error: Error, source: &str) -> Self {
        match error {
            Error::CompilationErrors(errors) => {
                let mut lines: Vec<String> = Vec::new();
                for error in &errors {
                    lines.extend(compile_error(error, source).lines().map(str::to_string));
                    lines.push(String::new());
                }
                let mut failure = Failure::new("CompileError", lines);
                failure.value = errors.first().map_or_else(|| "the cell does not compile".to_string(), CompilationError::message);
                failure
            }
            Error::TypeRedefinedVariablesLost(names) => {
                Failure::new("Error", vec![format!("A type was defined anew, so these variables are lost: {}", names.join(", "))])
            }
            Error::Message(text) | Error::SubprocessTerminated(text) => Failure::new("Error", text.lines().map(str::to_string).collect()),
        }
    }
}

/// The compiler's message, with the line of the cell and the place in it marked.
fn compile_error(error: &CompilationError, source: &str) -> String {
    let code = error.code().map(|code| format!("[{code}]")).unwrap_or_default();
    let mut out = format!("{RED}error{code}{PLAIN}: {}\n", error.message());
    let lines: Vec<&str> = source.lines().collect();
    for message in error.spanned_messages().iter().chain(error.help_spanned()) {
        let Some(span) = message.span else {
            if !message.label.is_empty() {
                let _ = writeln!(out, "  {BLUE}={PLAIN} {}", message.label);
            }
            continue;
        };
        let Some(text) = span.start_line.checked_sub(1).and_then(|index| lines.get(index)) else { continue };
        let number = span.start_line.to_string();
        let gap = " ".repeat(number.len());
        let last = if span.end_line == span.start_line { span.end_column } else { text.chars().count() + 1 };
        let marks = "^".repeat(last.saturating_sub(span.start_column).max(1));
        let before = " ".repeat(span.start_column.saturating_sub(1));
        let _ = writeln!(out, "{gap}{BLUE}--> line {number}{PLAIN}");
        let _ = writeln!(out, "{BLUE}{number} |{PLAIN} {text}");
        let _ = writeln!(out, "{BLUE}{gap} |{PLAIN} {before}{RED}{marks}{PLAIN} {}", message.label);
    }
    for help in error.help() {
        let _ = writeln!(out, "  {BLUE}= help:{PLAIN} {}", help.replace("\n\n", ": ").replace('\n', " "));
    }
    if let Some(hint) = error.evcxr_extra_hint() {
        let _ = writeln!(out, "  {BLUE}= note:{PLAIN} {hint}");
    }
    out
}
