//! Budgets: what is to be left of a model, in what measure, and what it has left at a moment. How it gets there is [`crate::closing`].

use std::fmt;
use std::str::FromStr;

use finegates_model::Wiring;
use finegates_model::wiring::Role;

use crate::latency::LatencyTable;

/// In what a budget is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Weights of the gated layers.
    Parameters,
    /// Multiply-adds a token of the gated layers and of attention, at the length of the training data.
    MultiplyAdds,
    /// Time of a pass over so many sequences of so many tokens on this machine.
    Latency {
        /// Sequences in the pass.
        sequences: usize,
        /// Tokens of each.
        tokens: usize,
    },
}

/// How much may be left at a stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// A share of the whole model.
    Share(f64),
    /// A time.
    Milliseconds(f64),
}

/// One or several amounts in falling order: a run stops at each, for a model to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// In what it is counted.
    pub measure: Measure,
    /// The stops; at least one.
    pub stops: Vec<Amount>,
}

/// Most tokens of a pass that is timed.
const LARGEST_PASS: usize = 1 << 16;

/// The pass that a latency is meant for where none is named.
const DEFAULT_PASS: (usize, usize) = (1, 32);

impl Default for Budget {
    fn default() -> Budget {
        Budget { measure: Measure::Parameters, stops: vec![Amount::Share(0.6)] }
    }
}

impl Budget {
    /// What a stop's folders are called, as `params-0.6`.
    pub fn stop_name(&self, amount: Amount) -> String {
        format!("{}-{amount}", self.measure)
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let (measure, rest) = text.split_once('=').ok_or_else(|| {
            format!("expected a measure and an amount, as params=0.6, macs=0.5 or latency=3ms@1x32, found {text:?}")
        })?;
        let (amounts, pass) = match rest.split_once('@') {
            Some((amounts, pass)) => (amounts, Some(pass)),
            None => (rest, None),
        };
        let measure = match (measure.trim(), pass) {
            ("params", None) => Measure::Parameters,
            ("macs", None) => Measure::MultiplyAdds,
            ("latency", pass) => {
                let (sequences, tokens) = pass.map_or(Ok(DEFAULT_PASS), pass_size)?;
                Measure::Latency { sequences, tokens }
            }
            ("params" | "macs", Some(_)) => {
                return Err(format!("only a latency is counted for a batch, found {text:?}"));
            }
            (other, _) => return Err(format!("expected params, macs or latency before the =, found {other:?}")),
        };
        let stops: Vec<Amount> =
            amounts.split(',').map(|amount| amount_of(amount.trim(), measure)).collect::<Result<_, _>>()?;
        for pair in stops.windows(2) {
            let falls = match (pair[0], pair[1]) {
                (Amount::Share(first), Amount::Share(second)) => second < first,
                (Amount::Milliseconds(first), Amount::Milliseconds(second)) => second < first,
                _ => return Err(format!("expected all amounts as shares or all in ms, found {text:?}")),
            };
            if !falls {
                return Err(format!("expected every amount to be below the one before it, found {text:?}"));
            }
        }
        Ok(Budget { measure, stops })
    }
}

fn pass_size(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("expected sequences x tokens after the @, as 1x32, found {text:?}");
    let (sequences, tokens) = text.trim().split_once('x').ok_or_else(wrong)?;
    let number =
        |text: &str| text.parse::<usize>().ok().filter(|number| (1..=1 << 16).contains(number)).ok_or_else(wrong);
    let (sequences, tokens) = (number(sequences)?, number(tokens)?);
    match sequences * tokens <= LARGEST_PASS {
        true => Ok((sequences, tokens)),
        false => Err(format!("expected at most {LARGEST_PASS} tokens in all after the @, found {text:?}")),
    }
}

