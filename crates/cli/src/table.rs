//! Tables of plain text: columns wide enough for their longest cell, the first to the left, the others to the right.

/// A table being built.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Rows that a line is drawn above.
    rules: Vec<usize>,
}

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Table {
        Table { rows: vec![headings.into_iter().map(Into::into).collect()], rules: vec![1] }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Table {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Draws a line above the next row.
    pub fn rule(&mut self) -> &mut Table {
        self.rules.push(self.rows.len());
        self
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            if self.rules.contains(&number) {
                let lines: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
                writeln!(f, "{}", lines.join("  "))?;
            }
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let gap = widths[column] - cell.chars().count();
                match column {
                    0 => line.extend([cell.as_str(), &" ".repeat(gap)]),
                    _ => line.extend(["  ", &" ".repeat(gap), cell]),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Lines of `name  value`, the values aligned.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().collect();
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_their_cells() {
        let mut table = Table::new(["layer", "kept"]);
        table.row(["0", "12 %"]).rule().row(["in all", "7"]);
        assert_eq!(table.to_string(), "layer   kept\n──────  ────\n0       12 %\n──────  ────\nin all     7\n");
    }
}
