//! Line charts as inline SVG.
//!
//! Colours and fonts come from the page's style sheet, so one chart serves light, dark and paper. Noisy
//! series are drawn twice: thin as measured, thick as smoothed. Points the eye cannot tell apart are dropped,
//! keeping each column's extremes, so that a spike of one step stays visible among a million.

use std::fmt::Write;

use super::axis::{Scale, number, value_label};
use super::html::escape;
use crate::format::thousands;

/// Space of the drawing in user units; the page scales it to its column.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 38.0;

/// About two points per column of a small screen.
const COLUMNS: usize = 240;
/// From here on a series counts as noisy and gets a smoothed line.
const SMOOTH_FROM: usize = 30;
/// Up to here single points get a dot.
const DOTS_UP_TO: usize = 40;
/// Larger sizes would overflow the scales' arithmetic; they say no more than "not finite" does.
const HUGE: f64 = 1e100;
/// The style sheet has this many colours.
pub(super) const COLOURS: usize = 6;

/// One line chart.
#[derive(Debug, Clone, Default)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) series: Vec<Series>,
    /// Logarithmic vertical axis; ignored when a value is not (or hardly) positive.
    pub(super) log: bool,
    /// Values are fractions, shown as percent.
    pub(super) percent: bool,
    /// What the horizontal axis must hold, for charts that are looked at together; `None`: what is drawn.
    pub(super) x: Option<(f64, f64)>,
    /// The same for the vertical axis.
    pub(super) y: Option<(f64, f64)>,
}

/// One line: a name and points by rising x. Values may be NaN.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Whether a smoothed line may be drawn.
    pub(super) smooth: bool,
}

/// A series cleaned for drawing.
struct Line<'a> {
    name: &'a str,
    raw: Vec<(f64, f64)>,
    smoothed: Option<Vec<(f64, f64)>>,
    broken: Vec<f64>,
    last: f64,
}

impl<'a> Line<'a> {
    fn new(series: &'a Series) -> Self {
        let drawable = |y: f64| y.is_finite() && y.abs() < HUGE;
        let broken = series.points.iter().filter(|p| !drawable(p.1)).map(|p| p.0).collect();
        let good: Vec<(f64, f64)> =
            series.points.iter().copied().filter(|p| drawable(p.1) && p.0.is_finite()).collect();
        let smoothed = (series.smooth && good.len() >= SMOOTH_FROM).then(|| thin(&smooth(&good)));
        let last = series.points.last().map_or(f64::NAN, |p| p.1);
        Self { name: &series.name, raw: thin(&good), smoothed, broken, last }
    }

    /// The line that carries the message: smoothed where there is one.
    fn main(&self) -> &[(f64, f64)] {
        self.smoothed.as_deref().unwrap_or(&self.raw)
    }
}

impl Chart {
    /// The chart as a `<figure>` with title, legend and last values.
    pub(super) fn render(&self) -> String {
        let lines: Vec<Line> = self.series.iter().map(Line::new).collect();
        let mut out = String::from("<figure class=\"chart\"><figcaption>");
        let _ = write!(out, "<b>{}</b>", escape(&self.title));
        for (n, line) in lines.iter().enumerate() {
            // A single series that is called like the chart needs no name.
            let named = lines.len() > 1 || line.name != self.title;
            let name = if named { escape(line.name) } else { "last".to_owned() };
            let last = value_label(line.last, self.percent);
            let key =
                if lines.len() > 1 { format!("<i class=\"c{}\"></i>", n % COLOURS) } else { String::new() };
            let _ = write!(out, " <span>{key}{name} <em>{last}</em></span>");
        }
        out.push_str("</figcaption>");
        if lines.iter().all(|line| line.raw.is_empty()) {
            out.push_str("<p class=\"empty\">No finite values were recorded.</p></figure>\n");
            return out;
        }
        self.draw(&lines, &mut out);
        let broken: usize = lines.iter().map(|line| line.broken.len()).sum();
        if broken > 0 {
            let (values, are) = if broken == 1 { ("value", "is") } else { ("values", "are") };
            let _ = write!(
                out,
                "<p class=\"broken\">{} {values} {are} not finite (marked × on the axis).</p>",
                thousands(broken as u64)
            );
        }
        out.push_str("</figure>\n");
        out
    }

