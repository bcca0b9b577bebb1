//! Columns that line up, by the rule of Go's text/tabwriter: a cell ends with a tab, and a column
//! is as wide as the widest of its cells in consecutive lines that have it.

/// The layout of one kind of output.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// No column is narrower, its padding included.
    pub min_width: usize,
    /// Spaces behind the widest cell.
    pub padding: usize,
}

/// kubectl's tables.
pub const TABLE: Layout = Layout { min_width: 6, padding: 3 };
/// kubectl's descriptions.
pub const DESCRIBE: Layout = Layout { min_width: 0, padding: 2 };

/// Replaces tabs by spaces so that columns line up. What stands behind a line's last tab is no
/// cell and takes part in no column.
pub fn align(text: &str, layout: Layout) -> String {
    lay_out(text, layout, None)
}

/// The same, with columns at least as wide as those of earlier calls.
pub fn align_remembering(text: &str, layout: Layout, remembered: &mut Vec<usize>) -> String {
    lay_out(text, layout, Some(remembered))
}

fn lay_out(text: &str, layout: Layout, mut remembered: Option<&mut Vec<usize>>) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|l| l.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|l| vec![0; l.len() - 1]).collect();
    let all = 0..lines.len();
    measure(&lines, &mut widths, 0, all, layout, &mut remembered);
    let mut out = String::with_capacity(text.len() * 2);
    for (i, (line, widths)) in lines.iter().zip(&widths).enumerate() {
        if i > 0 {
            out.push('\n');
        }
        for (cell, width) in line.iter().zip(widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        out.push_str(line.last().copied().unwrap_or(""));
    }
    out
}

/// Finds each block of consecutive lines that have this column, then the columns right of it.
fn measure(
    lines: &[Vec<&str>],
    widths: &mut [Vec<usize>],
    column: usize,
    range: std::ops::Range<usize>,
    layout: Layout,
    remembered: &mut Option<&mut Vec<usize>>,
) {
    let mut i = range.start;
    while i < range.end {
        if lines[i].len() <= column + 1 {
            i += 1;
            continue;
        }
        let start = i;
        while i < range.end && lines[i].len() > column + 1 {
            i += 1;
        }
        let widest = lines[start..i].iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
        let mut width = (widest + layout.padding).max(layout.min_width);
        if let Some(remembered) = remembered {
            if remembered.len() <= column {
                remembered.resize(column + 1, 0);
            }
            width = width.max(remembered[column]);
            remembered[column] = width;
        }
        for w in &mut widths[start..i] {
            w[column] = width;
        }
        measure(lines, widths, column + 1, start..i, layout, remembered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_three_spaces_and_no_tail() {
        assert_eq!(align("N\tR\nssa\t2\n", TABLE), "N     R\nssa   2\n");
        assert_eq!(
            align("NAME\tREADY\tAGE\nweb-1234\t0/3\t1s\n", TABLE),
            "NAME       READY   AGE\nweb-1234   0/3     1s\n"
        );
    }

    #[test]
    fn blocks_have_widths_of_their_own() {
        let text = "Name:\tx\nLabels:\ta=b\n\tc=d\nHead\nT\tU\n";
        assert_eq!(align(text, DESCRIBE), "Name:    x\nLabels:  a=b\n         c=d\nHead\nT  U\n");
    }

    #[test]
    fn widths_are_remembered() {
        let mut widths = Vec::new();
        align_remembering("NAME\tX\nlonger-name\ty\n", TABLE, &mut widths);
        assert_eq!(align_remembering("a\tb\n", TABLE, &mut widths), "a             b\n");
    }
}
