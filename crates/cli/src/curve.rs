//! What a budget costs in accuracy: the stops of a run as points of a curve, in JSON and as a picture in SVG.

use std::fmt::Write;

use serde::Serialize;

/// One stop of a budget.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The stop's name, as `params-0.6`.
    pub name: String,
    /// The share of the budget's measure that might be left.
    pub asked: f64,
    /// The share of it that is left.
    pub left: f64,
    /// Share of the gated parameters that is removed.
    pub removed: f64,
    /// The deciding metric on the first validation set.
    pub score: f64,
    /// Steps made until then.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// The compact model.
    pub compact: String,
    /// The size of its weights.
    pub size_bytes: u64,
}

/// All stops of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The metric of the scores.
    pub metric: String,
    /// The stops, in the order in which the run made them.
    pub points: Vec<Point>,
}

/// Size of the picture and its margins: left, right, top, bottom.
const SIZE: (f64, f64) = (640.0, 400.0);
const MARGINS: (f64, f64, f64, f64) = (70.0, 20.0, 40.0, 50.0);

impl Curve {
    /// The picture: share removed to the right, metric upwards, a dot a stop.
    pub fn to_svg(&self) -> String {
        let (width, height) = SIZE;
        let (left, right, top, bottom) = MARGINS;
        let scores: Vec<f64> = self.points.iter().map(|point| point.score).filter(|score| score.is_finite()).collect();
        let ticks = ticks(&scores);
        let step = if ticks.len() > 1 { ticks[1] - ticks[0] } else { 1.0 };
        let places = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        let x = |removed: f64| left + removed * (width - left - right);
        let y = |score: f64| height - bottom - (score - low) / (high - low) * (height - top - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        let text = |x: f64, y: f64, anchor: &str, content: &str| {
            format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escaped(content))
        };
        let line = |x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
            format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>\n")
        };
        svg.push_str(&text(left, 22.0, "start", &format!("{} by share of gated weights removed", self.metric)));
        for tick in 0..=5 {
            let share = f64::from(tick) / 5.0;
            svg.push_str(&line(x(share), top, x(share), height - bottom, "#dddddd"));
            svg.push_str(&text(x(share), height - bottom + 20.0, "middle", &format!("{:.0} %", share * 100.0)));
        }
        for &tick in &ticks {
            svg.push_str(&line(left, y(tick), width - right, y(tick), "#dddddd"));
            svg.push_str(&text(left - 8.0, y(tick) + 4.0, "end", &format!("{tick:.places$}")));
        }
        svg.push_str(&text(x(0.5), height - 10.0, "middle", "removed"));
        let shown: Vec<&Point> = self.points.iter().filter(|point| point.score.is_finite()).collect();
        let path: Vec<String> =
            shown.iter().map(|point| format!("{:.1},{:.1}", x(point.removed), y(point.score))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in shown {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#1f5fa8\"><title>{}: {:.4}</title></circle>",
                x(point.removed),
                y(point.score),
                escaped(&point.name),
                point.score
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Round numbers around the scores, four to eight of them, evenly apart.
fn ticks(scores: &[f64]) -> Vec<f64> {
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return vec![0.0, 1.0];
    }
    let span = (high - low).max(0.01 * low.abs().max(high.abs())).max(1e-6);
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| span / step <= 6.0);
    let step = step.unwrap_or(span);
    let first = (low / step).floor();
    let count = ((high / step).ceil() - first).clamp(1.0, 10.0) as u32;
    (0..=count).map(|tick| (first + f64::from(tick)) * step).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(scores: &[f64]) -> Curve {
        let point = |(at, &score): (usize, &f64)| Point {
            name: format!("params-{at}<"),
            asked: 0.5,
            left: 0.5,
            removed: 0.1 * at as f64,
            score,
            step: 1,
            epoch: 1.0,
            compact: String::new(),
            size_bytes: 1,
        };
        let points = scores.iter().enumerate().map(point).collect();
        Curve { metric: "accuracy".to_owned(), points }
    }

    #[test]
    fn every_stop_is_a_dot_within_the_picture() {
        for scores in [&[0.81, 0.79, 0.5][..], &[0.8], &[-0.1, 0.2], &[0.0], &[1.7e18], &[]] {
            let svg = curve(scores).to_svg();
            assert_eq!(svg.matches("<circle").count(), scores.len());
            assert!(!svg.contains("params-0<") && !svg.contains("NaN") && svg.ends_with("</svg>\n"), "{svg}");
            for number in svg.split("cy=\"").skip(1) {
                let y: f64 = number.split('"').next().and_then(|number| number.parse().ok()).expect("a number");
                assert!((MARGINS.2..=SIZE.1 - MARGINS.3).contains(&y), "{y}");
            }
        }
    }

    #[test]
    fn ticks_are_few_and_hold_every_score() {
        for scores in [&[0.8, 0.8][..], &[0.5, 0.9], &[0.0, 1.0], &[0.811, 0.8125]] {
            let ticks = ticks(scores);
            assert!((2..=9).contains(&ticks.len()), "{ticks:?}");
            assert!(scores.iter().all(|score| ticks[0] <= *score && *score <= ticks[ticks.len() - 1] + 1e-12));
        }
    }

    #[test]
    fn an_undefined_score_is_left_out_of_the_picture() {
        assert_eq!(curve(&[0.5, f64::NAN]).to_svg().matches("<circle").count(), 1);
    }
}