    fn draw(&self, lines: &[Line], out: &mut String) {
        let drawable = |y: &f64| y.is_finite() && y.abs() < HUGE;
        let both = |range: Option<(f64, f64)>| range.into_iter().flat_map(|(low, high)| [low, high]);
        let ys = || {
            lines.iter().flat_map(|line| line.raw.iter().map(|p| p.1)).chain(both(self.y)).filter(drawable)
        };
        let log = self.log && ys().all(|y| y > 1.0 / HUGE);
        let y = Scale::around(ys(), log);
        let all_x = || {
            lines
                .iter()
                .flat_map(|line| line.raw.iter().map(|p| p.0).chain(line.broken.iter().copied()))
                .chain(both(self.x))
        };
        let (first, last) =
            (all_x().fold(f64::INFINITY, f64::min), all_x().fold(f64::NEG_INFINITY, f64::max));
        // Training begins at 0, even though the first record comes a little later.
        let x = Scale::exact(first.min(0.0), last);
        let px = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let py = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - TOP);

        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-c=\"{}\">",
            escape(&self.describe(lines)),
            escape(&self.hover(lines, &px, &py)),
        );
        self.draw_axes(&x, &y, out);
        for (n, line) in lines.iter().enumerate() {
            let colour = n % COLOURS;
            if line.smoothed.is_some() {
                let _ = write!(
                    out,
                    "<path class=\"raw s{colour}\" d=\"{}\"/>",
                    path(&line.raw, &line.broken, &px, &py)
                );
            }
            let _ = write!(
                out,
                "<path class=\"line s{colour}{}\" d=\"{}\"/>",
                // The colours come again, then dashed.
                if n / COLOURS % 2 == 1 { " dashed" } else { "" },
                path(line.main(), &line.broken, &px, &py)
            );
            if line.raw.len() <= DOTS_UP_TO && line.smoothed.is_none() {
                for &(a, b) in &line.raw {
                    let _ = write!(
                        out,
                        "<circle class=\"f{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                        px(a),
                        py(b)
                    );
                }
            }
            // Many marks side by side are one band; a few hundred draw it.
            let every = line.broken.len() / 200 + 1;
            for &at in line.broken.iter().step_by(every) {
                let _ = write!(
                    out,
                    "<text class=\"bad\" x=\"{:.1}\" y=\"{:.1}\">×</text>",
                    px(at),
                    HEIGHT - BOTTOM + 4.0
                );
            }
        }
        out.push_str("<line class=\"cursor\" hidden=\"\"/></svg>");
    }

    fn draw_axes(&self, x: &Scale, y: &Scale, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (tick, label) in y.ticks(4, self.percent) {
            let at = bottom - y.place(tick) * (bottom - TOP);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                LEFT - 8.0,
                at + 4.0,
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"
        );
        for (tick, label) in x.ticks(5, false) {
            // Steps and epochs are whole; a short run must not show step 2.5.
            if tick.fract() != 0.0 {
                continue;
            }
            let at = LEFT + x.place(tick) * (right - LEFT);
            let label = label.trim_end_matches(".0");
            let _ = write!(out, "<text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>", bottom + 17.0);
        }
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{right}\" y=\"{:.1}\">{}{}</text>",
            HEIGHT - 5.0,
            escape(&self.x_label),
            if y.log { " · log scale" } else { "" },
        );
    }

    /// The chart in a sentence, for those who cannot see it.
    fn describe(&self, lines: &[Line]) -> String {
        let mut text = format!("{} by {}:", self.title, self.x_label);
        for line in lines {
            if let (Some(first), Some(last)) = (line.main().first(), line.main().last()) {
                let value = |y| value_label(y, self.percent);
                let _ = write!(
                    text,
                    " {} goes from {} at {} to {} at {};",
                    line.name,
                    value(first.1),
                    number(first.0),
                    value(last.1),
                    number(last.0)
                );
            }
        }
        text.trim_end_matches(';').to_owned()
    }

    /// What the hover script needs: the box, and per series name and points (x, label, position).
    fn hover(&self, lines: &[Line], px: &impl Fn(f64) -> f64, py: &impl Fn(f64) -> f64) -> String {
        let tenth = |v: f64| (v * 10.0).round() / 10.0;
        let series: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| {
                let points: Vec<serde_json::Value> = line
                    .main()
                    .iter()
                    .map(|&(a, b)| {
                        serde_json::json!([tenth(px(a)), tenth(py(b)), a, value_label(b, self.percent)])
                    })
                    .collect();
                serde_json::json!({ "name": line.name, "points": points })
            })
            .collect();
        serde_json::json!({
            "x": self.x_label, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "series": series
        })
        .to_string()
    }
}

