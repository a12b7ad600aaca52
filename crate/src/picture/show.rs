//! Show: a value as text, as HTML, and as a picture.

use super::{Html, Picture};
use crate::progress::TrainSample;

/// A value that people look at: in a terminal, a page, a notebook.
///
/// ```
/// use cltlab::prelude::*;
/// struct Mean(f64);
/// impl Show for Mean {
///     fn text(&self) -> String {
///         format!("mean {:.2}", self.0)
///     }
/// }
/// assert!(Mean(0.5).html().as_str().contains("mean 0.50"));
/// ```
pub trait Show {
    /// In words, for those who see no HTML.
    fn text(&self) -> String;

    /// As HTML without scripts, readable on a light and on a dark page. By default the text.
    fn html(&self) -> Html {
        Html::passage(&self.text())
    }

    /// As a picture, where there is one.
    fn picture(&self) -> Option<Picture> {
        None
    }

    /// The last step of a training of which this shows the curves: the live ones in the same cell give way.
    #[doc(hidden)]
    fn curves_until(&self) -> Option<&TrainSample> {
        None
    }
}

impl<T: Show + ?Sized> Show for &T {
    fn text(&self) -> String {
        (**self).text()
    }

    fn html(&self) -> Html {
        (**self).html()
    }

    fn picture(&self) -> Option<Picture> {
        (**self).picture()
    }

    fn curves_until(&self) -> Option<&TrainSample> {
        (**self).curves_until()
    }
}

impl Show for Picture {
    fn text(&self) -> String {
        self.to_string()
    }

    fn html(&self) -> Html {
        self.image()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.clone())
    }
}
