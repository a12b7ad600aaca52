//! Places and interventions as text, for the command line and notebook parameters:
//! `layer,positions,feature`, positions as in Python: `7`, `2:5`, `4:`, `:5`, `:`.

use super::{Place, Positions};
use crate::error::{Error, ErrorKind, Result};
use std::str::FromStr;

impl FromStr for Positions {
    type Err = Error;

    /// # Errors
    /// `BadInput` for anything but `7`, `2:5`, `4:`, `:5` or `:`.
    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| refused("positions", text, "a position or a slice: 7, 2:5, 4:, :5 or :"));
        match text.trim().split_once(':') {
            None => Ok(Positions::At(number(text)?)),
            Some(("", "")) => Ok(Positions::All),
            Some((start, "")) => Ok(Positions::From(number(start)?)),
            Some(("", end)) => Ok(Positions::Range { start: 0, end: number(end)? }),
            Some((start, end)) => Ok(Positions::Range { start: number(start)?, end: number(end)? }),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    /// ```
    /// use cltlab::intervene::{Place, Positions};
    /// let place: Place = "3,2:5,120".parse()?;
    /// assert_eq!(place, Place { layer: 3, feature: 120, positions: Positions::Range { start: 2, end: 5 } });
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` for anything but `layer,positions,feature`.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let [layer, positions, feature] = parts[..] else { return Err(refused("place", text, "layer,positions,feature")) };
        let number = |field: &str, part: &str| part.trim().parse::<usize>().map_err(|_| refused(field, text, "a number: layer,positions,feature"));
        Ok(Place { layer: number("layer", layer)?, positions: positions.parse()?, feature: number("feature", feature)? })
    }
}

fn refused(field: &str, text: &str, expected: &str) -> Error {
    Error::expected(ErrorKind::BadInput, format_args!("intervention: {field}"), format_args!("'{text}'"), expected)
}
