//! Display: how values are shown in a notebook, a cell's closing value and any other.
//!
//! evcxr calls `evcxr_display` of a cell's closing value, which prints content blocks on stdout:
//!
//! ```text
//! EVCXR_BEGIN_CONTENT text/html
//! ...
//! EVCXR_END_CONTENT
//! ```
//!
//! The library's values print themselves so, as HTML and as text; lists, tensors and values of a cell's own types that
//! have [`Show`] do with [`display`].

use super::channel;
use super::live;
use crate::clt::{Clt, Format};
use crate::environment;
use crate::eval::Report;
use crate::graph::{Graph, GraphDifference, MergedGraph, QkAttribution};
use crate::intervene::{EdgeCheck, Effect, SupernodeCheck};
use crate::model::{Generation, Model, Run, Summary};
use crate::picture::{Picture, Show};
use crate::selftest::{Ceilings, SelfTest};
use crate::states::{StateFeatures, SwapCheck};
use crate::train::{History, Plan};
use std::io::Write;

/// Inherent methods, not those of a trait: where any trait has a method of this name, `let n = 1; n` does not compile,
/// because evcxr tries the method on a number whose type is still open (E0689), and takes no other way then.
macro_rules! displayed {
    ($($of:ty),* $(,)?) => {
        $(impl $of {
            /// Shows the value as the cell's own: evcxr calls it for a cell that ends with one.
            #[doc(hidden)]
            pub fn evcxr_display(&self) {
                closing(self);
            }
        })*
    };
}

displayed!(
    Ceilings, Clt, EdgeCheck, Effect, Format, Generation, Graph, GraphDifference, History, MergedGraph, Model, Picture, Plan, QkAttribution, Report, Run, SelfTest, Summary,
    StateFeatures, SupernodeCheck, SwapCheck,
);

fn closing(value: &dyn Show) {
    live::give_way(value);
    write(&blocks(value.html().as_str(), &value.text()));
}

/// Shows a value now, from anywhere: in a loop, in a function, several in one cell. On the kernel of this project
/// each is shown where it was called. On a stock evcxr kernel, which keeps one output a cell, the last one is
/// shown, after the cell. In a program the text is printed.
///
/// ```
/// use cltlab::prelude::*;
/// for k in [8.0, 16.0] {
///     display(picture::bars(&[("k", k)], &Default::default())?);
/// }
/// # Ok::<(), cltlab::Error>(())
/// ```
pub fn display(value: impl Show) {
    live::give_way(&value);
    let text = value.text();
    if channel::available() {
        channel::show(value.html().as_str(), &text);
    } else if environment::in_evcxr() {
        write(&blocks(value.html().as_str(), &text));
    } else {
        write(&format!("{}\n", plain(&text)));
    }
}

/// One write, so that threads that print cannot tear it apart.
fn write(text: &str) {
    // A closed stdout means that the kernel is gone: nothing can be shown any more.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Without control characters, which a terminal obeys.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// What evcxr reads. The end mark cannot occur inside: in HTML its underscores become
/// references, in text a sign without width is put between. Control characters are dropped from text.
fn blocks(html: &str, text: &str) -> String {
    const END: &str = "EVCXR_END_CONTENT";
    let html = html.replace(END, "EVCXR&#95;END&#95;CONTENT");
    let text = plain(text).replace(END, "EVCXR_END\u{2060}_CONTENT");
    format!("EVCXR_BEGIN_CONTENT text/html\n{html}\n{END}\nEVCXR_BEGIN_CONTENT text/plain\n{text}\n{END}\n")
}
