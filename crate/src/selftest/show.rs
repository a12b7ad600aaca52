//! How self-tests and a device's limits are shown.

use super::{Ceilings, Check, SelfTest};
use crate::picture::html::{row, Align};
use crate::picture::{Html, Show};

impl Show for SelfTest {
    fn text(&self) -> String {
        self.to_string()
    }

    /// The checks as a table.
    fn html(&self) -> Html {
        let columns = [("", Align::Left), ("compared", Align::Left), ("deviation", Align::Right), ("allowed", Align::Right)];
        let row = |check: &Check| {
            let verdict = if check.passed() { "ok" } else { "FAILED" };
            row![verdict, check.name.as_str(), format!("{:.1e}", check.deviation), format!("{:.0e}", check.bound)]
        };
        Html::join([Html::from(format!("Self-test of {}", self.device)).block(), Html::table(&columns, self.checks.iter().map(row))])
    }
}

impl Show for Ceilings {
    fn text(&self) -> String {
        self.to_string()
    }
}
