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
    pub fn at_run_time(kind: &str, stderr: Vec<String>, place: Option<Place>) -> Self {
        let name = if kind == "panic" { "Panic" } else { "Error" };
        let mut lines = stderr;
        if lines.is_empty() {
            lines.push("the cell failed without a message".to_string());
        }
        let mut failure = Failure::new(name, lines);
        failure.traceback[0] = format!("{RED}{name}{PLAIN}: {}", failure.traceback[0]);
        if let Some(place) = place {
            let number = place.line.to_string();
            failure.traceback.push(format!("{}{BLUE}--> {}, line {number}{PLAIN}", " ".repeat(number.len()), place.cell));
            failure.traceback.push(format!("{BLUE}{number} |{PLAIN} {}", place.text));
        }
        failure.traceback.push("Variables of earlier cells are kept; those that this cell defined are not.".to_string());
        failure
    }

    /// What evcxr returned instead of outputs. `source` is the cell's code.
    pub fn from_evcxr(error: Error, source: &str) -> Self {
        match error {
            Error::CompilationErrors(errors) => {
                let mut lines: Vec<String> = Vec::new();
                for error in &errors {
                    lines.extend(as_cells_name_it(&compile_error(error, source)).lines().map(str::to_string));
                    lines.push(String::new());
                }
                let mut failure = Failure::new("CompileError", lines);
                failure.value = errors.first().map_or_else(|| "the cell does not compile".to_string(), |error| as_cells_name_it(&error.message()));
                failure
            }
            Error::TypeRedefinedVariablesLost(names) => {
                Failure::new("Error", vec![format!("A type was defined anew, so these variables are lost: {}", names.join(", "))])
            }
            Error::Message(text) | Error::SubprocessTerminated(text) => {
                let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
                // cargo names its option, which no cell has given.
                if source.lines().any(|line| line.trim_start().starts_with(":dep")) && text.contains("--offline") {
                    lines.push("The kernel starts without network for cells: put a line :offline 0 above the first :dep, and packages are fetched.".to_string());
                }
                Failure::new("Error", lines)
            }
        }
    }
}

/// The compiler's words with the library under the name that cells know: its own carries the version (kernel/cells).
fn as_cells_name_it(words: &str) -> String {
    words.replace(&format!("cltlab_{}::", env!("CARGO_PKG_VERSION").replace('.', "_")), "cltlab::")
}

/// A line of a cell.
#[derive(Debug, PartialEq)]
pub struct Place {
    /// The cell in words.
    pub cell: String,
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl Place {
    /// The place of line `line` of `source`, which evcxr put together from `cells` (their numbers and codes, newest
    /// first). A cell's text stands in the source as it is, with text of evcxr's between statements: where a line
    /// occurs more than once, the place with the most equal neighbours counts.
    pub fn find<'a>(source: &str, line: usize, cells: impl Iterator<Item = (usize, &'a str)>) -> Option<Place> {
        let made: Vec<&str> = source.lines().map(str::trim).collect();
        let index = line.checked_sub(1).filter(|index| made.get(*index).is_some_and(|text| !text.is_empty()))?;
        let equal = |own: &str, made: &str| !made.is_empty() && (own.trim() == made || (made.len() > 3 && own.contains(made)));
        for (age, (count, code)) in cells.enumerate() {
            let own: Vec<&str> = code.lines().collect();
            let neighbours = |at: usize| {
                let above = (1..=at.min(index)).take_while(|by| equal(own[at - by], made[index - by])).count();
                let below = (1..own.len() - at).take_while(|by| made.get(index + by).is_some_and(|made| equal(own[at + by], made))).count();
                above + below
            };
            let found = (0..own.len()).filter(|at| equal(own[*at], made[index])).max_by_key(|at| (neighbours(*at), std::cmp::Reverse(*at)));
            if let Some(at) = found {
                let cell = if age == 0 { "this cell".to_string() } else { format!("cell [{count}]") };
                return Some(Place { cell, line: at + 1, text: own[at].trim_end().to_string() });
            }
        }
        None
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

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_panic_is_found_in_the_cell_that_holds_its_line() {
        let source = "#![allow(x)]\nfn helper() {\n    panic!(\"a\");\n}\npub extern \"C\" fn run() {\nlet a = 1;\n\nlet b = 2;\npanic!(\"a\")\n}\n";
        let cells = || [(7, "let a = 1;\n\nlet b = 2;\npanic!(\"a\")"), (3, "fn helper() {\n    panic!(\"a\");\n}")].into_iter();
        let place = |cell: &str, line, text: &str| Some(Place { cell: cell.to_string(), line, text: text.to_string() });
        assert_eq!(Place::find(source, 9, cells()), place("this cell", 4, "panic!(\"a\")"));
        assert_eq!(Place::find(source, 3, cells()), place("cell [3]", 2, "    panic!(\"a\");"));
        assert_eq!(Place::find(source, 99, cells()), None);
    }
}