fn amount_of(text: &str, measure: Measure) -> Result<Amount, String> {
    let latency = matches!(measure, Measure::Latency { .. });
    if let Some(milliseconds) = text.strip_suffix("ms").filter(|_| latency) {
        let value = milliseconds.trim().parse::<f64>().ok().filter(|value| (1e-6..1e9).contains(value));
        return value
            .map(Amount::Milliseconds)
            .ok_or_else(|| format!("expected a time above 0 as 3ms, found {text:?}"));
    }
    let value = text.parse::<f64>().ok().filter(|value| (1e-6..=1.0).contains(value));
    let expected =
        if latency { "a share above 0 and at most 1, or a time as 3ms" } else { "a share above 0 and at most 1" };
    value.map(Amount::Share).ok_or_else(|| format!("expected {expected}, found {text:?}"))
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Share(share) => write!(f, "{share}"),
            Amount::Milliseconds(milliseconds) => write!(f, "{milliseconds}ms"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Measure::Parameters => "params",
            Measure::MultiplyAdds => "macs",
            Measure::Latency { .. } => "latency",
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stops: Vec<String> = self.stops.iter().map(Amount::to_string).collect();
        write!(f, "{}={}", self.measure, stops.join(","))?;
        match self.measure {
            Measure::Latency { sequences, tokens } => write!(f, "@{sequences}x{tokens}"),
            _ => Ok(()),
        }
    }
}

/// Rows and columns that live, a number for each projection of a wiring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Rows.
    pub rows: Vec<usize>,
    /// Columns.
    pub columns: Vec<usize>,
}

impl Live {
    /// Everything.
    pub fn whole(wiring: &Wiring) -> Live {
        Live {
            rows: wiring.projections.iter().map(|projection| projection.rows).collect(),
            columns: wiring.projections.iter().map(|projection| projection.columns).collect(),
        }
    }
}

/// How a model's cost follows from what lives.
#[derive(Clone, Debug, PartialEq)]
pub enum Cost {
    /// Weights.
    Parameters,
    /// Multiply-adds a token, with the number of tokens that a token attends to on average.
    MultiplyAdds {
        /// `Σ length² / Σ length` of the training data.
        attended: f64,
    },
    /// Milliseconds, from a table.
    Latency(LatencyTable),
}

impl Cost {
    /// The cost of what lives, in weights, multiply-adds or milliseconds.
    pub fn of(&self, wiring: &Wiring, live: &Live) -> f64 {
        if let Cost::Latency(table) = self {
            return table.milliseconds(wiring, live);
        }
        let attended = if let Cost::MultiplyAdds { attended } = self { *attended } else { 0.0 };
        let products = wiring.projections.iter().enumerate().map(|(index, projection)| {
            let (rows, columns) = (live.rows[index] as f64, live.columns[index] as f64);
            // Scores read every query dimension once for each token attended to, and contexts every value dimension.
            let attention = match projection.role {
                Role::Query => attended * rows,
                Role::AttentionOutput => attended * columns,
                _ => 0.0,
            };
            rows * columns + attention
        });
        products.sum()
    }

    /// Sizes that run well are multiples of this; others are rounded to them.
    pub fn granularity(&self) -> usize {
        match self {
            Cost::Latency(table) => table.granularity,
            Cost::Parameters | Cost::MultiplyAdds { .. } => 1,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_and_written_back() {
        for text in ["params=0.6", "params=0.8,0.6,0.4,0.25", "macs=0.5", "latency=3ms@1x32", "latency=0.6,0.4@16x64"] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        assert_eq!("latency=0.6".parse::<Budget>().unwrap().to_string(), "latency=0.6@1x32");
        assert_eq!("params = 0.8, 0.6".parse::<Budget>().unwrap().to_string(), "params=0.8,0.6");
        assert_eq!(Budget::default().to_string(), "params=0.6");
    }

    #[test]
    fn what_is_no_budget_is_refused_with_what_was_expected() {
        for (text, said) in [
            ("0.6", "expected a measure"),
            ("weights=0.6", "expected params, macs or latency"),
            ("params=60%", "a share above 0"),
            ("params=0", "a share above 0"),
            ("params=1.2", "a share above 0"),
            ("params=nan", "a share above 0"),
            ("params=", "a share above 0"),
            ("params=3ms", "a share above 0"),
            ("params=0.4,0.6", "below the one before"),
            ("params=0.4,0.4", "below the one before"),
            ("params=0.4@1x32", "only a latency"),
            ("latency=3ms,0.5", "all amounts as shares or all in ms"),
            ("latency=-1ms", "a time above 0"),
            ("latency=1e260ms", "a time above 0"),
            ("params=1e-250", "a share above 0"),
            ("latency=3ms@32", "sequences x tokens"),
            ("latency=3ms@0x32", "sequences x tokens"),
            ("latency=3ms@65536x512", "at most 65536 tokens"),
        ] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
