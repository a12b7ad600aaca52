//! Places as text, for the command line and notebook parameters: a feature's id, where slices may stand for the
//! position as in Python: `0_605_7`, `0_605_2:5`, `0_605_4:`, `0_605_:5`, `0_605_:`.

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

impl std::fmt::Display for Positions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Positions::At(position) => write!(f, "{position}"),
            Positions::Range { start, end } => write!(f, "{start}:{end}"),
            Positions::From(start) => write!(f, "{start}:"),
            Positions::All => f.write_str(":"),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    /// ```
    /// use cltlab::intervene::{Place, Positions};
    /// let place: Place = "3_120_2:5".parse()?;
    /// assert_eq!(place, Place::from((3, 120, Positions::Range { start: 2, end: 5 })));
    /// assert_eq!(place.to_string(), "3_120_2:5");
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` for anything but `layer_feature_positions`.
    fn from_str(text: &str) -> Result<Self> {
        const FORM: &str = "layer_feature_position or layer_feature_slice, for instance 0_605_7 or 0_605_2:5";
        let parts: Vec<&str> = text.trim().split('_').collect();
        let [layer, feature, positions] = parts[..] else {
            let error = refused("feature", text, FORM);
            return Err(match text.split(',').collect::<Vec<_>>()[..] {
                [layer, positions, feature] => error.help(format!("write {}_{}_{}", layer.trim(), feature.trim(), positions.trim())),
                _ => error,
            });
        };
        let number = |part: &str| part.parse::<usize>().map_err(|_| refused("feature", text, FORM));
        Ok(Place { layer: number(layer)?, positions: positions.parse()?, feature: number(feature)? })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}", self.layer, self.feature, self.positions)
    }
}

fn refused(field: &str, text: &str, expected: &str) -> Error {
    Error::expected(ErrorKind::BadInput, format_args!("intervention: {field}"), format_args!("'{text}'"), expected)
}