/// The line through `points`, interrupted where one of `breaks` (rising) lies between two of them.
fn path(points: &[(f64, f64)], breaks: &[f64], px: &impl Fn(f64) -> f64, py: &impl Fn(f64) -> f64) -> String {
    let mut out = String::new();
    let mut before = None;
    for &(a, b) in points {
        let passed = breaks.partition_point(|at| *at < a);
        let command = if before == Some(passed) { 'L' } else { 'M' };
        before = Some(passed);
        let _ = write!(out, "{command}{:.1} {:.1}", px(a), py(b));
    }
    out
}

/// Exponential moving average over about a fortieth of the series, unbiased at its beginning.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = (points.len() / 40).max(5) as f64;
    let decay = 1.0 - 2.0 / (window + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = decay * sum + (1.0 - decay) * y;
            weight = decay * weight + (1.0 - decay);
            (x, sum / weight)
        })
        .collect()
}

/// At most two points per column: its lowest and its highest, in order. The first and the last point always
/// stay.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let mut out = vec![points[0]];
    let inner = &points[1..points.len() - 1];
    for column in inner.chunks(inner.len().div_ceil(COLUMNS)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = column.iter().min_by(by_value);
        let high = column.iter().max_by(by_value);
        if let (Some(&low), Some(&high)) = (low, high) {
            let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            out.push(first);
            if second != first {
                out.push(second);
            }
        }
    }
    out.push(points[points.len() - 1]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_spikes_and_ends() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[54_321].1 = 99.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= 2 * COLUMNS + 2);
        assert!(thinned.contains(&(54_321.0, 99.0)));
        assert_eq!((thinned[0].0, thinned[thinned.len() - 1].0), (0.0, 99_999.0));
        assert!(thinned.windows(2).all(|w| w[0].0 <= w[1].0));
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        let points: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smooth(&points).iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
    }

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "loss".into(), points, smooth: true }];
        Chart { title: "Loss".into(), x_label: "step".into(), series, log: true, ..Chart::default() }
    }

    #[test]
    fn odd_series_render_without_odd_coordinates() {
        let nan = f64::NAN;
        for points in [
            vec![],
            vec![(0.0, nan)],
            vec![(0.0, 1.0)],
            vec![(0.0, 1.0), (1.0, nan), (2.0, f64::INFINITY), (3.0, 0.5)],
            vec![(0.0, 0.0), (1.0, -1.0)],
            vec![(5.0, 1e308), (6.0, 1e-308)],
        ] {
            let text = chart(points.clone()).render();
            let drawing = text.split("<path").skip(1).collect::<String>();
            assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{points:?}: {text}");
            assert_eq!(text.contains("<svg"), points.iter().any(|p| p.1.abs() < HUGE), "{points:?}");
        }
        assert!(chart(vec![(0.0, 1.0), (1.0, nan)]).render().contains("1 value is not finite"));
        let line = [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0)];
        assert_eq!(path(&line, &[2.0], &|x| x, &|y| y), "M0.0 0.0L1.0 0.0M3.0 0.0", "a gap, not a bridge");
    }
}
